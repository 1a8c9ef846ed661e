"""CLIP's byte-pair tokenizer: text to the 49,408 ids that every Stable Diffusion was trained with.

Paper: Sennrich et al. 2016 (arXiv:1508.07909). The vocabulary is OpenAI's (MIT), packed as its merge list;
the ids follow from it (`vocabulary`). The pipeline is the Hugging Face flavour, the one prompts are normally
encoded with: NFC, white space to one blank, lower case, split into words, single digits and runs of other
symbols, bytes, merges. It differs from open_clip only where ftfy or HTML unescaping would change the text
first.

A literal `<|startoftext|>` or `<|endoftext|>` in a prompt becomes that id, as with OpenAI's and Hugging
Face's tokenizers.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib import resources

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import BPEDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Lowercase, Replace, Sequence
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreSequence

BOS = 49406  # <|startoftext|>
EOS = 49407  # <|endoftext|>
CHUNK = 75  # tokens of a prompt that one context of 77 holds between BOS and EOS

WORD = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def byte_values() -> list[int]:
    """All bytes in CLIP's order: those printable in Latin-1 first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return printable + [b for b in range(256) if b not in printable]


def byte_symbols() -> list[str]:
    """The printable stand-in of each byte: itself where printable in Latin-1, else U+0100 and up. This order
    gives the ids, '!' = 0."""
    values = byte_values()
    printable = sum(b in range(33, 127) or b > 160 and b != 173 for b in values)
    return [chr(b) if i < printable else chr(256 + i - printable) for i, b in enumerate(values)]


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(symbol -> id, merges in order of rank): 256 bytes, the same ending a word, 48,894 merges, two special
    tokens."""
    packed = resources.files("minisd").joinpath("assets/clip_merges.txt.gz").read_bytes()
    merges = []
    for line in gzip.decompress(packed).decode("utf-8").split("\n"):
        left, right = line.split(" ")
        merges.append((left, right))
    symbols = byte_symbols()
    names = symbols + [s + "</w>" for s in symbols] + [a + b for a, b in merges]
    names += ["<|startoftext|>", "<|endoftext|>"]
    return {name: i for i, name in enumerate(names)}, merges


@cache
def clip_tokenizer() -> Tokenizer:
    """The `tokenizers` object, built once per process (about 0.1 s). Reading it from several threads is
    safe."""
    ids, merges = vocabulary()
    tokenizer = Tokenizer(
        BPE(
            ids,
            merges,
            unk_token="<|endoftext|>",
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
        )
    )
    tokenizer.normalizer = Sequence([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    tokenizer.pre_tokenizer = PreSequence(
        [Split(Regex(WORD), behavior="removed", invert=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = BPEDecoder(suffix="</w>")
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<|startoftext|>", "<|endoftext|>")]
    )
    return tokenizer


def encode(text: str) -> list[int]:
    """Ids of `text`, without BOS and EOS. Lone surrogates become `?`; any text is accepted."""
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return clip_tokenizer().encode(clean, add_special_tokens=False).ids


@cache
def id_bytes() -> tuple[bytes, ...]:
    """The bytes that each id stands for; one that ends a word has a blank behind it."""
    values = {symbol: value for value, symbol in zip(byte_values(), byte_symbols(), strict=True)}
    names, _ = vocabulary()
    return tuple(
        name.encode() + b" "
        if name.startswith("<|") and name.endswith("|>")
        else bytes(values[c] for c in name.removesuffix("</w>")) + b" " * name.endswith("</w>")
        for name in names
    )


def decode(ids: list[int]) -> str:
    """The text of ids, in lower case, one blank between words; bytes that are no character as U+FFFD."""
    return b"".join(id_bytes()[i] for i in ids).decode("utf-8", "replace").strip()


def chunk(ids: list[int], pad_id: int, *, chunks: int = 1) -> list[list[int]]:
    """Contexts of 77 ids: BOS, 75 of the prompt, EOS, then `pad_id`. Ids beyond `chunks` contexts are
    dropped.

    An empty prompt gives one context. Fewer ids than `chunks` contexts hold are filled with empty contexts,
    so that a short negative prompt can stand beside a long positive one.
    """
    out = []
    for index in range(chunks):
        part = ids[index * CHUNK : (index + 1) * CHUNK]
        out.append([BOS, *part, EOS] + [pad_id] * (CHUNK - len(part)))
    return out

"""A prompt cut into chunks of 75 tokens, each a context of its own for the text encoders.

Cut where the community cuts: at the word BREAK, and where a chunk is full behind its last comma if that lies
no more than 20 tokens back. Learned words (`embeddings.py`) take as many places as they have vectors and stay
in one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minisd.errors import RequestError, quoted
from minisd.text.tokenizer import BOS, CHUNK, EOS, decode, encode
from minisd.text.weights import Span

if TYPE_CHECKING:  # so that counting tokens does not import torch
    from minisd.text.embeddings import Embedding, Names

MAX_CHUNKS = 20  # contexts of 75 tokens; the cost of cross-attention grows with them
COMMA = 267  # its id at the end of a word
BACK = 20  # tokens that a comma may lie back


@dataclass(frozen=True)
class Learned:
    """A learned word of a chunk, at `place` of its 75."""

    place: int
    embedding: Embedding


@dataclass(frozen=True)
class Chunk:
    """At most 75 tokens and the weight of each. Under the vectors of a learned word the ids are 0."""

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    learned: tuple[Learned, ...] = ()

    def row(self, pad_id: int) -> list[int]:
        """The 77 ids that a text encoder is given: BOS, the tokens, EOS, padding."""
        return [BOS, *self.ids, EOS] + [pad_id] * (CHUNK - len(self.ids))

    @property
    def weighted(self) -> bool:
        """Whether a token weighs other than 1."""
        return any(w != 1.0 for w in self.weights)

    def multipliers(self) -> list[float]:
        """Weights of all 77 places; BOS, EOS and padding weigh 1."""
        return [1.0, *self.weights] + [1.0] * (CHUNK + 1 - len(self.weights))

    def runs(self) -> list[tuple[str, float, int]]:
        """(text, weight, tokens) of what stands together with one weight, as it was read: lower case, and
        learned words by their names."""
        names = {item.place: item.embedding for item in self.learned}
        runs: list[tuple[str, float, int]] = []
        start = 0
        while start < len(self.ids):
            end = start + (names[start].length if start in names else 1)
            while start not in names and end < len(self.ids) and end not in names:
                if self.weights[end] != self.weights[start]:
                    break
                end += 1
            text = names[start].name if start in names else decode(list(self.ids[start:end]))
            runs.append((text, self.weights[start], end - start))
            start = end
        return runs


@dataclass(frozen=True)
class Cut:
    """A prompt in chunks, at least one. counted: tokens of the prompt; used: those that its chunks hold."""

    chunks: tuple[Chunk, ...]
    counted: int
    used: int


class Cutter:
    """The chunk that is being filled, and those that are full."""

    def __init__(self, commas: bool) -> None:
        self.commas = commas
        self.done: list[Chunk] = []
        self.ids: list[int] = []
        self.weights: list[float] = []
        self.learned: list[Learned] = []
        self.comma = -1  # place of the last one in this chunk

    def end(self, keep: int | None = None) -> None:
        """Close the chunk after `keep` of its tokens; the others begin the next one."""
        n = len(self.ids) if keep is None else keep
        held = tuple(item for item in self.learned if item.place < n)
        self.done.append(Chunk(tuple(self.ids[:n]), tuple(self.weights[:n]), held))
        self.learned = [Learned(i.place - n, i.embedding) for i in self.learned if i.place >= n]
        self.ids, self.weights, self.comma = self.ids[n:], self.weights[n:], -1

    def room(self, token: int) -> None:
        """Make room for what begins with this token."""
        full = len(self.ids) == CHUNK
        if token == COMMA:
            # noted before there is room for it: a chunk that a comma does not fit into ends where it is full
            self.comma = len(self.ids)
        elif full and self.commas and self.comma != -1 and CHUNK - self.comma <= BACK:
            self.end(self.comma + 1)
        if len(self.ids) == CHUNK:
            self.end()

    def put(self, token: int, weight: float) -> None:
        self.room(token)
        self.ids.append(token)
        self.weights.append(weight)

    def put_learned(self, embedding: Embedding, token: int, weight: float) -> None:
        """token: the first of its name."""
        self.room(token)
        if len(self.ids) + embedding.length > CHUNK:
            self.end()
        self.learned.append(Learned(len(self.ids), embedding))
        self.ids += [0] * embedding.length
        self.weights += [weight] * embedding.length


def cut(
    spans: Sequence[Span],
    *,
    commas: bool = True,
    truncate: bool = False,
    names: Names | None = None,
    field: str = "prompt",
) -> Cut:
    """Spans to chunks.

    commas: move what follows the last comma to the next chunk. truncate: keep the first chunk alone. names:
    learned words to look for. field: named in errors. Raises RequestError beyond MAX_CHUNKS, and for a
    learned word longer than a chunk. Time grows with the length of the prompt.
    """
    cutter = Cutter(commas)
    counted = 0
    for span in spans:
        if span.breaks:
            cutter.end()
            continue
        ids = encode(span.text)
        place = 0
        while place < len(ids):
            found = None if names is None else names.at(ids, place)
            if found is None:
                cutter.put(ids[place], span.weight)
                counted += 1
                place += 1
                continue
            embedding, length = found
            if embedding.length > CHUNK:
                raise RequestError(
                    f"the embedding {quoted(embedding.name)} has {embedding.length} vectors; a chunk of the "
                    f"{field} holds {CHUNK}",
                    field=field,
                )
            cutter.put_learned(embedding, ids[place], span.weight)
            counted += embedding.length
            place += length
    if cutter.ids or not cutter.done:
        cutter.end()
    chunks = cutter.done[:1] if truncate else cutter.done
    if len(chunks) > MAX_CHUNKS:
        raise RequestError(
            f"the {field} has {counted:,} tokens; at most {MAX_CHUNKS * CHUNK:,} are read, in "
            f"{MAX_CHUNKS} chunks, and it takes {len(chunks):,}. Shorten it",
            field=field,
        )
    return Cut(tuple(chunks), counted, sum(len(c.ids) for c in chunks))

"""Textual inversion: a name in a prompt that stands for k vectors of its own (Gal et al. 2022,
arXiv:2208.01618).

A name is looked for among the token ids of a prompt, at the beginning of a word; where several fit, the
longest one counts. Files are read in `weights_loader/embedding_file.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from minisd.errors import CheckpointError, quoted
from minisd.text.tokenizer import encode, vocabulary


@dataclass(frozen=True, eq=False)
class Embedding:
    """A learned word: for each text encoder (by part: "text_encoder", "text_encoder_2") vectors [k, width].

    Raises CheckpointError where encoders would get different numbers of vectors.
    """

    name: str
    vectors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        counts = {part: v.shape[0] if v.ndim == 2 else 0 for part, v in self.vectors.items()}
        if not counts or len(set(counts.values())) != 1 or 0 in counts.values():
            raise CheckpointError(
                f"the embedding {quoted(self.name)} has {counts} vectors for its text encoders; "
                "each encoder must get the same number, at least one"
            )

    @property
    def length(self) -> int:
        """Places of a prompt that it takes."""
        return next(iter(self.vectors.values())).shape[0]


@cache
def word_ends() -> bytes:
    """For each token id 1 if a word ends with it."""
    names, _ = vocabulary()
    return bytes(name.endswith(("</w>", "|>")) for name in names)


class Names:
    """The names of embeddings as token ids, for looking them up in a prompt."""

    def __init__(self, embeddings: Iterable[Embedding]) -> None:
        self._by_first: dict[int, list[tuple[list[int], Embedding]]] = {}
        for embedding in embeddings:
            ids = encode(embedding.name)
            if ids:
                self._by_first.setdefault(ids[0], []).append((ids, embedding))
        for found in self._by_first.values():
            found.sort(key=lambda pair: len(pair[0]), reverse=True)

    def at(self, ids: Sequence[int], place: int) -> tuple[Embedding, int] | None:
        """(embedding, number of ids its name takes) at this place of a text's ids, or None."""
        found = self._by_first.get(ids[place])
        if found is None or (place > 0 and not word_ends()[ids[place - 1]]):
            return None
        for name, embedding in found:
            if list(ids[place : place + len(name)]) == name:
                return embedding, len(name)
        return None

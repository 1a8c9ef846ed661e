"""The words of training. CLIP's vocabulary has 49,408 rows, the captions use a few thousand of them.

Training keeps a row for each token that captions use and one more, UNKNOWN, for all others: random UNKNOWNs
are put into captions, so that the model learns to look past a word it has never seen. On export UNKNOWN's
row fills all rows left over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minisd.text.tokenizer import BOS, EOS, chunk, encode

UNKNOWN = 2  # BOS 0, EOS 1, UNKNOWN 2, then the tokens of the captions by id
VOCABULARY_SIZE = 49408


class Vocabulary:
    """`ids`: the CLIP ids of rows 3 and up."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids
        self.row = {BOS: 0, EOS: 1} | {token: row for row, token in enumerate(ids, start=3)}

    @classmethod
    def of(cls, captions: list[str]) -> Vocabulary:
        return cls(sorted({token for text in captions for token in encode(text)}))

    def __len__(self) -> int:
        return 3 + len(self.ids)

    def rows(self, texts: list[str]) -> Tensor:
        """Captions to rows of the small table, int64 [b, 77], padded with EOS as SD1 does."""
        contexts = [chunk(encode(text), EOS)[0] for text in texts]
        return torch.tensor([[self.row.get(token, UNKNOWN) for token in context] for context in contexts])

    def full_table(self, small: Tensor) -> Tensor:
        """[len(self), width] -> [49408, width], every token the captions lack with UNKNOWN's row."""
        table = small[UNKNOWN].repeat(VOCABULARY_SIZE, 1)
        table[BOS], table[EOS] = small[0], small[1]
        table[self.ids] = small[3:]
        return table

    def small_table(self, full: Tensor) -> Tensor:
        """The way back: [49408, width] -> [len(self), width]. Words that are new since the export begin as
        UNKNOWN."""
        unused = next(i for i in range(VOCABULARY_SIZE) if i not in self.row)
        return full[[BOS, EOS, unused, *self.ids]]

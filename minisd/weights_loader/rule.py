"""How one parameter of ours is made from a tensor of another naming, and back: the row of every key map."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Op = Literal["same", "squeeze", "transpose", "rows"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One parameter. `op` makes ours from theirs read right to left: "squeeze" is a 1x1 convolution [o, i, 1,
    1] here and a matrix [o, i] there, "transpose" a matrix and its transpose, "rows" the rows from `start` of
    their stacked tensor."""

    ours: str
    shape: tuple[int, ...]
    theirs: str
    op: Op = "same"
    start: int = 0

    def ours_from(self, theirs: Tensor) -> Tensor:
        """Their whole tensor -> ours, contiguous and of `self.shape`. A 1x1 convolution and a matrix count as
        equal shapes: tools write either for the same parameter."""
        if self.op == "transpose":
            return theirs.t().contiguous()
        if self.op == "rows":
            return theirs[self.start : self.start + self.shape[0]].clone()
        return theirs.reshape(self.shape)

    def accepts(self, shape: tuple[int, ...], theirs_shape: tuple[int, ...]) -> bool:
        """Whether their tensor may have this shape; `theirs_shape` is the one the table expects."""
        if self.op in ("same", "squeeze") and len(self.shape) in (2, 4):
            return without_ones(shape) == without_ones(theirs_shape)
        return shape == theirs_shape


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[o, i, 1, 1] -> [o, i]; other shapes unchanged."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def expected_theirs(rules: Iterable[Rule]) -> dict[str, tuple[int, ...]]:
    """{their name: their shape} that this table reads."""
    shapes: dict[str, tuple[int, ...]] = {}
    for rule in rules:
        shape = rule.shape
        if rule.op == "squeeze":
            shape = shape[:2]
        elif rule.op == "transpose":
            shape = shape[::-1]
        elif rule.op == "rows":
            rows = max(rule.start + shape[0], shapes.get(rule.theirs, (0,))[0])
            shape = (rows, *shape[1:])
        shapes[rule.theirs] = shape
    return shapes


def theirs_from(rules: Iterable[Rule], ours: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The way back, one of their tensors at a time: (their name, tensor). `ours(name)` gives ours."""
    stacked: dict[str, list[Rule]] = {}
    for rule in rules:
        stacked.setdefault(rule.theirs, []).append(rule)
    for theirs, parts in stacked.items():
        first = parts[0]
        if first.op == "rows":
            yield theirs, torch.cat([ours(r.ours) for r in sorted(parts, key=lambda r: r.start)])
        elif first.op == "transpose":
            yield theirs, ours(first.ours).t().contiguous()
        elif first.op == "squeeze":
            yield theirs, ours(first.ours).reshape(first.shape[:2])
        else:
            yield theirs, ours(first.ours)


def same_names(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The same parameters read under our own names: the table of a file in the original layout."""
    return tuple(replace(r, theirs=r.ours, op="same", start=0) for r in rules)

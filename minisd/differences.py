"""Which tensors of two files differ, and by how much.

Models are compared parameter by parameter under our names, so a single file and a folder in diffusers layout
can be held against each other; what no part reads (copies, leftovers), and files that are no models, under
the names in the files. Two tensors are held at a time, and differences are summed in float64.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minisd.weights_loader.checkpoint import Checkpoint, open_checkpoint

Status = Literal["same", "rounded", "changed", "shape", "only_a", "only_b"]
STATUSES: tuple[Status, ...] = ("same", "rounded", "changed", "shape", "only_a", "only_b")
OTHER = "other"  # tensors that no part reads
CHUNK = 2**18  # values that are compared at once
Side = tuple[torch.dtype, tuple[int, ...]]  # dtype and shape of a tensor


@dataclass(frozen=True)
class Difference:
    """One tensor. same: bit by bit. rounded: one is the other, rounded to its dtype. shape: the shapes
    differ, so nothing is compared. changed: of the `values`, those that are not equal. max_abs, relative:
    the largest |a - b|, and |a - b| / |a| in the L2 norm (None where a is 0 and b is not), over the pairs of
    which both are finite; nonfinite counts the others."""

    part: str
    name: str
    status: Status
    a: Side | None
    b: Side | None
    values: int = 0
    changed: int = 0
    nonfinite: int = 0
    max_abs: float = 0.0
    squares: tuple[float, float] = (0.0, 0.0)  # sums of (a - b)^2 and of a^2

    @property
    def relative(self) -> float | None:
        return ratio(*self.squares)

    def to_dict(self) -> dict[str, object]:
        return {
            "part": self.part,
            "name": self.name,
            "status": self.status,
            "dtypes": [None if s is None else str(s[0])[6:] for s in (self.a, self.b)],
            "shapes": [None if s is None else list(s[1]) for s in (self.a, self.b)],
            "changed": self.changed,
            "values": self.values,
            "nonfinite": self.nonfinite,
            "max_abs": finite(self.max_abs),
            "relative_l2": self.relative,
        }


@dataclass(frozen=True)
class Comparison:
    """a, b: what the files are. differences: of every tensor, in the order of the files."""

    a: str
    b: str
    differences: tuple[Difference, ...]

    @property
    def same(self) -> bool:
        return all(d.status == "same" for d in self.differences)

    @property
    def largest_first(self) -> list[Difference]:
        """Those that are not the same: by relative difference, then what only one of the files holds."""
        found = [d for d in self.differences if d.status != "same"]
        return sorted(found, key=lambda d: (d.status in ("only_a", "only_b"), d.status != "shape", -size(d)))

    def totals(self) -> dict[str, dict[str, object]]:
        """{part: number of tensors by status, and both measures over all that were compared}."""
        told: dict[str, dict[str, object]] = {}
        for part in dict.fromkeys(d.part for d in self.differences):
            mine = [d for d in self.differences if d.part == part]
            told[part] = {
                **{status: sum(d.status == status for d in mine) for status in STATUSES},
                "nonfinite": sum(d.nonfinite for d in mine),
                "max_abs": finite(max(d.max_abs for d in mine)),
                "relative_l2": ratio(sum(d.squares[0] for d in mine), sum(d.squares[1] for d in mine)),
            }
        return told


def size(difference: Difference) -> float:
    return math.inf if difference.relative is None or difference.nonfinite else difference.relative


def finite(value: float) -> float | None:
    """None for what overflowed float64, which JSON cannot say."""
    return value if math.isfinite(value) else None


def ratio(change: float, of: float) -> float | None:
    """Of two sums of squares, the ratio of the norms."""
    if change == 0.0:
        return 0.0
    return None if of == 0.0 or math.isinf(change) else math.sqrt(change / of)


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare two files or folders; nothing is refused for what it holds. progress(done, of): tensors.
    Raises CheckpointError for what cannot be read."""
    with open_checkpoint(a) as one, open_checkpoint(b) as two:
        sides = one.detection.summary, two.detection.summary
        jobs = list(pairs(one, two))
        found = []
        for done, job in enumerate(jobs):
            found.append(job())
            if progress is not None:
                progress(done + 1, len(jobs))
        return Comparison(*sides, tuple(found))


def pairs(one: Checkpoint, two: Checkpoint) -> Iterator[Callable[[], Difference]]:
    """A call for each tensor of either."""
    for part in merged_order(one.parts, two.parts):
        tables = [Table.of_part(c, part) for c in (one, two)]
        for name in merged_order(*(t.sides for t in tables)):
            yield lambda part=part, name=name, tables=tables: difference(part, name, *tables)
    rest = [Table.of_rest(c) for c in (one, two)]
    for name in merged_order(*(t.sides for t in rest)):
        yield lambda name=name: difference(OTHER, name, *rest)


def merged_order(first: Iterable[str], second: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*first, *second]))


@dataclass(frozen=True)
class Table:
    """Tensors of one side: dtype and shape of each, and how it is read."""

    sides: dict[str, Side]
    read: Callable[[str], Tensor]

    @staticmethod
    def of_part(checkpoint: Checkpoint, part: str) -> Table:
        """By our names; empty where the part is missing. The UNet as it would be loaded (see
        `Checkpoint.ema_choice`)."""
        if part not in checkpoint.parts:
            return Table({}, checkpoint.source.read)
        reader = checkpoint.reader(part, allow_nonfinite=True)
        stored = checkpoint.source_of(part).tensors
        prefix = checkpoint.part(part).prefix
        rules = {r.ours: r for r in checkpoint.part(part).rules if prefix + r.theirs in stored}
        sides = {n: (reader.dtype_of(r), r.shape) for n, r in rules.items()}
        return Table(sides, lambda name: reader.read(rules[name]))

    @staticmethod
    def of_rest(checkpoint: Checkpoint) -> Table:
        """What no part reads, by the names in the file."""
        tensors = checkpoint.source.tensors
        return Table(
            {n: (tensors[n].dtype, tensors[n].shape) for n in checkpoint.left_over()}, checkpoint.source.read
        )


def difference(part: str, name: str, one: Table, two: Table) -> Difference:
    a, b = one.sides.get(name), two.sides.get(name)
    if a is None or b is None:
        return Difference(part, name, "only_a" if b is None else "only_b", a, b)
    if a[1] != b[1]:
        return Difference(part, name, "shape", a, b)
    return measured(part, name, one.read(name), two.read(name))


def measured(part: str, name: str, x: Tensor, y: Tensor) -> Difference:
    """The difference of two tensors of one shape, in pieces of `CHUNK` values."""
    same = x.dtype == y.dtype
    to_b, to_a = not same and y.is_floating_point(), not same and x.is_floating_point()
    changed = nonfinite = 0
    largest = change = whole = 0.0
    for p, q in zip(x.flatten().split(CHUNK), y.flatten().split(CHUNK), strict=True):
        same = same and equal_bits(p, q)
        to_b = to_b and equal_bits(p.to(y.dtype), q)
        to_a = to_a and equal_bits(p, q.to(x.dtype))
        u, v = p.to(torch.float64), q.to(torch.float64)
        finite = torch.isfinite(u) & torch.isfinite(v)
        changed += int(((u != v) & ~(u.isnan() & v.isnan())).sum())
        nonfinite += int((~finite).sum())
        u, v = u.where(finite, 0.0), v.where(finite, 0.0)
        whole += float(u.square().sum())
        if not same and u.numel():
            apart = (u - v).abs()
            largest = max(largest, float(apart.max()))
            change += float(apart.square().sum())
    return Difference(
        part,
        name,
        "same" if same else "rounded" if to_a or to_b else "changed",
        (x.dtype, tuple(x.shape)),
        (y.dtype, tuple(y.shape)),
        x.numel(),
        changed,
        nonfinite,
        largest,
        (change, whole),
    )


def equal_bits(p: Tensor, q: Tensor) -> bool:
    """Bit by bit, so that NaN equals itself and -0 is not 0."""
    return torch.equal(p.contiguous().view(torch.uint8), q.contiguous().view(torch.uint8))

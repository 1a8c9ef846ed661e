"""Two pictures compared by their records: what is said differently, the first digest that differs, and, drawn
again, the first layer whose output does.

The records alone tell the step, whatever machine made the pictures. The layer needs both runs here; where
they agree here, what parted them was machine, versions or plan, and these are named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import cast

from minisd.engine import Engine
from minisd.errors import ImageError
from minisd.lab.trace import Trace, svg, trace
from minisd.levels import flat
from minisd.metadata import read_pixels
from minisd.receipt import canonical
from minisd.verify import Given, SourcePath, difference, parts_of, record_of, request_of

__all__ = ["Apart", "apart", "layers", "svg"]


@dataclass(frozen=True)
class Apart:
    """other: {what: (in the first, in the second)} of request, model and circumstances. first: the mark where
    the runs part, None where all `marks` agree. size: of the pictures' difference."""

    other: Mapping[str, tuple[object, object]]
    first: str | None
    marks: int
    size: Mapping[str, float]

    def __str__(self) -> str:
        where = f"all {self.marks} digests agree" if self.first is None else f"the runs part at {self.first}"
        lines = [f"{where}; {len(self.other)} things are said differently"]
        lines += [f"  {name}: {shown(a)} / {shown(b)}" for name, (a, b) in self.other.items()]
        lines += [f"  {name} of the pictures' difference: {value:g}" for name, value in self.size.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def shown(value: object) -> str:
    """A value on a line."""
    text = "nothing" if value is None else canonical(value)
    return text if len(text) <= 100 else text[:97] + "..."


def receipt_of(record: Mapping[str, object]) -> Mapping[str, object]:
    own = record.get("receipt")
    if not isinstance(own, Mapping):
        raise ImageError("the record holds no receipt; there is nothing to compare")
    wrong = parts_of(record)
    if wrong is not None:
        raise ImageError(wrong)
    return own


def said(record: Mapping[str, object]) -> dict[str, object]:
    """{name: value} of all that may part two runs."""
    own, request = receipt_of(record), cast(Mapping[str, object], record["request"])
    out: dict[str, object] = {f"request {k}": v for k, v in request.items()}
    for name in ("files", "refiner"):
        files = cast(list[Mapping[str, object]], own.get(name) or [])
        out[name] = [f"{f['name']} {str(f['sha256'])[:12]}" for f in files]
    for name in ("adapters", "beside"):
        out[name] = record.get(name)
    for name in ("plan", "machine", "versions"):
        out |= {f"{name} {k}": v for k, v in flat(cast(Mapping[str, object], own[name])).items()}
    return out


def apart(first: SourcePath, second: SourcePath) -> Apart:
    """Two pictures by their records. Raises ImageError for one without."""
    records = record_of(first), record_of(second)
    a, b = said(records[0]), said(records[1])
    other = {k: (a.get(k), b.get(k)) for k in dict.fromkeys([*a, *b]) if a.get(k) != b.get(k)}
    marks = [cast(list[list[object]], receipt_of(r)["marks"]) for r in records]
    pairs = list(zip(*marks, strict=False))
    parted = next((str(x[0]) for x, y in pairs if x[0] != y[0] or x[2] != y[2]), None)
    if parted is None and len(marks[0]) != len(marks[1]):
        parted = "the number of steps"
    if parted is None and receipt_of(records[0])["pixels"] != receipt_of(records[1])["pixels"]:
        parted = "pixels"
    return Apart(other, parted, len(pairs), difference(read_pixels(first), read_pixels(second)))


def steps_of(first: str | None, steps: int) -> range:
    """The steps in which a layer must differ, where digests part there: that one, and the one after it, which
    is the first to see other latents. Decoding comes after the last."""
    if first is not None and first.startswith("step "):
        step = int(first.removeprefix("step "))
        return range(step, step + 2)
    return range(steps + 1, steps + 2) if first in (None, "end", "pixels") else range(0, 3)


def layers(first: SourcePath, second: SourcePath, a: Engine, b: Engine, given: Given | None = None) -> Trace:
    """Both pictures drawn again, layer by layer, where their digests part. given: what their requests need
    beside the models. Raises MinisdError for what is missing."""
    given, records = given or Given(), (record_of(first), record_of(second))
    requests = [request_of(record, e, given) for record, e in zip(records, (a, b), strict=True)]
    marks = cast(list[list[object]], receipt_of(records[0])["marks"])
    count = sum(str(m[0]).startswith("step ") for m in marks)
    within = steps_of(apart(first, second).first, count)
    return trace(a, b, *requests, steps=within, refiner=given.refiner)

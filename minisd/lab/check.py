"""Is a kernel right: against float64 beside torch, to the bit when run again, to the bit in any company, and
with every element of its result written.

Each row is one implementation at one site, in one precision, with one kind of input. An error is the RMS of
the difference to float64 on the same rounded inputs, relative to the RMS of the result.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minisd.kernels import reference
from minisd.kernels.conditions import interpreted
from minisd.kernels.interpreter import widened
from minisd.kernels.registry import Function, Implementation, Registry, Site
from minisd.lab.shapes import KINDS, Case, make_case

TIMES_TORCH = 2.0  # the error allowed, in torch's own
ROUNDINGS = 1.0  # or in the format's rounding, whichever is more
LARGE = 4.0  # where scores are in the hundreds, an approximate one may err that many times as much
SAMPLED = 512  # queries of long sequences that are compared: float64 scores of all would fill the memory
BASE: dict[str, str] = {"upsample_conv": "nearest"}  # what torch's own is called; else "sdpa" or "torch"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Row:
    """One check. error, torch_error, rounding: relative RMS. largest, p999: of the absolute difference, over
    the RMS of the result. repeats, alone: whether bits are the same run again, and for an image alone (None:
    a single image). written: no element left as it was. failures: what is wrong, in words."""

    op: str
    name: str
    site: str
    dtype: str
    kind: str
    error: float
    torch_error: float
    rounding: float
    largest: float
    p999: float
    repeats: bool
    alone: bool | None
    written: bool
    failures: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.failures

    def to_dict(self) -> dict[str, object]:
        return {**asdict(self), "ok": self.ok}


class Poisoned(TorchDispatchMode):
    """Inside: memory that torch.empty and its kin hand out is full of NaN (or of the largest integer)."""

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        name = str(func)
        if isinstance(out, Tensor) and (name.startswith("aten.empty") or name.startswith("aten.new_empty")):
            out.fill_(float("nan") if out.is_floating_point() else torch.iinfo(out.dtype).max)
        return out


def outputs(one: Function, case: Case) -> tuple[Tensor, ...]:
    out = one(*case.arguments, **case.named)
    return out if isinstance(out, tuple) else (out,)


def base_of(op: str) -> str:
    return BASE.get(op, "sdpa" if op.endswith("attention") else "torch")


def truth_of(op: str) -> Function:
    return reference.attention if op.endswith("attention") else getattr(reference, op)


def sampled(op: str, case: Case) -> tuple[Case, Tensor | None]:
    """The case for the reference, and which rows of a long attention it computes (None: all)."""
    q = case.arguments[0]
    assert isinstance(q, Tensor)
    if not op.endswith("attention") or case.named.get("causal") or q.shape[1] <= SAMPLED:
        return case, None
    rows = torch.linspace(0, q.shape[1] - 1, SAMPLED, device=q.device).long()
    return replace(case, arguments=(q[:, rows], *case.arguments[1:])), rows


def same_bits(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def check_one(one: Implementation, base: Implementation, site: Site, kind: str, device: str = "cpu") -> Row:
    """All questions about one implementation at one site (whose dtype counts)."""
    case = make_case(site, kind, seed=site.n * 7 + site.m, device=device)
    with Poisoned():
        got = outputs(one.run, case)
    wide, rows = sampled(site.op, case.to(torch.float64))
    truth = outputs(truth_of(site.op), wide)
    torch_own = got if one.run is base.run else outputs(base.run, case)
    if rows is not None:
        compared, torch_own = tuple(t[:, rows] for t in got), tuple(t[:, rows] for t in torch_own)
    else:
        compared = got
    error, largest, p999 = distance(compared, truth)
    torch_error, _, _ = distance(torch_own, truth)
    rounding = torch.finfo(site.dtype).eps
    repeats = same_bits(got, outputs(one.run, case))
    alone = None
    if site.b > 1:
        singles = [outputs(one.run, case.of_image(i)) for i in (0, site.b - 1)]
        alone = all(
            same_bits((t[i : i + 1] for t in got), single)
            for i, single in zip((0, site.b - 1), singles, strict=True)
        )
    written = all(bool(torch.isfinite(t).all()) for t in got)
    said = (one.approximate or 0.0) * (LARGE if kind == "large" else 1.0)
    failures = []
    if not written:
        failures.append("elements that are not finite: unwritten, or overflowed")
    elif error > max(TIMES_TORCH * torch_error, ROUNDINGS * rounding, said):
        failures.append(
            f"error {error:.1e}, where torch has {torch_error:.1e} and rounding is {rounding:.1e}"
        )
    if not repeats:
        failures.append("other bits when run again")
    if alone is False and one.run is not base.run:
        failures.append("an image has other bits alone than in the batch")
    if any(t.dtype != site.dtype for t in got):
        failures.append(f"the result is {got[0].dtype}, not {site.dtype}")
    return Row(
        op=site.op,
        name=one.name,
        site=str(site),
        dtype=str(site.dtype).removeprefix("torch."),
        kind=kind,
        error=error,
        torch_error=torch_error,
        rounding=rounding,
        largest=largest,
        p999=p999,
        repeats=repeats,
        alone=alone,
        written=written,
        failures=tuple(failures),
    )


def distance(got: Iterable[Tensor], truth: Iterable[Tensor]) -> tuple[float, float, float]:
    """(relative RMS, largest, 99.9th percentile of |difference| over the RMS), of the worst output."""
    worst = (0.0, 0.0, 0.0)
    for g, t in zip(got, truth, strict=True):
        away = (g.double() - t.double()).abs().flatten()
        scale = float(t.double().square().mean().sqrt()) or 1.0
        count = len(away)
        p999 = float(away.kthvalue(max(1, round(0.999 * count))).values)
        one = float(away.square().mean().sqrt()) / scale, float(away.max()) / scale, p999 / scale
        worst = max(worst, one)
    return worst


def check(
    registry: Registry,
    implementations: Iterable[Implementation],
    sites: Iterable[Site],
    *,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    kinds: tuple[str, ...] = KINDS,
    device: str = "cpu",
    arch: str = "",
) -> Iterator[Row]:
    """A row for each implementation, site of its operation, precision and kind of input that it takes."""
    sites = tuple(sites)
    with ExitStack() as stack:
        if interpreted():
            stack.enter_context(widened())
        for one in implementations:
            base = registry.find(one.op, base_of(one.op))
            for plain in (s for s in sites if s.op == one.op):
                for dtype in dtypes:
                    site = replace(plain, dtype=dtype, device=device, arch=arch)
                    if one.why_not(site) is None and base.why_not(site) is None:
                        for kind in kinds:
                            yield check_one(one, base, site, kind, device)


def table(rows: Iterable[Row]) -> str:
    """For people: the worst error of each implementation, operation and precision, then every failure."""
    rows = list(rows)
    lines = [f"{'operation':<18}{'name':<16}{'dtype':<10}{'checks':>7}{'error':>10}{'torch':>10}  bits"]
    keys = dict.fromkeys((r.op, r.name, r.dtype) for r in rows)
    for op, name, dtype in keys:
        mine = [r for r in rows if (r.op, r.name, r.dtype) == (op, name, dtype)]
        worst = max(mine, key=lambda r: r.error if r.error == r.error else float("inf"))
        bits = "same" if all(r.repeats and r.alone is not False for r in mine) else "differ"
        errors = f"{worst.error:>10.1e}{worst.torch_error:>10.1e}"
        lines.append(f"{op:<18}{name:<16}{dtype:<10}{len(mine):>7}{errors}  {bits}")
    wrong = [r for r in rows if not r.ok]
    lines += [f"FAILED {r.name} {r.site} {r.kind}: {'; '.join(r.failures)}" for r in wrong]
    lines.append(f"{len(rows)} checks, {len(wrong)} failed")
    return "\n".join(lines)


def source_of(one: Implementation) -> str:
    """The source of an implementation's file, for its hash in a record."""
    return inspect.getsource(inspect.getmodule(one.run) or one.run)

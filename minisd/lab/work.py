"""The work of `minisd kernels`: each function answers one command, as plain data and as text for people."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from minisd.engine import Engine, load
from minisd.errors import MinisdError
from minisd.kernels import OPERATIONS, REGISTRY, Registry
from minisd.kernels.configs import arch_of
from minisd.kernels.registry import Implementation
from minisd.lab.check import DTYPES, base_of, check, table
from minisd.lab.effect import effect
from minisd.lab.own import load_own
from minisd.lab.record import append, row
from minisd.lab.shapes import FAMILIES, KINDS, QUICK, real_sites, sites_of_model
from minisd.lab.timing import measured_limits, time_one, work_of
from minisd.lab.trace import svg, trace
from minisd.request import Request

Answer = tuple[dict[str, object], str]  # for --json, for people


def interpret() -> None:
    """Without a GPU this process runs Triton's kernels under the interpreter. Before Triton is imported."""
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


def here() -> tuple[str, str]:
    """(device, architecture) that the laboratory runs on."""
    if torch.cuda.is_available():
        return "cuda", arch_of(torch.device("cuda"))
    return "cpu", ""


def registry_with(own: str | None) -> tuple[Registry, list[Implementation]]:
    """Everything, and what is to be looked at: a person's own, or all."""
    mine = [] if own is None else load_own(own)
    registry = REGISTRY.plus(*mine)
    return registry, mine or list(registry)


def recorded(what: str, results: dict[str, object], own: str | None, record: str | None) -> dict[str, object]:
    """The results with date, machine and hashes, added to the file `record` if one is named."""
    whole = row(what, results, () if own is None else (Path(own),))
    if record is not None:
        append(Path(record), whole)
    return whole


def overview(own: str | None, model: str | None, size: int) -> Answer:
    """Every operation with its implementations, whether they can run here and why not; with a model's family
    also what each of its sites runs."""
    registry, _ = registry_with(own)
    device, arch = here()
    lines: list[str] = []
    answer: list[dict[str, object]] = []
    for op, what in OPERATIONS.items():
        lines.append(f"{op}: {what}")
        for name in registry.names(op):
            one = registry.find(op, name)
            site = replace(QUICK[op][0], dtype=torch.bfloat16, device=device, arch=arch)
            reason = one.why_not(site)
            here_not = "" if reason is None else f"  [not here: {reason.removeprefix(f'{name}: ')}]"
            about = one.approximate
            rough = "" if about is None else f"  [approximate: error up to {about:.0%}; by name only]"
            lines.append(f"  {name:<16}{one.how}{rough}{here_not}")
            answer.append({"op": op, "name": name, "how": one.how, "why_not": reason, "approximate": about})
    chosen: list[dict[str, object]] = []
    if model is not None:
        if model not in FAMILIES:
            raise MinisdError(f"there is no family {model!r}; known are {', '.join(FAMILIES)}")
        lines.append(f"\n{model} at {size} x {size}, two latents: what a call runs by default")
        for called in sites_of_model(FAMILIES[model][0], size):
            found = registry.choose(replace(called.site, device=device, arch=arch))
            site = str(found.site)
            what = f"{found.implementation.name}: {found.reason} ({called.where})"
            lines.append(f"  {called.count:>4} x {site:<64}{what}")
            chosen.append({"site": site, "calls": called.count, "name": found.implementation.name})
    return {"implementations": answer, "sites": chosen}, "\n".join(lines)


def checked(
    own: str | None,
    ops: Sequence[str],
    names: Sequence[str],
    *,
    full: bool,
    resources: Sequence[str],
    record: str | None,
    say: Callable[[str], object],
) -> Answer:
    """Correctness, bits and unwritten memory of implementations, and what they take when compiled."""
    registry, looked_at = registry_with(own)
    device, arch = here()
    for op in ops:
        if op not in OPERATIONS:
            raise MinisdError(f"there is no operation {op!r}; known are {', '.join(OPERATIONS)}")
    looked_at = [
        one
        for one in looked_at
        if (not ops or one.op in ops)
        and (one.name in names if names else own is not None or one.name != "reference")
    ]
    if not looked_at:
        raise MinisdError("no implementation has this name and operation; `minisd kernels list` shows them")
    sites = real_sites() if full else tuple(s for quick in QUICK.values() for s in quick)
    dtypes, kinds = (DTYPES, KINDS) if full else (DTYPES[:2], KINDS[1:])
    rows = []
    for one in looked_at:
        before = len(rows)
        rows += check(registry, [one], sites, dtypes=dtypes, kinds=kinds, device=device, arch=arch)
        if len(rows) == before:
            site = replace(QUICK[one.op][0], device=device, arch=arch)
            say(f"{one.op} {one.name}: not here, {one.why_not(site) or 'no site'}\n")
    compiled = ahead_of_time(resources, own) if resources else []
    results: dict[str, object] = {
        "ok": all(r.ok for r in rows) and not any("error" in r for r in compiled),
        "rows": [r.to_dict() for r in rows],
        "resources": compiled,
    }
    text = table(rows) + ("\n\n" + resource_table(compiled) if compiled else "")
    return recorded("check", results, own, record), text


def ahead_of_time(
    targets: Sequence[str], own: str | None, only: Sequence[str] = ()
) -> list[dict[str, object]]:
    """Rows of `minisd.lab.aot`, which needs a process of its own."""
    command = [sys.executable, "-m", "minisd.lab.aot", "--targets", *targets]
    command += ["--only", *only] if only else []
    command += ["--own", own] if own is not None else []
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "0"})
    if ran.returncode != 0:
        last = ran.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise MinisdError(f"compiling ahead of time failed: {last[0]}")
    return json.loads(ran.stdout)


def resource_table(rows: Sequence[dict[str, object]]) -> str:
    """For people."""
    heads = ("case", "target", "kernel", "registers", "spills", "shared", "programs", "fits")
    first = max([22, *(len(str(r["case"])) for r in rows)]) + 2
    widths = (first, 9, 20, 10, 7, 8, 9, 6)
    lines = ["".join(f"{h:<{w}}" for h, w in zip(heads, widths, strict=True)) + "matrix instructions"]
    for r in rows:
        if "error" in r:
            lines.append(f"{r['case']!s:<{first}}{r['target']!s:<9}{r['error']}")
            continue
        known = {**r, "programs": "?"} if str(r["target"]).startswith("gfx") else r
        shown = "".join(f"{known[h]!s:<{w}}" for h, w in zip(heads, widths, strict=True))
        matrix = r["matrix"]
        assert isinstance(matrix, dict)
        lines.append(shown + " ".join(f"{k}:{v}" for k, v in matrix.items()))
    return "\n".join(lines)


def benched(
    own: str | None, ops: Sequence[str], family: str, size: int, *, record: str | None, dtype: str
) -> Answer:
    """Time of each implementation at each site of a family beside the floor with the limit that binds, and
    what a forward pass would win over torch's own."""
    registry, looked_at = registry_with(own)
    device, arch = here()
    if family not in FAMILIES:
        raise MinisdError(f"there is no family {family!r}; known are {', '.join(FAMILIES)}")
    kind: torch.dtype = getattr(torch, dtype)
    limits = measured_limits(device, kind)
    rows: list[dict[str, object]] = []
    lines = [f"{'site':<62}{'name':<16}{'ms':>9}{'floor':>9}{'of it':>7}  bound by"]
    for called in sites_of_model(FAMILIES[family][0], size, dtype=kind):
        site = replace(called.site, device=device, arch=arch)
        if ops and site.op not in ops:
            continue
        seconds: dict[str, float] = {}
        floor, bound = work_of(site).floor(limits)
        names = dict.fromkeys([base_of(site.op), *(o.name for o in looked_at if o.op == site.op)])
        for name in names:
            one = registry.find(site.op, name)
            if name == "reference" or one.why_not(site) is not None or not timed_here(one, device):
                continue
            found = time_one(one, site, device)
            seconds[name] = found.median
            share = floor / found.median
            times = f"{found.median * 1e3:>9.3f}{floor * 1e3:>9.3f}{share:>7.0%}"
            lines.append(f"{str(site)[:61]:<62}{name:<16}{times}  {bound}")
            saved = called.count * (seconds[base_of(site.op)] - found.median)
            rows.append(
                {
                    "site": str(site),
                    "calls": called.count,
                    "name": name,
                    **found.to_dict(),
                    "floor": floor,
                    "bound": bound,
                    "saved_per_pass": saved,
                }
            )
    if not rows:
        raise MinisdError(f"nothing of {', '.join(ops) or family} can be timed on this machine")
    results: dict[str, object] = {"family": family, "size": size, "rows": rows}
    return recorded("bench", results, own, record), "\n".join(lines)


def timed_here(one: Implementation, device: str) -> bool:
    """Whether a time means something: what the interpreter runs is a thousand times slower."""
    return device == "cuda" or "triton" not in one.name


def two_engines(
    model: str | None, a: str, b: str, dtypes: tuple[str, str], devices: tuple[str, str]
) -> tuple[Engine, Engine]:
    """The same model with two choices of kernels, precisions and devices."""
    one, two = (
        load(model, kernels=kernels, dtype=dtype, device=device)
        for kernels, dtype, device in zip((a, b), dtypes, devices, strict=True)
    )
    return one, two


def traced(engines: tuple[Engine, Engine], request: Request, plot: str | None, record: str | None) -> Answer:
    """Where two runs part, layer by layer."""
    with engines[0] as a, engines[1] as b:
        found = trace(a, b, request)
        title = f"{a.plan.kernels.value} beside {b.plan.kernels.value}: relative difference of every layer"
    if plot is not None:
        Path(plot).write_text(svg(found, title), encoding="utf-8")
    return recorded("trace", found.to_dict(), None, record), str(found)


def effected(
    engines: tuple[Engine, Engine], request: Request, picture: str | None, record: str | None
) -> Answer:
    """What the second engine's choices do to the picture."""
    with engines[0] as a, engines[1] as b:
        found, both = effect(a, b, request)
    if picture is not None:
        both.save(picture)
    return recorded("effect", found.to_dict(), None, record), str(found)

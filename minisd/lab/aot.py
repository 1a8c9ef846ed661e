"""Every Triton kernel of minisd, or of a person's own file, compiled ahead of time: one JSON row for each
kernel and architecture on standard output.

    python -m minisd.lab.aot --targets sm_90 gfx942 --only flash
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial

os.environ["TRITON_INTERPRET"] = "0"  # before Triton is imported: this process compiles

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from minisd.kernels import Implementation, triton_attention, triton_linear, triton_norm, triton_rows  # noqa: E402
from minisd.lab.own import load_own  # noqa: E402
from minisd.lab.resources import TARGETS, resources  # noqa: E402
from minisd.lab.shapes import QUICK, Case, make_case  # noqa: E402

Call = Callable[[str], object]  # what to launch for an architecture


def halves(*sizes: int) -> Tensor:
    return torch.randn(*sizes).to(torch.bfloat16)


def packed(heads: int, d: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as views of one fused projection."""
    q, k, v = halves(1, n, 3 * heads * d).chunk(3, dim=-1)
    return q, k, v


def attention(heads: int, d: int, n: int, *, causal: bool = False) -> Call:
    q, k, v = packed(heads, d, n)
    return lambda arch: triton_attention.flash(q, k, v, heads, causal=causal, arch=arch)


def text_attention(heads: int, d: int, keys: int) -> Call:
    q, k, v = (halves(1, n, heads * d) for n in (256, keys, keys))
    return lambda arch: triton_attention.cross(q, k, v, heads, arch=arch)


def group_norm(channels: int) -> Call:
    x = halves(1, channels, 16, 16).contiguous(memory_format=torch.channels_last)
    w = halves(channels)
    return lambda _: triton_norm.group_norm_silu(x, w, w, 32, 1e-5)


def layer_norm(width: int) -> Call:
    x, w = halves(8, width), halves(width)
    return lambda _: triton_norm.layer_norm(x, w, w, 1e-5, residual=x)


def geglu(width: int) -> Call:
    x, weight, bias = halves(128, width), halves(8 * width, width), halves(8 * width)
    return lambda arch: triton_linear.geglu(x, weight, bias, arch=arch)


def int8(width: int) -> Call:
    x, weight = halves(128, width), torch.ones(width, width, dtype=torch.int8)
    scale, bias = torch.ones(width), halves(width)
    return lambda arch: triton_linear.quantised_linear(x, weight, scale, bias, arch=arch)


def guidance() -> Call:
    x = halves(1, 4, 64, 64)
    return lambda _: triton_rows.guidance(x, x, x, 7.5, 1.0, -0.5, 0.9)


def softmax() -> Call:
    return lambda _: triton_rows.softmax(torch.randn(8, 4096), 0.04, torch.bfloat16)


# name: (what it is, whether it has a product, so that matrix units must be at work)
CASES: dict[str, tuple[Callable[[], Call], bool]] = {
    **{f"flash d{d} long": (partial(attention, 8, d, 4096), True) for d in (40, 64, 80, 160)},
    **{f"flash d{d} short": (partial(attention, 8, d, 1024), True) for d in (40, 64, 80, 160)},
    "flash d64 ragged": (partial(attention, 8, 64, 1000), True),
    "flash d64 causal": (partial(attention, 12, 64, 77, causal=True), True),
    **{f"cross77 d{d}": (partial(text_attention, 8, d, 77), True) for d in (40, 64, 80, 160)},
    "cross154 d64": (partial(text_attention, 8, 64, 154), True),
    "cross231 d64": (partial(text_attention, 8, 64, 231), True),
    "softmax": (softmax, False),
    "group_norm_silu 320": (partial(group_norm, 320), False),
    "group_norm_silu 1280": (partial(group_norm, 1280), False),
    "layer_norm 640": (partial(layer_norm, 640), False),
    "geglu 640": (partial(geglu, 640), True),
    "int8 640": (partial(int8, 640), True),
    "guidance": (guidance, False),
}


def own_cases(path: str) -> dict[str, tuple[Callable[[], Call], bool]]:
    """The implementations of a person's own file at the quick sites of their operations, in bfloat16."""
    cases: dict[str, tuple[Callable[[], Call], bool]] = {}
    for one in load_own(path):
        for site in QUICK[one.op]:
            case = make_case(site).to(torch.bfloat16)
            sizes = " ".join(f"{letter}{getattr(site, letter)}" for letter in "bhnmd")
            cases[f"{one.name} {sizes}"] = (partial(called, one, case), False)
    return cases


def called(one: Implementation, case: Case) -> Call:
    return lambda _: one.run(*case.arguments, **case.named)


def rows(targets: list[str], only: list[str], own: str | None) -> list[dict[str, object]]:
    """One for each kernel of each case and target; what does not compile has the reason as "error"."""
    cases = CASES if own is None else own_cases(own)
    found: list[dict[str, object]] = []
    for name, (make, product) in cases.items():
        if only and not any(part in name for part in only):
            continue
        for target in targets:
            begun = time.perf_counter()
            try:
                compiled = resources(target, lambda make=make, target=target: make()(target))
            except Exception as error:  # of any compiler stage; it is the result of this row
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                found.append({"case": name, "target": target, "error": reason})
                continue
            seconds = round(time.perf_counter() - begun, 1)
            found += [{"case": name, "product": product, **r.to_dict(), "seconds": seconds} for r in compiled]
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m minisd.lab.aot", description=__doc__)
    parser.add_argument("--targets", nargs="+", choices=[*TARGETS], default=[*TARGETS])
    parser.add_argument("--only", nargs="+", default=[], help="cases whose names hold one of these")
    parser.add_argument("--own", default=None, help="a person's own file instead")
    args = parser.parse_args(argv)
    json.dump(rows(args.targets, args.only, args.own), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())

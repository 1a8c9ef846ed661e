"""Kernels on a CUDA device: attention beside torch's backends and the floor, fused operations, whole UNet
steps beside diffusers.

    python -m scripts.bench.gpu                    # everything, about ten minutes on one GPU
    python -m scripts.bench.gpu --only attention   # attention | operations | step

One results file, `scripts/bench/results/gpu.json`, with the machine, versions and every figure; the table
on standard output is made from it. Ceilings (a large product, a large copy) are measured in the same run.
Without a CUDA device it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from minisd.config import SD1, SDXL, ModelConfig
from minisd.kernels import REGISTRY, Kernels
from minisd.kernels.registry import Site
from minisd.lab.check import base_of, check_one
from minisd.lab.shapes import sites_of_model
from minisd.lab.timing import Limits, measured_limits, time_one, timed, work_of
from minisd.lab.work import here
from minisd.models.fused import use
from minisd.models.graph import Graphs
from minisd.models.unet import UNet, compile_regions
from scripts.bench.common import RESULTS, machine

Row = dict[str, object]
BF16 = torch.bfloat16
# (op, b, h, n, m, d): the calls of SD1.5, SD2.1, SDXL, its refiner, the VAE; two chunks; one and eight images
SHAPES = [
    *(("self_attention", 2, 8, n, n, d) for n, d in ((4096, 40), (1024, 80), (256, 160), (64, 160))),
    *(("self_attention", 2, h, n, n, 64) for h, n in ((5, 4096), (10, 1024), (5, 9216), (10, 2304))),
    *(
        ("self_attention", b, h, n, n, 64)
        for b, h, n in ((2, 10, 4096), (2, 20, 1024), (1, 20, 1024), (8, 20, 1024))
    ),
    ("self_attention", 2, 12, 4096, 4096, 64),
    *(("cross_attention", 2, 8, n, 77, d) for n, d in ((4096, 40), (1024, 80), (256, 160))),
    *(("cross_attention", 2, h, n, m, 64) for h, n, m in ((10, 4096, 77), (20, 1024, 77), (20, 1024, 154))),
    *(("wide_attention", 1, 1, n, n, 512) for n in (4096, 16384)),
    ("causal_attention", 2, 12, 77, 77, 64),
]
CHOICES = {
    "torch": "auto",
    "triton": "triton",
    "triton, restructured": "triton,upsample_conv=transposed,fused_qkv",
    "graph": "fused_qkv,upsample_conv=transposed,graph",
    "triton, graph": "triton,upsample_conv=transposed,fused_qkv,graph",
}


def measure(site: Site, limits: Limits) -> list[Row]:
    """Every implementation that runs at the site: time, share of the floor, error, bits, cost of a launch."""
    rows: list[Row] = []
    base = REGISTRY.find(site.op, base_of(site.op))
    floor, bound = work_of(site).floor(limits)
    for name in REGISTRY.names(site.op):
        one = REGISTRY.find(site.op, name)
        reason = one.why_not(site)
        if name in ("reference", "sliced", "sdpa_math") or reason is not None:
            rows.append({"site": str(site), "name": name, "refused": reason or "slow on purpose"})
            continue
        found, right = time_one(one, site, "cuda"), check_one(one, base, site, "strided", "cuda")
        rows.append(
            {
                "site": str(site),
                "name": name,
                **found.to_dict(),
                "floor": floor,
                "bound": bound,
                "error": right.error,
                "repeats": right.repeats,
                "alone": right.alone,
                "failures": list(right.failures),
            }
        )
    return rows


def attention(limits: Limits) -> list[Row]:
    device, arch = here()
    sites = [Site(op, BF16, device, arch, b=b, h=h, n=n, m=m, d=d) for op, b, h, n, m, d in SHAPES]
    return [row for site in sites for row in measure(site, limits)]


def operations(limits: Limits) -> list[Row]:
    """The other operations at the sites of SDXL at 1024 x 1024."""
    device, arch = here()
    called = [c for c in sites_of_model(SDXL, 1024) if not c.site.op.endswith("attention")]
    return [r for c in called for r in measure(replace(c.site, device=device, arch=arch), limits)]


def inputs(config: ModelConfig, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    latent = size // config.vae.factor
    x = torch.randn(2, 4, latent, latent, device="cuda", dtype=BF16)
    context = torch.randn(2, 77, config.unet.context_dim, device="cuda", dtype=BF16)
    y = None if config.unet.y_dim is None else torch.randn(2, config.unet.y_dim, device="cuda", dtype=BF16)
    return x.contiguous(memory_format=torch.channels_last), torch.tensor([500.0], device="cuda"), context, y


def filled(network: nn.Module) -> nn.Module:
    """Random weights on the GPU, channels last."""
    network = network.to_empty(device="cuda").to(BF16).requires_grad_(False).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # of torch's stubs


def steps() -> list[Row]:
    """One call of the UNet for both predictions, with each choice of kernels, and diffusers' own."""
    rows: list[Row] = []
    for name, config, size in (("sd1", SD1, 512), ("sdxl", SDXL, 1024)):
        given = inputs(config, size)
        calls: dict[str, Callable[[], object]] = {}
        for label, names in CHOICES.items():
            with torch.device("meta"):
                network = UNet(config.unet)
            filled(network)
            kernels = Kernels.parse(names)
            use(network, kernels)
            network.graphs = Graphs() if kernels.graph else None
            calls[f"minisd {label}"] = lambda network=network, given=given: network(*given)
        with torch.device("meta"):
            regions = UNet(config.unet)
        filled(regions)
        compile_regions(regions)
        calls["minisd compiled by region"] = lambda regions=regions, given=given: regions(*given)
        for label, rival in rivals(name).items():
            calls[label] = lambda rival=rival, given=given: rival(given)
        with torch.inference_mode():
            for label, call in calls.items():
                rows.append(
                    {
                        "model": name,
                        "size": size,
                        "name": label,
                        **timed(lambda _, call=call: call(), "cuda").to_dict(),
                    }
                )
    return rows


def rivals(name: str) -> dict[str, Callable[[tuple[Tensor, Tensor, Tensor, Tensor | None]], object]]:
    """diffusers' UNet with random weights, channels last: eager, and compiled."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from minisd.weights_loader.diffusers_config import unet_json

    config = unet_json(SD1 if name == "sd1" else SDXL)
    found: dict[str, Callable[[tuple[Tensor, Tensor, Tensor, Tensor | None]], object]] = {}
    for label, compiled in (("diffusers", False), ("diffusers compiled", True)):
        with torch.device("meta"):
            network = UNet2DConditionModel.from_config(config)
        assert isinstance(network, nn.Module)
        network = filled(network)
        run = torch.compile(network, mode="max-autotune-no-cudagraphs") if compiled else network

        def call(
            given: tuple[Tensor, Tensor, Tensor, Tensor | None], run: Callable[..., object] = run
        ) -> object:
            x, t, context, y = given
            if y is None:
                return run(x, t, context)
            times = torch.zeros(2, 6, device="cuda", dtype=BF16)
            return run(x, t, context, added_cond_kwargs={"text_embeds": y[:, :1280], "time_ids": times})

        found[label] = call
    return found


def table(results: dict[str, object]) -> str:
    """For people, from the results alone."""
    lines: list[str] = []
    for part in ("attention", "operations", "step"):
        rows = results.get(part)
        if not isinstance(rows, list):
            continue
        lines += ["", f"{part}: microseconds (20 to 80 %), share of the floor, what binds, error, bits"]
        for r in rows:
            where = r.get("site") or f"{r['model']} {r['size']}"
            if "refused" in r:
                lines.append(f"{where:<62}{r['name']:<28}n/a  {r['refused']}")
                continue
            us = f"{r['median'] * 1e6:>9.1f} ({r['p20'] * 1e6:.1f} .. {r['p80'] * 1e6:.1f})"
            told = (
                "" if part == "step" else f" {r['floor'] / r['median']:>5.0%} {r['bound']} {r['error']:.1e}"
            )
            bits = (
                "" if part == "step" else " same" if r["repeats"] and r["alone"] is not False else " differ"
            )
            lines.append(f"{where:<62}{r['name']:<28}{us}{told}{bits}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=("attention", "operations", "step"), default=[])
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        sys.stderr.write("torch finds no CUDA device here; nothing was measured\n")
        return 1
    limits = measured_limits("cuda", BF16)
    gpu = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    results: dict[str, object] = {"machine": {**machine(), **gpu}, "limits": limits.__dict__}
    parts: dict[str, Callable[[], list[Row]]] = {
        "attention": lambda: attention(limits),
        "operations": lambda: operations(limits),
        "step": steps,
    }
    for name, measure_part in parts.items():
        if not args.only or name in args.only:
            results[name] = measure_part()
            (RESULTS / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(table(results) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Error against steps for every solver on one plot, and a grid of pictures: solver x steps.

    python scripts/plot_samplers.py curves docs/samplers.svg       # needs matplotlib
    python scripts/plot_samplers.py grid docs/samplers.png         # the embedded model

The curves are measured on Gaussian data, whose denoiser and probability-flow solution are known exactly: x0 ~
N(0.3, 0.5^2), Karras levels from 14.6 to 0.03, no final 0, largest error over nine starting points.
Stochastic solvers run at eta 0.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from minisd.samplers.names import SAMPLERS, Sampler, solver
from minisd.samplers.schedule import karras_sigmas

MEAN, STD = 0.3, 0.5
HIGH, LOW = 14.6146, 0.0292
STEPS = (5, 7, 10, 14, 20, 28, 40, 57, 80, 113, 160)
RANDOM_ALWAYS = {"ddpm", "lcm", "tcd", "er_sde", "er_sde_1", "er_sde_2", "restart"}  # no eta to turn off
GRID_STEPS = (2, 4, 6, 10, 20, 40)
PROMPT = "a red apple"


def denoise(x: Tensor, sigma: float) -> Tensor:
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def exact(x: Tensor, sigma: float, end: float) -> Tensor:
    return MEAN + (x - MEAN) * math.sqrt((STD**2 + end**2) / (STD**2 + sigma**2))


def deterministic(sampler: Sampler) -> dict[str, object]:
    if sampler.name == "sa_solver":
        return {"tau": 0.0}
    return {"eta": 0.0} if sampler.eta is not None else {}


def error(sampler: Sampler, steps: int) -> tuple[int, float]:
    """(network calls, largest error) of a run of `steps` steps."""
    calls = 0

    def counted(x: Tensor, sigma: float) -> Tensor:
        nonlocal calls
        calls += 1
        return denoise(x, sigma)

    sigmas = karras_sigmas(steps + 1, LOW, HIGH)[:-1]
    x = MEAN + HIGH * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None, None, None]
    out = solver(sampler.name)(counted, x, sigmas, **deterministic(sampler))
    if sampler.name == "dpm_adaptive":
        calls //= len(x)  # every image takes its own steps
    return calls, float((out - exact(x, HIGH, LOW)).abs().max())


def curves(path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "minisd", "font.size": 8})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 7))
    shown = [s for s in SAMPLERS.values() if not s.both and s.name not in RANDOM_ALWAYS | {"dpm_adaptive"}]
    groups: dict[tuple[float, ...], list[Sampler]] = {}
    values: dict[str, tuple[list[int], list[float]]] = {}
    for sampler in shown:
        found = [error(sampler, n) for n in STEPS]
        values[sampler.name] = ([c for c, _ in found], [e for _, e in found])
        # solvers that are the same on the ODE share a curve
        groups.setdefault(tuple(float(f"{e:.4g}") for _, e in found), []).append(sampler)
    colours = matplotlib.colormaps["tab20"]
    for index, same in enumerate(sorted(groups.values(), key=lambda g: g[0].order)):
        x, y = values[same[0].name]
        name = ", ".join(s.name for s in same)
        marker = "osD^v"[same[0].order % 5]
        axes.loglog(
            x, y, marker=marker, ms=3, lw=1, color=colours(index % 20), label=f"{name} ({same[0].order})"
        )
    axes.set_xlabel("network calls")
    axes.set_ylabel("largest error")
    axes.grid(True, which="both", lw=0.3)
    axes.legend(fontsize=6, loc="lower left", title="solver (order)")
    axes.set_title("Error of every solver on Gaussian data, eta 0 (exact solution known)")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    print(path)


def grid(path: Path) -> None:
    import minisd

    names = [s.name for s in SAMPLERS.values()]
    with minisd.load() as engine:
        cell, margin = 128, 150
        sheet = Image.new("RGB", (margin + cell * len(GRID_STEPS), 20 + cell * len(names)), "white")
        draw = ImageDraw.Draw(sheet)
        for column, steps in enumerate(GRID_STEPS):
            draw.text((margin + column * cell + 4, 4), f"{steps} steps", fill="black")
        for row, name in enumerate(names):
            draw.text((4, 20 + row * cell + cell // 2), name, fill="black")
            for column, steps in enumerate(GRID_STEPS):
                # CFG++ counts its scale from 0 to 1
                scale = 0.6 if SAMPLERS[name].both else 4.0
                result = engine.txt2img(PROMPT, sampler=name, steps=steps, seed=3, cfg_scale=scale)
                sheet.paste(result.image, (margin + column * cell, 20 + row * cell))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=82, optimize=True)
    print(path)


if __name__ == "__main__":
    {"curves": curves, "grid": grid}[sys.argv[1]](Path(sys.argv[2]))

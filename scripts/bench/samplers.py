"""What a step costs besides the network: python -m scripts.bench.samplers [--call-ms 20] [--rounds 5]

For every sampler, at 4 x 64 x 64 latents and 20 steps, microseconds of one step, median of the rounds:

    solver  its arithmetic alone, beside a network that takes no time
    run     all that a run does between and after its network calls: noise, digests for the receipt, the look
            for values that are not finite, events. The limit of 200 us is for this
    path    the same with the real Denoiser between solver and network, which is called twice a step (CFG)

and milliseconds that a run takes once, before its first call (first noise, coefficients).

The network is --call-ms of work that lets other threads run, so that noise can be made meanwhile, as it is
beside a real one (an SD1.5 step takes some 20 ms on a fast GPU and seconds on a CPU). A sleep would not do:
the first microseconds of a core that wakes up are slow, and no network leaves it asleep. The work runs none
of torch's code and walks over a megabyte, so each step finds caches cold. That is harder than what a GPU's
network leaves behind, whose thousand launches run Python and torch until the last moment. Nothing else should
run meanwhile; it takes three and a half minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from minisd.config import SD1
from minisd.denoiser import Batching, Denoiser
from minisd.guidance import Guidance
from minisd.models.unet import UNet
from minisd.relay import Relay
from minisd.request import Request
from minisd.samplers.names import SAMPLERS, solver
from minisd.sampling import run_sigmas, sample, schedule_of, sigma_table, solver_options
from minisd.start import Start
from minisd.text.conditioning import Conditioning
from minisd.trail import Trail
from scripts.bench.common import median, record

SHAPE, STEPS, LIMIT = (4, 64, 64), 20, 200.0
CPU = torch.device("cpu")
BLOCK = bytes(1 << 20)


class Waiting:
    """In a network's place: works for some time, halves x, and keeps when it was called and answered."""

    config, dtype = SD1.unet, torch.float32

    def __init__(self, seconds: float, *, both: bool, request: Request) -> None:
        self.seconds, self.both = seconds, both
        self.table = sigma_table(SD1, request)
        self.spans: list[tuple[float, float]] = []

    def __call__(self, x: Tensor, *conditions: object, **options: object) -> object:
        """As denoise(x, sigma), or as a UNet."""
        begun = time.perf_counter()
        answer = x * 0.5
        while time.perf_counter() - begun < self.seconds:
            hashlib.sha256(BLOCK)  # without Python's lock
        self.spans.append((begun, time.perf_counter()))
        return (answer, answer) if self.both else answer

    def denoise(self) -> Waiting:
        return self

    denoise_both = denoise

    def beside(self, end: float, steps: float) -> float:
        """Microseconds of a step that were spent outside the calls, from the first of them to `end`."""
        inside = sum(b - a for a, b in self.spans)
        return (end - self.spans[0][0] - inside) / steps * 1e6

    def under(self, sigmas: Tensor) -> Relay:
        """What a solver sees in a drawing with this as its UNet: Denoiser and guidance, called twice."""
        self.both = False  # a UNet has one answer
        texts = [Conditioning(torch.randn(1, 77, SD1.unet.context_dim), None, 77, 77) for _ in range(2)]
        one_by_one = Batching(images=False, prompts=False)
        return Relay(
            Denoiser(
                network=cast(UNet, self),
                table=self.table,
                prediction="eps",
                cond=texts[0],
                uncond=texts[1],
                guidance=Guidance(scale=7.0),
                batching=one_by_one,
                dtype=torch.float32,
                sigmas=tuple(sigmas.tolist()),
                check=lambda: None,
            )
        )


def steps_taken(name: str, network: Waiting, each: int = 1) -> float:
    """Of a run: the request's, but for the solver that chooses them. each: calls of one evaluation."""
    return len(network.spans) / each / SAMPLERS[name].calls if name == "dpm_adaptive" else STEPS


def alone(name: str) -> float:
    """The solver's arithmetic: microseconds of one step."""
    request = made(name)
    network = Waiting(0.0, both=SAMPLERS[name].both, request=request)
    sigmas = run_sigmas(network.table, request, schedule_of(request), "sd1")
    x = torch.randn(1, *SHAPE) * float(sigmas[0])
    zero, ends = torch.zeros_like(x), list[float]()
    options = solver_options(request, SAMPLERS[name], network.table)
    note = lambda step: ends.append(time.perf_counter())  # noqa: E731
    solver(name)(network, x, sigmas, noise=lambda a, b: zero, on_step=note, **options)
    return network.beside(ends[-1], steps_taken(name, network))


def whole(name: str, seconds: float, *, denoiser: bool) -> tuple[float, float]:
    """A run as the pipeline makes it, with or without the Denoiser: (microseconds of one step, milliseconds
    before the first call)."""
    request = made(name)
    network = Waiting(seconds, both=SAMPLERS[name].both, request=request)
    sigmas = run_sigmas(network.table, request, schedule_of(request), "sd1")
    by = network.under(sigmas) if denoiser else cast(Denoiser, network)
    trail, begun = Trail(), time.perf_counter()
    sample(by, request, Start(sigmas), SHAPE, CPU, lambda step: None, trail)
    trail.settle()
    steps = steps_taken(name, network, 2 if denoiser else 1)
    return network.beside(time.perf_counter(), steps), (network.spans[0][0] - begun) * 1e3


def made(name: str) -> Request:
    return Request(sampler=name, steps=STEPS, seed=7, width=512, height=512).for_model(SD1, seed=0)


def middle(measure: Callable[[], tuple[float, ...]], rounds: int) -> list[float]:
    """Medians of what some rounds give."""
    return [median(list(values)) for values in zip(*(measure() for _ in range(rounds)), strict=True)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--call-ms", type=float, default=20.0, help="milliseconds of one network call")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--path-rounds", type=int, default=3, help="rounds with the Denoiser")
    parser.add_argument("--only", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    seconds = args.call_ms / 1000
    figures: dict[str, dict[str, float]] = {}
    print(
        f"{'sampler':<20}{'solver, us':>12}{'run, us':>12}{'path, us':>12}{'before, ms':>12}   of {LIMIT:.0f}"
    )
    with torch.inference_mode():
        for name in args.only:
            for denoiser in (False, True):
                whole(name, 0.0, denoiser=denoiser)  # not counted: loads what is imported late
            (own,) = middle(lambda: (alone(name),), args.rounds)  # noqa: B023  called here
            run, before = middle(lambda: whole(name, seconds, denoiser=False), args.rounds)  # noqa: B023
            path, _ = middle(lambda: whole(name, seconds, denoiser=True), args.path_rounds)  # noqa: B023
            told = {"solver": own, "run": run, "path": path, "before_ms": before}
            figures[name] = {key: round(value, 1) for key, value in told.items()}
            verdict = "within" if run < LIMIT else "OVER"
            print(f"{name:<20}{own:>12.0f}{run:>12.0f}{path:>12.0f}{before:>12.1f}   {verdict}", flush=True)
    over = [name for name in figures if figures[name]["run"] >= LIMIT]
    worst = {key: max(figures, key=lambda name: figures[name][key]) for key in ("solver", "run", "path")}  # noqa: B023
    said = ", ".join(f"{key} {figures[name][key]:.0f} us ({name})" for key, name in worst.items())
    print(f"worst: {said}; runs over the limit: {', '.join(over) or 'none'}")
    if not args.no_record:
        told = {"call_ms": args.call_ms, "rounds": args.rounds, "steps": STEPS, "shape": list(SHAPE)}
        told |= {"limit_us": LIMIT, "over": over, "worst": worst}
        print(record("samplers", {**told, "microseconds a step": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a step costs besides the network: python -m scripts.bench.samplers [--call-ms 20] [--rounds 7]

For every sampler, at 4 x 64 x 64 latents and 20 steps, microseconds of one step: of the solver's arithmetic
alone, and of a whole run as the pipeline makes it (noise, digests for the receipt, the look for values that
are not finite). The network is --call-ms of work that lets other threads run, so that noise can be made
meanwhile, as it is beside a real one (an SD1.5 step takes some 20 ms on a fast GPU and seconds on a CPU). A
sleep would not do: the first microseconds of a core that wakes up are slow, and no network leaves it asleep.
The limit is 200 us. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from typing import cast

import torch
from torch import Tensor

from minisd.config import SD1
from minisd.denoiser import Denoiser
from minisd.request import Request
from minisd.samplers.names import SAMPLERS, solver
from minisd.sampling import run_sigmas, sample, schedule_of, sigma_table, solver_options
from minisd.start import Start
from scripts.bench.common import median, record

SHAPE, STEPS, LIMIT = (4, 64, 64), 20, 200.0
CPU = torch.device("cpu")


BLOCK = bytes(1 << 20)


class Waiting:
    """In a network's place: works for some time, halves x, and keeps when it was called and answered."""

    dtype = torch.float32

    def __init__(self, seconds: float, *, both: bool, request: Request) -> None:
        self.seconds, self.both = seconds, both
        self.table = sigma_table(SD1, request)
        self.spans: list[tuple[float, float]] = []

    def __call__(self, x: Tensor, sigma: float) -> object:
        begun = time.perf_counter()
        answer = x * 0.5
        while time.perf_counter() - begun < self.seconds:
            hashlib.sha256(BLOCK)  # without Python's lock
        self.spans.append((begun, time.perf_counter()))
        return (answer, answer) if self.both else answer

    def denoise(self) -> Waiting:
        return self

    denoise_both = denoise

    def beside(self, end: float, steps: int) -> float:
        """Microseconds of a step that were spent outside the calls, from the first of them to `end`."""
        inside = sum(b - a for a, b in self.spans)
        return (end - self.spans[0][0] - inside) / steps * 1e6


def overhead(name: str, seconds: float) -> tuple[float, float]:
    """(the solver alone, a whole run): microseconds of one step."""
    request = Request(sampler=name, steps=STEPS, seed=7, width=512, height=512).for_model(SD1, seed=0)
    sampler = SAMPLERS[name]
    results = []
    for whole in (False, True):
        network = Waiting(seconds if whole else 0.0, both=sampler.both, request=request)
        sigmas = run_sigmas(network.table, request, schedule_of(request), "sd1")
        ends: list[float] = []
        note = lambda step, ends=ends: ends.append(time.perf_counter())  # noqa: E731
        if whole:
            sample(cast(Denoiser, network), request, Start(sigmas), SHAPE, CPU, note)
        else:
            x = torch.randn(1, *SHAPE) * float(sigmas[0])
            zero = torch.zeros_like(x)
            options = solver_options(request, sampler, network.table)
            solver(name)(network, x, sigmas, noise=lambda a, b, zero=zero: zero, on_step=note, **options)
        results.append(network.beside(ends[-1], STEPS))
    return results[0], results[1]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--call-ms", type=float, default=20.0, help="milliseconds of one network call")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    figures: dict[str, dict[str, float]] = {}
    print(f"{'sampler':<20}{'solver, us':>12}{'run, us':>12}   of {LIMIT:.0f}")
    with torch.inference_mode():
        for name in args.only:
            rounds = [overhead(name, args.call_ms / 1000) for _ in range(args.rounds + 1)][1:]
            alone, whole = (median([r[i] for r in rounds]) for i in (0, 1))
            figures[name] = {"solver": round(alone, 1), "run": round(whole, 1)}
            print(f"{name:<20}{alone:>12.0f}{whole:>12.0f}   {'within' if whole < LIMIT else 'OVER'}")
    if not args.no_record:
        told = {"call_ms": args.call_ms, "rounds": args.rounds, "steps": STEPS, "shape": list(SHAPE)}
        print(record("samplers", {**told, "microseconds a step": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How fast an implementation is at a site, and how far from the floor: the time that products, memory traffic
or exponentials take at the least, whichever is most.

On a CUDA device events around repeated calls, with inputs that change so that the cache does not hold them;
elsewhere the clock, one call at a time. What the interpreter runs is not timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from minisd.kernels.registry import Implementation, Site
from minisd.lab.shapes import Case, make_case

WARM_UP = 5
ROUNDS = 20
COPIES = 4  # of the inputs, used in turn
EXPONENTIALS = 16  # of one multiprocessor in one clock


@dataclass(frozen=True)
class Limits:
    """Of a device, per second: products and sums of matrix units, bytes of memory, exponentials."""

    flops: float
    bytes: float
    exponentials: float


@dataclass(frozen=True)
class Work:
    """Of one call: floating-point operations, bytes read and written once, exponentials."""

    flops: float
    bytes: float
    exponentials: float

    def floor(self, limits: Limits) -> tuple[float, str]:
        """(seconds, which limit binds)."""
        times = {
            "products": self.flops / limits.flops,
            "memory": self.bytes / limits.bytes,
            "exponentials": self.exponentials / limits.exponentials,
        }
        name = max(times, key=lambda key: times[key])
        return times[name], name


@dataclass(frozen=True)
class Timed:
    """Seconds of a call: median, least, 20th and 80th percentile of the rounds."""

    median: float
    least: float
    p20: float
    p80: float

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def work_of(site: Site) -> Work:
    """What an operation must do at a site, if everything is read and written once."""
    b, h, n, m, d, size = site.b, site.h, site.n, site.m, site.d, site.dtype.itemsize
    if site.op.endswith("attention"):
        share = 0.5 if site.op == "causal_attention" else 1.0
        scores = b * h * n * m * share
        return Work(4 * scores * d, 2 * b * h * (n + m) * d * size, scores)
    if site.op == "group_norm_silu":
        return Work(0, 2 * b * n * d * size, b * n * d)
    if site.op == "layer_norm":
        return Work(0, 4 * b * n * d * size, 0)
    if site.op == "geglu":
        return Work(4 * b * n * m * d, (b * n * (m + d) + 2 * m * d) * size, b * n * d)
    if site.op == "guidance":
        return Work(0, 5 * b * n * size, 0)
    if site.op == "upsample_conv":
        return Work(2 * 16 * b * n * m * d, (b * n * (m + 4 * d) + 9 * m * d) * size, 0)
    return Work(2 * b * n * m * d, b * n * (m + d) * size + m * d, 0)


def timed(run: Callable[[int], object], device: str) -> Timed:
    """Seconds of run(i), i counting up."""
    for i in range(WARM_UP):
        run(i)
    seconds: list[float] = []
    for round_ in range(ROUNDS):
        if device == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            for i in range(COPIES):
                run(i)
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3 / COPIES)
        else:
            begun = time.perf_counter()
            run(round_)
            seconds.append(time.perf_counter() - begun)
    seconds.sort()
    last = len(seconds) - 1
    return Timed(
        statistics.median(seconds), seconds[0], seconds[round(last * 0.2)], seconds[round(last * 0.8)]
    )


def time_one(one: Implementation, site: Site, device: str) -> Timed:
    cases = [make_case(site, "strided", seed=i, device=device) for i in range(COPIES)]

    def run(i: int) -> object:
        case: Case = cases[i % COPIES]
        return one.run(*case.arguments, **case.named)

    with torch.inference_mode():
        return timed(run, device)


def measured_limits(device: str, dtype: torch.dtype) -> Limits:
    """What a large product and a large copy reach here, in this process."""
    size, length = (8192, 1 << 28) if device == "cuda" else (1024, 1 << 24)
    a = torch.randn(size, size, device=device).to(dtype)
    source = torch.randn(length // 4, device=device)
    target = torch.empty_like(source)
    product = timed(lambda _: a @ a, device).least
    copy = timed(lambda _: target.copy_(source), device).least
    exponentials = 1e30
    if device == "cuda":
        found = torch.cuda.get_device_properties(0)
        clock = getattr(found, "clock_rate", 1_755_000) * 1e3
        exponentials = found.multi_processor_count * EXPONENTIALS * clock
    return Limits(2 * size**3 / product, 2 * 4 * len(source) / copy, exponentials)

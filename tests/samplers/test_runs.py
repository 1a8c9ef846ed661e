"""Oracle: the table of samplers, and equality of runs that must not differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import Tensor

from minisd.samplers.brownian import brownian_noise
from minisd.samplers.names import SAMPLERS, solver
from minisd.samplers.restart import community_plan
from minisd.samplers.schedule import SigmaTable, alphas_cumprod, karras_sigmas, table_sigmas
from minisd.samplers.step import Denoise, Noise, Step
from tests.samplers import gaussian
from tests.samplers.test_against_others import Draws, nonlinear, start

TABLE = SigmaTable.from_alphas(alphas_cumprod())
SHAPE = (2, 4, 3, 5)
LOW, HIGH = 0.03, 14.6
STEPWISE = [
    n for n in SAMPLERS if n not in ("dpm_fast", "dpm_adaptive", "restart")
]  # keep to the levels given
MEMORYLESS = [n for n in STEPWISE if SAMPLERS[n].module in ("ode", "sde", "consistency", "cfgpp")] + [
    "dpmpp_sde"
]
MEMORYLESS.remove("dpmpp_2m")


def prepared(name: str, denoise: Denoise = nonlinear) -> tuple[Callable[..., Tensor], Callable[..., object]]:
    """The solver as a run would call it, and its denoise."""
    run = solver(name)
    if "table" in SAMPLERS[name].takes:
        run = partial(run, table=TABLE)
    if not SAMPLERS[name].both:
        return run, denoise

    def both(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        guided = denoise(x, sigma)
        return guided, 0.9 * guided

    return run, both


def noise_of(name: str, low: float = LOW, high: float = HIGH) -> Noise:
    if SAMPLERS[name].noise == "brownian":
        return brownian_noise([5, 6], SHAPE[1:], low, high, torch.zeros(1, dtype=torch.float64))
    return Draws()


def levels(steps: int, final: bool) -> Tensor:
    return karras_sigmas(steps, LOW, HIGH) if final else karras_sigmas(steps + 1, LOW, HIGH)[:-1]


def wanted_calls(name: str, steps: int, final: bool) -> int:
    """From the table: `calls` per step, one into 0; and what the exceptions say of themselves."""
    per = SAMPLERS[name].calls
    if name == "plms":  # the first step twice, unless it leads into 0
        return steps + (0 if final and steps == 1 else 1)
    if name == "restart" and steps >= 20:
        main, restarts = community_plan(steps)
        inner = sum(2 * (r.steps - 1) * r.times for r in restarts)
        return 2 * main - int(final) + inner
    return per * (steps - 1) + 1 if final else per * steps


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("name", [n for n in SAMPLERS if n != "dpm_adaptive"])
def test_number_of_calls(name: str, final: bool) -> None:
    """Oracle: the table of samplers, at 1, 2, 3 and 20 steps, ending at 0 and as a part of a run."""
    for steps in (1, 2, 3, 20):
        calls = list[float]()

        def counted(x: Tensor, sigma: float) -> Tensor:
            calls.append(sigma)  # noqa: B023  the list of this round
            assert type(sigma) is float and sigma > 0
            return nonlinear(x, sigma)

        run, call = prepared(name, counted)
        out = run(call, start(HIGH), levels(steps, final), noise=noise_of(name))
        assert len(calls) == wanted_calls(name, steps, final)
        assert out.shape == SHAPE and out.dtype == torch.float64 and torch.isfinite(out).all()


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n != "dpm_adaptive"])
def test_number_of_calls_from_a_picture(name: str) -> None:
    """Oracle: the table of samplers: the last 1, 2, 3 and 15 steps of a run of 20, as image to image takes
    them, cost what a run of so many steps costs."""
    for steps in (1, 2, 3, 15):
        calls = list[float]()

        def counted(x: Tensor, sigma: float) -> Tensor:
            calls.append(sigma)  # noqa: B023  the list of this round
            return nonlinear(x, sigma)

        run, call = prepared(name, counted)
        sigmas = levels(20, True)[20 - steps :]
        begin = float(sigmas[0])
        out = run(call, start(begin), sigmas, noise=noise_of(name, LOW, max(begin, 2 * LOW)))
        assert len(calls) == wanted_calls(name, steps, True) and calls[0] == begin
        assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n != "dpm_adaptive"])
def test_no_step_waits_for_a_device(name: str) -> None:
    """Oracle: torch's meta device, whose tensors have no values: whoever asks for one is refused. Only the
    adaptive solver must ask, to choose its steps."""
    empty = torch.zeros(SHAPE, device="meta")

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return x * 0.5

    run, call = prepared(name, denoise)
    heard = list[Step]()
    out = run(call, empty, levels(24, True), noise=lambda a, b: empty, on_step=heard.append)
    assert out.device.type == "meta" and out.shape == SHAPE and heard


def test_waiting_for_a_device_is_seen() -> None:
    """Inverse: the adaptive solver, which reads its error estimate."""
    empty = torch.zeros(SHAPE, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        solver("dpm_adaptive")(lambda x, sigma: x * 0.5, empty, levels(3, True))


def test_calls_of_the_adaptive_solver() -> None:
    """Oracle: three for every tried step of every image, one more for the batch into 0."""
    calls = list[int]()

    def counted(x: Tensor, sigma: float) -> Tensor:
        calls.append(len(x))
        return nonlinear(x, sigma)

    solver("dpm_adaptive")(counted, start(HIGH), levels(3, True))
    assert calls[-1] == 2 and set(calls[:-1]) == {1} and (len(calls) - 1) % 3 == 0
    wide, calls[:] = len(calls), []
    solver("dpm_adaptive")(counted, start(HIGH), levels(3, False), rtol=1e-4, atol=1e-4)
    assert len(calls) % 3 == 0 and len(calls) > wide


@pytest.mark.parametrize("sigma_end", [0.0, 3.0])
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_one_step(name: str, sigma_end: float) -> None:
    """Oracle: into 0 the denoised picture, to rounding; elsewhere not far from the exact solution."""
    sigmas = torch.tensor([10.0, sigma_end], dtype=torch.float64)
    x = start(10.0)
    options = {} if SAMPLERS[name].eta is None else {"eta": 0.0}
    run, call = prepared(name, gaussian.denoise)
    out = run(call, x, sigmas, noise=lambda a, b: torch.zeros(SHAPE, dtype=torch.float64), **options)
    if sigma_end == 0.0:
        assert (out - gaussian.denoise(x, 10.0)).abs().max() < 1e-13
    else:
        assert (out - gaussian.solution(x, 10.0, sigma_end)).abs().max() < 0.5 * x.abs().max()


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_callbacks_hear_of_every_step_and_change_nothing(name: str) -> None:
    """Oracle: equality with the run that nobody listens to; the levels of the schedule; x untouched."""
    sigmas, x, heard = levels(7, True), start(HIGH), list[Step]()
    run, call = prepared(name)
    silent = run(call, x, sigmas, noise=noise_of(name))
    loud = run(call, x, sigmas, noise=noise_of(name), on_step=heard.append)
    assert torch.equal(silent, loud) and torch.equal(x, start(HIGH))
    assert torch.equal(heard[-1].x, loud) and heard[-1].sigma_next == 0.0
    assert all(step.x.shape == step.denoised.shape == SHAPE for step in heard)
    if name in STEPWISE or name == "restart":
        pairs = [(i, float(sigmas[i]), float(sigmas[i + 1])) for i in range(7)]
        assert [(s.index, s.sigma, s.sigma_next) for s in heard] == pairs
        assert torch.equal(heard[0].denoised, nonlinear(x, HIGH))


@pytest.mark.parametrize("name", MEMORYLESS)
def test_stop_and_resume(name: str) -> None:
    """Oracle: bits of the run that was not interrupted, wherever it is cut."""
    sigmas = levels(6, True)
    run, call = prepared(name)
    whole = run(call, start(HIGH), sigmas, noise=noise_of(name))
    for cut in (1, 3, 5):
        noise = noise_of(name)
        half = run(call, start(HIGH), sigmas[: cut + 1], noise=noise)
        assert torch.equal(run(call, half, sigmas[cut:], noise=noise), whole)


@pytest.mark.parametrize("name", ["dpmpp_2m", "lms", "unipc", "deis", "dpmpp_3m_sde"])
def test_multistep_solvers_forget_when_cut(name: str) -> None:
    """Oracle: inequality: a cut costs them their past, so the test above would see a difference."""
    sigmas = levels(6, True)
    run, call = prepared(name)
    whole = run(call, start(HIGH), sigmas, noise=noise_of(name))
    noise = noise_of(name)
    parts = run(call, run(call, start(HIGH), sigmas[:4], noise=noise), sigmas[3:], noise=noise)
    assert not torch.equal(parts, whole)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_rows_do_not_know_of_each_other(name: str) -> None:
    """Oracle: bits of each image alone."""
    run, call = prepared(name)
    noise = noise_of(name)
    drawn: dict[tuple[float, float, int], Tensor] = {}

    def kept(sigma: float, sigma_next: float) -> Tensor:
        return drawn.setdefault((sigma, sigma_next, 0), noise(sigma, sigma_next))

    x, sigmas = start(HIGH), levels(5, True)
    both = run(call, x, sigmas, noise=kept)
    for i in range(2):
        alone = run(call, x[i : i + 1], sigmas, noise=lambda a, b, i=i: kept(a, b)[i : i + 1])
        assert torch.equal(alone[0], both[i])


def brownian(*seeds: int) -> Noise:
    return brownian_noise(seeds, (4, 8, 8), LOW, HIGH, torch.zeros(1, dtype=torch.float64))


def increment(noise: Noise, a: float, b: float) -> Tensor:
    """W(a) - W(b)."""
    return noise(a, b) * math.sqrt(abs(a - b))


def test_brownian_increments_add_up() -> None:
    """Oracle: W(c) - W(a) = (W(c) - W(b)) + (W(b) - W(a)), over long and short intervals; the sign turns."""
    noise = brownian(1)
    for a, b, c in ((14.0, 3.0, 0.04), (9.0, 8.9999, 8.99), (1.0, 1.0 - 1e-7, 1.0 - 3e-7)):
        whole = increment(noise, a, c)
        assert (whole - increment(noise, a, b) - increment(noise, b, c)).abs().max() < 1e-10
        assert torch.equal(noise(a, c), -noise(c, a))


def test_brownian_increments_are_unit_normal_and_independent() -> None:
    """Oracle: mean 0, variance 1, no correlation where intervals do not overlap, to five standard errors."""
    noise = brownian_noise([3], (40_000,), LOW, 4096.0, torch.zeros(1, dtype=torch.float64))
    pairs = [(4096.0, 700.0), (700.0, 2.0), (2.0, 1.99), (0.032, 0.0319), (0.0319, 0.0318), (0.0301, LOW)]
    parts = [noise(*pair)[0] for pair in pairs]
    limit = 5 / math.sqrt(40_000)
    for i, a in enumerate(parts):
        assert abs(float(a.mean())) < limit and abs(float(a.var()) - 1) < limit * math.sqrt(2)
        for b in parts[:i]:
            assert abs(float((a * b).mean())) < limit


def test_brownian_noise_does_not_know_the_order_of_questions() -> None:
    """Oracle: bits of the same intervals asked for backwards, with many others between, and again."""
    pairs = [(float(a), float(b)) for a, b in zip(levels(20, False), levels(20, False)[1:], strict=False)]
    noise, other = brownian(7), brownian(7)
    asked = {pair: noise(*pair) for pair in pairs}
    for pair in reversed(pairs):
        other(math.sqrt(pair[0] * pair[1]), pair[1])
        assert torch.equal(other(*pair), asked[pair])
    assert torch.equal(noise(*pairs[0]), asked[pairs[0]])


def test_brownian_noise_is_the_same_for_threads_that_ask_at_once() -> None:
    """Oracle: bits of the same intervals asked for one after the other."""
    pairs = [(a, b) for a in (14.0, 5.0, 1.0) for b in (4.9, 0.9, 0.5, 0.05)] * 4
    noise, alone = brownian(7, 8), brownian(7, 8)
    with ThreadPoolExecutor(4) as pool:
        for pair, row in zip(pairs, pool.map(lambda pair: noise(*pair), pairs), strict=True):
            assert torch.equal(row, alone(*pair))


def test_brownian_noise_is_per_image() -> None:
    """Oracle: row i of a batch is the path of seed i alone; another seed is another path."""
    batch, alone = brownian(7, 8)(5.0, 4.0), brownian(8)(5.0, 4.0)
    assert torch.equal(batch[1], alone[0]) and not torch.equal(batch[0], batch[1])


def test_zero_terminal_snr_is_kept_by_every_solver() -> None:
    """Oracle: every solver makes its first call at the level of the last trained step, 4096."""
    table = SigmaTable.from_alphas(alphas_cumprod(zero_terminal_snr=True))
    sigmas = table_sigmas(8, table, spacing="trailing")
    assert float(sigmas[0]) == table.sigma_max == pytest.approx(4096, rel=1e-6)
    for name in SAMPLERS:
        seen = list[float]()

        def watched(x: Tensor, sigma: float) -> Tensor:
            seen.append(sigma)  # noqa: B023  the list of this round
            return gaussian.denoise(x, sigma)

        run, call = prepared(name, watched)
        noise = noise_of(name, float(sigmas[-2]), float(sigmas[0]))
        out = run(call, start(table.sigma_max), sigmas, noise=noise)
        assert seen[0] == table.sigma_max, name
        # Gaussian data of mean 0.3 and deviation 0.5: what comes out is of its size
        assert torch.isfinite(out).all() and (out - gaussian.MEAN).abs().max() < 20, name

"""Oracle: exact solutions for Gaussian data and for a mixture of two: every solver's order and constants."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from minisd.samplers.er_sde import scaler
from minisd.samplers.names import SAMPLERS, solver
from minisd.samplers.schedule import karras_sigmas
from tests.samplers import gaussian
from tests.samplers.gaussian import SIGMA_MAX, SIGMA_MIN, open_karras, starts

MEANS, STDS, SHARES = (torch.tensor(v, dtype=torch.float64) for v in ((-1.0, 0.7), (0.4, 0.3), (0.4, 0.6)))
Denoise = Callable[[Tensor, float], Tensor]
Grid = Callable[[int], Tensor]


def mixture(x: Tensor, sigma: float) -> Tensor:
    """E[x0 | x] of the mixture: the components' denoisers, weighted by how likely each is to have made x."""
    variance, x = STDS**2 + sigma**2, x[..., None]
    likely = (SHARES.log() - variance.log() / 2 - (x - MEANS) ** 2 / (2 * variance)).softmax(-1)
    return (likely * (STDS**2 * x + sigma**2 * MEANS) / variance).sum(-1)


def log_tail(x: Tensor, sigma: float, side: Tensor) -> Tensor:
    """Log of the probability below x (side 1) or above it (side -1)."""
    z = side[..., None] * (x[..., None] - MEANS) / (STDS**2 + sigma**2).sqrt()
    return torch.logsumexp(SHARES.log() + torch.special.log_ndtr(z), dim=-1)


def mixture_solution(x: Tensor, sigma: float, sigma_end: float) -> Tensor:
    """A flow on a line keeps quantiles: the point with the same tail at sigma_end, by bisection."""
    side = torch.where(x < 0, 1.0, -1.0).double()
    wanted = log_tail(x, sigma, side)
    low, high = torch.full_like(x, -50.0), torch.full_like(x, 50.0)
    for _ in range(70):
        middle = (low + high) / 2
        right = (log_tail(middle, sigma_end, side) < wanted) == (side > 0)
        low, high = torch.where(right, middle, low), torch.where(right, high, middle)
    return (low + high) / 2


def graded(n: int) -> Tensor:
    """Even in log sigma but for three short steps at the start: multistep solvers begin with order 1, whose
    error would otherwise hide theirs."""
    short = [n**-2.5, n**-1.8, n**-1.3]
    steps = torch.tensor([0.0, *short] + [(1 - sum(short)) / (n - 3)] * (n - 3), dtype=torch.float64)
    levels = SIGMA_MAX * (SIGMA_MIN / SIGMA_MAX) ** steps.cumsum(0)
    levels[-1] = SIGMA_MIN
    return levels


def mean_flow(denoise: Denoise, forget: Callable[[float], float]) -> Tensor:
    """What SDE solvers follow without their noise: d x / d log sigma = (d log f / d log sigma) (x - D), by
    800 steps of the classical Runge-Kutta method. forget: f, sigma^2 for ancestral sampling."""
    x, h, e = starts(), math.log(SIGMA_MIN / SIGMA_MAX) / 800, 1e-4

    def change(x: Tensor, place: float) -> Tensor:
        sigma = SIGMA_MAX * math.exp(place * h)
        rate = math.log(forget(sigma * math.exp(e)) / forget(sigma * math.exp(-e))) / (2 * e)
        return h * rate * (x - denoise(x, sigma))

    for i in range(800):
        a = change(x, i)
        b = change(x + a / 2, i + 0.5)
        c = change(x + b / 2, i + 0.5)
        x = x + (a + 2 * b + 2 * c + change(x + c, i + 1)) / 6
    return x


DENOISERS: dict[str, Denoise] = {"gaussian": gaussian.denoise, "mixture": mixture}


@cache
def exact(data: str, flow: str) -> Tensor:
    if flow == "er_sde":
        return mean_flow(DENOISERS[data], scaler)
    if flow == "ancestral":
        return mean_flow(DENOISERS[data], lambda sigma: sigma**2)
    solve = gaussian.solution if data == "gaussian" else mixture_solution
    return solve(starts(), SIGMA_MAX, SIGMA_MIN)


def silence(sigma: float, sigma_next: float) -> Tensor:
    return torch.zeros_like(starts())


def run(name: str, options: dict[str, object], denoise: Denoise, sigmas: Tensor) -> Tensor:
    """The solver on its ODE: eta and tau 0, no restarts; those that cannot, without their noise."""
    sampler = SAMPLERS[name]
    own: dict[str, object] = {} if sampler.eta is None else {"eta": 0.0}
    own |= {"sa_solver": {"tau": 0.0}, "restart": {"restarts": ()}}.get(name, {})
    call = (lambda x, s: (denoise(x, s), denoise(x, s))) if sampler.both else denoise
    return solver(name)(call, starts(), sigmas, noise=silence, **own, **options)


def flow_of(name: str) -> str:
    return {"ddpm": "ancestral"}.get(name, "er_sde" if name.startswith("er_sde") else "ode")


def error(name: str, options: dict[str, object], data: str, sigmas: Tensor) -> float:
    out = run(name, options, DENOISERS[data], sigmas)
    return float((out - exact(data, flow_of(name))).abs().max())


# where Karras levels and N = 40 .. 160 do not show the order alone, and why
GRIDS: dict[str, tuple[Grid, int, int]] = {
    "lms": (graded, 80, 320),  # the start-up caps the slope at 3
    "dpmpp_3m_sde": (graded, 80, 320),
    "deis": (open_karras, 80, 320),
    "sa_solver": (open_karras, 160, 320),  # the corrector's third-order error fades slowly
    "dpm_fast": (open_karras, 161, 320),  # its last step is of order 2 where N mod 3 is 2
}
FREE = ("lcm", "tcd", "dpm_adaptive")  # no convergence, gamma instead of an order, steps of its own
NAMES = [n for n in SAMPLERS if n not in FREE]


@pytest.mark.parametrize("data", ["gaussian", "mixture"])
@pytest.mark.parametrize("name", NAMES)
def test_declared_order(name: str, data: str) -> None:
    """Oracle: error ~ N^-order against the exact solution, within 0.15 of the table of samplers."""
    grid, few, many = GRIDS.get(name, (open_karras, 40, 160))
    first, last = (error(name, {}, data, grid(n)) for n in (few, many))
    if name == "ddpm" and data == "gaussian":  # each step is the exact posterior mean: nothing to converge
        assert max(first, last) < 1e-10
        return
    fitted = math.log(first / last) / math.log(many / few)
    assert abs(fitted - SAMPLERS[name].order) < 0.15


@pytest.mark.parametrize("data", ["gaussian", "mixture"])
@pytest.mark.parametrize(
    "name,options,order,grid",
    [
        ("lms", {"order": 1}, 1, open_karras),
        ("lms", {"order": 2}, 2, open_karras),
        ("lms", {"order": 3}, 3, graded),
        ("deis", {"order": 1}, 1, open_karras),
        ("deis", {"order": 2}, 2, open_karras),
        ("ipndm", {"order": 1}, 1, open_karras),
        ("unipc", {"order": 1}, 2, open_karras),
        ("unipc", {"order": 1, "variant": "bh1"}, 2, open_karras),
        ("unipc", {"order": 3, "variant": "bh1"}, 4, open_karras),
        ("sa_solver", {"predictor_order": 1, "corrector_order": 0}, 1, open_karras),
        ("sa_solver", {"predictor_order": 1, "corrector_order": 2, "authors_form": False}, 2, open_karras),
        ("sa_solver", {"predictor_order": 2, "corrector_order": 0, "authors_form": False}, 2, open_karras),
        ("sa_solver", {"predictor_order": 2, "corrector_order": 3, "authors_form": False}, 3, open_karras),
        ("sa_solver", {"predictor_order": 3, "corrector_order": 0}, 3, open_karras),
        ("sa_solver", {"predictor_order": 3, "corrector_order": 4}, 4, open_karras),
    ],
)
def test_orders_of_options(name: str, options: dict[str, object], order: int, grid: Grid, data: str) -> None:
    """Oracle: the same with an order asked for; UniPC gains one order by its corrector."""
    first, last = (error(name, options, data, grid(n)) for n in (40, 160))
    assert abs(math.log2(first / last) / 2 - order) < 0.15


ERROR_AT_20 = [
    ("dpm_2", {}, 7.6e-3),
    ("dpm_2_ancestral", {}, 7.6e-3),
    ("dpmpp_2s_ancestral", {}, 6.8e-3),
    ("dpmpp_sde", {}, 6.8e-3),
    ("dpmpp_2m_sde", {}, 1.3e-2),
    ("dpmpp_2m_sde_heun", {}, 2.0e-2),
    ("dpmpp_3m_sde", {}, 2.0e-3),
    ("lms", {"order": 2}, 2.5e-2),
    ("lms", {"order": 3}, 1.1e-2),
    ("lms", {}, 6.4e-3),
    ("restart", {}, 1.3e-2),
    ("ddpm", {}, 0.0),
]


@pytest.mark.parametrize("name,options,wanted", ERROR_AT_20)
def test_constant_at_20_steps(name: str, options: dict[str, object], wanted: float) -> None:
    """Oracle: figures measured elsewhere with the implementations of k-diffusion, to 10 %."""
    assert error(name, options, "gaussian", open_karras(20)) == pytest.approx(wanted, rel=0.10, abs=1e-10)


def test_constant_of_the_corrected_third_order() -> None:
    """Oracle: 2.2e-3 at 20 steps, measured elsewhere over starts within 1.5 standard deviations."""
    out = run("dpmpp_3m_sde_exact", {}, gaussian.denoise, open_karras(20))
    assert float((out - exact("gaussian", "ode"))[1:8].abs().max()) == pytest.approx(2.2e-3, rel=0.10)


def test_uneven_steps_cost_ipndm_its_order() -> None:
    """Oracle: on steps that alternate 1 : 3 even coefficients converge as 1, exact ones (LMS) as 4."""

    def alternating(n: int) -> Tensor:
        steps = torch.tensor([0.0, *([0.5, 1.5] * (n // 2))], dtype=torch.float64) / n
        return SIGMA_MAX * (SIGMA_MIN / SIGMA_MAX) ** steps.cumsum(0)

    for name, order in (("ipndm", 1), ("plms", 1)):
        first, last = (error(name, {}, "gaussian", alternating(n)) for n in (80, 320))
        assert abs(math.log2(first / last) / 2 - order) < 0.15
    assert (
        error("lms", {}, "gaussian", alternating(320))
        < error("ipndm", {}, "gaussian", alternating(320)) / 100
    )


@pytest.mark.parametrize("name", ["lms", "deis"])
def test_levels_close_together_do_not_cancel(name: str) -> None:
    """Oracle: two levels 1e-10 apart change the error by no more than one more point does."""
    plain = graded(160)
    split = torch.cat([plain[:80], plain[79:80] * (1 - 1e-10), plain[80:]])
    assert error(name, {}, "gaussian", split) < 3 * error(name, {}, "gaussian", plain)


@pytest.mark.parametrize("data", ["gaussian", "mixture"])
def test_order_of_the_adaptive_solver(data: str) -> None:
    """Oracle: error ~ calls^-3 as the tolerance falls, to 0.2: each level of it has steps of its own."""
    points: list[tuple[int, float]] = []
    for tolerance in (1e-5, 1e-9):
        calls = 0

        def counted(x: Tensor, sigma: float) -> Tensor:
            nonlocal calls
            calls += 1
            return DENOISERS[data](x, sigma)

        options = {"rtol": tolerance, "atol": tolerance}
        out = solver("dpm_adaptive")(counted, starts()[:1], open_karras(2), **options)
        points.append((calls, float((out - exact(data, "ode")[:1]).abs().max())))
    (n, first), (m, last) = points
    assert abs(math.log(first / last) / math.log(m / n) - SAMPLERS["dpm_adaptive"].order) < 0.2
    assert last < 1e-7


@pytest.mark.parametrize("few,many", [(43, 163), (42, 162)])
def test_the_fast_solver_with_one_call_left(few: int, many: int) -> None:
    """Oracle: error ~ N^-2 where N mod 3 is not 2, as its docstring says: one Euler step at the end."""
    first, last = (error("dpm_fast", {}, "mixture", open_karras(n)) for n in (few, many))
    assert abs(math.log(first / last) / math.log(many / few) - 2) < 0.3


INTO_ZERO = [n for n in SAMPLERS if n not in ("lcm", "tcd")]


@pytest.mark.parametrize("name", INTO_ZERO)
def test_plateau_of_the_final_zero(name: str) -> None:
    """Oracle: from sigma_min to 0 the share 1 - s / sqrt(s^2 + sigma_min^2) of x0 - mean stays."""
    clean = starts() / 10
    begin = gaussian.solution(clean, 0.0, SIGMA_MIN)
    both = SAMPLERS[name].both
    call = (lambda x, s: (gaussian.denoise(x, s),) * 2) if both else gaussian.denoise
    sigmas = torch.tensor([SIGMA_MIN, 0.0], dtype=torch.float64)
    out = solver(name)(call, begin, sigmas, noise=silence)
    plateau = 1 - gaussian.STD / math.hypot(gaussian.STD, SIGMA_MIN)
    assert plateau == pytest.approx(1.7009e-3, rel=1e-4)
    assert ((clean - out) - plateau * (clean - gaussian.MEAN)).abs().max() < 1e-14


@pytest.mark.parametrize("name", ["unipc_3", "deis", "dpmpp_2m", "heun", "dpm_fast"])
def test_a_converged_run_ends_on_the_plateau(name: str) -> None:
    """Oracle: a whole run with the final 0 leaves the plateau of its last step, and claims no more."""
    sigmas = karras_sigmas(320, SIGMA_MIN, SIGMA_MAX)
    out = run(name, {}, gaussian.denoise, sigmas)
    clean = gaussian.solution(starts(), SIGMA_MAX, 0.0)
    left = ((clean - out) / (clean - gaussian.MEAN))[[0, 8]]
    plateau = 1 - gaussian.STD / math.hypot(gaussian.STD, SIGMA_MIN)
    assert left.flatten().tolist() == pytest.approx([plateau] * 2, rel=0.05)


def test_tcd_without_noise_is_euler() -> None:
    """Oracle: equality with Euler at gamma 0, which asks its table nothing."""
    tcd = partial(solver("tcd"), gamma=0.0, table=None)
    sigmas = karras_sigmas(7, SIGMA_MIN, SIGMA_MAX)
    assert torch.equal(tcd(mixture, starts(), sigmas), solver("euler")(mixture, starts(), sigmas))

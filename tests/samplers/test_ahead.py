"""Oracle: bits of the same noise without threads; what each solver really asked."""

from __future__ import annotations

import concurrent.futures
import os
import threading

import pytest
import torch
from torch import Tensor

from minisd.config import SD1
from minisd.request import Request
from minisd.samplers import ahead
from minisd.samplers.ahead import Ahead, queries
from minisd.samplers.names import SAMPLERS
from minisd.samplers.noise import philox_normal
from minisd.sampling import run_sigmas, schedule_of, sigma_table, step_noise
from tests.samplers.test_runs import HIGH, SHAPE, TABLE, levels, nonlinear, prepared, start

CHURN: dict[str, dict[str, object]] = {
    name: {"s_churn": 4.0} for name in SAMPLERS if "s_churn" in SAMPLERS[name].takes
}
DRAWS = [name for name in SAMPLERS if SAMPLERS[name].noise != "none"] + list(CHURN)
DRAWS.remove("dpm_adaptive")  # asks as its answers make it


@pytest.mark.parametrize("name", DRAWS)
def test_every_question_is_foreseen(name: str) -> None:
    """Oracle: the questions of a run with a network, at 1, 3 and 20 steps."""
    for steps in (1, 3, 20):
        asked = list[tuple[float, float]]()

        def noise(sigma: float, sigma_next: float) -> Tensor:
            asked.append((sigma, sigma_next))  # noqa: B023  the list of this round
            return torch.zeros(SHAPE, dtype=torch.float64)

        run, call = prepared(name)
        options: dict[str, object] = {"table": TABLE} if "table" in SAMPLERS[name].takes else {}
        options |= CHURN.get(name, {})
        run(call, start(HIGH), levels(steps, True), noise=noise, **CHURN.get(name, {}))
        assert queries(name, levels(steps, True), options) == asked
        assert asked or steps < 20 or SAMPLERS[name].eta == 0.0


def test_solvers_that_draw_nothing_are_not_run() -> None:
    """Oracle: no question of a deterministic solver."""
    assert queries("dpmpp_2m", levels(5, True), {}) == []


def answer(number: int, sigma: float, sigma_next: float) -> Tensor:
    return philox_normal(7, number, (4, 3)) * sigma + sigma_next


@pytest.mark.parametrize(
    "expected",
    [
        [(3.0, 2.0), (2.0, 1.0), (1.0, 0.5), (0.5, 0.25), (0.25, 0.1), (0.1, 0.05), (0.05, 0.01)],
        [(3.0, 2.0), (9.0, 9.0)],  # goes on otherwise, and longer
        [],
    ],
)
@pytest.mark.parametrize("size", [1, ahead.ROOM // 3, 2 * ahead.ROOM])
@pytest.mark.parametrize("makers", [1, 3])
def test_answers_do_not_depend_on_what_was_expected(
    expected: list[tuple[float, float]], size: int, makers: int
) -> None:
    """Oracle: the answers made when asked; no more of them are kept than there is room for, and none once
    the run went another way."""
    asked = [(3.0, 2.0), (2.0, 1.0), (1.0, 0.5), (0.5, 0.25), (0.25, 0.1), (0.1, 0.05), (0.05, 0.01)]
    room = max(2, ahead.ROOM // size)
    with Ahead(answer, expected, size=size, makers=makers) as noise:
        assert len(noise.ready) == min(room, len(expected))
        for number, pair in enumerate(asked):
            assert torch.equal(noise(*pair), answer(number, *pair))
            assert len(noise.ready) <= room
            assert not noise.ready or asked[: number + 1] == expected[: number + 1]


def test_made_by_another_thread_and_given_back() -> None:
    """Oracle: names of the threads; none is left after the `with`, also where an error ends the run."""
    makers = set[str]()

    def noted(number: int, sigma: float, sigma_next: float) -> Tensor:
        makers.add(threading.current_thread().name)
        return answer(number, sigma, sigma_next)

    with pytest.raises(ZeroDivisionError), Ahead(noted, [(2.0, 1.0)] * 9) as noise:
        noise(2.0, 1.0)
        raise ZeroDivisionError
    assert makers and all(name.startswith("minisd-noise") for name in makers)
    assert not [t for t in threading.enumerate() if t.name.startswith("minisd-noise")]


@pytest.mark.parametrize("size", [1, ahead.ROOM])
def test_every_answer_is_made_by_another_thread(size: int) -> None:
    """Oracle: names of the threads. Inverse: a run that goes another way makes its answers itself."""
    makers: list[str] = []

    def noted(number: int, sigma: float, sigma_next: float) -> Tensor:
        makers.append(threading.current_thread().name)
        return answer(number, sigma, sigma_next)

    pairs = [(float(k), float(k - 1)) for k in range(20, 0, -1)]
    own = threading.current_thread().name
    with Ahead(noted, pairs, size=size) as noise:
        for pair in pairs:
            noise(*pair)
    assert len(makers) == len(pairs) and own not in makers
    makers.clear()
    with Ahead(noted, pairs, size=size) as noise:
        for high, low in pairs:
            noise(high + 0.5, low)
    assert makers.count(own) == len(pairs)


def test_noise_of_a_run_is_made_beside_the_network() -> None:
    """Oracle: while the network computes for the first time, all the noise of the run comes to be ready;
    images of a batch have threads of their own. Inverse: nothing for a solver that draws nothing."""
    for name, count in (("dpmpp_2m_sde", 1), ("euler_ancestral", 3), ("euler", 1)):
        request = Request(sampler=name, steps=8, seed=7, width=64, height=64, count=count)
        request = request.for_model(SD1, seed=0)
        table = sigma_table(SD1, request)
        sigmas = run_sigmas(table, request, schedule_of(request), "sd1")
        like = torch.zeros(count, 4, 8, 8)
        with step_noise(request, SAMPLERS[name], sigmas, (4, 8, 8), like, {}) as noise:
            made = concurrent.futures.wait(noise.ready.values(), timeout=60)
            assert not made.not_done and len(made.done) == (0 if name == "euler" else 7)
            assert noise.pool._max_workers == min(count, os.cpu_count() or 1)


def test_an_error_of_the_source_reaches_the_run() -> None:
    """Oracle: the error itself."""

    def failing(number: int, sigma: float, sigma_next: float) -> Tensor:
        raise ValueError(f"no draw {number}")

    with Ahead(failing, [(2.0, 1.0)]) as noise, pytest.raises(ValueError, match="no draw 0"):
        noise(2.0, 1.0)


def test_the_network_is_not_asked() -> None:
    """Oracle: foreseeing the questions of a run makes no network call: `queries` is given none."""
    assert queries("euler_ancestral", levels(3, True), {}) == [
        (float(a), float(b)) for a, b in zip(levels(3, True)[:-2], levels(3, True)[1:-1], strict=True)
    ]
    assert nonlinear(start(HIGH), HIGH).shape == SHAPE

"""Oracle: bits of the same noise without threads; what each solver really asked."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from minisd.samplers.ahead import AHEAD, Ahead, queries
from minisd.samplers.names import SAMPLERS
from minisd.samplers.noise import philox_normal
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
def test_answers_do_not_depend_on_what_was_expected(expected: list[tuple[float, float]]) -> None:
    """Oracle: the answers made when asked."""
    asked = [(3.0, 2.0), (2.0, 1.0), (1.0, 0.5), (0.5, 0.25), (0.25, 0.1), (0.1, 0.05), (0.05, 0.01)]
    with Ahead(answer, expected) as noise:
        for number, pair in enumerate(asked):
            assert torch.equal(noise(*pair), answer(number, *pair))
            assert len(noise.ready) <= AHEAD


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


def test_beside_a_network_every_answer_is_made_by_another_thread() -> None:
    """Oracle: names of the threads. Inverse: without the network's calls, nothing is made after the first."""
    makers: list[str] = []

    def noted(number: int, sigma: float, sigma_next: float) -> Tensor:
        makers.append(threading.current_thread().name)
        return answer(number, sigma, sigma_next)

    pairs = [(float(k), float(k - 1)) for k in range(20, 0, -1)]
    for called in (True, False):
        makers.clear()
        with Ahead(noted, pairs) as noise:
            denoise = noise.beside(lambda x, sigma: x)
            for pair in pairs:
                if called:
                    denoise(torch.zeros(1), pair[0])
                noise(*pair)
        ahead = sum(name.startswith("minisd-noise") for name in makers)
        assert ahead == (len(pairs) if called else AHEAD)


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

"""Oracle: bits of the run that was not interrupted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minisd.samplers.names import SAMPLERS, solver
from minisd.samplers.resume import Answers
from tests.samplers.test_runs import HIGH, levels, noise_of, nonlinear, prepared, start


class Stopped(Exception):
    """The run was ended here."""


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_stopped_run_goes_on_exactly(name: str) -> None:
    """Every solver, stopped before its second and its fifth call: same bits, and no call made twice."""
    whole_calls, calls, limit = 0, 0, 0

    def counted(x: Tensor, sigma: float) -> Tensor:
        nonlocal whole_calls
        whole_calls += 1
        return nonlinear(x, sigma)

    run, call = prepared(name, counted)
    sigmas = levels(6, True)
    whole = run(call, start(HIGH), sigmas, noise=noise_of(name))

    def stopping(x: Tensor, sigma: float) -> Tensor:
        nonlocal calls
        if calls == limit:
            raise Stopped
        calls += 1
        return nonlinear(x, sigma)

    for stop in (1, 4):
        calls, limit = 0, stop
        run, call = prepared(name, stopping)
        answers: Answers[object] = Answers()
        with pytest.raises(Stopped):
            run(answers.kept(call), start(HIGH), sigmas, noise=noise_of(name))
        limit = -1
        again = run(answers.kept(call), start(HIGH), sigmas, noise=noise_of(name))
        assert torch.equal(again, whole)
        assert calls == whole_calls == len(answers.given)


def test_answers_of_another_run_are_refused() -> None:
    """Oracle: the kept level and the asked one are named."""
    answers: Answers[object] = Answers()
    run = solver("euler")
    run(answers.kept(nonlinear), start(HIGH), levels(4, True), noise=noise_of("euler"))
    with pytest.raises(ValueError, match="call 2 is at sigma .* but the kept answer was given at"):
        run(answers.kept(nonlinear), start(HIGH), levels(5, True), noise=noise_of("euler"))

"""Oracle: digests taken at once; a run whose latents are written into."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from minisd import trail as module
from minisd.config import SD1
from minisd.denoiser import Denoiser
from minisd.errors import NumericalError
from minisd.request import Request
from minisd.samplers.names import SAMPLERS
from minisd.samplers.step import Step
from minisd.sampling import run_sigmas, sample, schedule_of, sigma_table
from minisd.start import Start
from minisd.trail import Trail, digest

CPU = torch.device("cpu")


class Network:
    """In a network's place; spoils: number of the call whose answer is not finite."""

    dtype = torch.float32

    def __init__(self, request: Request, *, both: bool, spoils: int = 0) -> None:
        self.table = sigma_table(SD1, request)
        self.both, self.spoils, self.calls = both, spoils, 0

    def __call__(self, x: Tensor, sigma: float) -> object:
        self.calls += 1
        answer = torch.tanh(x / (1 + sigma))
        if self.calls == self.spoils:
            answer[0, 0, 0, 0] = torch.nan
        return (answer, 0.9 * answer) if self.both else answer

    def denoise(self) -> Network:
        return self

    denoise_both = denoise


def run(name: str, trail: Trail, heard: list[Step], *, steps: int = 6, spoils: int = 0) -> Network:
    request = Request(sampler=name, steps=steps, seed=7, width=64, height=64, count=2).for_model(SD1, seed=0)
    network = Network(request, both=SAMPLERS[name].both, spoils=spoils)
    sigmas = run_sigmas(network.table, request, schedule_of(request), "sd1")
    sample(cast(Denoiser, network), request, Start(sigmas), (4, 8, 8), CPU, heard.append, trail)
    return network


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_latents_are_hashed_as_they_were_at_their_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: digests taken at once. No solver writes into what it gave; nor does it matter when a trail
    hashes, at the end or as often as its bound makes it."""
    marks = []
    for bound in (64 * 2**20, 5000, 0):  # all at the end, after some, one by one
        monkeypatch.setattr(module, "MAX_WAITING", bound)
        at_once, trail = list[tuple[str, ...]](), Trail()
        note = cast(list[Step], Noting(at_once))
        run(name, trail, note)
        assert trail._waiting <= bound
        marks.append(trail.settle())
        assert [m.digests for m in marks[-1][1:]] == at_once and at_once
    assert marks[0] == marks[1] == marks[2]


class Noting:
    """In a list's place: keeps digests instead of steps."""

    def __init__(self, kept: list[tuple[str, ...]]) -> None:
        self.kept = kept

    def append(self, step: Step) -> None:
        self.kept.append(tuple(digest(row) for row in step.x))


def test_latents_that_are_written_into_are_seen() -> None:
    """Inverse: whoever writes into a step's latents changes the digests that wait."""
    trail, x = Trail(), torch.ones(1, 4, 2, 2)
    trail.step(Step(0, 2.0, 1.0, x, x))
    wanted = (digest(x[0]),)
    x.mul_(2)
    assert trail.settle()[0].digests != wanted


@pytest.mark.parametrize("name", ["euler", "heun", "unipc_3", "dpmpp_sde"])
def test_the_first_step_that_is_not_finite_is_named_at_once(name: str) -> None:
    """Oracle: the step in which the network's third call lies; it is not called in a later one. Inverse: the
    same run unspoilt."""
    heard = list[Step]()
    calls = SAMPLERS[name].calls
    with pytest.raises(NumericalError, match=f"not finite after step {-(-3 // calls)} in"):
        run(name, Trail(), heard, spoils=3)
    assert len(heard) == -(-3 // calls) - 1
    run(name, Trail(), heard)

"""Spot checks: one step of a run taken again, for the cost of one step.

A picture may be kept with a side file that holds what the network answered in every step. A solver run on
these answers needs no network; it leads through the latents of the receipt, and step k is then taken with the
network itself. So it is proven that the stored answers belong to the record and that step k is what the
network gives. Nothing is said of the network in the other steps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from minisd.atomic import write_bytes
from minisd.errors import CheckpointError, ImageError, MinisdError, quoted
from minisd.samplers.step import Step
from minisd.trail import MAX_ANSWERS, Answer, Said, Trail
from minisd.weights_loader.safetensors_file import SafetensorsFile

SUFFIX = ".steps.safetensors"  # behind the picture's whole name
KEY = "minisd.answers"  # of the file's metadata: [[step, sigma, parts], ...]
MAX_CALLS = 100_000


class Reached(Exception):
    """The step that was asked for is done."""


class Parted(MinisdError):
    """The stored answers are not those of this run."""


def steps_path(picture: str | os.PathLike[str]) -> Path:
    """Where the answers of a picture's run lie."""
    target = Path(picture)
    return target.with_name(target.name + SUFFIX)


def write_answers(answers: Sequence[Answer], index: int, picture: str | os.PathLike[str]) -> Path:
    """Keep the answers for image `index` of a run beside its picture."""
    tensors = {
        f"{number}.{part}": tensor[index : index + 1].contiguous()
        for number, answer in enumerate(answers)
        for part, tensor in enumerate(answer.parts)
    }
    calls = [[a.step, a.sigma, len(a.parts)] for a in answers]
    return write_bytes(save(tensors, metadata={KEY: json.dumps(calls)}), steps_path(picture))


def read_answers(picture: str | os.PathLike[str]) -> list[Answer]:
    """The answers beside a picture. Raises ImageError where they are missing or not such a file."""
    path = steps_path(picture)
    if not path.is_file():
        raise ImageError(
            f"{quoted(path.name)} is not beside the picture; a step alone can be checked where a picture was "
            "kept with its steps (--keep-steps)"
        )
    if path.stat().st_size > 2 * MAX_ANSWERS:
        raise ImageError(f"{quoted(path.name)} is larger than such a file can be; it is not read")
    try:
        file = SafetensorsFile(path)
    except CheckpointError as error:
        raise ImageError(f"the steps beside the picture cannot be read: {error}") from error
    try:
        calls = json.loads(file.metadata[KEY])
        out = []
        for number, (step, sigma, parts) in enumerate(calls[:MAX_CALLS]):
            tensors = tuple(file.read(f"{number}.{part}") for part in range(min(int(parts), 2)))
            out.append(Answer(int(step), float(sigma), tensors))
        return out
    except (KeyError, ValueError, TypeError, RecursionError, CheckpointError) as error:
        raise ImageError(f"{quoted(path.name)} does not hold the steps of a run") from error
    finally:
        file.close()


class Retaken(Trail):
    """A run on stored answers until step `at`, where the network is asked; ends after it with Reached.

    apart: the largest difference between what the network gave in that step and what is stored of it.
    """

    def __init__(self, answers: Sequence[Answer], at: int) -> None:
        super().__init__()
        self.stored, self.at = list(answers), at
        self.calls = 0
        self.apart = 0.0

    def through(self, denoise: Callable[[Tensor, float], Said]) -> Callable[[Tensor, float], Said]:
        def answering(x: Tensor, sigma: float) -> Said:
            stored = self.stored[self.calls] if self.calls < len(self.stored) else None
            self.calls += 1
            belongs = stored is not None and (stored.step, stored.sigma) == (self.steps + 1, float(sigma))
            if self.steps + 1 < self.at:
                if stored is None or not belongs or any(p.shape != x.shape for p in stored.parts):
                    raise Parted(
                        f"the stored answers are not those of this run: they part in step {self.steps + 1}"
                    )
                parts = tuple(p.to(x.device) for p in stored.parts)
                return parts[0] if len(parts) == 1 else parts  # type: ignore[return-value]
            answer = denoise(x, sigma)
            now = (answer,) if isinstance(answer, Tensor) else answer
            for one, other in zip(now, stored.parts if stored and belongs else (), strict=False):
                if one.shape == other.shape:
                    away = (one.detach().cpu().double() - other.double()).abs()
                    self.apart = max(self.apart, float(torch.nan_to_num(away, nan=torch.inf).max()))
            return answer

        return answering

    def step(self, step: Step) -> None:
        super().step(step)
        if self.steps == self.at:
            raise Reached

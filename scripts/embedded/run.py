"""What every training stage shares: where it computes, a budget of wall-clock time, a log, a learning rate
that follows it, checkpoints.
"""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Place:
    """Where networks compute, and whether in bfloat16 (weights, losses and optimisers stay float32).
    Pictures, captions and noise are drawn on the CPU: a seed means the same everywhere."""

    device: torch.device = torch.device("cpu")
    bf16: bool = False

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()


class Run:
    """One stage in one folder. Time spent before a resume counts; `fraction` runs from 0 to 1 over the whole
    budget.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        minutes: float,
        *,
        place: Place | None = None,
        save_every: float = 180.0,
        look_every: float = 1200.0,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.stage, self.budget = folder, stage, minutes * 60
        self.place = place or Place()
        self.save_every, self.look_every = save_every, look_every
        self.checkpoint = folder / f"{stage}.pt"
        self.log_path = folder / f"{stage}.jsonl"
        self.spent_before, self.started = 0.0, time.monotonic()
        self.last_save = self.last_look = self.started
        self.step, self.seen = 0, 0
        self.begun = 0  # the step at which these optimisers and averages began
        self.mark = (self.started, 0)  # time and pictures of the last log line

    @property
    def elapsed(self) -> float:
        return self.spent_before + time.monotonic() - self.started

    @property
    def fraction(self) -> float:
        return min(1.0, self.elapsed / self.budget)

    @property
    def done(self) -> bool:
        return self.elapsed >= self.budget

    def learning_rate(self, peak: float, warm_up: int) -> float:
        """Linear warm-up over `warm_up` steps, then half a cosine in time down to 0 at the end of the
        budget.
        """
        return peak * min(1.0, (self.step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * self.fraction))

    def set_learning_rate(self, optimizers: list[torch.optim.Optimizer], peak: float, warm_up: int) -> float:
        lr = self.learning_rate(peak, warm_up)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
        return lr

    def log(self, **figures: float) -> None:
        """One line to the screen and one JSON line to the log: time, rate, time left and `figures`."""
        now = time.monotonic()
        rate = (self.seen - self.mark[1]) / max(now - self.mark[0], 1e-9)
        self.mark = (now, self.seen)
        row = {
            "stage": self.stage,
            "minutes": self.elapsed / 60,
            "step": self.step,
            "seen": self.seen,
            "rate": rate,
        }
        row |= {"left_minutes": (self.budget - self.elapsed) / 60, **figures}
        rounded = {k: v if isinstance(v, str | int) else float(f"{v:.5g}") for k, v in row.items()}
        with self.log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")
        print("  ".join(f"{k} {v}" for k, v in rounded.items()), flush=True)

    def save(self, modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer]) -> None:
        """Everything a resume needs; replaces the last checkpoint in one move."""
        state = {
            "modules": {name: module.state_dict() for name, module in modules.items()},
            "optimizers": [o.state_dict() for o in optimizers],
            "elapsed": self.elapsed,
            "step": self.step,
            "seen": self.seen,
            "begun": self.begun,
        }
        temporary = self.checkpoint.with_suffix(".new")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)
        self.last_save = time.monotonic()

    @staticmethod
    def begin_from(
        checkpoint: Path, modules: dict[str, dict[str, Tensor]], elapsed: float, step: int, seen: int
    ) -> None:
        """A checkpoint of weights alone (`modules`: their state dicts), from which `resume` goes on."""
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {"modules": modules, "optimizers": [], "elapsed": elapsed}
        state |= {"step": step, "seen": seen, "begun": step}
        torch.save(state, checkpoint)

    def save_due(self) -> bool:
        return time.monotonic() - self.last_save >= self.save_every

    def look_due(self) -> bool:
        """True once every `look_every` seconds: time for a sheet of samples."""
        due = time.monotonic() - self.last_look >= self.look_every
        if due:
            self.last_look = time.monotonic()
        return due

    def resume(self, modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer]) -> bool:
        """Load the checkpoint of an earlier run in this folder; False if there is none."""
        if not self.checkpoint.exists():
            return False
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        for name, module in modules.items():
            module.load_state_dict(state["modules"][name])
        if state["optimizers"]:  # a checkpoint made of an exported file has none; they begin anew
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        self.spent_before, self.step, self.seen = state["elapsed"], state["step"], state["seen"]
        self.begun = state.get("begun", 0)
        self.started = time.monotonic()
        self.mark = (self.started, self.seen)
        if self.done:
            spent, budget = self.elapsed / 60, self.budget / 60
            print(f"{self.stage}: {spent:.1f} of {budget:g} minutes are spent; a longer budget goes on")
        return True

"""What another implementation does to a picture: the same request drawn twice, latents compared after every
step, pictures by PSNR and side by side."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from minisd.engine import Engine
from minisd.request import Request
from minisd.trail import Trail


@dataclass(frozen=True)
class Effect:
    """relative: norm of the latents' difference over their norm, after every step. psnr: dB, infinite for
    equal pictures. a, b: milliseconds of a step."""

    relative: tuple[float, ...]
    psnr: float
    same: bool
    a: float
    b: float

    def to_dict(self) -> dict[str, object]:
        return {**asdict(self), "psnr": None if math.isinf(self.psnr) else self.psnr}

    def __str__(self) -> str:
        steps = ", ".join(f"{r:.1e}" for r in self.relative)
        psnr = "equal pictures" if math.isinf(self.psnr) else f"PSNR {self.psnr:.1f} dB"
        return f"latents after each step: {steps}\n{psnr}; {self.a:.1f} and {self.b:.1f} ms a step"


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures in dB."""
    away = np.asarray(a.convert("RGB"), np.float64) - np.asarray(b.convert("RGB"), np.float64)
    error = float((away**2).mean())
    return math.inf if error == 0 else 10 * math.log10(255.0**2 / error)


def effect(a: Engine, b: Engine, request: Request) -> tuple[Effect, Image.Image]:
    """(the difference, both first pictures side by side). The seed must be set."""
    trails = Trail(keep=True), Trail(keep=True)
    one, two = (e.run(request, trail=t).drawing for e, t in zip((a, b), trails, strict=True))
    pairs = [
        (trails[0].kept[name].double(), trails[1].kept[name].double())
        for name in trails[0].kept
        if name.startswith("step")
    ]
    relative = tuple(float((y - x).norm() / x.norm()) for x, y in pairs)
    steps = max(1, len(pairs))
    first, second = one.images[0], two.images[0]
    both = Image.new("RGB", (first.width * 2 + 8, first.height), "white")
    both.paste(first, (0, 0))
    both.paste(second, (first.width + 8, 0))
    found = Effect(
        relative=relative,
        psnr=min(psnr(x, y) for x, y in zip(one.images, two.images, strict=True)),
        same=all(bool((x == y).all()) for x, y in pairs),
        a=one.seconds["sample"] / steps * 1e3,
        b=two.seconds["sample"] / steps * 1e3,
    )
    return found, both

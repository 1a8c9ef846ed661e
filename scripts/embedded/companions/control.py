"""An edge ControlNet (Zhang et al. 2023, arXiv:2302.05543) under its original names.

Begins as a copy of the UNet's encoder with zero convolutions. The hint is minisd's own Canny map. Objects are
moved, turned and resized, so that edges say what words do not; half of the captions are empty, as in the
paper, so that edges alone must do.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minisd.config import ControlNetConfig
from minisd.models.controlnet import ControlNet
from minisd.models.edits import Residuals
from minisd.preprocess import hint

from ..captions import caption
from ..pictures import COLOURS, Painter, Picture, PictureSource
from ..sheets import to_uint8
from .base import Base, descent

BATCH, POOL = 8, 500
HINT_WIDTHS = (16, 32, 64, 96)


def start(base: Base) -> ControlNet:
    """The UNet's encoder, told of the hint by zero convolutions."""
    network = ControlNet(ControlNetConfig(unet=base.config.unet, hint_widths=HINT_WIDTHS))
    weights = base.unet.state_dict()
    own = network.state_dict()
    network.load_state_dict({n: weights.get(n, t) for n, t in own.items()})
    last = network.input_hint_block[-1]
    for module in (*network.zero_convs, network.middle_block_out, last):
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    return network


def moved(picture: Tensor, background: str, rng: random.Random) -> Tensor:
    """3 128 128 in [-1, 1], turned by up to 25 degrees, scaled by 0.6 to 1.1, moved by up to 16 pixels."""
    angle, scale = rng.uniform(-0.44, 0.44), rng.uniform(0.6, 1.1)
    turn = torch.tensor(angle)
    cos, sin = float(turn.cos()) / scale, float(turn.sin()) / scale
    matrix = torch.tensor([[[cos, -sin, rng.uniform(-0.25, 0.25)], [sin, cos, rng.uniform(-0.25, 0.25)]]])
    ground = torch.tensor(COLOURS[background]).float()[:, None, None] / 127.5 - 1
    grid = F.affine_grid(matrix, [1, 3, 128, 128], align_corners=False)
    return F.grid_sample((picture - ground)[None], grid, align_corners=False)[0] + ground


def edges(picture: Tensor) -> Tensor:
    """Canny of 3 h w in [-1, 1]: 3 h w in 0..1."""
    drawn = hint(Image.fromarray(to_uint8(picture)), "canny")
    return torch.tensor(list(drawn.convert("L").tobytes())).view(1, 128, 128).expand(3, -1, -1) / 255


def train(
    base: Base, painter: Painter, source: PictureSource, minutes: float, say: Callable[[str], None]
) -> dict[str, Tensor]:
    torch.manual_seed(24)
    rng, generator = random.Random(24), torch.Generator().manual_seed(24)
    network = start(base)
    pictures: list[Picture] = [source.draw(rng) for _ in range(POOL)]
    hints, latents = [], []
    for picture in pictures:
        x = painter.paint([picture])[0]
        x = moved(x, picture.background, rng) if rng.random() < 0.7 else x
        hints.append(edges(x).half())
        latents.append(base.latents(x[None])[0])
    hint_pool, pool = torch.stack(hints), torch.stack(latents)
    say(f"{POOL} pictures encoded")
    for step in descent(list(network.parameters()), 1e-3, minutes, say):
        rows = torch.randint(POOL, (BATCH,), generator=generator)
        texts = ["" if rng.random() < 0.5 else caption(pictures[i], source.emoji, rng) for i in rows.tolist()]
        noised, t, v = base.noised(pool[rows], generator)
        with torch.no_grad():
            context = base.context(texts)
        *skips, middle = network(noised, t, context, hint_pool[rows].float())
        added = Residuals(tuple(skips), middle)
        step((base.unet(noised, t, context, residuals=added) - v).square().mean())
    return {f"control_model.{n}": p.half().contiguous() for n, p in network.state_dict().items()}

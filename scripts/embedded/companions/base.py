"""What every companion is trained beside: the finished model, frozen, in float32; captions as token ids;
pictures and their latents."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from minisd import load
from minisd.config import ModelConfig
from minisd.models.clip import TextEncoder
from minisd.models.unet import UNet
from minisd.models.vae import AutoencoderKL
from minisd.samplers.schedule import alphas_cumprod
from minisd.text.tokenizer import EOS, chunk, encode

from ..vae import encode_all


@dataclass(frozen=True)
class Base:
    config: ModelConfig
    text: TextEncoder
    unet: UNet
    vae: AutoencoderKL
    alphas: Tensor  # alphas_cumprod, 1000

    @classmethod
    def load(cls, path: Path) -> Base:
        """Fresh networks with the file's weights: what the engine prepared for drawing is left out."""
        with load(path, dtype="float32", vae_dtype="float32") as engine:
            model = engine.model
            config = model.config
            text, unet, vae = TextEncoder(config.text[0].config), UNet(config.unet), AutoencoderKL(config.vae)
            text.load_state_dict(model.text_encoders[0].state_dict())
            unet.load_state_dict(model.unet.state_dict())
            vae.load_state_dict(model.vae.state_dict())
        for network in (text, unet, vae):
            network.requires_grad_(False).eval()
        return cls(config, text, unet, vae, alphas_cumprod(**asdict(config.schedule)).float())

    def context(self, captions: Sequence[str]) -> Tensor:
        """b 77 width."""
        return self.text(token_ids(captions)).hidden

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        """b 3 128 128 in [-1, 1] -> b 4 16 16, scaled."""
        return encode_all(self.vae, pictures) * self.config.vae.scale_factor

    def noised(self, z: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(x, t, v) of clean latents: one timestep from each of b equal parts of the schedule."""
        b = len(z)
        t = ((torch.arange(b) + torch.rand(b, generator=generator)) / b * len(self.alphas)).long()
        a = self.alphas[t][:, None, None, None]
        eps = torch.randn(z.shape, generator=generator)
        return a.sqrt() * z + (1 - a).sqrt() * eps, t, a.sqrt() * eps - (1 - a).sqrt() * z


def token_ids(captions: Sequence[str]) -> Tensor:
    """int64 [b, 77], padded with end-of-text as SD1 does."""
    return torch.tensor([chunk(encode(text), EOS)[0] for text in captions])


def descent(
    parameters: Sequence[nn.Parameter],
    lr: float,
    minutes: float,
    say: Callable[[str], None],
    optimizers: Sequence[torch.optim.Optimizer] | None = None,
) -> Iterator[Callable[[Tensor], None]]:
    """Steps of AdamW, or of these optimizers, until the time is up, at half a cosine in time; each yields
    what takes the loss."""
    if optimizers is None:
        optimizers = [torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)]
    begun, steps, total, logged = time.monotonic(), 0, 0.0, time.monotonic()

    def step(loss: Tensor) -> None:
        nonlocal steps, total
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        steps, total = steps + 1, total + loss.item()

    seen = 0
    while (spent := (time.monotonic() - begun) / 60) < minutes:
        warm = min(1.0, (steps + 1) / 30)
        for group in (g for optimizer in optimizers for g in optimizer.param_groups):
            here = lr * group.get("lr_scale", 1.0)
            group["lr"] = here * warm * 0.5 * (1 + math.cos(math.pi * spent / minutes))
        yield step
        if time.monotonic() - logged > 20:
            say(f"{spent:.1f} of {minutes:g} minutes, step {steps}, loss {total / max(1, steps - seen):.4f}")
            seen, total, logged = steps, 0.0, time.monotonic()
    say(f"done: {steps} steps in {minutes:g} minutes")

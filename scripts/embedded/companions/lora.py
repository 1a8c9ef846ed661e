"""A style LoRA in kohya's format: with the word "blueprint" in the prompt, pale lines on deep blue.

Half of a batch is the same pictures as they are, with plain captions: the style must hang on the word, and
the text encoder, which was taught to look past words it does not know, must learn this one. In the UNet only
the transformers change, as is kohya's default: what reads the words. Its convolutions would learn to paint
everything blue, whatever was asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from minisd.weights_loader.lora_names import Target, spellings

from ..captions import caption
from ..pictures import Painter, PictureSource
from .base import Base, descent

RANK, ALPHA, BATCH = 8, 32.0, 8
LR, TEXT_FASTER = 4e-3, 4.0
POOL = 250  # pictures, encoded once
WORDS = "blueprint"
INK, PAPER = (225, 238, 255), (24, 62, 140)  # what was black, what was white


class LowRank(nn.Module):
    """weight -> weight + alpha / rank up down; up begins at 0."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(RANK, *weight.shape[1:]) / weight[0].numel() ** 0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], RANK))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + ALPHA / RANK * (self.up @ self.down.flatten(1)).view_as(weight)


def chosen(base: Base) -> dict[str, Target]:
    """{name in kohya's files: module}: attention, feed-forward and projections of transformers, and the
    linear layers of the text encoder."""
    named: dict[str, Target] = {}
    taken: set[Target] = set()
    for name, target in spellings(base.config).items():
        prefix = "lora_unet_" if target.part == "unet" else "lora_te_text_model_"
        inside = "_attentions_" if target.part == "unet" else "_layers_"
        fits = name.startswith(prefix) and inside in name and len(target.shape) >= 2
        if fits and target not in taken:
            named[name] = target
            taken.add(target)
    return named


def blueprint(pictures: Tensor) -> Tensor:
    """Brightness from PAPER (white) to INK (black); b 3 h w in [-1, 1]."""
    ink, paper = (torch.tensor(c)[:, None, None] / 127.5 - 1 for c in (INK, PAPER))
    luma = (pictures * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    return ink + (paper - ink) * (luma + 1) / 2


def train(
    base: Base, painter: Painter, source: PictureSource, minutes: float, say: Callable[[str], None]
) -> dict[str, Tensor]:
    torch.manual_seed(22)
    rng, generator = random.Random(22), torch.Generator().manual_seed(22)
    parts: dict[str, nn.Module] = {"unet": base.unet, "text_encoder": base.text}
    factors: dict[str, LowRank] = {}
    for name, target in chosen(base).items():
        module = parts[target.part].get_submodule(target.module)
        assert isinstance(module.weight, Tensor)
        factors[name] = LowRank(module.weight)
        parametrize.register_parametrization(module, "weight", factors[name])
    optimizer = torch.optim.AdamW(
        [
            {"params": list(f.parameters()), "lr_scale": TEXT_FASTER if n.startswith("lora_te") else 1.0}
            for n, f in factors.items()
        ],
        betas=(0.9, 0.99),
        weight_decay=0.0,
    )
    parameters = [p for f in factors.values() for p in f.parameters()]
    pictures = [source.draw(rng) for _ in range(POOL)]
    painted = [painter.paint([p]) for p in pictures]
    plain = torch.cat([base.latents(x) for x in painted])
    styled = torch.cat([base.latents(blueprint(x)) for x in painted])
    say(f"{POOL} pictures encoded, plain and as blueprints")
    for step in descent(parameters, LR, minutes, say, [optimizer]):
        rows = torch.randint(POOL, (BATCH // 2,), generator=generator)
        texts = [caption(pictures[i], source.emoji, rng) for i in rows.tolist()]
        texts += [rng.choice((f"{text}, {WORDS}", f"{WORDS}, {text}")) for text in texts]
        order = torch.randperm(BATCH, generator=generator)  # timesteps follow the place in the batch
        texts = [texts[i] for i in order.tolist()]
        noised, t, v = base.noised(torch.cat([plain[rows], styled[rows]])[order], generator)
        with parametrize.cached():  # each changed weight is made once a step
            loss = (base.unet(noised, t, base.context(texts)) - v).square().mean()
        step(loss)
    tensors: dict[str, Tensor] = {}
    for name, factor in factors.items():
        up = factor.up if factor.down.ndim == 2 else factor.up[:, :, None, None]
        tensors |= {
            f"{name}.lora_down.weight": factor.down.detach().half(),
            f"{name}.lora_up.weight": up.detach().half(),
            f"{name}.alpha": torch.tensor(ALPHA).half(),
        }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}

"""Stage 2b: the text encoder and the UNet, trained together to predict v (or eps) from noisy latents.

v = sqrt(a) eps - sqrt(1 - a) z (Salimans & Ho 2022, arXiv:2202.00512) with a = alphas_cumprod[t] of the
standard schedule and t uniform. The plain mean square of v weighs the errors of z by SNR + 1: no level of
noise is neglected, and the last step before pure noise, where eps prediction learns nothing about the
picture, still teaches composition and colour. One caption in ten is the empty prompt: guidance needs the
unconditional answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from minisd.config import TextConfig, TrainingSchedule, UNetConfig
from minisd.models.clip import TextEncoder
from minisd.models.transformer import SpatialTransformer
from minisd.models.unet import ResBlock, UNet
from minisd.samplers.schedule import alphas_cumprod

from .captions import caption
from .data import Emoji
from .latents import LatentPool
from .muon import optimizers
from .pictures import Picture
from .run import Place, Run
from .vocabulary import UNKNOWN, Vocabulary

UNET = UNetConfig(
    model_channels=32,
    channel_mult=(3, 4, 4),
    num_res_blocks=(1, 1, 1),
    depth_in=(0, 1, 1),
    depth_mid=1,
    depth_out=(1, 0, 1, 1, 0, 0),
    context_dim=128,
    num_heads=4,
    norm_groups=16,
)
TEXT = TextConfig(width=128, layers=2, num_heads=4, mlp_dim=512)


@dataclass(frozen=True)
class DiffusionRecipe:
    lr: float = 4e-3
    warm_up: int = 100
    batch: int = 32
    weight_decay: float = 0.01
    drop: float = 0.1  # share of empty prompts
    unknown: float = 0.04  # share of captions with a word the model will never learn
    ema: float = 0.998
    embedding_std: float = (
        0.3  # of new token rows; near the middle of float8's range, in which they are shipped
    )
    log_every: int = 100
    prediction: Literal["v", "eps"] = "v"


def initialise(text: TextEncoder, unet: UNet, recipe: DiffusionRecipe) -> None:
    """Small random words; residual branches start at zero, so that the untrained UNet is nearly linear."""
    nn.init.normal_(text.text_model.embeddings.token_embedding.weight, std=recipe.embedding_std)
    nn.init.normal_(text.text_model.embeddings.position_embedding.weight, std=0.05)
    ends: list[nn.Module] = [unet.out[2]]
    for module in unet.modules():
        if isinstance(module, ResBlock):
            ends.append(module.out_layers[3])
        elif isinstance(module, SpatialTransformer):
            ends.append(module.proj_out)
    for end in ends:
        for p in end.parameters():
            nn.init.zeros_(p)


class Average:
    """Exponential moving average of the weights, with a decay that rises from 0 to `decay`."""

    def __init__(self, modules: dict[str, nn.Module], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.live = modules
        self.shadow = {name: deepcopy(module).requires_grad_(False) for name, module in modules.items()}

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, module in self.live.items():
            for shadow, live in zip(self.shadow[name].parameters(), module.parameters(), strict=True):
                shadow.lerp_(live, 1 - decay)


class Captioner:
    """Pictures to rows of the vocabulary, with dropout and unknown words."""

    def __init__(
        self, emoji: tuple[Emoji, ...], vocabulary: Vocabulary, recipe: DiffusionRecipe, rng: random.Random
    ) -> None:
        self.emoji, self.vocabulary, self.recipe, self.rng = emoji, vocabulary, recipe, rng

    def rows(self, pictures: list[Picture]) -> Tensor:
        """int64 [b, 77]."""
        rng, recipe = self.rng, self.recipe
        texts = ["" if rng.random() < recipe.drop else caption(p, self.emoji, rng) for p in pictures]
        rows = self.vocabulary.rows(texts)
        for row in rows:
            if rng.random() < recipe.unknown:
                at = rng.randrange(1, 6)
                row[at + 1 :] = row[at:-1].clone()
                row[at] = UNKNOWN
        return rows


def loss_of(
    text: TextEncoder,
    unet: UNet,
    z: Tensor,
    rows: Tensor,
    table: Tensor,
    generator: torch.Generator,
    recipe: DiffusionRecipe,
    place: Place,
) -> Tensor:
    """Mean square of the error in v or eps; z: scaled latents b 4 h w, rows: b 77, table: alphas_cumprod
    [1000]."""
    b = z.shape[0]
    # one timestep from each of b equal parts of the schedule: the same distribution with less variance
    t = ((torch.arange(b) + torch.rand(b, generator=generator)) / b * len(table)).long()
    a = table[t][:, None, None, None]
    eps = torch.randn(z.shape, generator=generator)
    x = a.sqrt() * z + (1 - a).sqrt() * eps
    target = eps if recipe.prediction == "eps" else a.sqrt() * eps - (1 - a).sqrt() * z
    x, t, rows, target = (part.to(place.device) for part in (x, t, rows, target))
    with place.autocast():
        output = unet(x, t, text(rows).hidden)
    return (output.float() - target).square().mean()


def train_diffusion(
    run: Run,
    pool: LatentPool,
    weights: Tensor,
    emoji: tuple[Emoji, ...],
    vocabulary: Vocabulary,
    schedule: TrainingSchedule,
    recipe: DiffusionRecipe,
    seed: int = 5,
    look: Callable[[TextEncoder, UNet], None] | None = None,
) -> None:
    """Train until the run's time is up; its checkpoint holds "text", "unet" and their averages "text_ema",
    "unet_ema". `look` is shown the averages now and then.
    """
    torch.manual_seed(seed)
    text, unet = build(vocabulary)
    initialise(text, unet, recipe)
    text.to(run.place.device)
    unet.to(run.place.device)
    average = Average({"text": text, "unet": unet}, recipe.ema)
    modules = {
        "text": text,
        "unet": unet,
        "text_ema": average.shadow["text"],
        "unet_ema": average.shadow["unet"],
    }
    opts = optimizers(unet, recipe.lr, recipe.weight_decay, ("input_blocks.0.", "out.", "time_embed."))
    opts += optimizers(text, recipe.lr, recipe.weight_decay, ("text_model.embeddings.",))
    run.resume(modules, opts)
    # steps before an export do not count: an average that is slow from the start would stay where it was
    average.updates = run.step - run.begun
    generator = torch.Generator().manual_seed(seed + run.step)
    captioner = Captioner(emoji, vocabulary, recipe, random.Random(seed + run.step))
    table = alphas_cumprod(**asdict(schedule)).float()
    losses: list[float] = []  # since the last line of the log
    while not run.done:
        lr = run.set_learning_rate(opts, recipe.lr, recipe.warm_up)
        pictures, z = pool.draw(recipe.batch, weights, generator)
        rows = captioner.rows(pictures)
        loss = loss_of(text, unet, z, rows, table, generator, recipe, run.place)
        for opt in opts:
            opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*unet.parameters(), *text.parameters()], 1.0)
        for opt in opts:
            opt.step()
        average.update()
        run.step, run.seen = run.step + 1, run.seen + recipe.batch
        losses.append(loss.item())
        if run.step % recipe.log_every == 0:
            run.log(loss=sum(losses) / len(losses), lr=lr)
            losses.clear()
        if run.save_due():
            run.save(modules, opts)
        if look is not None and run.look_due():
            look(average.shadow["text"], average.shadow["unet"])  # pyright: ignore[reportArgumentType]
    run.save(modules, opts)


def build(vocabulary: Vocabulary) -> tuple[TextEncoder, UNet]:
    """The networks in training: a token table of the vocabulary's size, else as shipped."""
    text = TextEncoder(
        TextConfig(len(vocabulary), TEXT.max_length, TEXT.width, TEXT.layers, TEXT.num_heads, TEXT.mlp_dim)
    )
    return text, UNet(UNET)

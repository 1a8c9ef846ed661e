"""Stage 1: the autoencoder. 128x128 pictures to 4x16x16 latents and back, with edges that stay sharp.

Loss = L1 + MSE + edges + a tiny KL. "Edges" is the L1 distance of finite differences at three scales: emoji
are flat areas with hard borders, and a plain pixel loss would rather blur a border than place it. No
discriminator, no learned perceptual loss: nothing that would need other people's weights. Most steps see
64x64 cuts (a quarter of the cost, and borders rather than white); the last part sees whole pictures,
because GroupNorm's statistics depend on what is in view.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.config import VAEConfig
from minisd.models.vae import AutoencoderKL

from .data import SIZE
from .muon import optimizers
from .pictures import Painter, PictureSource
from .run import Run

# 8 groups, not 32: with as many groups as channels a GroupNorm takes away every channel's mean, and no layer
# after it could tell a red field from a blue one
CONFIG = VAEConfig(ch=32, ch_mult=(1, 1, 2, 3), num_res_blocks=1, norm_groups=8, scale_factor=1.0)
ADAM_ONLY = ("encoder.conv_in", "decoder.conv_out", "quant_conv", "post_quant_conv")  # first and last layers


@dataclass(frozen=True)
class VAERecipe:
    lr: float = 5e-3
    warm_up: int = 100
    cut: int = 64  # pixels
    batch: int = 8  # cuts; whole pictures: a quarter of it
    whole_from: float = 0.45  # fraction of the time after which whole pictures are seen
    kl: float = 2e-4  # per latent value
    edges: float = 1.0
    jitter: float = 0.0  # noise added to z before decoding, in standard deviations of z
    log_every: int = 100


def edge_loss(a: Tensor, b: Tensor, scales: int = 3) -> Tensor:
    """Mean |difference of finite differences|, b 3 H W at full, half and quarter size; both in [-1, 1]."""
    d, total = a - b, a.new_zeros(())
    for scale in range(scales):
        d = F.avg_pool2d(d, 2) if scale else d  # differences are linear: one pyramid of a - b is enough
        total = total + d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()
    return total / scales


def kl_loss(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence to the unit Gaussian, per latent value."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def psnr(a: Tensor, b: Tensor) -> float:
    """dB, for pictures in [-1, 1]; `a` is clamped. The mean over pictures of the dB of each."""
    mse = ((a.clamp(-1, 1) - b) / 2).square().mean(dim=(1, 2, 3))
    return float((-10 * mse.clamp_min(1e-10).log10()).mean())


def cut_out(x: Tensor, size: int, rng: random.Random) -> Tensor:
    """One random square of each picture, b 3 H W -> b 3 size size."""
    cuts = []
    for picture in x:
        # the triangular distribution prefers the middle, where the object is
        top, left = (round(rng.triangular(0, SIZE - size)) for _ in range(2))
        cuts.append(picture[:, top : top + size, left : left + size])
    return torch.stack(cuts)


def draw_batch(
    painter: Painter, source: PictureSource, recipe: VAERecipe, whole: bool, rng: random.Random
) -> Tensor:
    if whole:
        return painter.paint([source.draw(rng) for _ in range(recipe.batch // 4)])
    return cut_out(painter.paint([source.draw(rng) for _ in range(recipe.batch)]), recipe.cut, rng)


def loss_of(vae: AutoencoderKL, x: Tensor, recipe: VAERecipe, generator: torch.Generator) -> Tensor:
    posterior = vae.encode(x)
    noise = torch.randn(posterior.mean.shape, generator=generator).to(x.device)
    z = posterior.sample(noise) + recipe.jitter * posterior.mean.std().detach() * noise
    y = vae.decode(z)
    loss = (x - y).abs().mean() + (x - y).square().mean() + recipe.edges * edge_loss(x, y)
    return loss + recipe.kl * kl_loss(posterior.mean, posterior.logvar)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, x: Tensor) -> Tensor:
    return vae.decode(vae.encode(x).mean)


def train_vae(
    run: Run,
    painter: Painter,
    source: PictureSource,
    recipe: VAERecipe,
    encoder_of: AutoencoderKL | None = None,
    seed: int = 1,
) -> AutoencoderKL:
    """Train until the run's time is up.

    encoder_of: start from this autoencoder and leave its encoder as it is, so that latents keep their
    meaning: the decoder can go on learning while, or after, the UNet learns those latents.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKL(CONFIG)
    if encoder_of is not None:
        vae.load_state_dict(encoder_of.state_dict())
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    vae.to(run.place.device)
    opts = optimizers(vae, recipe.lr, 0.0, ADAM_ONLY)
    run.resume({"vae": vae}, opts)
    # a resumed run goes on with fresh draws instead of repeating those it has seen
    rng = random.Random(seed + run.step)
    generator = torch.Generator().manual_seed(seed + run.step)
    watched = painter.paint([source.draw(random.Random(1000 + i)) for i in range(24)])
    watched = watched.to(run.place.device)
    losses: list[float] = []  # since the last line of the log
    while not run.done:
        run.set_learning_rate(opts, recipe.lr, recipe.warm_up)
        x = draw_batch(painter, source, recipe, run.fraction >= recipe.whole_from, rng)
        with run.place.autocast():
            loss = loss_of(vae, x.to(run.place.device), recipe, generator)
        for opt in opts:
            opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for opt in opts:
            opt.step()
        run.step, run.seen = run.step + 1, run.seen + x.shape[0]
        losses.append(loss.item())
        if run.step % recipe.log_every == 0:
            run.log(loss=sum(losses) / len(losses), psnr=psnr(reconstruct(vae, watched), watched))
            losses.clear()
        if run.save_due():
            run.save({"vae": vae}, opts)
    run.save({"vae": vae}, opts)
    return vae


@torch.no_grad()
def encode_all(vae: AutoencoderKL, x: Tensor, batch: int = 16) -> Tensor:
    """The posterior mean: b 3 H W -> b 4 H/8 W/8, not scaled; on the CPU, wherever the network is."""
    device = next(vae.parameters()).device
    return torch.cat([vae.encode(part.to(device)).mean.cpu() for part in x.split(batch)])

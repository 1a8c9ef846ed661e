"""Oracle: each rule's formula on the raw network in float64; diffusers for PAG, FreeU and rescale."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from minisd.attention_blur import gaussian_blur
from minisd.denoiser import Batching, Denoiser
from minisd.guidance import Guidance, active, instruct, weighted
from minisd.models.edits import Edit
from minisd.samplers.schedule import SigmaTable, alphas_cumprod
from minisd.text.conditioning import Conditioning
from tests.oracles import diffusers_unet
from tests.tiny import TINY, network_weights, unet

TABLE = SigmaTable.from_alphas(alphas_cumprod())
CONFIG = TINY["sd1"].unet
WEIGHTS = network_weights(TINY["sd1"])["unet"]
NETWORK = unet(CONFIG, WEIGHTS)
SIGMAS = (14.0, 6.0, 3.0, 1.0, 0.0)
SIGMA = 3.0


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


COND, UNCOND = (Conditioning(normal(1, 77, CONFIG.context_dim, seed=s), None, 1, 1) for s in (1, 2))
X = normal(2, 4, 16, 8, seed=3) * 3.2  # what a latent is like at SIGMA


def denoiser(
    calls: list[int] | None = None, *, together: bool = False, always_uncond: bool = False, **rules: Any
) -> Denoiser:
    def count() -> None:
        if calls is not None:
            calls.append(1)

    return Denoiser(
        network=NETWORK,
        table=TABLE,
        prediction="eps",
        cond=COND,
        uncond=UNCOND,
        guidance=Guidance(**rules),
        batching=Batching(images=together, prompts=together),
        dtype=torch.float64,
        sigmas=SIGMAS,
        check=count,
        always_uncond=always_uncond,
    )


def ours(sigma: float = SIGMA, **rules: Any) -> Tensor:
    with torch.inference_mode():
        return denoiser(**rules).denoise()(X, sigma)


def eps(x: Tensor, prompt: Conditioning, edits: dict[str, Edit] | None = None) -> Tensor:
    """The raw network at SIGMA."""
    t = torch.tensor([TABLE.timestep(SIGMA)])
    context = prompt.context.expand(len(x), -1, -1)
    with torch.inference_mode():
        return NETWORK(x / (1 + SIGMA**2) ** 0.5, t, context, edits=edits)


@cache
def parts() -> tuple[Tensor, Tensor]:
    """eps given the prompt, and given none."""
    return eps(X, COND), eps(X, UNCOND)


def picture(noise: Tensor) -> Tensor:
    return X - SIGMA * noise


def plain(scale: float) -> Tensor:
    cond, uncond = parts()
    return picture(uncond + scale * (cond - uncond))


def close(a: Tensor, b: Tensor, limit: float = 1e-10) -> None:
    assert a.shape == b.shape and a.dtype == b.dtype == torch.float64
    assert float((a - b).abs().max()) <= limit


def test_cfg() -> None:
    """Oracle: uncond + scale (cond - uncond) on the raw network."""
    close(ours(scale=7.5), plain(7.5))
    close(ours(scale=0.0), picture(parts()[1]))
    assert float((plain(7.5) - plain(1.0)).abs().max()) > 0.1


def test_cfg_in_one_call_is_cfg_in_two() -> None:
    """Oracle: equality to rounding of the four ways to batch; the number of calls of each."""
    for together, wanted in ((False, 4), (True, 1)):
        calls = list[int]()
        with torch.inference_mode():
            out = denoiser(calls, together=together, scale=5.0).denoise()(X, SIGMA)
        close(out, plain(5.0), 1e-12)
        assert len(calls) == wanted


@pytest.mark.parametrize(
    "rules,wanted",
    [
        ({"scale": 1.0}, 1),
        ({"scale": 1.0, "rescale": 0.7, "apg_norm": 2.0, "mimic_scale": 3.0}, 1),
        ({"scale": 5.0, "start": 0.0, "end": 0.25}, 1),
        ({"scale": 5.0, "pag_scale": 1.0, "slg_scale": 1.0}, 4),
        ({"scale": 5.0, "sag_scale": 1.0}, 3),
        ({"scale": 1.0, "sag_scale": 1.0}, 3),
        ({"scale": 1.0, "pag_scale": 1.0}, 2),
    ],
)
def test_number_of_calls(rules: dict[str, Any], wanted: int) -> None:
    """Oracle: one per prediction that a rule needs; none for the unconditional one where nothing needs it."""
    calls = list[int]()
    with torch.inference_mode():
        out = denoiser(calls, **rules).denoise()(X[:1], SIGMA)
    assert len(calls) == wanted
    if wanted == 1:
        assert torch.equal(out, ours(scale=1.0)[:1])


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_rescale(share: float) -> None:
    """Oracle: diffusers' rescale_noise_cfg on the raw predictions."""
    cond, uncond = parts()
    wanted = rescale_noise_cfg(uncond + 7.0 * (cond - uncond), cond, guidance_rescale=share)
    close(ours(scale=7.0, rescale=share), picture(wanted))


def test_interval() -> None:
    """Oracle: cond alone outside; the step that a level lies in counts, also for levels between two steps."""
    steps = [active(s, SIGMAS, 0.25, 0.75) for s in (14.0, 10.0, 6.0, 4.0, 3.0, 1.5, 1.0, 0.5)]
    assert steps == [False, False, True, True, True, True, False, False]
    assert all(active(s, SIGMAS, 0.0, 1.0) for s in (20.0, 14.0, 0.0))
    assert active(20.0, SIGMAS, 0.0, 0.25)  # churn lifts the first step above its level
    assert torch.equal(ours(scale=7.0, start=0.25, end=0.75), ours(scale=7.0))
    assert torch.equal(ours(scale=7.0, start=0.75), ours(scale=1.0))
    assert not torch.equal(ours(scale=7.0), ours(scale=1.0))


def guided_by_apg(rule: Guidance, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of the paper for one image at a time: (guided, momentum)."""
    out, kept = [], []
    for i in range(len(X)):
        cond, uncond = picture(parts()[0])[i].flatten(), picture(parts()[1])[i].flatten()
        update = cond - uncond
        if before is not None:
            update = update + rule.apg_momentum * before[i].flatten()
        kept.append(update.view_as(X[i]))
        if rule.apg_norm > 0:
            update = update * min(1.0, rule.apg_norm / float(update.norm()))
        along = cond / cond.norm()
        parallel = (update @ along) * along
        out.append((cond + (rule.scale - 1) * (update - parallel + rule.apg_eta * parallel)).view_as(X[i]))
    return torch.stack(out), torch.stack(kept)


@pytest.mark.parametrize(
    "rules", [{"apg_eta": 0.0}, {"apg_norm": 2.5}, {"apg_eta": 0.3, "apg_norm": 1e3, "apg_momentum": -0.5}]
)
def test_apg(rules: dict[str, Any]) -> None:
    """Oracle: the paper's algorithm over two calls, image by image; a new run forgets its momentum."""
    rule = Guidance(scale=6.0, **rules)
    first, kept = guided_by_apg(rule, None)
    second, _ = guided_by_apg(rule, kept if rule.apg_momentum else None)
    for together in (False, True):
        with torch.inference_mode():
            run = denoiser(together=together, scale=6.0, **rules).denoise()
            close(run(X, SIGMA), first)
            close(run(X, SIGMA), second)
    assert (rule.apg_momentum != 0) == (float((first - second).abs().max()) > 0.01)


def test_apg_that_takes_nothing_away_is_cfg() -> None:
    """Oracle: CFG, when no norm is reached; the standard deviation of cond, when rescaled besides."""
    close(ours(scale=6.0, apg_norm=1e9), plain(6.0))
    out = ours(scale=6.0, apg_eta=0.0, rescale=1.0)
    assert out.std(dim=(1, 2, 3)).tolist() == pytest.approx(picture(parts()[0]).std(dim=(1, 2, 3)).tolist())


@pytest.mark.parametrize("percentile", [0.9, 1.0])
def test_mimic(percentile: float) -> None:
    """Oracle: each channel about its mean, cut at the percentile, brought to the range of the lower scale."""
    wanted = plain(9.0).clone()
    for image, lower in zip(wanted, plain(4.0), strict=True):
        for channel, other in zip(image, lower, strict=True):
            mean = channel.mean()
            reach = float((other - other.mean()).abs().max())
            limit = max(float(np.quantile((channel - mean).abs().numpy(), percentile)), reach)
            channel.copy_((channel - mean).clamp(-limit, limit) * (reach / limit) + mean)
    out = ours(scale=9.0, mimic_scale=4.0, mimic_percentile=percentile)
    close(out, wanted, 1e-5)  # the quantile is taken in float32
    close(ours(scale=9.0, mimic_scale=9.0), plain(9.0), 1e-5)


def test_pag() -> None:
    """Oracle: diffusers' identity attention in its middle block, float64: cond - (prediction made worse)."""
    network: Any = diffusers_unet(CONFIG, WEIGHTS)
    t = torch.tensor([TABLE.timestep(SIGMA)])
    with torch.inference_mode():
        # its processor perturbs the second half of a batch
        attention = network.mid_block.attentions[0].transformer_blocks[0].attn1
        attention.processor = PAGIdentitySelfAttnProcessor2_0()
        x = torch.cat([X, X]) / (1 + SIGMA**2) ** 0.5
        good, bad = network(x, t, COND.context.expand(4, -1, -1)).sample.chunk(2)
    close(good, parts()[0])
    close(ours(scale=5.0, pag_scale=2.0), plain(5.0) + 2.0 * (picture(good) - picture(bad)))
    assert float((good - bad).abs().max()) > 1e-3


def test_slg() -> None:
    """Oracle: the middle block's transformer replaced by the identity; only between its start and end."""
    network = unet(CONFIG, WEIGHTS)
    network.middle_block[1] = torch.nn.Identity()
    t = torch.tensor([TABLE.timestep(SIGMA)])
    with torch.inference_mode():
        bad = network(X / (1 + SIGMA**2) ** 0.5, t, COND.context.expand(2, -1, -1))
    wanted = plain(5.0) + 1.5 * (picture(parts()[0]) - picture(bad))
    close(ours(scale=5.0, slg_scale=1.5), wanted)
    close(ours(scale=5.0, slg_scale=1.5, slg_start=0.5, slg_end=0.75), wanted)
    assert torch.equal(ours(scale=5.0, slg_scale=1.5, slg_end=0.25), ours(scale=5.0))
    assert float((wanted - plain(5.0)).abs().max()) > 1e-3


def test_sag() -> None:
    """Oracle: the paper's formula on eps, its mask from the middle block's attention, by loops."""
    uncond = parts()[1]
    clean, maps = picture(uncond), list[Tensor]()

    def see(q: Tensor, k: Tensor, heads: int) -> None:
        d = q.shape[-1] // heads
        for h in range(heads):
            a, b = q[..., h * d : (h + 1) * d], k[..., h * d : (h + 1) * d]
            maps.append((a @ b.transpose(1, 2) / d**0.5).softmax(-1))

    eps(X, UNCOND, {"middle_block": Edit(observe=see)})
    received = torch.stack(maps).mean(0).sum(1)  # 2 images, 2 x 1 tokens
    blurred = clean.clone()
    soft = gaussian_blur(clean, 1.0)
    rows, columns = 2, 1
    for i in range(2):
        for token in range(rows * columns):
            if received[i, token] > 1:
                top = token // columns * 8
                blurred[i, :, top : top + 8] = soft[i, :, top : top + 8]
    assert 0 < int((received > 1).sum()) < 4 and float((blurred - clean).abs().max()) > 0.1
    worse = eps(blurred + SIGMA * uncond, UNCOND)
    # eps + sag (eps_uncond - eps_degraded), in pictures
    wanted = plain(5.0) - SIGMA * 0.75 * (uncond - worse)
    close(ours(scale=5.0, sag_scale=0.75), wanted, 1e-6)  # the attention map is taken in float32


def test_blur() -> None:
    """Oracle: a direct sum over 9 x 9 Gaussian taps, mirrored at the borders."""
    x = normal(1, 2, 12, 10, seed=8)
    taps = np.exp(-0.5 * (np.arange(-4, 5) / 1.3) ** 2)
    taps /= taps.sum()
    padded = np.pad(x[0].numpy(), ((0, 0), (4, 4), (4, 4)), mode="reflect")
    wanted = np.zeros((2, 12, 10))
    for i in range(9):
        for j in range(9):
            wanted += taps[i] * taps[j] * padded[:, i : i + 12, j : j + 10]
    close(gaussian_blur(x, 1.3)[0], torch.from_numpy(wanted), 1e-14)


RULES: list[dict[str, Any]] = [
    {"scale": 1.0},
    {"scale": 7.0},
    {"scale": 7.0, "end": 0.25},
    {"scale": 7.0, "rescale": 0.7},
    {"scale": 7.0, "apg_eta": 0.2, "apg_norm": 2.5},
    {"scale": 7.0, "mimic_scale": 3.0},
    {"scale": 7.0, "pag_scale": 2.0},
    {"scale": 1.0, "slg_scale": 2.0},
    {"scale": 7.0, "sag_scale": 0.7},
]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("rows", [1, 2])
def test_what_nobody_asks_for_changes_nothing(rules: dict[str, Any], rows: int) -> None:
    """Oracle: bits of the guided picture of `denoise_both`, whose second is the unconditional one wherever
    that is predicted. Inverse: a rule that compares pictures and does not say so gives other bits."""
    with torch.inference_mode():
        guided = denoiser(**rules).denoise()(X[:rows], SIGMA)
        wanted, second = denoiser(always_uncond=True, **rules).denoise_both()(X[:rows], SIGMA)
        assert torch.equal(guided, wanted)
        if rows == 2:
            close(second, picture(eps(X, UNCOND)))
        patch = pytest.MonkeyPatch()
        with patch.context() as inside:
            inside.setattr(Guidance, "compares", False)
            silent = denoiser(**rules).denoise()(X[:rows], SIGMA)
        compares = Guidance(**rules).compares and rules["scale"] != 1.0
        assert torch.equal(silent, guided) != compares


def test_several_prompts() -> None:
    """Oracle: uncond + scale sum of weight (cond - uncond), image by image; one prompt of weight 1 is CFG."""
    a, b, none = (normal(2, 4, 3, 5, seed=s) for s in (4, 5, 6))
    wanted = none * (1 - 5.0 * 0.5) + 5.0 * 0.7 * a - 5.0 * 0.2 * b
    close(weighted([a, b], [0.7, -0.2], none, 5.0), wanted, 1e-13)
    close(weighted([a], [1.0], none, 5.0), none + 5.0 * (a - none), 1e-13)


def test_instruct() -> None:
    """Oracle: equation 3 of the paper; both scales 1 leave the full prediction."""
    both, image, none = (normal(2, 4, 3, 5, seed=s) for s in (4, 5, 6))
    wanted = none * (1 - 1.5) + image * (1.5 - 7.0) + both * 7.0
    close(instruct(both, image, none, 7.0, 1.5), wanted, 1e-13)
    close(instruct(both, image, none, 1.0, 1.0), both, 1e-13)

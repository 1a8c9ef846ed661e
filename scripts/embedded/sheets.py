"""Sample sheets: the same prompts and the same noise at every look, so that two sheets show what training
has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from minisd.config import TrainingSchedule
from minisd.models.clip import TextEncoder
from minisd.models.unet import UNet
from minisd.models.vae import AutoencoderKL
from minisd.samplers.ode import sample_dpmpp_2m
from minisd.samplers.scaling import Prediction, c_in, denoised_from
from minisd.samplers.schedule import SigmaTable, alphas_cumprod, karras_sigmas

from .vocabulary import Vocabulary

PROMPTS = (
    "a red apple",
    "a cat",
    "a dog face",
    "a pizza",
    "a car",
    "a rocket",
    "a guitar",
    "a grinning face",
    "a red heart",
    "a tree",
    "a house",
    "a penguin",
    "a strawberry on a blue background",
    "a key on a yellow background",
    "a frog on a pink background",
    "an umbrella on a green background",
    "a cat left of a car",
    "a banana to the right of a clock",
    "a mushroom",
    "a bicycle",
    "a soccer ball",
    "a robot",
    "a flag of japan",
    "",
)


@dataclass(frozen=True)
class Drawer:
    """What is needed to draw: networks in evaluation, the vocabulary of training and the latents' scale."""

    text: TextEncoder
    unet: UNet
    vae: AutoencoderKL
    vocabulary: Vocabulary
    scale_factor: float
    schedule: TrainingSchedule
    prediction: Prediction = "v"

    @torch.no_grad()
    def draw(
        self, prompts: Sequence[str], *, seed: int = 0, cfg_scale: float = 5.0, steps: int = 20
    ) -> Tensor:
        """Pixels [b, 3, 128, 128] in [-1, 1]; DPM++ 2M on Karras levels, plain classifier-free guidance."""
        table = SigmaTable.from_alphas(alphas_cumprod(**asdict(self.schedule)))
        device = next(self.unet.parameters()).device
        context = self.text(self.vocabulary.rows([*prompts, ""]).to(device)).hidden
        cond, uncond = context[:-1], context[-1:].expand(len(prompts), -1, -1)
        both = torch.cat([cond, uncond])

        def denoise(x: Tensor, sigma: float) -> Tensor:
            t = torch.full((2 * len(x),), table.timestep(sigma), device=device)
            output = self.unet(torch.cat([x, x]) * c_in(sigma), t, both)
            good, plain = denoised_from(output, torch.cat([x, x]), sigma, self.prediction).chunk(2)
            return plain + cfg_scale * (good - plain)

        sigmas = karras_sigmas(steps, table.sigma_min, table.sigma_max)
        noise = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(seed))
        z = sample_dpmpp_2m(denoise, noise.to(device) * sigmas[0].float(), sigmas)
        on = next(self.vae.parameters()).device
        return self.vae.decode(z.to(on) / self.scale_factor).clamp(-1, 1).cpu()


def to_uint8(x: Tensor) -> np.ndarray:
    """[3, h, w] in [-1, 1] -> [h, w, 3]."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def sheet(pictures: Tensor, labels: Sequence[str], columns: int = 6) -> Image.Image:
    """Pictures in rows, each with its label below. pictures: b 3 h w in [-1, 1]."""
    height, width = pictures.shape[-2:]
    cell = (width + 4, height + 16)
    rows = -(-len(labels) // columns)
    page = Image.new("RGB", (columns * cell[0], rows * cell[1]), "white")
    pen = ImageDraw.Draw(page)
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = index % columns * cell[0], index // columns * cell[1]
        page.paste(Image.fromarray(to_uint8(picture)), (x, y))
        pen.text((x + 2, y + height + 2), (label or "(empty prompt)")[:22], fill="black")
    return page

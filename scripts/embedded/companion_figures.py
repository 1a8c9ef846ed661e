"""What the companions do, in figures; each drawn through the public engine, as a user would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minisd import Engine, Request, load
from minisd.preprocess import hint

STEPS = 20
WORD = "striped-mug"


@dataclass(frozen=True)
class Companions:
    """Where the files are: `tests/assets` and the tiny autoencoder that ships."""

    folder: Path
    tiny_vae: Path

    @property
    def complete(self) -> bool:
        names = ("blueprint_lora", "striped-mug", "edge_controlnet")
        return self.tiny_vae.is_file() and all((self.folder / f"{n}.safetensors").is_file() for n in names)

    def engine(self, model: Path) -> Engine:
        """The model with everything at hand; nothing acts unless a request says so."""
        return load(
            model,
            tiny_vae=self.tiny_vae,
            loras=self.folder,
            embeddings={WORD: self.folder / "striped-mug.safetensors"},
            controls={"edge": self.folder / "edge_controlnet.safetensors"},
        )


def pixels(image: Image.Image) -> Tensor:
    """3 h w in [-1, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1


def blue(picture: Tensor) -> float:
    """How much more blue than red there is, the mean in -2 .. 2; picture: 3 h w."""
    return float((picture[2] - picture[0]).mean())


def followed(drawn: Image.Image, wanted: Image.Image, reach: int = 2) -> float:
    """Of the edges of both pictures, the share that has an edge of the other within `reach` pixels."""
    a, b = (
        torch.from_numpy(np.array(hint(i, "canny").convert("L")) > 0).float()[None, None]
        for i in (drawn, wanted)
    )
    near_a, near_b = (F.max_pool2d(x, 2 * reach + 1, 1, reach) for x in (a, b))
    precision = float((a * near_b).sum() / a.sum().clamp_min(1))
    recall = float((b * near_a).sum() / b.sum().clamp_min(1))
    return 2 * precision * recall / max(precision + recall, 1e-9)


def mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)


def lora_figures(engine: Engine, prompts: Sequence[str]) -> dict[str, float]:
    """How blue pictures are: without the LoRA, with it and its word, without its word, and with its word but
    without what it changes in the text encoder."""

    def drawn(words: str, **use: object) -> float:
        loras = [{"name": "blueprint_lora", **use}] if use else []
        return mean(
            [
                blue(pixels(engine.txt2img(p + words, seed=n, steps=STEPS, loras=loras).image))
                for n, p in enumerate(prompts)
            ]
        )

    return {
        "without": drawn(", blueprint"),
        "with_its_words": drawn(", blueprint", weight=1.0),
        "without_its_words": drawn("", weight=1.0),
        "unet_alone": drawn(", blueprint", weight=1.0, te=0.0),
    }


def control_figures(
    engine: Engine, pairs: Sequence[tuple[str, Image.Image]], weights: Sequence[float] = (0.0, 1.0)
) -> dict[str, float]:
    """How well the edges of a picture are followed that is not what the prompt would give by itself. pairs:
    (prompt, picture whose edges are the hint)."""
    figures = {}
    for weight in weights:
        found = []
        for n, (prompt, image) in enumerate(pairs):
            unit = {"model": "edge", "image": image, "preprocessor": "canny", "weight": weight}
            result = engine.run(
                Request.from_dict({"prompt": prompt, "seed": n, "steps": STEPS, "controls": [unit]})
            )
            found.append(followed(result.image, image))
        figures[f"weight_{weight:g}"] = mean(found)
    return figures


def inversion_figures(
    engine: Engine, space: Callable[[Tensor], Tensor], wanted: Image.Image, seeds: Sequence[int]
) -> dict[str, float]:
    """Likeness (cosine in the judge's space) to the object that was taught: with its word, with the nearest
    words there were before, and with another object's."""
    goal = space(pixels(wanted)[None])
    figures = {}
    for name, prompt in (
        ("its_word", f"a {WORD}"),
        ("plain_words", "a cup"),
        ("another_object", "a red apple"),
    ):
        images = [engine.txt2img(prompt, seed=s, steps=STEPS).image for s in seeds]
        near = space(torch.stack([pixels(i) for i in images])) @ goal.T
        figures[name] = round(float(near.mean()), 4)
    return figures


@torch.no_grad()
def tiny_vae_figures(engine: Engine, pictures: Tensor) -> dict[str, float]:
    """dB of the tiny decoder's pictures against the originals, beside the decoder's; and the tiny encoder's
    share of the latents' variance that it misses. pictures: b 3 h w in [-1, 1]."""
    model = engine.model
    assert model.tiny_vae is not None
    z = model.vae.encode(pictures).mean
    scaled = z * model.config.vae.scale_factor
    tiny, whole = model.tiny_vae.decode(scaled) * 2 - 1, model.vae.decode(z)
    db = [
        float((-10 * ((x.clamp(-1, 1) - pictures) / 2).square().mean(dim=(1, 2, 3)).log10()).mean())
        for x in (tiny, whole)
    ]
    missed = (model.tiny_vae.encode(pictures / 2 + 0.5) - scaled).square().mean() / scaled.var()
    return {"tiny_db": round(db[0], 2), "vae_db": round(db[1], 2), "encoder_missed": round(float(missed), 4)}

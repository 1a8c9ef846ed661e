"""Oracle: pixels. The embedded model and its companions draw what they are named for; chance, and the same
request without the companion, are the controls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minisd import Engine, Preview, Request, load
from minisd.engine import embedded_model

ASSETS = Path(__file__).parent / "assets"
LORA, MUG, EDGES = (
    "blueprint_lora",
    ASSETS / "striped-mug.safetensors",
    ASSETS / "edge_controlnet.safetensors",
)
COMMON = {"steps": 12, "seed": 3}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load(loras=ASSETS, embeddings={"striped-mug": MUG}, controls={"edge": EDGES})


def drawn(engine: Engine, prompt: str, **fields: object) -> np.ndarray:
    """h w 3 in 0..255."""
    image = engine.run(Request.from_dict({"prompt": prompt, **COMMON, **fields})).image
    return np.asarray(image).astype(float)


def ground(pixels: np.ndarray) -> np.ndarray:
    """The middle colour of a frame 4 pixels wide."""
    inner = np.zeros(pixels.shape[:2], bool)
    inner[4:-4, 4:-4] = True
    return np.median(pixels[~inner], axis=0)


def blue(pixels: np.ndarray) -> float:
    """How much more blue than red there is, in levels of 255."""
    return float((pixels[..., 2] - pixels[..., 0]).mean())


def test_size_of_what_ships() -> None:
    assert embedded_model().stat().st_size <= 24_000_000


@pytest.mark.parametrize(
    ("colour", "rgb"), [("blue", (50, 110, 215)), ("yellow", (250, 215, 70)), ("green", (60, 165, 80))]
)
def test_the_background_has_the_colour_that_is_named(
    engine: Engine, colour: str, rgb: tuple[int, int, int]
) -> None:
    seen = ground(drawn(engine, f"a red apple on a {colour} background"))
    assert np.abs(seen - rgb).max() < 40


def test_hearts_are_red_and_a_negative_prompt_takes_red_away(engine: Engine) -> None:
    """The control: another colour taken away leaves it."""

    def red(**fields: object) -> float:
        pixels = drawn(engine, "a heart", **fields)
        return float(((pixels[..., 0] - pixels[..., 1:].max(-1)) > 100).mean())

    assert red() > 0.2
    assert red(negative_prompt="red") < 0.2 * red()
    assert red(negative_prompt="green") > 0.5 * red()


def test_guidance_sharpens(engine: Engine) -> None:
    def contrast(scale: float) -> float:
        return float(drawn(engine, "a rocket on a black background", cfg_scale=scale).std())

    assert contrast(5.0) > contrast(1.0)


def test_the_style_lora_draws_blueprints_at_its_word_and_its_text_weights_matter(engine: Engine) -> None:
    def blueness(word: str, **use: object) -> float:
        loras = [{"name": LORA, **use}] if use else []
        return blue(drawn(engine, f"a red apple{word}", loras=loras))

    styled = blueness(", blueprint", weight=1.0)
    assert styled > blueness(", blueprint") + 40
    assert styled > blueness(", blueprint", weight=1.0, te=0.0) + 10


def test_the_taught_word_draws_red_stripes_on_a_mug(engine: Engine) -> None:
    """Stripes lie across: along the mug's middle column red and cream take turns."""

    def turns(prompt: str) -> int:
        pixels = drawn(engine, prompt)
        red = (pixels[24:112, 44:68].mean(1) @ np.array([1, -0.5, -0.5])) > 50
        return int(np.abs(np.diff(red.astype(int))).sum())

    assert turns("a striped-mug") >= 4
    assert turns("a red apple") < 4


def test_edges_are_followed(engine: Engine) -> None:
    """A heart's outline moved into the lower right corner: without the network the heart is in the middle."""
    heart = np.full((128, 128, 3), 255, np.uint8)
    y, x = np.mgrid[0:128, 0:128]
    heart[(x - 84) ** 2 + (y - 84) ** 2 < 34**2] = (214, 48, 49)
    unit = {"model": "edge", "image": Image.fromarray(heart), "preprocessor": "canny"}

    def middle(**fields: object) -> float:
        pixels = drawn(engine, "a red circle", **fields)
        there = np.abs(pixels - ground(pixels)).max(-1) > 60
        return float(np.argwhere(there).mean())

    assert middle(controls=[unit]) > middle() + 8


def test_previews_come_from_the_tiny_decoder_and_resemble_the_picture(engine: Engine) -> None:
    assert engine.model.tiny_vae is not None
    seen: list[Image.Image] = []
    request = Request.from_dict({"prompt": "a red apple on a blue background", **COMMON})
    result = engine.run(
        request,
        on_event=lambda e: seen.extend(e.images) if isinstance(e, Preview) else None,
        preview_every=11,
    )
    assert [i.size for i in seen] == [(128, 128)]
    away = np.asarray(seen[0]).astype(float) - np.asarray(result.image)
    assert 10 * np.log10(255**2 / np.mean(away**2)) > 18

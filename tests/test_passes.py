"""Oracle: diffusers' base and refiner pipelines with the same tiny weights; bits of runs that must not
differ; and shapes and latents worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from PIL import Image
from safetensors.torch import save_file

from minisd.cli import main
from minisd.config import CompactConfig
from minisd.engine import Engine
from minisd.errors import RequestError
from minisd.events import Preview, Progress
from minisd.picture import Picture
from minisd.request import Request
from minisd.samplers.names import SAMPLERS
from minisd.upscale import load_upscaler
from tests.oracles import diffusers_unet, diffusers_vae, transformers_text
from tests.test_pipeline import close, engine, pipeline, pixels, tokenizer
from tests.test_upscale import their_weights
from tests.tiny import TINY, network_weights, tiny_model, write_checkpoint


def request(**fields: object) -> Request:
    base = Request(
        prompt="a red apple on a table", negative_prompt="blurry", width=64, height=96, seed=42, steps=4
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def latents(name: str = "sd1", refiner: Engine | None = None, **fields: object) -> torch.Tensor:
    return engine(name).run(request(**fields), refiner=refiner).drawing.latents


@pytest.mark.parametrize("upscaler", ["latent", "latent_bicubic", "latent_nearest"])
def test_a_second_pass_of_no_strength_enlarges_latents(upscaler: str) -> None:
    """Oracle: torch.nn.functional.interpolate on the first pass's latents."""
    mode = {"latent": "bilinear", "latent_bicubic": "bicubic", "latent_nearest": "nearest"}[upscaler]
    wanted = torch.nn.functional.interpolate(latents(), (18, 12), mode=mode)
    out = latents(hires_scale=1.5, hires_upscaler=upscaler, hires_strength=0.0)
    assert torch.equal(out, wanted)


def test_a_second_pass_is_image_to_image_of_the_enlarged_picture() -> None:
    """Oracle: bits of an img2img run over the first picture, enlarged with Pillow."""
    first = engine("sd1").run(request())
    larger = first.images[0].resize((128, 192), Image.Resampling.LANCZOS)
    again = request(image=Picture.of(larger), strength=0.5, width=128, height=192)
    wanted = engine("sd1").run(again)
    out = engine("sd1").run(request(hires_scale=2.0))
    assert torch.equal(out.drawing.latents, wanted.drawing.latents)
    assert out.images[0].tobytes() == wanted.images[0].tobytes()


def test_a_batch_in_two_passes_is_its_pictures() -> None:
    """Oracle: bits of each seed alone, sampled latents included."""
    more = {"hires_scale": 1.5, "hires_steps": 3, "vae_latent": "sample"}
    both = latents(count=2, **more)
    for i in range(2):
        assert torch.equal(both[i], latents(seed=42 + i, **more)[0])


def test_steps_are_counted_over_both_passes() -> None:
    """Oracle: numbers worked out by hand; previews do not change the result."""
    heard: list[Progress | Preview] = []
    asked = request(hires_scale=1.5, hires_steps=4)
    out = engine("sd1").run(asked, on_event=heard.append, preview_every=1)
    steps = [(e.step, e.steps) for e in heard if isinstance(e, Progress)]
    assert steps == [(i, 6) for i in range(1, 7)]
    assert any(isinstance(e, Preview) for e in heard)
    assert torch.equal(out.drawing.latents, engine("sd1").run(asked).drawing.latents)


def test_a_picture_drawn_from_a_picture_and_enlarged() -> None:
    """Oracle: its size: what was padded to a picture of odd sides is cut off again."""
    picture = Picture.of(Image.new("RGB", (60, 70), (200, 30, 30)))
    asked = request(image=picture, width=None, height=None, hires_scale=2.0, steps=2)
    assert engine("sd1").run(asked).images[0].size == (120, 140)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"hires_steps": 3}, "hires_steps"),
        ({"hires_strength": 0.7}, "hires_strength"),
        ({"hires_upscaler": "latent"}, "hires_upscaler"),
        ({"hires_scale": 0.5}, "hires_scale"),
        ({"hires_scale": 2.0, "image": Image.new("RGB", (64, 96)), "outpaint": (8, 0, 0, 0)}, "hires_scale"),
        ({"refiner_at": 1.5}, "refiner_at"),
        ({"diffusion_tile": 60}, "diffusion_tile"),
    ],
)
def test_what_does_not_go_together(fields: dict[str, object], field: str) -> None:
    """Oracle: RequestError naming the field."""
    with pytest.raises(RequestError) as caught:
        request(**fields)
    assert caught.value.field == field


def test_a_second_pass_too_large() -> None:
    """Oracle: RequestError naming hires_scale, before anything is drawn."""
    with pytest.raises(RequestError, match="more than") as caught:
        engine("sd1").run(request(width=4096, height=64, hires_scale=4.0))
    assert caught.value.field == "hires_scale"


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_the_same_model_on_both_sides_is_one_run(sampler: str) -> None:
    """Oracle: bits of one run, with every solver."""
    plain = latents(sampler=sampler, steps=3)
    out = latents(refiner=engine("sd1"), refiner_at=0.5, sampler=sampler, steps=3)
    assert torch.equal(out, plain)


def test_another_model_takes_over() -> None:
    """Oracle: bits of either model alone at the ends, of neither between them."""
    other = Engine(tiny_model("sd1", seed=3))
    ends = latents(), other.run(request()).drawing.latents
    assert torch.equal(latents(refiner=other, refiner_at=1.0), ends[0])
    assert torch.equal(latents(refiner=other, refiner_at=0.0), ends[1])
    between = latents(refiner=other)
    assert not torch.equal(between, ends[0]) and not torch.equal(between, ends[1])


@pytest.mark.parametrize("refiner", [None, "sdxl"])
def test_refiners_that_do_not_fit(refiner: str | None) -> None:
    """Oracle: RequestError naming refiner_at."""
    with pytest.raises(RequestError) as caught:
        latents(refiner=None if refiner is None else engine(refiner), refiner_at=0.5)
    assert caught.value.field == "refiner_at"


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize("at", [0.5, 0.8])
def test_base_and_refiner(at: float, sampler: str) -> None:
    """Oracle: StableDiffusionXLPipeline to denoising_end, then StableDiffusionXLImg2ImgPipeline."""
    asked = request(sampler=sampler, steps=6, conventions="diffusers", refiner_at=at)
    ours = engine("sdxl").run(asked, refiner=engine("sdxl-refiner"))
    config, base = TINY["sdxl-refiner"], pipeline("sdxl", sampler)
    weights = network_weights(config, dtype=torch.float32)
    refiner = StableDiffusionXLImg2ImgPipeline(
        vae=diffusers_vae(config.vae, weights["vae"]),
        unet=diffusers_unet(config.unet, weights["unet"], sample_size=64),
        text_encoder_2=transformers_text(config.text[0].config, weights["text_encoder_2"]),
        tokenizer_2=tokenizer(config.text[0].pad_id),
        scheduler=type(base.scheduler).from_config(base.scheduler.config),
        text_encoder=None,
        tokenizer=None,
        requires_aesthetics_score=True,
        add_watermarker=False,
    )
    refiner.set_progress_bar_config(disable=True)
    said = {
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "num_inference_steps": 6,
        "guidance_scale": asked.cfg_scale,
    }
    with torch.inference_mode():
        half = base(
            **said,
            width=64,
            height=96,
            denoising_end=at,
            output_type="latent",
            generator=torch.Generator().manual_seed(42),
        ).images
        out = refiner(**said, image=half, denoising_start=at, original_size=(96, 64), target_size=(96, 64))
    close(pixels(ours.images), pixels(out.images))


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_cfgpp"])
def test_one_tile_is_no_tiling(sampler: str) -> None:
    """Oracle: bits of the plain run; several tiles are another picture."""
    plain = latents(sampler=sampler)
    assert torch.equal(latents(sampler=sampler, diffusion_tile=96), plain)
    tiled = latents(sampler=sampler, diffusion_tile=64)
    assert torch.isfinite(tiled).all() and not torch.equal(tiled, plain)


def test_tiles_and_what_is_counted_from_step_to_step() -> None:
    """Oracle: one tile is the plain run with an average over steps and with channels of a picture, too."""
    picture = Picture.of(Image.new("RGB", (64, 96), (200, 30, 30)))
    for name, more in (("sd1", {"apg_momentum": -0.5}), ("sd1-ip2p", {"image": picture})):
        assert torch.equal(latents(name, diffusion_tile=96, **more), latents(name, **more))
        tiled = latents(name, diffusion_tile=64, **more)
        assert torch.isfinite(tiled).all() and not torch.equal(tiled, latents(name, **more))


def test_a_refiner_by_a_flag(tmp_path: Path) -> None:
    """Oracle: pixels of the refiner's own picture, where it makes every step."""
    files = [write_checkpoint(tmp_path / f"{i}.safetensors", TINY["sd1"], seed=i) for i in range(2)]
    base = ["txt2img", "an apple", "--steps", "2", "--seed", "7", "-q"]
    handed = ["-m", str(files[0]), "--refiner", str(files[1]), "--refiner-at", "0"]
    assert main([*base, *handed, "-o", str(tmp_path / "a.png")]) == 0
    alone = ["-m", str(files[1]), "--vae", str(files[0])]  # the first model decodes
    assert main([*base, *alone, "-o", str(tmp_path / "b.png")]) == 0
    a, b = (Image.open(tmp_path / name).tobytes() for name in ("a.png", "b.png"))
    assert a == b


@pytest.mark.parametrize("named", [False, True])
def test_a_second_pass_by_an_upscaler(named: bool, tmp_path: Path) -> None:
    """Oracle: image to image over the first picture, enlarged by the upscaler and brought to the size with
    Lanczos. By path and by name."""
    file = tmp_path / "Compact_x2.safetensors"
    weights = their_weights(CompactConfig(width=8, convs=5, scale=4), "compact")
    save_file({name: w.float() for name, w in weights.items()}, file)
    drawer = Engine(tiny_model("sd1"), upscalers={"sharp": file})
    name = "sharp" if named else str(file)
    asked = request(hires_scale=2.0, hires_upscaler=name, hires_strength=0.5)
    larger = load_upscaler(file)(drawer.run(request()).images[0]).resize((128, 192), Image.Resampling.LANCZOS)
    wanted = drawer.run(request(image=Picture.of(larger), strength=0.5, width=128, height=192))
    out = drawer.run(asked)
    assert out.images[0].tobytes() == wanted.images[0].tobytes()
    with pytest.raises(RequestError, match="there is no upscaler 'sharpp'; known are .*sharp"):
        drawer.run(replace(asked, hires_upscaler="sharpp"))
    with pytest.raises(RequestError, match="named here"):
        Request.from_dict({"hires_scale": 2.0, "hires_upscaler": str(file)}, paths=False)

"""Oracle: networks filled without a file, against the same weights in a file of the original layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minisd.config import ModelConfig, TextUse
from minisd.engine import Engine, load
from minisd.errors import CheckpointError, PlanError
from minisd.model import load_model
from minisd.models.clip import TextEncoder
from minisd.request import Request
from tests.tiny import TINY, tiny_model, write_checkpoint

REQUEST = Request(prompt="a cat", negative_prompt="dark", seed=5, steps=2, cfg_scale=7.5)


def as_loaded(config: ModelConfig) -> ModelConfig:
    """Without what a loaded model leaves in the file: the projection of SD2's text, which nothing uses."""
    text = tuple(use if use.pooled else unprojected(use) for use in config.text)
    return replace(config, text=text)


def unprojected(use: TextUse) -> TextUse:
    return replace(use, config=replace(use.config, projection_dim=None))


@pytest.mark.parametrize("name", TINY)
def test_a_file_loads_as_the_model_it_was_written_from(name: str, tmp_path: Path) -> None:
    """Oracle: equality of the config and of every parameter, bit for bit."""
    expected = tiny_model(name)
    model = load_model(write_checkpoint(tmp_path / "tiny.safetensors", TINY[name]), device="cpu")
    assert model.config == as_loaded(expected.config)
    assert model.name == "tiny"
    pairs = [
        (model.unet, expected.unet),
        (model.vae, expected.vae),
        *zip(model.text_encoders, expected.text_encoders, strict=True),
    ]
    for ours, theirs in pairs:
        a, b = ours.state_dict(), theirs.state_dict()
        unused = {"text_projection.weight"} if isinstance(ours, TextEncoder) and "sd2" in name else set()
        assert a.keys() == b.keys() - unused
        assert all(torch.equal(a[k], b[k]) and a[k].dtype == torch.float32 for k in a)
        assert not any(p.requires_grad for p in ours.parameters()) and not ours.training


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_loaded_model_draws_the_same(name: str, tmp_path: Path) -> None:
    """Oracle: equality of latents, bit for bit."""
    expected = Engine(tiny_model(name)).run(REQUEST).drawing.latents
    with load(write_checkpoint(tmp_path / "tiny.safetensors", TINY[name]), device="cpu") as engine:
        assert torch.equal(engine.run(REQUEST).drawing.latents, expected)


@pytest.mark.parametrize("attention", ["sliced", "reference"])
def test_attention_by_name_reaches_every_site(attention: str, tmp_path: Path) -> None:
    """Oracle: the picture of the default implementation, to rounding; another name is refused."""
    path = write_checkpoint(tmp_path / "tiny.safetensors", TINY["sd1"])
    expected = Engine(tiny_model("sd1")).run(REQUEST).drawing.latents
    model = load_model(path, device="cpu", attention=attention)
    networks = (model.unet, model.vae, *model.text_encoders)
    sites = [m for n in networks for m in n.modules() if "attention" in getattr(m, "operation", "")]
    assert len(sites) > 20 and all(m.implementation == attention for m in sites)
    latents = Engine(model).run(REQUEST).drawing.latents
    assert torch.allclose(latents, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(PlanError, match="'flash9'"):
        load_model(path, device="cpu", attention="flash9")


def test_tiles_of_the_vae_that_cover_everything(tmp_path: Path) -> None:
    """Oracle: equality with the picture decoded whole; several tiles give another of the same size."""
    path = write_checkpoint(tmp_path / "tiny.safetensors", TINY["sd1"])
    large = Request(prompt="a cat", width=128, height=64, seed=5, steps=1)
    whole = load(path, device="cpu").run(large)
    assert load(path, device="cpu", vae_tile=128).run(large).images == whole.images
    tiled = load(path, device="cpu", vae_tile=64).run(large)
    assert tiled.image.size == (128, 64) and tiled.images != whole.images
    with pytest.raises(PlanError, match="vae_tile 60"):
        load(path, device="cpu", vae_tile=60)


def test_precision_by_name(tmp_path: Path) -> None:
    """Oracle: the dtype of the parameters; a picture in bfloat16 near that in float32."""
    path = write_checkpoint(tmp_path / "tiny.safetensors", TINY["sd1"])
    model = load_model(path, device="cpu", dtype="bfloat16", vae_dtype="float32")
    assert {p.dtype for p in model.unet.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.vae.parameters()} == {torch.float32}
    short = Request(prompt="a cat", seed=5, steps=1, cfg_scale=1.0)
    expected = Engine(tiny_model("sd1")).run(short).drawing.latents
    latents = Engine(model).run(short).drawing.latents
    assert latents.dtype == torch.float32
    assert (latents - expected).std() < 0.05 * expected.std()
    exact = Engine(load_model(path, device="cpu", dtype="float64")).run(short).drawing.latents
    assert (exact - expected).std() < 1e-4 * expected.std()


def test_a_file_that_cannot_draw(tmp_path: Path) -> None:
    """Oracle: CheckpointError naming the file or what it lacks."""
    (tmp_path / "empty.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"empty\.safetensors"):
        load(tmp_path / "empty.safetensors")
    with pytest.raises(CheckpointError, match="nowhere"):
        load(tmp_path / "nowhere.safetensors")

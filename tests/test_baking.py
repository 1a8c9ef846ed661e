"""Oracle: the model with the adapter applied when it is loaded; the parts of the other files; torch's own
conversion to 8 bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from minisd.adapters import adapted, networks_of
from minisd.cli import main
from minisd.conversion import convert
from minisd.engine import embedded_model, load
from minisd.errors import CheckpointError, RequestError
from minisd.hashes import file_sha256
from minisd.lora_use import LoraUse
from minisd.model import load_model
from minisd.weights_loader.checkpoint import open_checkpoint
from minisd.weights_loader.lora_file import open_adapter
from minisd.weights_loader.lora_names import spellings
from minisd.weights_loader.modelspec import model_spec
from tests import lora_files
from tests.tiny import TINY, write_checkpoint


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors", TINY[name])


@pytest.fixture(scope="module")
def lora(name: str, model: Path) -> Path:
    tensors = lora_files.kohya(TINY[name], 1)
    norm = "lora_unet_mid_block_attentions_0_norm" if name == "sd1" else "lora_unet_middle_block_1_norm"
    tensors |= {f"{norm}.w_norm": torch.full((64,), 0.5), f"{norm}.b_norm": torch.full((64,), 0.25)}
    return lora_files.write(model.with_name("film.safetensors"), tensors)


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_baked_is_applied(name: str, model: Path, lora: Path, layout: str, tmp_path: Path) -> None:
    """Oracle: every bit of the loaded model with the adapters applied; two of them, in the other order."""
    ink = lora_files.write(tmp_path / "ink.safetensors", lora_files.of_kind(TINY[name], "dora", 2))
    uses = [LoraUse(str(lora), 0.7, 0.3), LoraUse(str(ink), 0.5, blocks=(("output_blocks", 0.0),))]
    target = convert(model, tmp_path / "baked", layout=layout, loras=uses)
    names = spellings(TINY[name])
    found = [(open_adapter(use.name, names), use) for use in reversed(uses)]
    wanted = adapted(load_model(model, device="cpu", dtype="float32"), found)
    got = load_model(target, device="cpu", dtype="float32")
    for part, network in networks_of(wanted).items():
        state = networks_of(got)[part].state_dict()
        assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items()), part
    if layout == "original":
        with open_checkpoint(target) as opened:
            account = json.loads(opened.source.metadata["minisd.baked"])
        assert account["model"]["sha256"] == file_sha256(model)
        assert [row["name"] for row in account["loras"]] == ["film", "ink"]
        assert account["loras"][0]["sha256"] == found[1][0].sha256 and account["loras"][0]["te"] == 0.3


def test_another_vae(name: str, model: Path, tmp_path: Path) -> None:
    """Oracle: the tensors of the file it was taken from."""
    other = write_checkpoint(tmp_path / "other.safetensors", TINY[name], seed=7)
    args = ["convert", str(model), str(tmp_path / "new.safetensors"), "--vae", str(other)]
    assert main(args) == 0
    with open_checkpoint(tmp_path / "new.safetensors") as new, open_checkpoint(other) as source:
        vae = source.state_dict("vae")
        assert all(torch.equal(v, vae[k]) for k, v in new.state_dict("vae").items())
        unet = source.state_dict("unet")
        assert not all(torch.equal(v, unet[k]) for k, v in new.state_dict("unet").items())
        account = json.loads(new.source.metadata["minisd.baked"])
        assert account["parts"] == {"vae": {"name": "other.safetensors", "sha256": file_sha256(other)}}


def test_what_weights_cannot_hold(name: str, model: Path, lora: Path, tmp_path: Path) -> None:
    """Oracle: one sentence for each; nothing is written."""
    word = lora_files.kohya(TINY[name], 1) | {"bundle_emb.mug.emb_params": torch.randn(2, 32)}
    bundled = lora_files.write(tmp_path / "word.safetensors", word)
    unet = {k: v for k, v in load_tensors(model).items() if k.startswith("model.diffusion_model.")}
    # of the family's real width: the tiny model's encoder is not there to be compared with
    real = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.diff": torch.zeros(3072, 768)}
    text = lora_files.write(tmp_path / "text.safetensors", real)
    bare = lora_files.write(tmp_path / "bare.safetensors", unet, metadata_of(model))
    for source, use, error, message in (
        (model, f"{lora}:1:end=0.5", RequestError, "weights act in all of them"),
        (model, f"{lora}:sha256={'0' * 64}", RequestError, "another file than was asked for"),
        (model, str(bundled), CheckpointError, "brings the words 'mug'"),
        (bare, str(text), CheckpointError, "changes the 'text_encoder'"),
        (lora, str(lora), CheckpointError, "adapters go into models with a UNet"),
    ):
        with pytest.raises(error, match=message):
            convert(source, tmp_path / "out.safetensors", loras=[use])
    assert not (tmp_path / "out.safetensors").exists()


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    with open_checkpoint(path) as opened:
        return {n: opened.source.read(n) for n in opened.source.tensors}


def metadata_of(path: Path) -> dict[str, str]:
    with open_checkpoint(path) as opened:
        return dict(opened.source.metadata)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_eight_bits(name: str, model: Path, dtype: str, tmp_path: Path) -> None:
    """Oracle: torch's conversion of every matrix, float16 of the rest; the loader reads it back."""
    small = convert(model, tmp_path / "small.safetensors", dtype=dtype)
    kind = getattr(torch, dtype)
    with open_checkpoint(small) as got, open_checkpoint(model) as plain:
        for part in got.parts:
            before = plain.state_dict(part)
            for key, value in got.state_dict(part).items():
                narrow = part != "vae" and before[key].ndim >= 2
                assert value.dtype == (kind if narrow else torch.float16), (part, key)
                assert torch.equal(value.float(), before[key].to(value.dtype).float())
    assert small.stat().st_size < 0.5 * model.stat().st_size
    load_model(small, device="cpu", dtype="float32")


def test_eight_bits_refuse_what_they_cannot_hold(model: Path, tmp_path: Path) -> None:
    """Oracle: 448, the largest number of e4m3."""
    tensors = load_tensors(model)
    key = "model.diffusion_model.out.2.weight"
    tensors[key] = tensors[key] * 0 + 500
    big = lora_files.write(tmp_path / "big.safetensors", tensors, metadata_of(model))
    with pytest.raises(CheckpointError, match="holds 500; float8_e4m3fn ends at 448"):
        convert(big, tmp_path / "small.safetensors", dtype="float8_e4m3fn")
    assert not (tmp_path / "small.safetensors").exists()


def test_pictures_of_eight_bits(tmp_path: Path) -> None:
    """Oracle: the picture of the embedded model: near, and not equal."""
    small = convert(embedded_model(), tmp_path / "small.safetensors", dtype="float8_e4m3fn")
    pictures = []
    for path in (None, small):
        with load(path, device="cpu", dtype="float32") as engine:
            image = engine.txt2img("a red apple", seed=1, steps=8).image
            pictures.append(torch.from_numpy(np.asarray(image).astype(np.float64)))
    error = (pictures[0] - pictures[1]).square().mean().sqrt()
    assert 0.0 < error < 40.0, error


def test_what_a_file_says_of_itself(name: str, model: Path, tmp_path: Path) -> None:
    """Oracle: ModelSpec 1.0.0's required fields."""
    told = metadata_of(convert(model, tmp_path / "new.safetensors"))
    spec = {k.removeprefix("modelspec."): v for k, v in told.items() if k.startswith("modelspec.")}
    assert {"sai_model_spec", "architecture", "implementation", "title", "resolution"} <= set(spec)
    assert spec["sai_model_spec"] == "1.0.0" and spec["title"] == "model" and spec["resolution"] == "64x64"
    architecture = {"sd1": "stable-diffusion-v1", "sdxl": "stable-diffusion-xl-v1-base"}[name]
    assert spec["architecture"] == architecture
    assert model_spec(TINY["sd2-v"], "x")["modelspec.architecture"] == "stable-diffusion-v2-768-v"
    assert model_spec(TINY["sd1-inpaint"], "x")["modelspec.architecture"] == "stable-diffusion-v1/inpainting"

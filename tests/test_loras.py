"""Oracle: the same picture drawn with a model that was changed by hand; bits of runs without adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from minisd.adapters import adapted
from minisd.engine import Engine
from minisd.errors import CheckpointError, RequestError
from minisd.lora_use import LoraUse
from minisd.loras import divided, embeddings_from, files_in, uses_of
from minisd.request import Request
from minisd.trail import Trail
from minisd.weights_loader.lora_file import open_adapter
from minisd.weights_loader.lora_names import spellings
from tests import lora_files
from tests.tiny import TINY, tiny_model

CONFIG = TINY["sd1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loras")
    (root / "sub").mkdir()
    for name, seed in (("film", 1), ("ink", 2), ("sub/clay", 3)):
        lora_files.write(root / f"{name}.safetensors", lora_files.kohya(CONFIG, seed))
    return root


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine(tiny_model("sd1"), loras=folder)


def latents(engine: Engine, prompt: str = "a cat", **fields: object) -> Tensor:
    plain = {"prompt": prompt, "seed": 3, "steps": 4, "width": 64, "height": 64, "sampler": "euler"}
    return engine.run(Request.from_dict(plain | fields)).drawing.latents


def test_a_tag_is_the_field_is_the_changed_model(engine: Engine, folder: Path) -> None:
    """Oracle: an engine over the adapted model; the way there changes no bit."""
    film = open_adapter(folder / "film.safetensors", spellings(CONFIG))
    wanted = latents(Engine(adapted(engine.model, [(film, LoraUse("film", 0.8))])))
    assert torch.equal(latents(engine, "a cat<lora:film:0.8>"), wanted)
    assert torch.equal(latents(engine, loras=["film:0.8"]), wanted)
    assert torch.equal(latents(engine, loras=[{"name": "film", "weight": 0.8}]), wanted)
    assert torch.equal(
        latents(engine, loras=[{"name": str(folder / "film.safetensors"), "weight": 0.8}]), wanted
    )
    assert not torch.equal(latents(engine), wanted)


def test_order_and_names(engine: Engine) -> None:
    """Oracle: bits of the other order; a file in a folder by its short and its long name."""
    both = latents(engine, loras=["film:0.5", "clay:0.7"])
    assert torch.equal(latents(engine, loras=["sub/clay:0.7", "film:0.5"]), both)
    assert not torch.equal(latents(engine, loras=["film:0.7", "clay:0.5"]), both)


@pytest.mark.parametrize("fields", [{"weight": 0.0}, {"start": 0.99}, {"end": 1e-9, "weight": 0.0}])
def test_an_adapter_that_does_not_act_changes_nothing(engine: Engine, fields: dict[str, float]) -> None:
    """Oracle: bits without it."""
    assert torch.equal(latents(engine, loras=[{"name": "film", **fields}]), latents(engine))


def test_a_range_of_steps(engine: Engine) -> None:
    """Oracle: the latents after each step: as without it up to its start, as with it up to its end."""

    def kept(**fields: object) -> list[str]:
        trail = Trail()
        plain = {"prompt": "a cat", "seed": 3, "steps": 4, "sampler": "euler", "width": 64, "height": 64}
        engine.run(Request.from_dict(plain | fields), trail=trail)
        return [m.digests[0] for m in trail.settle() if m.name.startswith("step")]

    off, on = kept(), kept(loras=["film"])
    late, early = (kept(loras=[{"name": "film", **f}]) for f in ({"start": 0.5}, {"end": 0.5}))
    assert [a == b for a, b in zip(late, off, strict=True)] == [True, True, False, False]
    assert [a == b for a, b in zip(early, on, strict=True)] == [True, True, False, False]
    assert early[-1] not in (off[-1], on[-1]) and late[-1] not in (off[-1], on[-1])


def test_steps_are_divided_where_adapters_change() -> None:
    """Oracle: by hand."""
    a, b = ("a", LoraUse("a", end=0.5)), ("b", LoraUse("b", start=0.25))
    made = divided([a, b], 8)  # type: ignore[list-item]
    assert [(end, [u[0] for u in uses]) for end, uses in made] == [(2, ["a"]), (4, ["a", "b"]), (8, ["b"])]


def test_numbers_of_tags() -> None:
    """Oracle: A1111's grammar: one number for both, a second for the UNet, names for either."""

    def use(tag: str) -> tuple[float, float | None]:
        [made] = uses_of(Request(prompt=f"a {tag} b"))
        return made.weight, made.te

    assert use("<lora:x>") == (1.0, 1.0)
    assert use("<lora:x:0.5>") == (0.5, 0.5)
    assert use("<lora:x:0.5:0.8>") == (0.8, 0.5)
    assert use("<lyco:x:unet=0.3:te=0.1>") == (0.3, 0.1)
    assert uses_of(Request(prompt="a <hypernet:x:1>")) == ()
    assert uses_of(Request(prompt="a <lora:x:1>", prompt_language="literal")) == ()


def test_what_cannot_be_found(engine: Engine, folder: Path) -> None:
    """Oracle: RequestError with the nearest name; a tag never opens a path."""
    with pytest.raises(RequestError, match="no LoRA 'flim'; did you mean .*film"):
        latents(engine, "a <lora:flim:1>")
    with pytest.raises(RequestError, match="there is no LoRA"):
        latents(engine, f"a <lora:{folder / 'film.safetensors'}:1>")
    with pytest.raises(CheckpointError, match="cannot read the LoRA"):
        latents(engine, loras=["missing.safetensors"])
    with pytest.raises(RequestError, match="another file than was asked for"):
        latents(engine, loras=[{"name": "film", "sha256": "0" * 64}])
    with pytest.raises(RequestError, match="was given no folder"):
        latents(Engine(engine.model), loras=["film"])


def test_the_record_tells_what_acted(engine: Engine) -> None:
    """Oracle: name, weight, digest and count of the file."""
    result = engine.run(Request(prompt="a<lora:ink:0.5>", seed=1, steps=1, width=64, height=64))
    [told] = result.record()["adapters"]  # type: ignore[misc]
    count = len(lora_files.layers(CONFIG))
    assert told["name"] == "ink" and told["weight"] == 0.5 and len(told["sha256"]) == 64
    assert told["report"].startswith(f"applied {count}/{count} modules")


def test_words_of_a_folder(tmp_path: Path) -> None:
    """Oracle: the bits of the vectors' own words; files for other widths are left out."""
    model = tiny_model("sd1")
    table = model.text_encoders[0].text_model.embeddings.token_embedding.weight
    apple = table[3055][None].clone()  # "apple</w>"
    save_file({"emb_params": apple}, tmp_path / "zzyzx.safetensors")
    save_file({"emb_params": torch.randn(2, 33)}, tmp_path / "other.safetensors")
    words = embeddings_from(tmp_path, model)
    assert set(words) == {"zzyzx"} and words["zzyzx"].length == 1
    plain = Engine(model)
    taught = Engine(replace(model, embeddings=words))
    assert torch.equal(latents(taught, "a red zzyzx"), latents(plain, "a red apple"))
    assert torch.equal(latents(taught, "a red pear"), latents(plain, "a red pear"))
    assert torch.equal(
        latents(taught, "a pear", negative_prompt="zzyzx"), latents(plain, "a pear", negative_prompt="apple")
    )
    with pytest.raises(CheckpointError, match="vectors of width 33"):
        embeddings_from({"x": tmp_path / "other.safetensors"}, model)


@pytest.mark.parametrize("name", ["sdxl", "sdxl-refiner"])
def test_pairs_of_several_vectors(name: str, tmp_path: Path) -> None:
    """Oracle: the bits of the two words whose vectors it holds, as prompt and as negative prompt. Both tiny
    encoders are 32 wide, so that only the slots tell; inverse: the pair in the wrong order."""
    model = tiny_model(name)
    tables = {
        use.part: encoder.text_model.embeddings.token_embedding.weight[[3055, 2368]].clone()  # apple, cat
        for use, encoder in zip(model.config.text, model.text_encoders, strict=True)
    }
    pair = {"clip_g": tables["text_encoder_2"], "clip_l": tables.get("text_encoder", torch.ones(2, 7))}
    save_file(pair, tmp_path / "zzyzx.safetensors")
    words = embeddings_from(tmp_path, model)
    assert words["zzyzx"].length == 2 and set(words["zzyzx"].vectors) == set(tables)
    plain, taught = Engine(model), Engine(replace(model, embeddings=words))
    assert torch.equal(latents(taught, "a red zzyzx"), latents(plain, "a red apple cat"))
    negative = latents(taught, "a pear", negative_prompt="(zzyzx:1.2)")
    assert torch.equal(negative, latents(plain, "a pear", negative_prompt="(apple cat:1.2)"))
    assert not torch.equal(negative, latents(plain, "a pear"))
    if name == "sdxl":
        swapped = {"clip_l": pair["clip_g"], "clip_g": pair["clip_l"]}
        save_file(swapped, tmp_path / "zzyzx.safetensors")
        wrong = Engine(replace(model, embeddings=embeddings_from(tmp_path, model)))
        assert not torch.equal(latents(wrong, "a red zzyzx"), latents(plain, "a red apple cat"))
        save_file({"clip_g": pair["clip_g"]}, tmp_path / "zzyzx.safetensors")
        half = Engine(replace(model, embeddings=embeddings_from(tmp_path, model)))
        with pytest.raises(RequestError, match="has none for text_encoder; it was made for another family"):
            latents(half, "a red zzyzx")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    """Oracle: CheckpointError."""
    with pytest.raises(CheckpointError, match="is not a folder"):
        files_in(tmp_path / "nothing")

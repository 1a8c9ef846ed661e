"""Oracle: what a person and a program see: files, exit codes, one line for an error; diffusers for a
converted folder."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from minisd.cli import main
from minisd.commands.flags import FIELD_HELP
from minisd.request import Request
from tests.tiny import TINY, write_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors", TINY["sd1"])


def run(*args: str | Path) -> int:
    return main([str(a) for a in args])


def draw(model: Path, target: Path, *more: str) -> int:
    return run("txt2img", "a red apple", "-m", model, "-o", target, "--steps", "2", "--seed", "7", *more)


def test_every_field_of_a_request_is_a_flag_with_help() -> None:
    """Oracle: the fields of Request."""
    assert set(FIELD_HELP) == {f.name for f in fields(Request)} - {"prompt"}


def test_a_picture_with_how_it_was_made(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the PNG as Pillow reads it."""
    assert draw(model, tmp_path / "apple.png", "--json", "--sampler", "Euler a") == 0
    told = json.loads(capsys.readouterr().out)
    with Image.open(tmp_path / "apple.png") as image:
        assert image.size == (64, 64)
        texts = dict(image.text)  # type: ignore[attr-defined]
    assert texts["parameters"].startswith("a red apple\nSteps: 2, Sampler: Euler a, ")
    assert "Seed: 7, Size: 64x64, " in texts["parameters"]
    model_hash = hashlib.sha256(model.read_bytes()).hexdigest()[:10]
    assert f"Model hash: {model_hash}, Model: tiny" in texts["parameters"]
    record = json.loads(texts["minisd"])
    assert record == {k: v for k, v in told["pictures"][0].items() if k != "path"}
    again = Request.from_dict(record["request"])
    assert (again.prompt, again.seed, again.sampler) == ("a red apple", 7, "euler_ancestral")


def test_several_pictures_are_numbered_and_each_seed_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the pictures drawn one by one."""
    assert draw(model, tmp_path / "a.png", "--count", "2") == 0
    out = capsys.readouterr().out
    assert "seed 7" in out and "seed 8" in out
    assert draw(model, tmp_path / "alone.png", "--seed", "8") == 0
    pixels = [Image.open(tmp_path / n).tobytes() for n in ("a-2.png", "alone.png")]
    assert pixels[0] == pixels[1]


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--width", "500"), 2, "width 500 is not a multiple of 8; try 496"),
        (("--steps", "0"), 2, "steps is 0"),
        (("--cfg-scale", "nan"), 2, "cfg_scale"),
        (("--sampler", "eulr"), 2, "did you mean 'euler'"),
        (("--sigmas", "1", "2"), 2, "below the one before"),
        (("--dtype", "float12"), 1, "float12"),
        (("--device", "cuda:7"), 1, "cuda:7"),
        (("--vae", "nowhere.safetensors"), 3, "nowhere.safetensors"),
    ],
)
def test_errors_are_one_line(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    """Oracle: the table above."""
    assert draw(model, tmp_path / "a.png", *flags) == code
    seen = capsys.readouterr()
    assert seen.out == "" and words in seen.err and seen.err.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_errors_as_json(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the field that is wrong."""
    assert draw(model, tmp_path / "a.png", "--steps", "0", "--json") == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["field"]) == ("RequestError", "steps")


def test_a_missing_folder_is_noticed_before_loading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the model does not exist either, and is not what is complained about."""
    assert draw(tmp_path / "none.safetensors", tmp_path / "nowhere" / "a.png") == 1
    assert "the folder of" in capsys.readouterr().err


def test_inspect(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: a file of SDXL keys under another model's name; an error page."""
    path = write_checkpoint(tmp_path / "wan-flux-lens.safetensors", TINY["sdxl"])
    assert run("inspect", path) == 0
    out = capsys.readouterr().out
    assert "SDXL" in out and "unet" in out and "text_encoder_2" in out
    assert run("inspect", path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["family"] == "sdxl"
    page = tmp_path / "page.safetensors"
    page.write_text("<html><title>404 Not Found</title></html>")
    assert run("inspect", page) == 3
    assert "404 Not Found" in capsys.readouterr().err


def test_convert_there_and_back_draws_the_same(model: Path, tmp_path: Path) -> None:
    """Oracle: the picture of the first file."""
    assert run("convert", model, tmp_path / "folder", "--layout", "diffusers") == 0
    assert run("convert", tmp_path / "folder", tmp_path / "back.safetensors") == 0
    for name, source in (("a", model), ("b", tmp_path / "folder"), ("c", tmp_path / "back.safetensors")):
        assert draw(source, tmp_path / f"{name}.png") == 0
    first, *others = (Image.open(tmp_path / f"{n}.png").tobytes() for n in "abc")
    assert all(pixels == first for pixels in others)
    assert run("convert", model, tmp_path / "folder", "--layout", "diffusers") == 3, "nothing is overwritten"


def test_diffusers_opens_a_converted_folder(model: Path, tmp_path: Path) -> None:
    """Oracle: diffusers' own pipeline, tokenizer included."""
    from diffusers import StableDiffusionPipeline

    from minisd.text.tokenizer import encode

    assert run("convert", model, tmp_path / "folder", "--layout", "diffusers") == 0
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "folder", local_files_only=True)
    ids = pipeline.tokenizer("a red apple, 2 cats", padding="max_length").input_ids
    assert ids[1 : ids.index(49407)] == encode("a red apple, 2 cats")
    assert len(ids) == 77


def test_samplers(capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the table of names."""
    assert run("samplers", "--json") == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)["samplers"]]
    assert run("samplers") == 0
    out = capsys.readouterr().out
    assert len(names) > 30 and all(f"\n{name} " in out for name in names)


def test_help_needs_no_torch_and_a_closed_pipe_no_traceback() -> None:
    """Oracle: a process of its own."""
    code = "import sys, minisd.cli as c\ntry: c.main(['txt2img', '--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "minisd.cli", "samplers"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert "Traceback" not in done.stderr

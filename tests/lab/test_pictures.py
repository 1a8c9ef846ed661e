"""Oracle: pictures of requests and models that differ in one thing, which must be the one that is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from minisd.cli import main
from minisd.engine import Engine, load
from minisd.errors import ImageError
from minisd.lab.pictures import apart, layers, steps_of
from minisd.lab.trace import trace
from minisd.request import Request
from minisd.verify import Given
from tests.tiny import TINY, write_checkpoint


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [write_checkpoint(folder / f"{i}.safetensors", TINY["sd1"], seed=i) for i in range(2)]


@pytest.fixture(scope="module")
def engine(files: list[Path]) -> Engine:
    return load(files[0])


def made(engine: Engine, path: Path, **fields: object) -> Path:
    plain: dict[str, object] = {"prompt": "a cat", "seed": 5, "steps": 3, "sampler": "euler"}
    return engine.run(Request.from_dict(plain | fields)).save(path)[0]


@pytest.mark.parametrize(
    "fields,first,network,step",
    [
        ({"seed": 6}, "start", "unet", 1),
        ({"prompt": "a dog"}, "text", "text_encoder", 0),
        ({"cfg_scale": 5.5}, "step 1", "unet", 2),
        ({"guidance_end": 0.6}, "step 3", "vae", 4),
        ({"steps": 4}, "text", "unet", 2),  # the first level is the same
    ],
    ids=lambda v: str(v),
)
def test_one_field_that_differs(
    engine: Engine, tmp_path: Path, fields: dict[str, object], first: str, network: str, step: int
) -> None:
    """Oracle: the field, the mark by hand, and the first layer that sees it."""
    a, b = made(engine, tmp_path / "a.png"), made(engine, tmp_path / "b.png", **fields)
    found = apart(a, b)
    assert list(found.other) == [f"request {name}" for name in fields]
    assert found.first == first and found.size["share"] > 0
    traced = layers(a, b, engine, engine).first
    assert traced is not None and (traced.network, traced.step) == (network, step), traced
    assert f"the runs part at {first}" in str(found)


def test_pictures_that_agree(engine: Engine, tmp_path: Path) -> None:
    """Oracle: the same request twice, in files of two formats' worth of packing."""
    a, b = made(engine, tmp_path / "a.png"), made(engine, tmp_path / "b.png")
    found = apart(a, b)
    assert found.first is None and found.other == {} and found.size == {"levels": 0.0, "share": 0.0}
    assert main(["trace", str(a), str(b)]) == 0
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(ImageError, match="carries no record"):
        apart(a, tmp_path / "plain.png")
    assert main(["trace", str(a), str(tmp_path / "plain.png")]) == 1


def test_another_model_and_a_given_picture(
    engine: Engine, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the file that differs, the first layer of the picture's encoder, exit code 1."""
    first = made(engine, tmp_path / "start.png")
    with load(files[1]) as other:
        a = made(engine, tmp_path / "a.png", image=str(first), strength=0.7)
        b = made(other, tmp_path / "b.png", image=str(first), strength=0.7)
        found = apart(a, b)
        assert list(found.other) == ["files"] and found.first == "text"
        traced = layers(a, b, engine, other, Given([first])).first
    assert traced is not None and str(traced) == "vae pass 0 encoder.conv_in"
    flags = ["--with", str(first), "-m", str(files[0]), "--other-model", str(files[1])]
    plot = tmp_path / "t.svg"
    assert main(["trace", str(a), str(b), *flags, "--json", "--plot", str(plot)]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["first"] == "text" and not told["layers"][0]["same"]
    assert "part at vae pass 0" in plot.read_text()
    assert main(["trace", str(a), str(b), "--quick"]) == 1
    assert "files:" in capsys.readouterr().out


def test_only_the_steps_asked_for_are_kept(engine: Engine) -> None:
    """Oracle: the steps of the places, and that a run ends after the last of them."""
    asked = Request(prompt="a cat", seed=5, steps=4, sampler="euler")
    calls = []
    handle = engine.model.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        found = trace(engine, engine, asked, steps=range(2, 3))
    finally:
        handle.remove()
    assert {p.step for p in found.places} == {2} and found.first is None
    assert len(calls) == 2 * 2 * 2  # two runs of two steps, prompt and negative prompt
    assert steps_of("pixels", 4) == range(5, 6) and steps_of("step 2", 4) == range(2, 4)

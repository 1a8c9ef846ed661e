"""Oracle: the single runs, bit for bit; A1111's syntax of values; tables of what must be refused."""

from __future__ import annotations

import csv
import itertools
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from minisd import Cancelled, Engine, Picture, Progress, Request, RequestError, load
from minisd.axis import axis, read_axis
from minisd.cli import main
from minisd.grid import draw_grid
from minisd.metadata import read_file
from minisd.picture import digest
from minisd.verify import verify
from tests import lora_files
from tests.test_demo import found
from tests.tiny import TINY, write_checkpoint

BASE = Request(prompt="a red apple", seed=7, steps=2, width=64, height=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("grid") / "model.safetensors", TINY["sd1"])


@pytest.fixture(scope="module")
def engine(model: Path) -> Engine:
    return load(model)


@pytest.mark.parametrize(
    "text,values",
    [
        ("steps=1-5", (1, 2, 3, 4, 5)),
        ("steps=1-10 (+4)", (1, 5, 9)),
        ("steps=10-4 (-3)", (10, 7, 4)),
        ("steps=3-1", (3, 2, 1)),
        ("steps=1-10 [4]", (1, 4, 7, 10)),
        ("seed=18446744073709551615,0", (2**64 - 1, 0)),
        ("cfg_scale=0-1 [5]", (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("cfg-scale=0.1-0.3 (+0.1),7", (0.1, 0.2, 0.3, 7.0)),  # no 0.30000000000000004
        ("apg_eta=-1-1 [3]", (-1.0, 0.0, 1.0)),
        ('prompt="an apple, red",a pear', ("an apple, red", "a pear")),
        ("prompt_sr=apple,", ("apple", "")),
        ("prompt=2-4", ("2-4",)),  # of texts there are no ranges
        ("sampler=Euler a, DPM++ 2M Karras", ("Euler a", "DPM++ 2M Karras")),
        ("eta=none,0.5", (None, 0.5)),
        ("mask_soft=yes,false", (True, False)),
        ("crop=0 0,8x16", ((0, 0), (8, 16))),
        ("freeu=1.1 1.2 0.9 0.2,none", ((1.1, 1.2, 0.9, 0.2), None)),
        ("size=512x768,64x64", ((512, 768), (64, 64))),
        ("lora:film=-0.5-0.5 [3]", (-0.5, 0.0, 0.5)),
        ("styles=ink+pen,none", (("ink", "pen"), ("none",))),
    ],
)
def test_values_are_read(text: str, values: tuple[object, ...]) -> None:
    """Oracle: written out by hand, ranges as A1111's X/Y/Z script has them."""
    made = read_axis(text)
    assert made.values == values and [type(v) for v in made.values] == [type(v) for v in values]
    assert len(made.labels) == len(values)


@pytest.mark.parametrize(
    "text,words",
    [
        ("cfg_scal=1,2", "no field 'cfg_scal'; did you mean 'cfg_scale'"),
        ("promt_sr=a,b", "did you mean 'prompt_sr'"),
        ("cfg_scale", "NAME=VALUES"),
        ("cfg_scale=", "1 to 400 values"),
        ("cfg_scale=1,high", "'high' is no number"),
        ("steps=1.5", "'1.5' is no whole number"),
        ("steps=1,2,2", "'steps' has '2' twice"),
        ("mask_soft=perhaps", "is no bool"),
        ("steps=1-1000000000", "too many values"),
        ("cfg_scale=0-1 [999999999999]", "too many values"),
        ("steps=1-5 (-1)", "never reaches its end"),
        ("steps=1-5 (0)", "never reaches its end"),
        ("steps=1-5 [0]", "no values"),
        ("count=1,2", "vary the seed, not the count"),
        ('prompt="a', "not a row of CSV"),
        ("lora:=1", "no field"),
        ("image=nowhere.png", "there is no picture"),
        ("lora:film=1,x", "'x' is no number"),
        ("cfg_scale=nan", None),  # refused where a request is made of it
    ],
)
def test_axes_that_are_none(text: str, words: str | None, engine: Engine) -> None:
    """Oracle: the table above."""
    with pytest.raises(RequestError, match=words):
        draw_grid(engine, BASE, [read_axis(text)])


def test_cells_are_the_single_runs(engine: Engine, tmp_path: Path) -> None:
    """Oracle: every cell's request run alone: pixels equal to the bit, on the sheet, in its file and as its
    receipt proves; the first axis runs right, the second down, the third from page to page."""
    axes = {"cfg_scale": (1.0, 5.0), "sampler": ("Euler a", "ddim"), "prompt_sr": ("red", "blue")}
    grid = draw_grid(engine, BASE, axes, folder=tmp_path)
    assert len(grid.cells) == 8 and len(grid.pages) == 2
    wanted = [
        replace(BASE, cfg_scale=cfg, sampler=sampler, prompt=f"a {word} apple")
        for word, sampler, cfg in itertools.product(("red", "blue"), ("Euler a", "ddim"), (1.0, 5.0))
    ]
    for cell, request in zip(grid.cells, wanted, strict=True):
        alone = engine.run(request)
        assert cell.request == alone.request.to_dict() and cell.pixels == digest(alone.image)
        assert found(grid.pages[cell.place[2]], alone.image)
        assert cell.path is not None and Image.open(cell.path).tobytes() == alone.image.tobytes()
    assert len({cell.pixels for cell in grid.cells}) == 8
    first = found(grid.pages[0], engine.run(wanted[0]).image)[0]
    right, down = (found(grid.pages[0], engine.run(wanted[n]).image)[0] for n in (1, 2))
    assert first[0] < right[0] and first[1] == right[1] and first[0] == down[0] and first[1] < down[1]
    assert grid.cells[5].path is not None and verify(grid.cells[5].path, engine).verdict == "proven"


def test_one_seed_for_all_and_equal_cells_drawn_once(engine: Engine, tmp_path: Path) -> None:
    """Oracle: a seed that is drawn is that of every cell; two names of one sampler are one drawing."""
    heard: list[Progress] = []
    base = replace(BASE, seed=None)
    grid = draw_grid(
        engine, base, {"sampler": ("euler", "Euler"), "steps": (1, 2)}, folder=tmp_path, on_event=heard.append
    )
    assert len({cell.request["seed"] for cell in grid.cells}) == 1
    assert len(list(tmp_path.iterdir())) == 2 and grid.cells[0].path == grid.cells[1].path
    assert [(e.step, e.steps) for e in heard] == [(1, 3), (2, 3), (3, 3)]
    assert all(e.left >= 0 for e in heard) and heard[-1].left == 0
    again = draw_grid(engine, base, {"steps": (1, 2)}, folder=tmp_path)
    assert again.cells[0].request["seed"] != grid.cells[0].request["seed"], "nothing is reused unasked"


def test_resume_draws_only_what_is_missing_or_damaged(engine: Engine, tmp_path: Path) -> None:
    """Oracle: the grid in one go: the same bits after a stop in the middle, an edited cell and a torn one."""
    axes = {"cfg_scale": (1.0, 3.0, 5.0), "prompt": ("a", "b")}
    base = replace(BASE, seed=None)
    stop = threading.Event()
    heard: list[tuple[int, int]] = []

    def until(event: object) -> None:
        heard.append((event.step, event.steps))  # type: ignore[attr-defined]
        if len(heard) == 7:
            stop.set()

    with pytest.raises(Cancelled):
        draw_grid(engine, base, axes, folder=tmp_path, on_event=until, cancel=stop)
    assert len(list(tmp_path.iterdir())) == 3 and heard[-1] == (7, 12)
    heard.clear()
    grid = draw_grid(engine, base, axes, folder=tmp_path, resume=True, on_event=until)
    assert heard[-1] == (6, 6) and [c.seconds == 0 for c in grid.cells] == [True] * 3 + [False] * 3
    seed = grid.cells[0].request["seed"]
    whole = draw_grid(engine, replace(BASE, seed=seed), axes)  # type: ignore[arg-type]
    assert [c.pixels for c in whole.cells] == [c.pixels for c in grid.cells]
    edited, torn = grid.cells[1].path, grid.cells[4].path
    assert edited is not None and torn is not None
    texts = dict(Image.open(edited).text)  # type: ignore[attr-defined]
    other = Image.open(edited)
    other.putpixel((3, 3), (1, 2, 3))
    from minisd.metadata import save_png

    save_png(other, edited, texts)
    torn.write_bytes(torn.read_bytes()[:-200])
    heard.clear()
    mended = draw_grid(engine, base, axes, folder=tmp_path, resume=True, on_event=until)
    assert heard[-1] == (4, 4) and [c.pixels for c in mended.cells] == [c.pixels for c in whole.cells]
    assert draw_grid(engine, replace(base, steps=1), axes, folder=tmp_path, resume=True).cells[0].seconds > 0


def test_weights_of_a_lora(model: Path, tmp_path: Path) -> None:
    """Oracle: a request that says the same; weight 0 is the model without it."""
    lora_files.write(tmp_path / "film.safetensors", lora_files.kohya(TINY["sd1"], 1))
    engine = load(model, loras=tmp_path)
    grid = draw_grid(engine, BASE, {"lora:film": (0, 0.5, 1)})
    plain, half = engine.run(BASE), engine.run(replace(BASE, loras=({"name": "film", "weight": 0.5},)))
    assert grid.cells[0].pixels == digest(plain.image) and grid.cells[1].pixels == digest(half.image)
    assert len({c.pixels for c in grid.cells}) == 3
    with pytest.raises(RequestError, match="vary it with prompt_sr"):
        draw_grid(engine, replace(BASE, prompt="a <lora:film:1>"), {"lora:film": (0, 1)})
    with pytest.raises(RequestError, match="at lora:flim 1: there is no LoRA 'flim'"):
        draw_grid(engine, BASE, {"lora:flim": (1, 2)})


def test_any_field(engine: Engine) -> None:
    """Oracle: requests that say the same: sizes, pictures, switches."""
    pictures = [Image.new("RGB", (64, 64), c) for c in ("red", "blue")]
    grid = draw_grid(engine, BASE, {"image": pictures, "strength": (0.0, 0.5)})
    for cell, (strength, picture) in zip(grid.cells, itertools.product((0.0, 0.5), pictures), strict=True):
        alone = engine.run(replace(BASE, image=Picture.of(picture), strength=strength))
        assert cell.pixels == digest(alone.image)
    sizes = draw_grid(engine, BASE, {"size": ((64, 64), (128, 64)), "hires_scale": (1.0, 2.0)})
    assert [(c.request["width"], c.request["height"]) for c in sizes.cells] == [(64, 64), (128, 64)] * 2
    assert sizes.pages[0].width > 2 * 256 and sizes.pages[0].height > 2 * 128


@pytest.mark.parametrize(
    "base,axes,words",
    [
        (BASE, {}, "1 to 3 axes"),
        (BASE, {n: (1, 2) for n in ("seed", "steps", "clip_skip", "eta")}, "1 to 3 axes"),
        (BASE, {"width": (64,), "size": ((64, 64),)}, "two axes vary width"),
        (BASE, {"seed": range(40), "steps": range(1, 12)}, "40 x 11 are 440 pictures"),
        (BASE, {"sampler": ("euler",), "eta": (None, 0.5)}, "at sampler euler, eta 0.5: .* takes no eta"),
        (BASE, {"clip_skip": (1, 9)}, "at clip_skip 9: clip_skip 9 is outside"),
        (BASE, {"prompt_sr": ("pear", "fig")}, "searches for 'pear', which is in no prompt"),
        (BASE, {"strength": (0.5,)}, "strength needs image"),
        (replace(BASE, count=2), {"steps": (1,)}, "vary the seed, not the count"),
    ],
)
def test_grids_that_are_none(
    engine: Engine, base: Request, axes: dict, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the table above; nothing is drawn before it is refused."""
    monkeypatch.setattr(Engine, "run", lambda *_, **__: pytest.fail("something was drawn"))
    with pytest.raises(RequestError, match=words):
        draw_grid(engine, base, axes)


def test_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the files as Pillow, csv and json read them."""
    target = tmp_path / "s.png"
    args = ["grid", "=a red apple", "-m", str(model), "-o", str(target), "--steps", "1", "--seed", "3"]
    axes = ["--x", "cfg_scale=1-3 (+2)", "--y", "prompt_sr==a,b", "--z", "clip_skip=1,2"]
    assert main([*args, *axes]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [Path(line).name for line in out[:-1]] == ["s-1.png", "s-2.png", "s.csv", "s.json"]
    assert out[-1] == f"8 pictures in {tmp_path / 's-cells'}, seed 3"
    rows = list(csv.DictReader((tmp_path / "s.csv").open(newline="")))
    assert len(rows) == 8 and rows[3] == rows[3] | {"cfg_scale": "3", "prompt_sr": "b", "clip_skip": "1"}
    record = json.loads((tmp_path / "s.json").read_text())
    assert json.loads(read_file(tmp_path / "s-2.png").texts["minisd"]) == record
    assert [a["name"] for a in record["sheet"]["axes"]] == ["cfg_scale", "prompt_sr", "clip_skip"]
    for row, cell in zip(rows, record["cells"], strict=True):
        assert digest(Image.open(tmp_path / row["file"])) == row["pixels"] == cell["pixels"]
        assert Request.from_dict(cell["request"]).seed == 3
    assert main([*args, *axes, "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["drawn"] == 0
    assert main(["info", str(tmp_path / "s-1.png")]) == 0
    assert "contact sheet of 8 pictures: cfg_scale x prompt_sr x clip_skip" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "s-1.png"), "-m", str(model)]) == 2
    assert "it is a contact sheet" in capsys.readouterr().out
    assert main(["txt2img", "--from", str(tmp_path / "s-1.png"), "-m", str(model)]) == 1
    capsys.readouterr()
    jpeg = [*args[:5], str(tmp_path / "t.jpg"), *args[6:], "--x", "seed=1-9"]
    assert main(jpeg) == 0 and "minisd" in read_file(tmp_path / "t.jpg").texts
    assert main([*args, "--x", "stpes=1,2"]) == 2
    assert "did you mean 'steps'" in capsys.readouterr().err


def test_a_large_record_lies_beside_the_sheet(engine: Engine, tmp_path: Path) -> None:
    """Oracle: the digest of the JSON that the sheet names."""
    import hashlib

    from minisd.sidecar import INSIDE

    base = replace(BASE, steps=1, negative_prompt="a, " * 9000)
    base = replace(base, prompt_language="literal", long_prompt="truncate")
    draw_grid(engine, base, {"seed": (1, 2, 3)}).save(tmp_path / "s.png")
    data = (tmp_path / "s.json").read_bytes()
    said = json.loads(read_file(tmp_path / "s.png").texts["minisd"])
    assert len(data) > INSIDE and said["beside"] == "s.json"
    assert said["sha256"] == hashlib.sha256(data).hexdigest() and "cells" not in said
    assert axis("seed", (1,)).labels == ("seed 1",)

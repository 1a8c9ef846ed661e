"""Oracle: the engine's own pictures, pixel by pixel, on the page; sizes from Pillow's font metrics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from minisd import Engine, Request, RequestError, load
from minisd.cli import main
from minisd.demo import contact_sheet
from minisd.sheet import LABEL, MAX_PAGE_SIDE, lay_out, shown_size, wrapped
from tests.tiny import TINY, write_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("demo") / "model.safetensors", TINY["sd1"])


@pytest.fixture(scope="module")
def engine(model: Path) -> Engine:
    return load(model)


def found(page: Image.Image, picture: Image.Image) -> list[tuple[int, int]]:
    """Where on the page the picture stands, exactly."""
    outer, inner = np.asarray(page.convert("RGB")), np.asarray(picture)
    h, w, _ = inner.shape
    first = (outer[: outer.shape[0] - h + 1, : outer.shape[1] - w + 1] == inner[0, 0]).all(-1)
    return [
        (int(x), int(y))
        for y, x in zip(*np.nonzero(first), strict=True)
        if (outer[y : y + h, x : x + w] == inner).all()
    ]


def test_every_picture_is_the_one_its_prompt_and_seed_give_alone(engine: Engine) -> None:
    base = Request(steps=1, width=64, height=64)
    heard: list[tuple[int, int]] = []
    sheet = contact_sheet(
        engine, ("a", "b"), (5, 6), base=base, on_event=lambda e: heard.append((e.step, e.steps))
    )
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]
    requests = [Request.from_dict(cell.request) for cell in sheet.cells]
    (page,) = sheet.pages
    asked = [(r.seed, r.prompt) for r in requests]
    assert asked == [(5, "a"), (5, "b"), (6, "a"), (6, "b")]
    places = []
    for request in requests:
        where = found(page, engine.run(request).image)
        assert len(where) == 1
        places += where
    left = [p[0] for p in places]
    top = [p[1] for p in places]
    assert left[0] == left[2] < left[1] == left[3] and top[0] == top[1] < top[2] == top[3]


def test_pictures_do_not_overlap_and_titles_stay_in_their_column() -> None:
    pictures = [Image.new("RGB", (64, 48), (n * 40, 200, 10)) for n in range(6)]
    page = lay_out(pictures, ["a long title of many words", "b", ""], ["1", "row two"])
    places = [found(page, p) for p in pictures]
    assert all(len(p) == 1 for p in places)
    font = ImageFont.load_default(LABEL)
    for text in ("a long title of many words", "unbreakable" * 9, ""):
        assert all(font.getlength(line) <= 128 for line in wrapped(text, font, 128))


def test_an_empty_prompt_and_a_cut_word_are_shown_as_such() -> None:
    font = ImageFont.load_default(LABEL)
    assert wrapped("  ", font, 128) == ["(empty prompt)"]
    assert wrapped("unbreakable" * 9, font, 128)[0].endswith("...")


@pytest.mark.parametrize(
    ("prompts", "seeds", "says"),
    [
        ((), (1,), "1 to 400 values"),
        (("a",), (), "1 to 400 values"),
        (tuple("abcdefghijklmnopqrstuvwxyz"), range(16), "26 x 16 are 416 pictures; a grid holds 400"),
    ],
)
def test_what_makes_no_sheet_is_refused(
    engine: Engine, prompts: tuple[str, ...], seeds: tuple[int, ...], says: str
) -> None:
    with pytest.raises(RequestError, match=says):
        contact_sheet(engine, prompts, seeds)


def test_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "sheet.png"
    args = ["demo", "-m", str(model), "-o", str(target), "--prompt", "a", "--prompt", "b", "--seeds", "3"]
    assert main([*args, "--steps", "1"]) == 0
    assert capsys.readouterr().out == f"{target}  2 pictures\n"
    with Image.open(target) as page:
        record = json.loads(page.info["minisd"])
    asked = [c["request"] for c in record["cells"]]
    assert [(r["prompt"], r["seed"], r["steps"]) for r in asked] == [("a", 3, 1), ("b", 3, 1)]
    assert main([*args[:4], str(tmp_path / "sheet.bmp"), *args[5:]]) == 2
    assert "ends in none of these" in capsys.readouterr().err


def test_a_page_has_a_size_that_programs_open() -> None:
    """Oracle: the bound; small grids are shown as they are, large pictures smaller."""
    assert shown_size((128, 128), 20, 20) == (128, 128)
    width, height = shown_size((4096, 2048), 20, 20)
    assert 100 < width < 600 and abs(width / height - 2) < 0.02 and 20 * width < MAX_PAGE_SIDE

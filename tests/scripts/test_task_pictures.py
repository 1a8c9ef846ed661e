"""Oracle: argparse and the page: every command on docs/tasks.md is one, and every strip is shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from minisd.cli import parser
from scripts.task_pictures import SHOWN, commands, strip

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "tasks.md").read_text(encoding="utf-8")
BY_HAND = {"half", "right", "enlarged", "four"}  # made by the script from what the commands draw


@pytest.mark.parametrize("arguments", commands(PAGE), ids=lambda a: a[a.index("-o") + 1])
def test_every_command_is_one(arguments: list[str]) -> None:
    """Oracle: argparse takes it, and what it reads was made by an earlier line."""
    parser().parse_args(arguments)
    made = [a[a.index("-o") + 1] for a in commands(PAGE)]
    read = [a for a in arguments[1:] if a.endswith(".png") and a != arguments[arguments.index("-o") + 1]]
    before = set(made[: commands(PAGE).index(arguments)]) | {f"{n}.png" for n in BY_HAND}
    assert set(read) <= before


def test_every_strip_is_on_the_page() -> None:
    """Oracle: names on the page, files, at most 150 kB each; pictures that lines make or the script."""
    linked = set(re.findall(r"\]\(tasks/([a-z0-9-]+)\.jpg\)", PAGE))
    assert linked == set(SHOWN) == {f.stem for f in (DOCS / "tasks").glob("*.jpg")}
    assert all((DOCS / "tasks" / f"{name}.jpg").stat().st_size < 150_000 for name in SHOWN)
    made = {Path(a[a.index("-o") + 1]).stem for a in commands(PAGE)} | BY_HAND
    assert {one for shown in SHOWN.values() for one in shown} <= made


def test_a_strip() -> None:
    """Oracle: sizes and colours by hand."""
    red, blue = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (3, 5), "blue")
    out = strip([red, blue])
    assert out.size == (4 + 8 + 3, 5)
    assert out.getpixel((0, 0)) == (255, 0, 0) and out.getpixel((14, 4)) == (0, 0, 255)
    assert out.getpixel((5, 0)) == out.getpixel((0, 4)) == (225, 225, 225)

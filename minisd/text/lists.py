"""Files that prompts are made with: folders of wildcard lists, and A1111's styles.csv."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minisd.errors import MinisdError, RequestError, listed, quoted
from minisd.text.choices import MAX_CHARACTERS, Wildcards

MAX_FILES = 10_000
MAX_BYTES = 64 * 2**20  # of all lists together


@dataclass(frozen=True)
class Style:
    """Words that surround a prompt: `{prompt}` is where it goes; without it they follow after a comma."""

    name: str
    prompt: str = ""
    negative_prompt: str = ""


Styles = Mapping[str, Style]


def read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MinisdError(f"{path.name} is not UTF-8 text; save it as UTF-8") from error


def read_wildcards(folder: str | os.PathLike[str]) -> Wildcards:
    """The lists of a folder: `colours/warm.txt` is `__colours/warm__`, one choice a line; blank lines and
    those that begin with # are left out.

    Raises MinisdError for a folder that is none, text that is not UTF-8, and more than MAX_BYTES.
    """
    root = Path(folder)
    if not root.is_dir():
        raise MinisdError(f"{root} is not a folder; wildcards are a folder of .txt files")
    files = sorted(root.rglob("*.txt"))
    size = sum(f.stat().st_size for f in files)
    if len(files) > MAX_FILES or size > MAX_BYTES:
        raise MinisdError(
            f"{root} holds {len(files):,} lists of {size:,} bytes; at most {MAX_FILES:,} and {MAX_BYTES:,}"
        )
    lists = {}
    for file in files:
        lines = (line.strip() for line in read_text(file).splitlines())
        name = file.relative_to(root).with_suffix("").as_posix()
        lists[name] = tuple(line for line in lines if line and not line.startswith("#"))
    return lists


def read_styles(path: str | os.PathLike[str]) -> Styles:
    """A CSV with the columns name, prompt and negative_prompt (older files: name, text).

    Raises MinisdError for a file that is not such a table.
    """
    file = Path(path)
    if not file.is_file():
        raise MinisdError(f"{file} is not a file; styles are a CSV with name, prompt, negative_prompt")
    try:
        rows = list(csv.DictReader(read_text(file).splitlines(keepends=True)))
    except csv.Error as error:
        raise MinisdError(f"{file.name} is not a CSV: {error}") from error
    if rows and "name" not in rows[0]:
        columns = [c for c in rows[0] if isinstance(c, str)]
        raise MinisdError(f"{file.name} has the columns {listed(columns)}; a table of styles has name")
    styles = [
        Style(r["name"], r.get("prompt") or r.get("text") or "", r.get("negative_prompt") or "") for r in rows
    ]
    return {s.name: s for s in styles if s.name}


def styled(text: str, words: str, field: str) -> str:
    """A prompt with one style's words, as A1111 joins them. Raises RequestError if it grows too long."""
    if "{prompt}" in words:
        length = len(words) + words.count("{prompt}") * len(text)
        made = words.replace("{prompt}", text) if length <= 2 * MAX_CHARACTERS else None
    else:
        made = ", ".join(part for part in (text.strip(), words.strip()) if part) if words.strip() else text
    if made is None or len(made) > MAX_CHARACTERS:
        raise RequestError(f"styles make the {field} longer than {MAX_CHARACTERS:,} characters", field=field)
    return made


def style_named(name: str, styles: Styles | None) -> Style:
    """Raises RequestError for a name that is not there."""
    if styles is None:
        raise RequestError(
            f"the style {quoted(name)} was asked for, but no styles were given; name their CSV file",
            field="styles",
        )
    if name not in styles:
        raise RequestError(
            f"there is no style {quoted(name)}; there are {listed(sorted(styles))}", field="styles"
        )
    return styles[name]

"""Oracle: written out by hand: how A1111 joins styles, what a folder of lists holds, shares of weighted
choices."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from minisd.errors import MinisdError, RequestError
from minisd.request import Request
from minisd.text.choices import expand
from minisd.text.lists import read_styles, read_wildcards, styled
from minisd.text.written import Lists


def test_styles_of_a_csv(tmp_path: Path) -> None:
    """Oracle: A1111's styles.csv: `{prompt}` is a place, otherwise words follow; one after the other."""
    table = tmp_path / "styles.csv"
    rows = '\ufeffname,prompt,negative_prompt\nink,"ink of {prompt}, fine",blurry\npen,"pen, line",\n,,\n'
    table.write_text(rows, "utf-8")
    lists = Lists.of(styles=table)
    request = lists.with_styles(Request(prompt="a cat", negative_prompt="dog", styles=("ink", "pen")))
    assert (request.prompt, request.negative_prompt) == ("ink of a cat, fine, pen, line", "dog, blurry")
    assert request.styles == () and set(read_styles(table)) == {"ink", "pen"}
    assert styled("", "pen", "prompt") == "pen" and styled("a", " ", "prompt") == "a"
    with pytest.raises(RequestError, match="there is no style 'pencil'; there are 'ink', 'pen'"):
        lists.with_styles(Request(styles=("pencil",)))
    with pytest.raises(RequestError, match="no styles were given"):
        Lists().with_styles(Request(styles=("ink",)))
    with pytest.raises(RequestError, match="longer than 100,000"):
        styled("a" * 60_000, "{prompt}{prompt}", "prompt")
    table.write_text("title,words\na,b\n")
    with pytest.raises(MinisdError, match="has the columns 'title', 'words'"):
        read_styles(table)


def test_lists_of_a_folder(tmp_path: Path) -> None:
    """Oracle: names by path, comments and blank lines left out; text that is none."""
    (tmp_path / "colours").mkdir()
    (tmp_path / "colours" / "warm.txt").write_text("red\n\n# no\norange\n")
    assert read_wildcards(tmp_path) == {"colours/warm": ("red", "orange")}
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(MinisdError, match="not UTF-8"):
        read_wildcards(tmp_path)


def test_choices() -> None:
    """Oracle: shares within 5 standard deviations; counts, joins and escapes written out."""
    drawn = Counter(expand("{3::a|b}", seed) for seed in range(2000))
    assert set(drawn) == {"a", "b"} and abs(drawn["a"] - 1500) < 100
    two = {expand("{2$$ and $$a|b|c}", seed) for seed in range(200)}
    assert two == {f"{x} and {y}" for x in "abc" for y in "abc" if x != y}
    assert expand(r"\{a|b\}", 1) == expand(r"\{a|b\}", 2)
    with pytest.raises(RequestError, match="did you mean 'colour'"):
        expand("__color__", 1, wildcards={"colour": ("red",)})

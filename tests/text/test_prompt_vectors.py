"""Oracle: what A1111 1.10 gave for 122 prompts, its doctests among them, when it was run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minisd.text.composition import split_prompt
from minisd.text.editing import Clock, timetable
from minisd.text.networks import strip_tags
from minisd.text.weights import read_weights

VECTORS = json.loads((Path(__file__).parent.parent / "data" / "prompt_vectors.json").read_text("ascii"))
CLOCKS = {
    "schedule_steps10": Clock(10),
    "schedule_hires_base10_hr10": Clock(10, earlier=10),
    "schedule_old_steps10": Clock(10, old=True),
    "schedule_steps100": Clock(100),
}


def test_there_are_122() -> None:
    """Oracle: the count, so that an emptied file cannot pass."""
    assert sum(len(v) for k, v in VECTORS.items() if k != "origin") == 122


@pytest.mark.parametrize("prompt,expected", VECTORS["attention"])
def test_weights(prompt: str, expected: list[tuple[str, float]]) -> None:
    """Oracle: the texts and weights, to the last bit; BREAK is told by a negative weight there."""
    spans = read_weights(prompt)
    assert [[s.text, -s.weight if s.breaks else s.weight] for s in spans] == expected


@pytest.mark.parametrize(
    "kind,prompt,expected", [(kind, prompt, table) for kind in CLOCKS for prompt, table in VECTORS[kind]]
)
def test_editing(kind: str, prompt: str, expected: list[tuple[int, str]]) -> None:
    """Oracle: the steps and texts, repeated texts included."""
    assert [list(row) for row in timetable(prompt, CLOCKS[kind])] == expected


@pytest.mark.parametrize("prompt,expected", VECTORS["multicond"])
def test_composition(prompt: str, expected: list[tuple[str, float]]) -> None:
    """Oracle: the parts and weights; A1111 reads a weight in a prompt without AND too."""
    assert [list(part) for part in split_prompt(prompt, lone=True)] == expected


@pytest.mark.parametrize("prompt,text,expected", VECTORS["extra_networks"])
def test_tags(prompt: str, text: str, expected: dict[str, list[dict[str, object]]]) -> None:
    """Oracle: what is left, and the arguments of each kind in order."""
    left, tags = strip_tags(prompt)
    kinds: dict[str, list[dict[str, object]]] = {}
    for tag in tags:
        kinds.setdefault(tag.kind, []).append({"positional": [tag.name, *tag.args], "named": dict(tag.named)})
    assert (left, kinds) == (text, expected)

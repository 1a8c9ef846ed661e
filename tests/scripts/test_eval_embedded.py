"""Oracle: a results file written by hand. Figures of some groups join those of the same model only."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.eval_embedded import held_out, kept, table

ABOUT: dict[str, object] = {"sha256": "ab", "quick": False, "steps": 20}


def test_figures_of_the_same_model_stay(tmp_path: Path) -> None:
    path = tmp_path / "embedded.json"
    assert kept(path, ABOUT) == {}
    path.write_text(json.dumps({"about": ABOUT, "figures": {"size": {"bytes": 5.0}}}), encoding="utf-8")
    assert kept(path, ABOUT) == {"size": {"bytes": 5.0}}
    for change in ({"sha256": "cd"}, {"quick": True}, {"steps": 12}):
        assert kept(path, ABOUT | change) == {}


def test_the_table_says_what_was_missed() -> None:
    lines = table({"recognition": {"top1": 0.6, "top5": 0.7, "pictures": 600.0}}).splitlines()
    assert lines[0].endswith("reached") and lines[1].endswith("MISSED") and lines[2].endswith("600")


def test_the_committed_held_out_list_can_be_asked_for() -> None:
    rows = held_out()
    assert len(rows) == 260 and {place for _, _, place in rows} == {
        "middle",
        "left",
        "right",
        "above",
        "below",
    }

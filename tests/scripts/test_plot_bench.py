"""Oracle: the numbers of the results, read off the picture again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

from scripts import plot_bench
from scripts.plot_bench import RESULTS, WIDTH

SVG = "{http://www.w3.org/2000/svg}"


def numbers(picture: str) -> list[tuple[str, float, float]]:
    """(name, pixels of its bar, value written beside it) of each bar."""
    root = ElementTree.fromstring(picture)
    words = [e.text or "" for e in root.iter(f"{SVG}text")]
    bars = [float(e.attrib["width"]) for e in root.iter(f"{SVG}rect")][1:]  # the first is the paper
    values = [i for i, w in enumerate(words) if re.fullmatch(r"[\d.]+ (s|GB)", w)]
    assert len(values) == len(bars)
    return [(words[i - 1], b, float(words[i].split()[0])) for i, b in zip(values, bars, strict=True)]


def test_bars_are_as_long_as_the_results_say(tmp_path: Path) -> None:
    """Oracle: medians computed here; another result gives another picture, and --check finds the old one."""
    results, out = tmp_path / "results", tmp_path / "speed.svg"
    shutil.copytree(RESULTS, results)
    flags = ["--results", str(results), "--out", str(out)]
    assert plot_bench.main(flags) == 0 and plot_bench.main([*flags, "--check"]) == 0
    shown = numbers(out.read_text())
    path = results / "cpu-sd15-bfloat16.json"
    found = json.loads(path.read_text())
    rounds = {k: v for k, v in found["unet"]["rounds"].items() if not k.endswith("again")}
    assert {n: v for n, _, v in shown[: len(rounds)]} == {k: round(median(v), 2) for k, v in rounds.items()}
    scales = [pixels / median(rounds[name]) for name, pixels, _ in shown[: len(rounds)]]
    assert max(scales) - min(scales) < 0.01 * min(scales), "from zero, to one scale"
    memory = json.loads((results / "memory-sd15-512.json").read_text())
    told = {name: value for name, _, value in shown if "planned" in name or "measured" in name}
    for rung in plot_bench.RUNGS:
        assert told[f"{rung}, planned"] == round(memory[rung]["predicted, GB"], 2)
        assert told[f"{rung}, measured"] == round(memory[rung]["peak, GB"], 2)
    for element in ElementTree.fromstring(out.read_text()).iter(f"{SVG}rect"):
        assert float(element.attrib.get("x", 0)) + float(element.attrib["width"]) <= WIDTH
    found["unet"]["rounds"]["minisd"] = [1.0, 1.0, 1.0]
    path.write_text(json.dumps(found))
    assert plot_bench.main([*flags, "--check"]) == 1
    plot_bench.main(flags)
    assert ("minisd", 1.0) in [(n, v) for n, _, v in numbers(out.read_text())]

"""What the benchmarks found, as one picture: UNet and VAE of SD1.5 on a CPU beside others, and memory as
planned beside memory as measured.

    python scripts/plot_bench.py                  # scripts/bench/results/*.json -> docs/speed.svg
    python scripts/plot_bench.py --check          # fails where the picture is not that of the results

The benchmarks draw it again when they write results (`scripts/bench/common.py`). Plain SVG, no matplotlib. A
bar is the median of its rounds, the line across its end the fastest and slowest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
RESULTS, OUT = ROOT / "scripts" / "bench" / "results", ROOT / "docs" / "speed.svg"
RUNGS = ("none", "staged", "streamed", "disk")
OURS, OTHERS, PLANNED, INK, PALE = "#2b6cb0", "#a0aec0", "#90cdf4", "#1a202c", "#718096"
WIDTH, NAMES, BAR, GAP = 940, 178, 13, 5  # pixels


@dataclass(frozen=True)
class Bar:
    """One measurement: its name, what it came to, and the span of its rounds."""

    name: str
    value: float
    low: float
    high: float
    colour: str


def times(figures: dict[str, dict[str, list[float]]]) -> list[Bar]:
    """Seconds of each case, the fastest first. The second run of a case, which shows the spread, is left out
    and told in the note."""
    rounds = {k: v for k, v in figures["rounds"].items() if not k.endswith(" again")}
    bars = [
        Bar(name, median(v), min(v), max(v), OURS if name.startswith("minisd") else OTHERS)
        for name, v in rounds.items()
    ]
    return sorted(bars, key=lambda b: b.value)


def spread(figures: dict[str, dict[str, list[float]]]) -> float:
    """By how much the same case measured twice differs, as a share."""
    rounds = figures["rounds"]
    again = next(name for name in rounds if name.endswith(" again"))
    one, two = median(rounds[again.removesuffix(" again")]), median(rounds[again])
    return abs(one - two) / min(one, two)


def memory(figures: dict[str, dict[str, float]]) -> list[Bar]:
    """GB of each rung: as planned, as measured."""
    bars = []
    for rung in (r for r in RUNGS if r in figures):
        for name, key, colour in (
            (f"{rung}, planned", "predicted, GB", PLANNED),
            (f"{rung}, measured", "peak, GB", OURS),
        ):
            value = figures[rung][key]
            bars.append(Bar(name, value, value, value, colour))
    return bars


def text(x: float, y: float, words: str, *, size: int = 11, anchor: str = "start", colour: str = INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">'
        f"{escape(words)}</text>"
    )


def panel(left: float, top: float, title: str, unit: str, bars: Iterable[Bar]) -> tuple[list[str], float]:
    """(elements, height) of horizontal bars from 0 with their names and values."""
    bars = list(bars)
    room = WIDTH / 2 - NAMES - 76
    scale = room / max(b.high for b in bars)
    out = [text(left, top + 12, title, size=13)]
    y, zero = top + 24, left + NAMES
    for b in bars:
        out.append(text(zero - 6, y + BAR - 3, b.name, anchor="end"))
        place = f'x="{zero:.1f}" y="{y:.1f}" width="{b.value * scale:.1f}" height="{BAR}"'
        out.append(f'<rect {place} fill="{b.colour}"/>')
        if b.high > b.low:
            a, z, middle = zero + b.low * scale, zero + b.high * scale, y + BAR / 2
            ends = f"M{a:.1f} {middle - 3:.1f}v6M{z:.1f} {middle - 3:.1f}v6"
            out.append(f'<path d="M{a:.1f} {middle:.1f}H{z:.1f}{ends}" stroke="{INK}" fill="none"/>')
        out.append(text(zero + b.high * scale + 6, y + BAR - 3, f"{b.value:.2f} {unit}", colour=PALE))
        y += BAR + GAP
    return out, y - top


def note_of(figures: dict[str, object]) -> str:
    """Machine and versions of a result, in one line."""
    m = figures["machine"]
    assert isinstance(m, dict)
    names = ("torch", "diffusers")
    versions = ", ".join(f"{name} {m['versions'][name]}" for name in names)
    return f"{m['cpu']}, {m['cores']} cores, {versions}, {m['date'][:10]}"


def drawn(results: Path) -> str:
    """The picture of the results in a folder."""
    out, y = [text(16, 24, "On a CPU, random weights; times are of SD1.5 at 512 x 512 pixels", size=15)], 44.0
    for dtype in ("bfloat16", "float32"):
        found = json.loads((results / f"cpu-sd15-{dtype}.json").read_text())
        rounds = len(next(iter(found["unet"]["rounds"].values())))
        heights = []
        for column, (part, what) in enumerate((("unet", "guided step of the UNet"), ("vae", "decoding"))):
            made, height = panel(16 + column * WIDTH / 2, y, f"{what}, {dtype}", "s", times(found[part]))
            out += made
            heights.append(height)
        y += max(heights) + 6
        share = max(spread(found["unet"]), spread(found["vae"]))
        words = (
            f"{note_of(found)}, {found['threads']} threads; {rounds} rounds in turn; the same case twice: "
        )
        out.append(text(16, y + 6, f"{words}up to {share:.1%} apart", size=10, colour=PALE))
        y += 28
    files = sorted(results.glob("memory-*.json"))
    for pair in (files[i : i + 2] for i in range(0, len(files), 2)):
        heights = []
        for column, path in enumerate(pair):
            found, left = json.loads(path.read_text()), 16 + column * WIDTH / 2
            name = path.stem.removeprefix("memory-").removesuffix(f"-{found['pixels']}")
            title = f"largest memory, {name} at {found['pixels']}, by --offload"
            made, height = panel(left, y, title, "GB", memory(found))
            out += [*made, text(left, y + height + 12, note_of(found), size=10, colour=PALE)]
            heights.append(height)
        y += max(heights) + 34
    size = f'width="{WIDTH}" height="{y:.0f}" viewBox="0 0 {WIDTH} {y:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial, sans-serif">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{y:.0f}" fill="white"/>', *out, "</svg>\n"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--check", action="store_true", help="draw nothing; fail where the file is another")
    args = parser.parse_args(argv)
    picture = drawn(args.results)
    if args.check:
        same = args.out.is_file() and args.out.read_text() == picture
        sys.stdout.write(f"{args.out.name}: {'as the results are' if same else 'draw it again'}\n")
        return 0 if same else 1
    args.out.write_text(picture)
    sys.stdout.write(f"{args.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

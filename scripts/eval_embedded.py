"""Measure the embedded model: recognition, composition, guidance, reconstruction, size and time.

    python -m scripts.eval_embedded                      # all figures, about twenty minutes on two cores
    python -m scripts.eval_embedded --quick              # a tenth of the pictures
    python -m scripts.eval_embedded --model other.safetensors --out figures.json

Run from the root of the repository; needs the font and the names that training needs. Figures are printed
beside what they should reach and written to scripts/bench/results/embedded.json. How pictures are judged, and
what counts as the same emoji, is said in scripts/embedded/judge.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from minisd import load
from minisd.engine import EMBEDDED_TINY_VAE, embedded_model
from scripts.bench.common import RESULTS, machine
from scripts.embedded import companion_figures as companion
from scripts.embedded import evaluate as measure
from scripts.embedded.captions import plain_caption
from scripts.embedded.companion_figures import Companions
from scripts.embedded.companions.inversion import mug
from scripts.embedded.data import Sprites, find_font, find_unicode, load_sprites
from scripts.embedded.evaluate import Artist, Figures
from scripts.embedded.judge import Judge
from scripts.embedded.pictures import Object, Painter, Picture
from scripts.embedded.sheets import to_uint8

TEST_ASSETS = Path(__file__).parent.parent / "tests" / "assets"
HELD_OUT = Path(__file__).parent / "embedded" / "heldout.txt"
GOALS = {  # group.figure: at least; of a model trained on a CPU
    "recognition.top1": 0.5,
    "recognition.top5": 0.75,
    "composition.background": 0.9,
    "composition.position": 0.75,
    "composition.both_objects": 0.35,
    "reconstruction.mean_db": 28.0,
    "judge.white": 0.97,
    "judge.half": 0.97,
}


def sprites_of(font: Path | None, unicode: Path | None) -> Sprites:
    found, names = find_font(font), find_unicode(unicode)
    if found is None or names is None:
        sys.exit("no Noto Color Emoji or no emoji-test.txt: install fonts-noto-color-emoji and unicode-data")
    return load_sprites(found, names)


def held_out() -> list[tuple[str, str, str]]:
    rows = [line.split("\t") for line in HELD_OUT.read_text("utf-8").splitlines()]
    return [(r[0], r[1], r[2]) for r in rows if len(r) == 3]


@dataclass(frozen=True)
class Amounts:
    """How many pictures each figure is taken from."""

    names: int = 300
    favourites: int = 178
    guidance: int = 100
    held: int = 1000
    small: int = 50
    emoji: int = 100_000


QUICK = Amounts(names=30, favourites=20, guidance=20, held=20, small=10, emoji=100)


def every_figure(
    artist: Artist, judge: Judge, amounts: Amounts, model: Path
) -> dict[str, Callable[[], Figures]]:
    """Groups of figures by name, each to be called for its numbers."""
    emoji = judge.emoji
    names = measure.chosen_names(emoji, amounts.names)
    favourites = measure.favourite_names(emoji, amounts.favourites)
    few = favourites[: amounts.small]
    some = names[:: max(1, len(names) // amounts.guidance)]  # favourites are known too well to need guidance
    held = measure.compositions(held_out(), emoji)
    held = held[:: max(1, len(held) // amounts.held)]
    scale = measure.CFG_SCALE
    return {
        "size": lambda: {"bytes": float(model.stat().st_size)},
        "judge": lambda: {"white": judge.check(), "half": judge.check(half=True)},
        "reconstruction": lambda: measure.reconstruction(
            artist, judge, list(range(len(emoji)))[: amounts.emoji]
        ),
        "recognition": lambda: measure.recognition(artist, judge, names, (0, 1), scale),
        "favourites": lambda: measure.recognition(artist, judge, favourites, (0,), scale),
        "composition": lambda: measure.composition(artist, judge, held),
        "guidance": lambda: measure.guidance(artist, judge, some, (1.0, 4.0, 7.0)),
        "negative_background": lambda: measure.negative_background(artist, amounts.small * 2),
        "negative_paint": lambda: measure.negative_paint(artist, few, emoji),
        "unknown_words": lambda: measure.unknown_words(artist, judge, few),
        "empty_prompt": lambda: measure.empty_prompt(artist, amounts.small),
    }


def companion_figures(judge: Judge, model: Path, amounts: Amounts) -> dict[str, Callable[[], Figures]]:
    """Groups of figures of the companions that are there."""
    companions = Companions(TEST_ASSETS, model.with_name(EMBEDDED_TINY_VAE))
    if not companions.complete:
        return {}
    engine = companions.engine(model)
    few = [judge.emoji[i] for i in measure.favourite_names(judge.emoji, max(4, amounts.small // 5))]
    prompts = [plain_caption(e) for e in few]
    turned = [Picture((Object(judge.emoji.index(e), mirrored=True),)) for e in few]
    small = [Picture((Object(judge.emoji.index(e)),), small=True) for e in few]
    wanted = judge.painter.paint(turned[::2] + small[1::2])
    images = [Image.fromarray(to_uint8(x)) for x in wanted]
    pairs = list(zip(prompts[::2] + prompts[1::2], images, strict=True))
    pictures = judge.painter.paint(
        [Picture((Object(i),)) for i in range(0, len(judge.emoji), len(judge.emoji) // 30)]
    )
    return {
        "lora_blue": lambda: companion.lora_figures(engine, prompts),
        "control_edges": lambda: companion.control_figures(engine, pairs),
        "inversion_likeness": lambda: companion.inversion_figures(
            engine, judge.space, mug("white"), range(max(4, amounts.small // 5))
        ),
        "tiny_vae": lambda: companion.tiny_vae_figures(engine, pictures),
    }


def progress(text: str) -> None:
    sys.stderr.write(f"\r{text}      ")


def table(figures: dict[str, Figures]) -> str:
    lines = []
    for group, numbers in figures.items():
        for name, value in numbers.items():
            goal = GOALS.get(f"{group}.{name}")
            verdict = (
                "" if goal is None else f"  at least {goal:g}: {'reached' if value >= goal else 'MISSED'}"
            )
            lines.append(f"{group + '.' + name:<48} {value:>12g}{verdict}")
    return "\n".join(lines)


def kept(path: Path, about: dict[str, object]) -> dict[str, Figures]:
    """Figures that a file already holds, if they are of the same model, taken in the same way."""
    if not path.exists():
        return {}
    before = json.loads(path.read_text("utf-8"))
    same = all(before["about"].get(k) == about[k] for k in ("sha256", "quick", "steps"))
    return before["figures"] if same else {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=embedded_model(), help="default: the one that ships")
    parser.add_argument("--out", type=Path, default=RESULTS / "embedded.json")
    parser.add_argument("--quick", action="store_true", help="a tenth of the pictures")
    parser.add_argument(
        "--only", nargs="+", metavar="GROUP", help="these groups of figures alone; the others stay"
    )
    parser.add_argument("--workers", type=int, default=2, help="pictures drawn at a time, a thread each")
    parser.add_argument("--font", type=Path)
    parser.add_argument("--unicode", type=Path)
    args = parser.parse_args()
    sprites = sprites_of(args.font, args.unicode)
    engine = load(args.model)
    artist = Artist(engine, args.workers, progress)
    amounts = QUICK if args.quick else Amounts()
    about = machine() | {
        "model": args.model.name,
        "sha256": hashlib.sha256(args.model.read_bytes()).hexdigest(),
        "quick": args.quick,
        "steps": measure.STEPS,
    }
    figures: dict[str, Figures] = {} if args.only is None else kept(args.out, about)

    def keep() -> None:
        text = json.dumps({"about": about, "figures": figures}, indent=1)
        args.out.write_text(text + "\n", encoding="utf-8")

    # before the rest: afterwards torch works with one thread per picture
    if args.only is None or "seconds" in args.only:
        figures["seconds"] = measure.seconds(artist)
        keep()
    torch.set_num_threads(1)
    judge = Judge(Painter(sprites), sprites.emoji)
    begun = time.monotonic()
    groups = every_figure(artist, judge, amounts, args.model)
    for group, take in (groups | companion_figures(judge, args.model, amounts)).items():
        if args.only is None or group in args.only:
            figures[group] = take()
            keep()
            sys.stderr.write(f"\r{group}: {time.monotonic() - begun:.0f} s so far{' ' * 20}\n")
    print(table(figures))


if __name__ == "__main__":
    main()

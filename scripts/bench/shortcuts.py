"""What each shortcut saves and costs: python -m scripts.bench.shortcuts [--pictures 24] [--rounds 5]

On the model inside: pictures of several names and seeds, each drawn with every setting in turn; the time of a
drawing without shortcuts over that with one (median over the pictures, drawn once more without for the
spread), PSNR against the picture without (its mean; equal pictures count as 60 dB), the share of pictures
that are recognised where the font that judges them is installed, and how often the UNet's inner blocks were
computed, counted.

Of SD1.5 at full size (random weights, bfloat16, 64 x 64 latents): the time of one pass with every setting,
whole and reused, in turns. A run of 20 guided steps is made of such passes; how many of them are reused is
known for DeepCache and the interval of guidance, and for the first-block cache it is what was counted on the
model inside, since random weights say nothing of it. The error of full-size pictures is not measured here.

Results go to scripts/bench/results/shortcuts.json and, as a table, into docs/shortcuts.md. About ten minutes;
nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minisd import Engine, Request, load
from minisd.config import SD1
from minisd.models.recall import Kept, Recall
from minisd.models.unet import UNet
from minisd.shortcuts import Shortcuts, shortcuts_of
from scripts.bench.common import ROOT, interleaved, median, record
from scripts.bench.cpu import ours, random_weights

STEPS = 20
EQUAL = 60.0  # dB, of pictures without any difference
RESULT = "shortcuts"
DOCS = ROOT / "docs" / "shortcuts.md"
BEGIN, END = "<!-- figures -->\n", "<!-- end of figures -->\n"
Fields = dict[str, object]
CASES: dict[
    str, tuple[Fields, Fields]
] = {  # on the model inside, and at full size: a map has 8 and 64 tokens
    "off": ({}, {}),
    "off again": ({}, {}),
    "token_merging 0.25": ({"token_merging": 0.25}, {"token_merging": 0.25}),
    "token_merging 0.5": ({"token_merging": 0.5}, {"token_merging": 0.5}),
    "token_merging 0.75": ({"token_merging": 0.75}, {"token_merging": 0.75}),
    "hypertile half": ({"hypertile": 64}, {"hypertile": 256}),
    "hypertile quarter": ({"hypertile": 32}, {"hypertile": 128}),
    "deep_cache 2": ({"deep_cache": 2}, {"deep_cache": 2}),
    "deep_cache 3": ({"deep_cache": 3}, {"deep_cache": 3}),
    "deep_cache 3, blocks 3": (
        {"deep_cache": 3, "deep_cache_blocks": 3},
        {"deep_cache": 3, "deep_cache_blocks": 3},
    ),
    "deep_cache 5": ({"deep_cache": 5}, {"deep_cache": 5}),
    "first_block_cache 0.1": ({"first_block_cache": 0.1}, {"first_block_cache": 0.1}),
    "first_block_cache 0.2": ({"first_block_cache": 0.2}, {"first_block_cache": 0.2}),
    "guidance 0 .. 0.6": ({"guidance_end": 0.6}, {"guidance_end": 0.6}),
    "guidance 0.2 .. 0.8": ({"guidance_start": 0.2, "guidance_end": 0.8},) * 2,
}


def psnr(a: Image.Image, b: Image.Image) -> float:
    """dB; EQUAL for pictures that are."""
    error = float(((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2).mean())
    return min(EQUAL, 10 * math.log10(255**2 / error)) if error > 0 else EQUAL


def recogniser(names: Sequence[str]) -> Callable[[list[Image.Image]], float] | None:
    """The share of pictures, one for each name, whose nearest emoji is right; None without the font."""
    from scripts.embedded.data import find_font, find_unicode, load_sprites
    from scripts.embedded.evaluate import pixels_of
    from scripts.embedded.judge import Judge
    from scripts.embedded.pictures import Painter

    font, unicode = find_font(), find_unicode()
    if font is None or unicode is None:
        return None
    sprites = load_sprites(font, unicode)
    judge = Judge(Painter(sprites), sprites.emoji)
    known = [e.name for e in sprites.emoji]
    wanted = torch.tensor([known.index(n) for n in names])

    def share(images: list[Image.Image]) -> float:
        return float(judge.recognised(judge.rank(pixels_of(images)), wanted, 1).float().mean())

    return share


def asked(count: int) -> list[tuple[str, Request]]:
    """(name, request) of `count` pictures: names that people ask for first, two seeds each."""
    from scripts.embedded.favourites import FAVOURITES

    names = sorted(FAVOURITES)
    chosen = names[:: max(1, len(names) // max(1, count // 2))]
    pairs = [(name, seed) for name in chosen for seed in (1, 2)][:count]
    return [(name, Request(prompt=f"a {name}", seed=seed, steps=STEPS)) for name, seed in pairs]


def on_the_model_inside(count: int, judged: bool) -> dict[str, dict[str, float]]:
    """{case: figures}, the cases taking turns at each picture."""
    pictures = asked(count)
    times: dict[str, list[float]] = {name: [] for name in CASES}
    images: dict[str, list[Image.Image]] = {name: [] for name in CASES}
    inner = dict.fromkeys(CASES, 0)
    with load() as engine:
        engine.run(pictures[0][1])  # not counted
        passes = counter(engine)
        for _, request in pictures:
            for name, (fields, _) in CASES.items():
                before = passes[0]
                begun = time.perf_counter()
                images[name].append(engine.run(Request.from_dict(request.to_dict() | fields)).image)
                times[name].append(time.perf_counter() - begun)
                inner[name] += passes[0] - before
    recognised = recogniser([name for name, _ in pictures]) if judged else None
    figures: dict[str, dict[str, float]] = {}
    for name in CASES:
        ratios = [off / own for off, own in zip(times["off"], times[name], strict=True)]
        apart = [psnr(a, b) for a, b in zip(images["off"], images[name], strict=True)]
        figures[name] = {
            "median, s": round(median(times[name]), 4),
            "off over it": round(median(ratios), 3),
            "psnr, dB": round(float(np.mean(apart)), 2),
            "worst psnr, dB": round(min(apart), 2),
            "inner passes": inner[name] / (2 * STEPS * len(pictures)),
        }
        if recognised is not None:
            figures[name]["recognised"] = round(recognised(images[name]), 3)
    return figures


def counter(engine: Engine) -> list[int]:
    """[passes through the UNet's middle], counted from now on."""
    passes = [0]

    def count(module: object, args: tuple[Tensor, ...]) -> None:
        passes[0] += len(args[0])

    engine.model.unet.middle_block[0].register_forward_pre_hook(count)
    return passes


def reused_pass(
    network: UNet, shortcuts: Shortcuts, x: Tensor, t: Tensor, text: Tensor
) -> Callable[[], Tensor]:
    """A pass that reuses what an earlier one kept."""
    kept: list[Kept | None] = [None]
    change = math.inf if shortcuts.change > 0 else None
    blocks = 0 if shortcuts.change > 0 else shortcuts.blocks

    def run(old: list[Kept | None]) -> Tensor:
        recall = Recall(old, lambda row, one: kept.__setitem__(row, one), blocks, change)
        return network(x, t, text, recall=recall)

    run([None])
    return lambda: run(kept)


def at_full_size(rounds: int, inner: dict[str, float], side: int = 64) -> dict[str, dict[str, float]]:
    """{case: seconds of a pass, whole and reused, and how much longer 20 guided steps take without it}.
    inner: the share of passes that are whole."""
    with torch.device("meta"):
        shape = UNet(SD1.unet)
    network = ours(lambda: UNet(SD1.unet), random_weights(shape, torch.bfloat16), "auto")
    assert isinstance(network, UNet)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, side, side, generator=generator).bfloat16()
    t, text = torch.tensor([500.0]), torch.randn(1, 77, 768, generator=generator).bfloat16()
    passes: dict[str, Callable[[], object]] = {}
    settings = {name: shortcuts_of(Request.from_dict(fields), 8) for name, (_, fields) in CASES.items()}
    for name, one in settings.items():
        edits = one.edited({}, SD1.unet)
        if edits or name.startswith("off"):
            passes[name] = lambda edits=edits: network(x, t, text, edits=edits)
        elif one.recalls:
            again = next((n for n in passes if same_pass(settings[n], one)), None)
            passes[name] = passes[again] if again else reused_pass(network, one, x, t, text)
    with torch.inference_mode():
        seconds = {name: median(values) for name, values in interleaved(passes, rounds).items()}
    whole = seconds["off"]
    figures: dict[str, dict[str, float]] = {}
    for name, one in settings.items():
        share = inner[name]
        own = whole if name.startswith("guidance") else seconds[name]
        mean = own
        if one.recalls:
            mean = share * whole + (1 - share) * own
        elif name.startswith("guidance"):
            mean = share * whole
        figures[name] = {
            "pass, s": round(own, 4),
            "whole passes": share,
            "off over it": round(whole / mean, 3),
        }
    return figures


def same_pass(a: Shortcuts, b: Shortcuts) -> bool:
    """Whether a reused pass of both is the same work."""
    return a.recalls and (a.change > 0) == (b.change > 0) and a.blocks == b.blocks


def table(embedded: dict[str, dict[str, float]], full: dict[str, dict[str, float]]) -> str:
    """The figures as a table of Markdown."""
    head = (
        "| setting | speed, model inside | PSNR, dB (worst) | recognised | inner blocks | speed, SD1.5 512 |"
    )
    lines = [head, "|---|---|---|---|---|---|"]
    for name, own in embedded.items():
        known = f"{own['recognised']:.0%}" if "recognised" in own else "-"
        error = f"{own['psnr, dB']:.1f} ({own['worst psnr, dB']:.1f})"
        speeds = f"{own['off over it']:.2f}x", f"{full[name]['off over it']:.2f}x" if name in full else "-"
        inner = f"{own['inner passes']:.0%}"
        lines.append(f"| `{name}` | {speeds[0]} | {error} | {known} | {inner} | {speeds[1]} |")
    return "\n".join(lines) + "\n"


def write_table(text: str, path: Path = DOCS) -> None:
    """Between the marks of a page."""
    before, _, rest = path.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(before + BEGIN + "\n" + text + "\n" + END + after, "utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=24, help="drawn with every setting")
    parser.add_argument("--rounds", type=int, default=5, help="of passes at full size; 0: none")
    parser.add_argument("--no-judge", action="store_true", help="nobody says what the pictures show")
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args(argv)
    embedded = on_the_model_inside(args.pictures, not args.no_judge)
    full = (
        at_full_size(args.rounds, {n: f["inner passes"] for n, f in embedded.items()}) if args.rounds else {}
    )
    text = table(embedded, full)
    print(text)
    if not args.no_record:
        told = {"steps": STEPS, "pictures": args.pictures, "rounds": args.rounds}
        told |= {"threads": torch.get_num_threads()}
        print(record(RESULT, {**told, "model inside": embedded, "SD1.5 UNet, bfloat16": full}))
        write_table(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

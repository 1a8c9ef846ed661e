"""What the embedded model can do, in figures. `scripts/eval_embedded.py` runs these and writes them down.

Every picture is drawn through the public engine with the default sampler; every seed is fixed, so that a
figure changes only when the model does. Each function returns plain numbers; shares lie in 0 .. 1.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minisd import Engine, Request

from .captions import plain_caption, with_article
from .data import Emoji
from .favourites import FAVOURITES
from .judge import Judge, background_of, halves
from .pictures import COLOURS, PLAIN, Object, Picture, pairs_well
from .vae import reconstruct

STEPS = 20
CFG_SCALE = 5.0  # a Request's default
Figures = dict[str, float]


def pixels_of(images: Sequence[object]) -> Tensor:
    """Pictures to b 3 h w in [-1, 1]."""
    rows = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]
    return torch.stack(rows).float() / 127.5 - 1


@dataclass(frozen=True)
class Artist:
    """An engine, drawing `workers` requests at a time (one thread each: a picture's bits do not depend on
    it)."""

    engine: Engine
    workers: int = 2
    say: Callable[[str], None] | None = None

    def draw(self, requests: Sequence[Request]) -> Tensor:
        """One picture for each request: b 3 128 128 in [-1, 1]."""
        begun = time.monotonic()
        images = []
        with ThreadPoolExecutor(self.workers) as pool:
            for result in pool.map(self.engine.run, requests):
                images.append(result.image)
                if self.say is not None and len(images) % 50 == 0:
                    left = (time.monotonic() - begun) / len(images) * (len(requests) - len(images))
                    self.say(f"{len(images)} of {len(requests)} pictures, {left:.0f} s left")
        return pixels_of(images)


def request(prompt: str, seed: int, **fields: object) -> Request:
    return Request.from_dict(
        {"prompt": prompt, "seed": seed, "steps": STEPS, "cfg_scale": CFG_SCALE, **fields}
    )


def share(flags: Tensor) -> float:
    return round(float(flags.float().mean()), 4)


def chosen_names(emoji: Sequence[Emoji], count: int, seed: int = 300) -> list[int]:
    """`count` emoji by a fixed seed, from all: flags and people are as likely as fruit."""
    return sorted(random.Random(seed).sample(range(len(emoji)), min(count, len(emoji))))


def favourite_names(emoji: Sequence[Emoji], count: int) -> list[int]:
    found = [i for i, e in enumerate(emoji) if e.name in FAVOURITES]
    return sorted(random.Random(1).sample(found, min(count, len(found))))


def recognition(
    artist: Artist, judge: Judge, indices: Sequence[int], seeds: Sequence[int], cfg_scale: float
) -> Figures:
    """The prompt is the plain name; right is the exact name (see judge.py), `kind` tells near duplicates as
    one."""
    wanted = torch.tensor([i for i in indices for _ in seeds])
    asked = [
        request(plain_caption(judge.emoji[i]), seed + 1000 * i, cfg_scale=cfg_scale)
        for i in indices
        for seed in seeds
    ]
    ranking = judge.rank(artist.draw(asked))
    figures = {"pictures": float(len(asked))}
    for rule in ("exact", "kind"):
        suffix = "" if rule == "exact" else "_kind"
        for top in (1, 5):
            figures[f"top{top}{suffix}"] = share(judge.recognised(ranking, wanted, top, rule))
    figures["nearness_to_wanted"] = round(float(ranking.nearness.gather(1, wanted[:, None]).mean()), 4)
    return figures


@dataclass(frozen=True)
class Composition:
    """A held-out row as a prompt: what stands left and right, or in the middle alone."""

    objects: tuple[int, ...]
    background: str
    prompt: str


def compositions(
    held: Sequence[tuple[str, str, str]], emoji: Sequence[Emoji], seed: int = 7
) -> list[Composition]:
    """Each held-out (name, background, place). What has a side gets a partner by a fixed seed, which is named
    in the prompt, too. Places that are not middle, left or right are passed over."""
    rng = random.Random(seed)
    place_of = {e.name: i for i, e in enumerate(emoji)}
    partners = [i for i, e in enumerate(emoji) if pairs_well(e)]
    found = []
    for name, background, place in held:
        own = place_of[name]
        ground = f" on {with_article(background)} background"
        if place == "middle":
            found.append(Composition((own,), background, plain_caption(emoji[own]) + ground))
        elif place in ("left", "right"):
            other = rng.choice([i for i in partners if i != own])
            pair = (own, other) if place == "left" else (other, own)
            a, b = (plain_caption(emoji[i]) for i in pair)
            prompt = f"{a} left of {b}" if place == "left" else f"{b} right of {a}"
            found.append(Composition(pair, background, prompt + ground))
    return found


def composition(artist: Artist, judge: Judge, rows: Sequence[Composition]) -> Figures:
    """background: its colour is the one asked for. position: of the two ways to tell the halves apart, the
    one asked for is nearer (chance: 0.5). both: each half's nearest of all that stand in pairs is the exact
    one; one: at least one."""
    pictures = artist.draw([request(row.prompt, 50_000 + n) for n, row in enumerate(rows)])
    seen = [background_of(p) for p in pictures]
    figures: Figures = {
        "prompts": float(len(rows)),
        "background": share(torch.tensor([c == row.background for c, row in zip(seen, rows, strict=True)])),
    }
    singles, position, both, either, both5 = [], [], [], [], []
    for picture, colour, row in zip(pictures, seen, rows, strict=True):
        if len(row.objects) == 1:
            ranking = judge.rank(picture[None], colour)
            singles.append(judge.recognised(ranking, torch.tensor(row.objects), 1))
            continue
        ranking = judge.rank(torch.cat(halves(picture[None])), colour, half=True)
        near = ranking.nearness[:, list(row.objects)]  # half by object, left first
        position.append((near[0, 0] + near[1, 1] > near[0, 1] + near[1, 0])[None])
        right = judge.recognised(ranking, torch.tensor(row.objects), 1)
        both.append(right.all()[None])
        either.append(right.any()[None])
        both5.append(judge.recognised(ranking, torch.tensor(row.objects), 5).all()[None])
    for name, flags in (
        ("single_object", singles),
        ("position", position),
        ("both_objects", both),
        ("both_objects_top5", both5),
        ("one_object", either),
    ):
        if flags:
            figures[name] = share(torch.cat(flags))
    return figures


def guidance(artist: Artist, judge: Judge, indices: Sequence[int], scales: Sequence[float]) -> Figures:
    """top-1 by cfg, the same names and seeds at each."""
    return {f"cfg{s:g}": recognition(artist, judge, indices, (0,), s)["top1"] for s in scales}


def other_colour(colour: str, n: int) -> str:
    """A background colour that is not this one, for the n-th comparison."""
    return [c for c in PLAIN if c != colour][n % (len(PLAIN) - 1)]


def negative_background(artist: Artist, count: int) -> Figures:
    """The empty prompt gives backgrounds of all colours. Drawn again from the same seed with its own colour
    as the negative prompt, and with another one: how many backgrounds are as they were."""
    seeds = range(70_000, 70_000 + count)
    seen = [background_of(p) for p in artist.draw([request("", seed) for seed in seeds])]
    coloured = [(seed, colour) for seed, colour in zip(seeds, seen, strict=True) if colour != "white"]
    figures: Figures = {"coloured": float(len(coloured))}
    for name in ("kept_when_named", "kept_when_another_is_named"):
        words = [c if name == "kept_when_named" else other_colour(c, n) for n, (_, c) in enumerate(coloured)]
        again = artist.draw(
            [
                request("", seed, negative_prompt=f"{word} background")
                for (seed, _), word in zip(coloured, words, strict=True)
            ]
        )
        kept = [background_of(p) == c for p, (_, c) in zip(again, coloured, strict=True)]
        figures[name] = share(torch.tensor(kept))
    return figures


def amount_of(picture: Tensor, colour: str) -> float:
    """Share of the pixels to which this colour is the nearest of all named; picture: 3 128 128 in [-1, 1]."""
    pixels = (picture.flatten(1).T + 1) * 127.5
    nearest = torch.cdist(pixels, torch.tensor(list(COLOURS.values())).float()).argmin(1)
    return float((nearest == list(COLOURS).index(colour)).float().mean())


def negative_paint(artist: Artist, indices: Sequence[int], emoji: Sequence[Emoji]) -> Figures:
    """The colour of which an object has most is named as negative prompt, and then another: how much of it is
    left, relative to the picture without."""
    prompts = [plain_caption(emoji[i]) for i in indices]
    first = artist.draw([request(p, 75_000 + n) for n, p in enumerate(prompts)])
    own = [max(PLAIN, key=lambda c: amount_of(picture, c)) for picture in first]
    before = sum(amount_of(p, c) for p, c in zip(first, own, strict=True))
    figures = {}
    for name in ("left_when_named", "left_when_another_is_named"):
        words = [c if name == "left_when_named" else other_colour(c, n) for n, c in enumerate(own)]
        asked = [
            request(p, 75_000 + n, negative_prompt=word)
            for n, (p, word) in enumerate(zip(prompts, words, strict=True))
        ]
        after = sum(amount_of(p, c) for p, c in zip(artist.draw(asked), own, strict=True))
        figures[name] = round(after / before, 4)
    return figures


UNKNOWN_WORDS = ("zorblax", "quimble", "frandulous", "vextrip", "oggleby")


def unknown_words(artist: Artist, judge: Judge, indices: Sequence[int]) -> Figures:
    """Likeness (cosine) of a picture to the one with an unknown word more in its prompt, beside that to the
    same prompt from another seed; and how many still show the nearest emoji they showed before."""
    plain = [plain_caption(judge.emoji[i]) for i in indices]
    odd = [f"{p}, {UNKNOWN_WORDS[n % len(UNKNOWN_WORDS)]}" for n, p in enumerate(plain)]
    first = artist.draw([request(p, 90_000 + n) for n, p in enumerate(plain)])
    word = artist.draw([request(p, 90_000 + n) for n, p in enumerate(odd)])
    seed = artist.draw([request(p, 95_000 + n) for n, p in enumerate(plain)])
    a, b, c = (judge.space(x) for x in (first, word, seed))
    before, after = (judge.rank(x).order[:, 0] for x in (first, word))
    return {
        "likeness_with_unknown_word": round(float((a * b).sum(1).mean()), 4),
        "likeness_with_other_seed": round(float((a * c).sum(1).mean()), 4),
        "same_emoji": share(judge.right(before, after, "exact")),
    }


def empty_prompt(artist: Artist, count: int) -> Figures:
    """Pictures of the empty prompt: how many have a plain ground (the frame's colours spread by less than a
    tenth of the scale), and how many have something else on it (a tenth of all pixels differ clearly)."""
    drawn = artist.draw([request("", 60_000 + n) for n in range(count)])
    frame = torch.ones(drawn.shape[2:], dtype=torch.bool)
    frame[4:-4, 4:-4] = False
    ground = drawn[:, :, frame]
    middle = ground.median(dim=2).values[:, :, None, None]
    differs = ((drawn - middle).abs().amax(dim=1) > 0.4).float().mean(dim=(1, 2))
    return {
        "plain_ground": share(ground.std(dim=2).amax(dim=1) < 0.2),
        "something_on_it": share(differs > 0.1),
    }


@torch.no_grad()
def reconstruction(artist: Artist, judge: Judge, indices: Sequence[int]) -> Figures:
    """PSNR in dB of the VAE on emoji on white."""
    db = []
    for start in range(0, len(indices), 16):
        x = judge.painter.paint([Picture((Object(i),)) for i in indices[start : start + 16]])
        y = reconstruct(artist.engine.model.vae, x).clamp(-1, 1)
        db.append(-10 * ((x - y) / 2).square().mean(dim=(1, 2, 3)).clamp_min(1e-10).log10())
    every = torch.cat(db)
    return {
        "mean_db": round(float(every.mean()), 2),
        "lowest_db": round(float(every.min()), 2),
        "share_above_28_db": share(every >= 28),
    }


def seconds(artist: Artist, count: int = 5) -> Figures:
    """Sampling of one picture at a time with the threads that torch has; the median."""
    spent = []
    for n in range(count + 1):
        result = artist.engine.run(request("a red apple", n))
        spent.append(result.drawing.seconds["sample"])
    return {"sampling": round(sorted(spent[1:])[count // 2], 3), "threads": float(torch.get_num_threads())}

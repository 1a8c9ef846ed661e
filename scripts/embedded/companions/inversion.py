"""A textual inversion (Gal et al. 2022, arXiv:2208.01618) of an object that is no emoji: a striped mug, drawn
here with Pillow. Everything is frozen but the vectors that stand for its word. File: `emb_params`."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from minisd.text.tokenizer import BOS, EOS, encode

from ..pictures import COLOURS, PLAIN
from .base import Base, descent

VECTORS, BATCH, SCALE, POOL = 6, 4, 4, 60
STRIPES, CUP = (205, 60, 60), (245, 240, 230)
TEMPLATES = ("a {}", "{}", "an emoji of a {}", "a picture of a {}")


def mug(background: str, shift: tuple[int, int] = (0, 0), *, mirrored: bool = False) -> Image.Image:
    """128 x 128: a mug with three stripes and a handle, moved by `shift` pixels."""
    big = Image.new("RGB", (128 * SCALE, 128 * SCALE), COLOURS[background])
    pen = ImageDraw.Draw(big)

    def box(*sides: int) -> tuple[int, ...]:
        return tuple((s + shift[n % 2]) * SCALE for n, s in enumerate(sides))

    pen.ellipse(box(74, 44, 116, 92), outline=STRIPES, width=9 * SCALE)
    pen.rounded_rectangle(box(20, 22, 92, 112), radius=12 * SCALE, fill=CUP)
    for top in (36, 60, 84):
        pen.rectangle(box(20, top, 92, top + 12), fill=STRIPES)
    pen.ellipse(box(20, 14, 92, 32), fill=(120, 75, 45), outline=CUP, width=4 * SCALE)
    picture = big.resize((128, 128), Image.Resampling.LANCZOS)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture


def with_vectors(base: Base, texts: list[str], vectors: Tensor) -> Tensor:
    """Contexts of captions in which {} stands for the word: b 77 width."""
    rows = []
    for text in texts:
        before, _, after = text.partition("{}")
        head, tail = encode(before), encode(after)
        ids = [BOS, *head, *[0] * len(vectors), *tail, EOS]
        padded = torch.tensor([ids + [EOS] * (77 - len(ids))])
        rows.append(base.text(padded, learned=[(1 + len(head), vectors)]).hidden)
    return torch.cat(rows)


def train(base: Base, minutes: float, say: Callable[[str], None]) -> dict[str, Tensor]:
    torch.manual_seed(23)
    rng, generator = random.Random(23), torch.Generator().manual_seed(23)
    table = base.text.text_model.embeddings.token_embedding.weight
    start = table[encode("teacup mug cup red white drink")[:VECTORS]]
    vectors = nn.Parameter(start.float().clone())
    grounds = [rng.choice(("white", "white", *PLAIN)) for _ in range(POOL)]
    drawn = [mug(g, (rng.randint(-3, 3), rng.randint(-3, 3))) for g in grounds]
    x = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in drawn]).float() / 127.5 - 1
    pool = base.latents(x)
    for step in descent([vectors], 2e-2, minutes, say):
        rows = torch.randint(POOL, (BATCH,), generator=generator)
        seen = [grounds[i] for i in rows.tolist()]
        texts = [rng.choice(TEMPLATES) + ("" if g == "white" else f" on a {g} background") for g in seen]
        noised, t, v = base.noised(pool[rows], generator)
        step((base.unet(noised, t, with_vectors(base, texts, vectors)) - v).square().mean())
    return {"emb_params": vectors.detach().clone()}

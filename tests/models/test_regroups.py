"""Oracle: token merging as its paper defines it, one token at a time in float64; HyperTile: a block on each
tile by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minisd.config import SD1, SD2, SDXL, UNetConfig
from minisd.models.edits import BlockEdit, Edit
from minisd.models.hypertile import Tiles, tile_side
from minisd.models.token_merging import MOST, Merging, destinations, matching
from minisd.models.transformer import BasicTransformerBlock
from minisd.shortcuts import NO_SHORTCUTS, Shortcuts
from tests.test_guidance import close, normal


def block(dim: int = 32) -> BasicTransformerBlock:
    torch.manual_seed(0)
    return BasicTransformerBlock(dim, 24, 4).double().eval()


def naive(
    x: Tensor, normed: Tensor, size: tuple[int, int], ratio: float, layer: BasicTransformerBlock
) -> Tensor:
    """Self-attention of one picture, n c, among merged tokens: loops over tokens, no index tricks."""
    n, chosen = len(x), destinations(size).tolist()
    pairs = []
    for token in (t for t in range(n) if t not in chosen):
        likeness = [float(x[token] @ x[d] / (x[token].norm() * x[d].norm())) for d in chosen]
        best = max(range(len(chosen)), key=likeness.__getitem__)
        pairs.append((likeness[best], token, chosen[best]))
    pairs.sort(key=lambda p: -p[0])
    goes = {token: into for _, token, into in pairs[: int(n * ratio)]}
    left = [t for t in range(n) if t not in goes]
    groups = [[t, *(g for g, into in goes.items() if into == t)] for t in left]
    tokens = torch.stack([normed[group].mean(0) for group in groups])[None]
    q, k, v = (f(tokens)[0] for f in (layer.attn1.to_q, layer.attn1.to_k, layer.attn1.to_v))
    heads = [
        torch.softmax(a @ b.T / a.shape[1] ** 0.5, -1) @ c
        for a, b, c in zip(q.chunk(4, 1), k.chunk(4, 1), v.chunk(4, 1), strict=True)
    ]
    seen = layer.attn1.to_out(torch.cat(heads, 1))
    return torch.stack([seen[left.index(goes.get(t, t))] for t in range(n)])


@pytest.mark.parametrize(
    "size,ratio", [((6, 8), 0.5), ((5, 7), 0.3), ((4, 4), MOST), ((1, 6), 0.4), ((8, 8), 0.02)]
)
@torch.no_grad()
def test_merging_is_the_papers(size: tuple[int, int], ratio: float) -> None:
    """Oracle: the definition, token by token, for each of two pictures."""
    layer, n = block(), size[0] * size[1]
    x = normal(2, n, 32, seed=1)
    x[:, n // 2 :] = x[:, : n - n // 2] + 0.1 * normal(2, n - n // 2, 32, seed=2)  # some are much alike
    _, normed = layer.norm1(x)
    edit = BlockEdit(regroups=(Merging(ratio),), size=size)
    own = edit.attended(x, normed, lambda tokens: layer.attn1(tokens))
    wanted = torch.stack([naive(a, b, size, ratio, layer) for a, b in zip(x, normed, strict=True)])
    close(own, wanted, 1e-12)
    plain = layer.attn1(normed)
    assert float((own - plain).abs().max()) > 1e-6


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 1), (2, 3), (64, 64)])
def test_one_destination_in_each_cell(size: tuple[int, int]) -> None:
    """Oracle: counted. And not always the same corner, where there are many cells."""
    found = destinations(size).tolist()
    cells = [(t // size[1] // 2, t % size[1] // 2) for t in found]
    assert sorted(cells) == [(r, c) for r in range(-(-size[0] // 2)) for c in range(-(-size[1] // 2))]
    corners = {(t // size[1] % 2, t % size[1] % 2) for t in found}
    assert len(corners) == 4 or len(found) < 20
    assert found == destinations(size).tolist()


def test_merging_nothing_and_all() -> None:
    """Oracle: None for a share of less than a token; at most all but the destinations; unmerge after merge
    of equal tokens is the identity."""
    x = normal(1, 48, 8, seed=3)
    assert matching(x, (6, 8), 0.0) is None and matching(x, (6, 8), 0.02) is None
    match = matching(x, (6, 8), MOST)
    assert match is not None and match.kept.shape == (1, 0) and match.merged.shape == (1, 36)
    same = x[:, :1].expand(-1, 48, -1)
    close(match.unmerge(match.merge(same)), same, 1e-14)


def test_sums_of_many() -> None:
    """Oracle: the mean of each group, where more tokens are merged than one product adds up."""
    x = normal(1, 64 * 64, 4, seed=4)
    match = matching(x, (64, 64), MOST)
    assert match is not None and match.merged.shape[1] == 3072
    merged = match.merge(x)
    for place, token in list(enumerate(match.destinations.tolist()))[::97]:
        group = [token, *match.merged[0][match.into[0] == place].tolist()]
        close(merged[0, place], x[0, group].mean(0), 1e-13)


@pytest.mark.parametrize("size,side,tile", [((8, 12), 4, (4, 4)), ((6, 10), 4, (6, 5)), ((7, 9), 2, (7, 3))])
@torch.no_grad()
def test_a_tile_sees_itself_alone(size: tuple[int, int], side: int, tile: tuple[int, int]) -> None:
    """Oracle: the block on each tile's tokens alone; a side without a divisor is whole. Inverse: not the
    block without tiles."""
    layer, (h, w), (th, tw) = block(), size, tile
    x, text = normal(2, h * w, 32, seed=5), normal(2, 7, 24, seed=6)
    out = layer(x, text, BlockEdit(regroups=(Tiles(side),), size=size)).unflatten(1, size)
    whole = x.unflatten(1, size)
    for top in range(0, h, th):
        for left in range(0, w, tw):
            at = (slice(None), slice(top, top + th), slice(left, left + tw))
            close(out[at].flatten(1, 2), layer(whole[at].flatten(1, 2), text), 1e-12)
    assert float((out.flatten(1, 2) - layer(x, text)).abs().max()) > 1e-4


def test_sides_of_tiles() -> None:
    """Oracle: by hand."""
    table = [(64, 32, 32), (64, 33, 64), (96, 30, 32), (65, 8, 13), (61, 8, 61), (8, 0, 1), (8, 99, 8)]
    assert [tile_side(length, wanted) for length, wanted, _ in table] == [n for *_, n in table]


@torch.no_grad()
def test_merged_within_tiles() -> None:
    """Oracle: merging alone on each tile's tokens."""
    layer = block()
    x, text = normal(1, 64, 32, seed=7), normal(1, 7, 24, seed=8)
    both = BlockEdit(regroups=(Tiles(4), Merging(0.5)), size=(8, 8))
    out = layer(x, text, both).unflatten(1, (8, 8))
    for at in ((slice(None), slice(t, t + 4), slice(s, s + 4)) for t in (0, 4) for s in (0, 4)):
        tile = x.unflatten(1, (8, 8))[at].flatten(1, 2)
        alone = layer(tile, text, BlockEdit(regroups=(Merging(0.5),), size=(4, 4)))
        close(out[at].flatten(1, 2), alone, 1e-12)


PLACES: list[tuple[UNetConfig, int, set[str]]] = [
    (SD1.unet, 1, {"input_blocks.1", "input_blocks.2", *(f"output_blocks.{i}" for i in (9, 10, 11))}),
    (SD2.unet, 1, {"input_blocks.1", "input_blocks.2", *(f"output_blocks.{i}" for i in (9, 10, 11))}),
    (SDXL.unet, 1, {"input_blocks.4", "input_blocks.5", *(f"output_blocks.{i}" for i in (3, 4, 5))}),
    (
        SDXL.unet,
        2,
        {*(f"input_blocks.{i}" for i in (4, 5, 7, 8)), *(f"output_blocks.{i}" for i in range(6))},
    ),
]


@pytest.mark.parametrize("config,levels,wanted", PLACES)
def test_where_tokens_are_regrouped(config: UNetConfig, levels: int, wanted: set[str]) -> None:
    """Oracle: the published networks, by hand; never the middle. SDXL has no attention at its
    finest level."""
    merged = Shortcuts(merging=0.5, merging_levels=levels).edited({}, config)
    assert set(merged) == wanted and all(e.regroups == (Merging(0.5),) for e in merged.values())
    tiled = Shortcuts(tile=32, tile_levels=levels).edited({}, config)
    finest = 0 if config is not SDXL.unet else 1
    sides = {e.regroups[0].side for e in tiled.values() if isinstance(e.regroups[0], Tiles)}
    assert set(tiled) == wanted and sides == {32 >> level for level in range(finest, finest + levels)}
    skip = {"middle_block": Edit(skip=True), "input_blocks.1": Edit(identity=True)}
    assert NO_SHORTCUTS.edited(skip, config) is skip
    kept = Shortcuts(merging=0.5).edited(skip, SD1.unet)
    assert kept["middle_block"] == skip["middle_block"] and kept["input_blocks.1"].identity

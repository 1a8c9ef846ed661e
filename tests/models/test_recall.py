"""Oracle: the UNet's blocks called by hand, in float64, around what a hook took from an earlier pass."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from minisd.models.edits import FreeU, Residuals
from minisd.models.recall import Kept, Recall, size
from minisd.models.unet import UNet, run_block
from tests.test_guidance import close, normal
from tests.tiny import TINY, network_weights, unet

FREEU = FreeU(1.2, 1.3, 0.9, 0.8)


@dataclass
class Pass:
    """Inputs of one pass, and what `Recall` kept of it."""

    x: Tensor
    t: Tensor
    context: Tensor
    residuals: Residuals | None = None
    kept: dict[int, Kept] = field(default_factory=dict)

    def run(self, network: UNet, old: list[Kept | None], **how: object) -> Tensor:
        recall = Recall(old, self.kept.__setitem__, **how)  # type: ignore[arg-type]
        return network(self.x, self.t, self.context, freeu=FREEU, residuals=self.residuals, recall=recall)


def network() -> UNet:
    return unet(TINY["sd1"].unet, network_weights(TINY["sd1"])["unet"])


def made(seed: int, t: float, batch: int = 2, control: bool = False) -> Pass:
    own = network()
    x = normal(batch, 4, 8, 16, seed=seed)
    found = None
    if control:
        sizes = [
            (8, 16),
            (8, 16),
            (8, 16),
            (4, 8),
            (4, 8),
            (4, 8),
            (2, 4),
            (2, 4),
            (2, 4),
            (1, 2),
            (1, 2),
            (1, 2),
        ]
        skips = [
            normal(batch, w, *s, seed=90 + i) for i, (w, s) in enumerate(zip(own.widths, sizes, strict=True))
        ]
        found = Residuals(
            tuple(skips), normal(batch, own.widths[-1], 1, 2, seed=80), {0: normal(1, 32, 8, 16, seed=70)}
        )
    return Pass(x, torch.tensor([t]), normal(batch, 9, 32, seed=3), found)


def by_hand(own: UNet, now: Pass, blocks: int, deep: Tensor) -> Tensor:
    """The outermost `blocks` on both sides around `deep`."""
    emb, skips, h = own.embed(now.t, None, now.x.dtype), list[Tensor](), now.x
    residuals = now.residuals or Residuals()
    for index in range(blocks):
        h = run_block(own.input_blocks[index], h, emb, now.context, (0, 0))
        h = h + residuals.to_inputs.get(index, 0.0)
        skips.append(h + (residuals.to_skips[index] if residuals.to_skips else 0.0))
    h = deep
    for index in range(12 - blocks, 12):
        skip = skips.pop()
        h, skip = FREEU.apply(h, skip, own.stages[index])
        h = torch.cat([h, skip], 1)
        h = run_block(
            own.output_blocks[index], h, emb, now.context, skips[-1].shape[-2:] if skips else (0, 0)
        )
    return own.out(h)


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("blocks", [1, 2, 4, 12])
@torch.no_grad()
def test_around_a_deep_feature(blocks: int, control: bool) -> None:
    """Oracle: by hand around the feature that the last inner block gave in the earlier pass. Inverses: the
    whole pass is none but the plain one, the second is not."""
    own, first, second = network(), made(1, 700.0, control=control), made(2, 600.0, control=control)
    taken = list[Tensor]()
    inner = own.output_blocks[11 - blocks] if blocks < 12 else own.middle_block
    *_, last = inner.children()  # the layers are called, not the block
    handle = last.register_forward_hook(lambda m, a, out: taken.append(out))
    whole = first.run(own, [None, None], blocks=blocks)
    handle.remove()
    deep = taken[-1]
    if blocks == 12 and first.residuals is not None:
        deep = first.residuals.middle(deep)
    plain = own(first.x, first.t, first.context, freeu=FREEU, residuals=first.residuals)
    assert torch.equal(whole, plain)
    rows = [first.kept[0], first.kept[1]]
    close(torch.cat([k.answer for k in rows]), deep, 1e-14)
    out = second.run(own, rows, blocks=blocks)
    assert not second.kept  # nothing was computed
    close(out, by_hand(own, second, blocks, deep), 1e-12)
    exact = own(second.x, second.t, second.context, freeu=FREEU, residuals=second.residuals)
    assert float((out - exact).abs().max()) > 1e-3


@torch.no_grad()
def test_a_row_that_has_nothing_kept() -> None:
    """Oracle: each row alone: one reuses, the other is computed and kept."""
    own, first, second = network(), made(1, 700.0), made(2, 600.0)
    first.run(own, [None, None], blocks=2)
    out = second.run(own, [first.kept[0], None], blocks=2)
    assert list(second.kept) == [1]
    close(out[:1], by_hand(own, second, 2, first.kept[0].answer.expand(2, -1, -1, -1))[:1], 1e-12)
    plain = own(second.x, second.t, second.context, freeu=FREEU)
    close(out[1:], plain[1:], 1e-12)


@torch.no_grad()
def test_first_block_cache() -> None:
    """Oracle: by hand: the first blocks' output, how much it changed, and what the rest had added. Decided
    for each row: of two, one changes little and one much."""
    own, first = network(), made(1, 700.0)
    second = made(2, 690.0)
    second.x = first.x + torch.tensor([0.01, 0.5], dtype=torch.float64)[:, None, None, None] * second.x

    def entry(one: Pass) -> Tensor:
        emb = own.embed(one.t, None, one.x.dtype)
        h = run_block(own.input_blocks[0], one.x, emb, one.context, (0, 0))
        return run_block(own.input_blocks[1], h, emb, one.context, (0, 0))

    taken = list[Tensor]()
    handle = own.out.register_forward_pre_hook(lambda m, a: taken.append(a[0]))
    whole = first.run(own, [None, None], change=0.1)
    handle.remove()
    assert torch.equal(whole, own(first.x, first.t, first.context, freeu=FREEU))
    before, now = entry(first), entry(second)
    changes = [float((b - a).abs().mean() / a.abs().mean()) for a, b in zip(before, now, strict=True)]
    assert changes[0] < 0.1 < changes[1]
    rows = [first.kept[0], first.kept[1]]
    out = second.run(own, rows, change=0.1)
    assert list(second.kept) == [1]
    close(out[:1], own.out(now + taken[0] - before)[:1], 1e-12)
    plain = own(second.x, second.t, second.context, freeu=FREEU)
    close(out[1:], plain[1:], 1e-12)
    # the threshold itself: just above a row's change it is reused, at it not
    for factor, computed in ((1 + 1e-9, [1]), (1 - 1e-9, [0, 1])):
        second.kept.clear()
        second.run(own, rows, change=changes[0] * factor)
        assert list(second.kept) == computed


def test_sizes() -> None:
    """Oracle: numpy's sum in float64, whatever the layout; a zero map reuses nothing."""
    x = normal(1, 5, 6, 7, seed=1)
    for one in (x, x.contiguous(memory_format=torch.channels_last)):
        assert size(one) == pytest.approx(abs(x.numpy()).sum(), rel=1e-14)
    recall = Recall([], lambda *_: None, change=1.0)
    zero = torch.zeros(1, 5, 6, 7)
    assert recall.found(zero, Kept(zero, zero)) is None
    assert recall.found(torch.full_like(zero, float("nan")), Kept(zero, zero + 1)) is None

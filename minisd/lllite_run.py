"""How ControlNet-LLLite joins a run: what its small networks add before projections, as edits of a pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from minisd.config import UNetConfig
from minisd.control_run import Control, Seen
from minisd.models.edits import NO_EDIT, Edit, Shift
from minisd.models.lllite import LLLite
from minisd.picture_prompt_run import attention_places
from minisd.text.conditioning import Conditioning


def with_shifts(
    edits: Mapping[str, Edit],
    controls: Sequence[Control],
    unet: UNetConfig,
    seen: Seen,
    uncond: Conditioning,
    sigma: float,
    sigmas: Sequence[float],
) -> Mapping[str, Edit]:
    """The edits of a pass with what the LLLite networks that act add to it."""
    found: dict[tuple[str, int], dict[str, tuple[Shift, ...]]] = {}
    for control in controls:
        network = control.network
        keep = [not (control.spares_uncond and p is uncond) for p in seen.parts]
        if not isinstance(network, LLLite) or not any(keep) or not control.acts(sigma, sigmas):
            continue
        weight, b = control.units[0].weight, seen.x.shape[0]
        weights = (weight,) if all(keep) else tuple(weight * kept for kept in keep for _ in range(b))
        for (name, module, *_), tokens in zip(network.control.places, control.features, strict=True):
            block, index, projection = place_of(module)
            at = found.setdefault((block, index), {})
            one = Shift(partial(network.of(name), seen=tokens), weights)
            at[projection] = (*at.get(projection, ()), one)
    if not found:
        return edits
    out = dict(edits)
    for block in {block for block, _ in found}:
        depth = sum(b == block for b, _ in attention_places(unet))
        shifts = tuple(found.get((block, n), {}) for n in range(depth))
        out[block] = replace(out.get(block, NO_EDIT), shifts=shifts)
    return out


def place_of(module: str) -> tuple[str, int, str]:
    """`input_blocks.4.1.transformer_blocks.0.attn1.to_q` -> (block, transformer block in it, projection)."""
    before, _, after = module.partition(".transformer_blocks.")
    index, _, projection = after.partition(".")
    block = "middle_block" if before.startswith("middle_block") else before.rpartition(".")[0]
    return block, int(index), projection

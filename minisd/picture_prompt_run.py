"""How picture prompts join a run: keys and values of a picture given to every attention to the text at the
steps in which it acts. One that does not act makes no difference to any bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minisd.config import UNetConfig
from minisd.guidance import active
from minisd.models.edits import NO_EDIT, Edit, PictureTokens
from minisd.picture_prompt import PicturePrompt
from minisd.text.conditioning import Conditioning

KeysValues = tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class Guest:
    """A picture prompt at work: keys and values for each attention to the text, with the picture and, for the
    negative prompt, without it."""

    prompt: PicturePrompt
    cond: KeysValues
    uncond: KeysValues

    def acts(self, sigma: float, sigmas: Sequence[float]) -> bool:
        return active(sigma, sigmas, self.prompt.start, self.prompt.end)


def attention_places(unet: UNetConfig) -> tuple[tuple[str, int], ...]:
    """(block, transformer block in it) of each attention to the text in the order of IP-Adapter files: down,
    up, middle."""
    places: list[tuple[str, int]] = []
    depths, index = iter(unet.depth_in), 1
    for level, blocks in enumerate(unet.num_res_blocks):
        for _ in range(blocks):
            places += [(f"input_blocks.{index}", n) for n in range(next(depths))]
            index += 1
        index += level < len(unet.num_res_blocks) - 1  # the halving after it
    for block, depth in enumerate(unet.depth_out):
        places += [(f"output_blocks.{block}", n) for n in range(depth)]
    return (*places, *(("middle_block", n) for n in range(unet.depth_mid)))


def with_pictures(
    edits: Mapping[str, Edit],
    guests: Sequence[Guest],
    unet: UNetConfig,
    parts: Sequence[Conditioning],
    uncond: Conditioning,
    batch: int,
    sigma: float,
    sigmas: Sequence[float],
) -> Mapping[str, Edit]:
    """The edits of a pass with what the guests that act add to it."""
    acting = [g for g in guests if g.acts(sigma, sigmas)]
    if not acting:
        return edits
    found: dict[str, list[tuple[PictureTokens, ...]]] = {}
    for i, (block, _) in enumerate(attention_places(unet)):
        tokens = []
        for guest in acting:
            sides = [guest.uncond if p is uncond else guest.cond for p in parts]
            k, v = (torch.cat([side[i][n].expand(batch, -1, -1) for side in sides]) for n in (0, 1))
            tokens.append(PictureTokens(k, v, guest.prompt.weight))
        found.setdefault(block, []).append(tuple(tokens))
    made = {block: replace(edits.get(block, NO_EDIT), pictures=tuple(t)) for block, t in found.items()}
    return {**edits, **made}

"""Reference-only: a picture drawn like another one, without any network for it.

At every level the other picture, noised to that level, passes through the same UNet with the same text; the
tokens that each self-attention reads are kept, and in the pass of the picture that is drawn, self-attention
looks at these, too: its keys and values are those of both. Idea: lllyasviel, discussion 1236 of
Mikubill/sd-webui-controlnet (2023); related: Cao et al. 2023, MasaCtrl (arXiv:2304.08465). Left out: its
variants with AdaIN, and the mixing by "style fidelity", for which a unit's weight and mode "control" (not for
the negative prompt) stand.

Its noise is the same at every level and in every run, a function of nothing, so that an image of a batch is
the image alone. A reference that does not act makes no call and changes no bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minisd.config import UNetConfig
from minisd.control import REFERENCE, ControlUnit
from minisd.errors import RequestError
from minisd.guidance import active
from minisd.models.edits import NO_EDIT, Edit, ReferenceTokens
from minisd.models.tiling import Tile
from minisd.picture_prompt_run import attention_places
from minisd.samplers.scaling import Prediction, c_in
from minisd.text.conditioning import Conditioning


@dataclass(frozen=True)
class Reference:
    """A picture to look at: its latents as the UNet knows them, and noise, 1 c h w float32."""

    unit: ControlUnit
    z: Tensor
    noise: Tensor

    def at_tile(self, tile: Tile) -> Reference:
        """Itself where the tile is everything; no part of it belongs to a part of the picture."""
        if tile.whole:
            return self
        raise RequestError(
            f"controls: {REFERENCE} looks at a whole picture, and diffusion_tile shows the network one part "
            "at a time; leave one of them out",
            field="controls",
        )

    def noised(self, like: Tensor, sigma: float, prediction: Prediction, dtype: torch.dtype) -> Tensor:
        """At a level, scaled as the network takes it: 1 c h w in the precision of `like` until the end."""
        z, noise = self.z.to(like), self.noise.to(like)
        return ((z + sigma * noise) * c_in(sigma, prediction)).to(dtype)


def acting_on(
    references: Sequence[Reference],
    parts: Sequence[Conditioning],
    uncond: Conditioning,
    sigma: float,
    sigmas: Sequence[float],
) -> list[tuple[Reference, tuple[float, ...]]]:
    """The references that act at this level, with their weights for each part."""
    found = []
    for reference in references:
        unit = reference.unit
        spared = [unit.mode == "control" and p is uncond for p in parts]
        if not all(spared) and active(sigma, sigmas, unit.start, unit.end):
            found.append((reference, tuple(0.0 if s else unit.weight for s in spared)))
    return found


class Recorder:
    """Keeps the tokens that each self-attention reads in one pass with its `edits`."""

    def __init__(self, unet: UNetConfig) -> None:
        self._kept: dict[tuple[str, int], list[Tensor]] = {}
        blocks = {block for block, _ in attention_places(unet)}
        self.edits = {block: Edit(record=self._recording(block)) for block in blocks}

    def _recording(self, block: str) -> Callable[[int, Tensor], None]:
        def record(index: int, tokens: Tensor) -> None:
            self._kept.setdefault((block, index), []).append(tokens)

        return record

    def tokens(self, block: str, index: int) -> Tensor:
        """b n c; images that passed alone below each other."""
        return torch.cat(self._kept[block, index])


@dataclass(frozen=True)
class Recorded:
    """A pass of a reference, and its weights for each row."""

    recorder: Recorder
    weights: tuple[float, ...]


def with_references(
    edits: Mapping[str, Edit], passes: Sequence[Recorded], unet: UNetConfig
) -> Mapping[str, Edit]:
    """The edits of a pass with attention to what was recorded."""
    found: dict[str, list[tuple[ReferenceTokens, ...]]] = {}
    for block, index in attention_places(unet):
        here = tuple(ReferenceTokens(p.recorder.tokens(block, index), p.weights) for p in passes)
        found.setdefault(block, []).append(here)
    made = {block: replace(edits.get(block, NO_EDIT), references=tuple(r)) for block, r in found.items()}
    return {**edits, **made}

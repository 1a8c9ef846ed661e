"""Shortcuts: less computing for a picture that is nearly the same. Each is off at its neutral value, to the
bit.

    token merging       self-attention among fewer tokens                       models/token_merging.py
    HyperTile           self-attention within tiles                             models/hypertile.py
    DeepCache           the inner blocks of the UNet in every n-th step only    models/recall.py
    first-block cache   the inner blocks only where the first one changes       models/recall.py

The first two are edits of a pass. What the last two keep is the state of one run (`Memory`), made with each
`denoise` and so for each pass, tile and model by itself. Each prediction of each image has a place of its own
there, by what it is told and what it is for: a prompt that changes, a network that takes over, a picture that
begins to act find nothing kept.

DeepCache counts steps and not calls: a solver that asks several times in a step then gets answers of one kind
in it. The first answer to a prediction in each block of n steps is computed whole, and so is any other one in
that step; those of later steps of the block reuse it. Where a run goes back to a higher level (restart,
inversion) it is computed whole.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from minisd.config import UNetConfig
from minisd.control_run import Control
from minisd.errors import RequestError, quoted
from minisd.models.edits import NO_EDIT, Edit, Regroup
from minisd.models.hypertile import Tiles
from minisd.models.lllite import LLLite
from minisd.models.recall import Kept, Recall
from minisd.models.token_merging import Merging
from minisd.request import Request
from minisd.text.conditioning import Conditioning


@dataclass(frozen=True)
class Shortcuts:
    """What to leave out; the defaults are neutral.

    merging: share of tokens merged (0 off), merging_levels: resolutions with attention where that is done,
    from the finest. tile: side in latents (0 off), tile_levels: as before. interval: steps of which one is
    computed whole (1 off), blocks: outermost ones on both sides that are computed in any case. change: of the
    first block's output, relative, below which the rest is reused (0 off).
    """

    merging: float = 0.0
    merging_levels: int = 1
    tile: int = 0
    tile_levels: int = 1
    interval: int = 1
    blocks: int = 1
    change: float = 0.0

    @property
    def recalls(self) -> bool:
        return self.interval > 1 or self.change > 0

    @property
    def regroups(self) -> bool:
        return self.merging > 0 or self.tile > 0

    def edited(self, edits: Mapping[str, Edit], unet: UNetConfig) -> Mapping[str, Edit]:
        """The edits of a pass with what regroups tokens in it."""
        if not self.regroups:
            return edits
        out, levels = dict(edits), unet.attention_levels
        there = sorted(set(levels.values()))
        for block, level in levels.items():
            rank, groups = there.index(level), list[Regroup]()
            if self.tile and rank < self.tile_levels:
                groups.append(Tiles(max(1, self.tile >> level)))
            if self.merging and rank < self.merging_levels:
                groups.append(Merging(self.merging))
            if groups:
                out[block] = replace(out.get(block, NO_EDIT), regroups=tuple(groups))
        return out


NO_SHORTCUTS = Shortcuts()


def shortcuts_of(request: Request, factor: int) -> Shortcuts:
    """Those of a request. factor: pixels per latent."""
    return Shortcuts(
        merging=request.token_merging,
        merging_levels=request.token_merging_levels,
        tile=0 if request.hypertile is None else max(1, request.hypertile // factor),
        tile_levels=request.hypertile_levels,
        interval=request.deep_cache,
        blocks=request.deep_cache_blocks,
        change=request.first_block_cache,
    )


def check_beside(shortcuts: Shortcuts, controls: Sequence[Control]) -> None:
    """Raises RequestError for a control network that tells each token of the picture something of its own,
    where tokens are regrouped."""
    for control in controls:
        if shortcuts.regroups and isinstance(control.network, LLLite):
            name = "token_merging" if shortcuts.merging > 0 else "hypertile"
            raise RequestError(
                f"{quoted(control.units[0].model)} is a ControlNet-LLLite, which tells every token something "
                f"of its own, and {name} regroups them; leave one out",
                field=name,
            )


@dataclass(frozen=True)
class Place:
    """One prediction of one image: what it is told, and what it is for ("" is for the picture)."""

    part: Conditioning
    image: int
    role: str

    @property
    def key(self) -> tuple[int, int, str]:
        return id(self.part), self.image, self.role


@dataclass(frozen=True)
class Entry:
    """What was kept at a place: in which step, and by which network, with which others acting beside it
    (`acting`). last: the step in which it was last asked for. part: kept, so that no other takes its id."""

    part: Conditioning
    step: int
    last: int
    network: object
    acting: tuple[bool, ...]
    kept: Kept


class Memory:
    """The state of one run: the newest answers of the UNet's inner blocks. The two halves of guidance may ask
    it at the same time."""

    def __init__(self, shortcuts: Shortcuts) -> None:
        self._shortcuts = shortcuts
        self._entries: dict[tuple[int, int, str], Entry] = {}
        self._lock = threading.Lock()

    def recall(self, places: Sequence[Place], step: int, network: object, acting: tuple[bool, ...]) -> Recall:
        """For a pass in this step whose rows are these places."""

        def keep(row: int, kept: Kept) -> None:
            place, interval = places[row], self._shortcuts.interval
            entry = Entry(place.part, step, step, network, acting, kept)
            with self._lock:
                if self._shortcuts.change == 0:  # those of earlier blocks of steps will not serve any more
                    now = step // interval
                    self._entries = {k: e for k, e in self._entries.items() if e.step // interval == now}
                self._entries[place.key] = entry

        with self._lock:
            kept = [self._kept(place, step, network, acting) for place in places]
        if self._shortcuts.change > 0:
            return Recall(kept, keep, change=self._shortcuts.change)
        return Recall(kept, keep, self._shortcuts.blocks)

    def _kept(self, place: Place, step: int, network: object, acting: tuple[bool, ...]) -> Kept | None:
        entry, interval = self._entries.get(place.key), self._shortcuts.interval
        if entry is None:
            return None
        serves = entry.network is network and entry.acting == acting
        if self._shortcuts.change == 0:
            later = entry.step < step and entry.last <= step
            serves = serves and later and entry.step // interval == step // interval
        if not serves:
            del self._entries[place.key]
            return None
        self._entries[place.key] = replace(entry, last=step)
        return entry.kept

"""How control networks join a run: hints read once, residuals added at the steps in which a unit acts.

A unit that does not act at a level (weight 0, outside start .. end) makes no call, and the picture's bits are
those of a run without it. What several networks add is summed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from minisd.canvas import resized
from minisd.config import UNetConfig
from minisd.control import REFERENCE, ControlUnit
from minisd.errors import RequestError, quoted
from minisd.guidance import active
from minisd.models.controlnet import ControlNet
from minisd.models.conv import NO_WRAP, Wrap
from minisd.models.edits import Residuals
from minisd.models.lllite import LLLite
from minisd.models.t2i_adapter import T2IAdapter, feature_places
from minisd.models.tiling import Tile
from minisd.preprocess import hint as hint_of
from minisd.text.conditioning import Conditioning

Network = ControlNet | LLLite | T2IAdapter
SOFTER = 0.825  # from one residual to the next finer one, as cldm's guess mode
SOFT_FEATURES = (0.25, 0.62, 0.825, 1.0)  # the same for a T2I-Adapter's features, as in sd-webui-controlnet


@dataclass(frozen=True)
class Control:
    """Units of one network at work in one drawing; several only for a ControlNet-Union, which reads their
    hints together.

    features: of a ControlNet, of each hint, 1 c h w; of a T2I-Adapter, for each level; of an LLLite, tokens
    for each place. places: the input blocks to which a T2I-Adapter adds.
    """

    network: Network
    units: tuple[ControlUnit, ...]
    features: tuple[Tensor, ...]
    places: tuple[int | None, ...] = ()

    def at_tile(self, tile: Tile) -> Control:
        """What it says of one tile of the picture. Raises RequestError for a T2I-Adapter and an LLLite, whose
        features are of several sizes."""
        if tile.whole:
            return self
        if not isinstance(self.network, ControlNet):
            raise RequestError(
                f"controls: the adapter {quoted(self.units[0].model)} reads the whole picture, and "
                "diffusion_tile shows the network one part at a time; leave one of them out",
                field="controls",
            )
        return replace(self, features=tuple(tile.of(f) for f in self.features))

    def acts(self, sigma: float, sigmas: Sequence[float]) -> bool:
        unit = self.units[0]
        return unit.weight != 0.0 and active(sigma, sigmas, unit.start, unit.end)

    @property
    def spares_uncond(self) -> bool:
        """Whether the unconditional prediction is made without it."""
        return self.units[0].mode == "control" or self.units[0].pooled


@dataclass(frozen=True)
class Seen:
    """What a control network sees of one pass: x [b c h w], timesteps, and the conditionings of its parts,
    each over all of x; wrap: axes along which x goes on at its opposite edge."""

    x: Tensor
    timesteps: Tensor
    parts: Sequence[Conditioning]
    wrap: Wrap = NO_WRAP

    def stacked(self, keep: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor | None]:
        """(x, context, y) of the parts to keep, (k b) ..."""
        b, parts = self.x.shape[0], [p for p, kept in zip(self.parts, keep, strict=True) if kept]
        context = torch.cat([p.context.expand(b, -1, -1) for p in parts])
        ys = [p.y.expand(b, -1) for p in parts if p.y is not None]
        return self.x.repeat(len(parts), 1, 1, 1), context, torch.cat(ys) if ys else None


def residuals_of(
    controls: Sequence[Control], seen: Seen, uncond: Conditioning, sigma: float, sigmas: Sequence[float]
) -> Residuals | None:
    """What the controls that act at this level add to a pass; None where none does."""
    out: Residuals | None = None
    for control in controls:
        if isinstance(control.network, LLLite):  # edits of the pass: `lllite_run.py`
            continue
        keep = [not (control.spares_uncond and p is uncond) for p in seen.parts]
        if any(keep) and control.acts(sigma, sigmas):
            one = one_residuals(control, seen, keep)
            out = one if out is None else out + one
    return out


def one_residuals(control: Control, seen: Seen, keep: Sequence[bool]) -> Residuals:
    unit, b = control.units[0], seen.x.shape[0]

    def placed(residual: Tensor, factor: float) -> Tensor:
        """For all parts: nothing for those that are spared. Rows of a residual are (kept b), or one for
        all."""
        if unit.pooled:
            residual = residual.mean(dim=(2, 3), keepdim=True)
        rows = residual * (unit.weight * factor)
        if all(keep):
            return rows
        chunks = iter(rows.expand(b * sum(keep), -1, -1, -1).split(b))
        blank = rows.new_zeros((b, *rows.shape[1:]))
        return torch.cat([next(chunks) if kept else blank for kept in keep])

    if isinstance(control.network, T2IAdapter):
        soft = SOFT_FEATURES if unit.mode != "balanced" else (1.0,) * len(control.features)
        found = [placed(f, s) for f, s in zip(control.features, soft, strict=True)]
        pairs = list(zip(control.places, found, strict=True))
        middle = next((f for place, f in pairs if place is None), None)
        return Residuals((), middle, {place: f for place, f in pairs if place is not None})

    network = control.network
    assert isinstance(network, ControlNet)
    x, context, y = seen.stacked(keep)
    types = [u.control_type for u in control.units]
    outs = network.residuals(
        x[:, : network.config.in_channels],
        seen.timesteps,
        context,
        control.features,
        y,
        None if network.control.control_types is None else [t for t in types if t is not None],
        seen.wrap,
    )
    last = len(outs) - 1
    soft = [1.0 if unit.mode == "balanced" else SOFTER ** (last - i) for i in range(len(outs))]
    found = [placed(r, s) for r, s in zip(outs, soft, strict=True)]
    return Residuals(tuple(found[:-1]), found[-1])


def controls_of(
    units: Sequence[ControlUnit],
    networks: Mapping[str, Network],
    unet: UNetConfig,
    size: tuple[int, int],
    latent: tuple[int, int],
    wrap: Wrap = NO_WRAP,
) -> tuple[Control, ...]:
    """The units at work in a drawing of `size` (width, height) pixels and latents of (h, w). networks: by
    the units' names. Raises RequestError for a unit that does not suit its network."""
    found: list[Control] = []
    for unit in units:
        if unit.weight == 0.0 or unit.model == REFERENCE:
            continue
        network = networks[unit.model]
        check_unit(unit, network)
        hint = hint_tensor(unit, network, size)
        if isinstance(network, T2IAdapter):
            features = network(hint)
            places = feature_places(network.control, unet)
            found.append(Control(network, (unit,), features, places))
            continue
        if isinstance(network, LLLite):
            found.append(Control(network, (unit,), network.read(hint)))
            continue
        feature = network.hint_features(hint, wrap)
        if tuple(feature.shape[-2:]) != latent:
            raise RequestError(
                f"the control network {quoted(unit.model)} makes features of {list(feature.shape[-2:])} from "
                f"the picture, the latents are {list(latent)}; it is for another size of pixels per latent",
                field="controls",
            )
        together = next((i for i, c in enumerate(found) if joins(unit, c, network)), None)
        if together is None:
            found.append(Control(network, (unit,), (feature,)))
        else:
            old = found[together]
            found[together] = Control(network, (*old.units, unit), (*old.features, feature))
    return tuple(found)


def joins(unit: ControlUnit, control: Control, network: Network) -> bool:
    """Whether a Union reads this unit's hint together with the control's: as strong, at the same steps."""
    first = control.units[0]
    same = all(getattr(unit, n) == getattr(first, n) for n in ("weight", "start", "end", "mode", "pooled"))
    fresh = all(unit.kind != u.kind for u in control.units)
    return control.network is network and unit.kind is not None and same and fresh


def check_unit(unit: ControlUnit, network: Network) -> None:
    types = network.control.control_types if isinstance(network, ControlNet) else None
    if isinstance(network, LLLite) and (unit.mode == "prompt" or unit.pooled):
        raise RequestError(
            f"{quoted(unit.model)} is a ControlNet-LLLite; it takes mode balanced or control, and no pooled",
            field="controls",
        )
    if types is None and unit.kind is not None:
        raise RequestError(
            f"{quoted(unit.model)} is no ControlNet-Union; leave out kind {unit.kind}", field="controls"
        )
    if types is not None and (unit.control_type is None or unit.control_type >= types):
        raise RequestError(
            f"{quoted(unit.model)} is a ControlNet-Union of {types} types; say the kind of its hint",
            field="controls",
        )


def hint_tensor(unit: ControlUnit, network: Network, size: tuple[int, int]) -> Tensor:
    """The unit's hint as its network reads it: 1 c H W, values 0..1, in the network's dtype."""
    square = 1
    if not isinstance(network, ControlNet):
        square = network.control.unshuffle if isinstance(network, T2IAdapter) else network.control.square
    if any(n % square for n in size):
        raise RequestError(
            f"{quoted(unit.model)} needs a width and height that are multiples of "
            f"{square}, got {size[0]} x {size[1]}",
            field="width",
        )
    image = hint_of(resized(unit.image.image.convert("RGB"), size, unit.resize), unit.preprocessor)
    channels = network.control.hint_channels
    pixels = torch.from_numpy(np.array(image.convert("L") if channels == 1 else image))
    like = next(network.parameters())
    rows = pixels.reshape(*pixels.shape[:2], -1)[..., :channels].permute(2, 0, 1)[None]
    return (rows.to(torch.float32) / 255).to(like.device, like.dtype)

"""How the weights of each part are stored: as wide as they are computed in, or in few bits (`quantise`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from minisd.config import ModelConfig
from minisd.errors import PlanError
from minisd.placement import Choice, PartPlan, Plan
from minisd.quantise.schemes import SCHEMES, stored_bytes
from minisd.quantise.sensitive import SMALL, Layers, layers_of, scheme_name
from minisd.weights_loader.expected import Shapes, text_shapes, unet_shapes, vae_shapes
from minisd.wishes import QUANTS, Wishes, file_part, group_of


@dataclass(frozen=True)
class Storage:
    """stored: the layers that the file has in few bits, by part."""

    config: ModelConfig
    wishes: Wishes
    stored: Mapping[str, Layers]

    def put(self, plan: Plan) -> Plan:
        """The plan with every part's storage and the bytes that it comes to. Raises PlanError for what
        cannot be had."""
        parts = tuple(self._part(p) for p in plan.parts)
        kernels = plan.kernels.value
        inside = [name for name in ("packed", "compiled", "fused_qkv") if getattr(kernels, name)]
        inside += [] if kernels.upsample_conv == "nearest" else [f"upsample_conv={kernels.upsample_conv}"]
        unet = next((p for p in parts if p.part == "unet"), None)
        if unet is not None and unet.layers and inside:
            raise PlanError(
                f"{' and '.join(inside)} rearranges wide weights, and the UNet's are stored as "
                f"{unet.quant.value}; leave one of them out"
            )
        return replace(plan, parts=parts)

    def _part(self, part: PartPlan) -> PartPlan:
        wish = self.wishes.of("quant", part.part)
        if wish not in QUANTS:
            raise PlanError(f"quant {wish!r} is not one of {', '.join(QUANTS)}")
        name = file_part(part.part)
        own = self.stored.get(name, ())
        if wish == "none":
            why = "asked for by name: made wide when it is loaded" if own else "asked for by name"
            return replace(part, quant=Choice("none", why))
        if wish == "auto" and not own:
            return part
        if part.part == "taesd":
            return replace(part, quant=Choice("none", SMALL))
        shapes = shapes_of(self.config, name)
        layers = own if wish == "auto" else layers_of(name, shapes, wish)
        named = sorted({scheme for _, scheme in layers})
        kind = torch.device(part.device).type
        if kind == "mps" and any(SCHEMES[s].codes.is_floating_point for s in named):
            raise PlanError(f"{', '.join(named)} on {kind}: Metal has no 8-bit floats; use int8 or none")
        why = "; ".join(f"{SCHEMES[s].what}, {how(s, kind)}" for s in named)
        why = f"as the file stores them; {why}; none makes them wide once" if wish == "auto" else why
        return replace(
            part,
            quant=Choice(scheme_name(layers), why if wish == "auto" else f"asked for by name; {why}"),
            layers=layers,
            weight_bytes=part.weight_bytes - saved(layers, shapes, part.dtype.value),
        )


def how(scheme: str, kind: str) -> str:
    """What a scheme's products do on this kind of device."""
    if scheme == "w8a8":
        if kind in ("cpu", "cuda"):
            return "multiplied as integers"
        return f"multiplied as float32, exactly: torch has no integer product on {kind}"
    return "widened for each product"


def saved(layers: Layers, shapes: Shapes, dtype: torch.dtype) -> int:
    """Bytes by which these layers are smaller than in `dtype`."""
    sizes = ((shapes[f"{module}.weight"], scheme) for module, scheme in layers)
    return sum(math.prod(shape) * dtype.itemsize - stored_bytes(scheme, shape) for shape, scheme in sizes)


def shapes_of(config: ModelConfig, part: str) -> Shapes:
    """{parameter: shape} of a part."""
    if group_of(part) == "text":
        return next(text_shapes(use.config) for use in config.text if use.part == part)
    return unet_shapes(config.unet) if part == "unet" else vae_shapes(config.vae)

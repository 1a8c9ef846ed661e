"""What storing weights in few bits costs: error of each layer's weights and outputs, and of the picture.

The reference is the same file computed in float32 with wide weights. While it draws, each layer's stored
form computes beside it from the same inputs, so that a layer's error is its own and not that of those before
it; the picture's is that of all together.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from minisd.engine import Engine, load
from minisd.model import Model
from minisd.models.conv import per_token
from minisd.models.quantised import Quantised
from minisd.plan_storage import saved, shapes_of
from minisd.quantise.sensitive import reasons
from minisd.request import Request


@dataclass(frozen=True)
class LayerError:
    """weights, outputs: norm of the error over the norm; outputs is None for a layer that was not called."""

    part: str
    layer: str
    scheme: str
    shape: tuple[int, ...]
    weights: float
    outputs: float | None


@dataclass(frozen=True)
class PartSize:
    """Bytes of a part: wide in 16 bits, and stored with what is left alone in 16 bits; and of the weights in
    few bits alone. left: reason and number of parameters left as they are."""

    part: str
    scheme: str
    half: int
    stored: int
    layers_half: int
    layers_stored: int
    left: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class QuantReport:
    layers: tuple[LayerError, ...]
    parts: tuple[PartSize, ...]
    pictures: tuple[tuple[str, int, float], ...]  # prompt, seed, PSNR in dB against float32

    @property
    def psnr(self) -> float:
        """Mean over the pictures, dB."""
        return sum(p for *_, p in self.pictures) / len(self.pictures)

    @property
    def ratio(self) -> float:
        """Bytes of the whole over those in 16 bits."""
        return sum(p.stored for p in self.parts) / sum(p.half for p in self.parts)

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {**asdict(self), "psnr": self.psnr, "ratio": self.ratio}

    def __str__(self) -> str:
        lines = [f"{'layer':<66}{'scheme':<13}{'weights':>9}{'outputs':>9}   relative error"]
        for e in sorted(self.layers, key=lambda e: -(e.outputs or 0.0)):
            out = "not run" if e.outputs is None else f"{e.outputs:.2%}"
            lines.append(f"{e.part + '.' + e.layer:<66}{e.scheme:<13}{e.weights:>9.2%}{out:>9}")
        lines.append("")
        for p in self.parts:
            lines.append(
                f"{p.part:<16}{p.scheme:<13}{p.stored / 1e6:>9,.1f} MB, {p.stored / p.half:.3f} of 16 bits"
                + (f"; {p.layers_stored / p.layers_half:.3f} of what is stored so" if p.layers_half else "")
            )
            lines += [f"  left alone: {count:>4} {why}" for why, count in p.left if p.layers_half]
        lines.append(
            f"{'the whole':<29}{sum(p.stored for p in self.parts) / 1e6:>9,.1f} MB, {self.ratio:.3f}"
        )
        lines.append("")
        lines += [f"{psnr:>6.1f} dB  seed {seed}  {prompt}" for prompt, seed, psnr in self.pictures]
        lines.append(f"{self.psnr:>6.1f} dB  mean PSNR of {len(self.pictures)} pictures against float32")
        return "\n".join(lines)


class Observed(nn.Module):
    """A plain layer that sums up what its stored form beside it computes otherwise."""

    def __init__(self, layer: nn.Module, stored: nn.Module) -> None:
        super().__init__()
        self.layer, self.stored = layer, stored
        self.error = self.norm = 0.0

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x) if x.ndim == 4 or isinstance(self.layer, nn.Linear) else per_token(self.layer, x)
        self.error += float((self.stored(x) - out).double().square().sum())
        self.norm += float(out.double().square().sum())
        return out


def quant_report(
    path: str | os.PathLike[str] | None,
    requests: Sequence[Request],
    schemes: Mapping[str, str],
    *,
    device: str = "auto",
) -> QuantReport:
    """Draw the requests with wide weights and with those of `schemes` ({"unet": "int8", ...}), in float32.
    path: as `load` takes it. Raises CheckpointError, PlanError, RequestError."""
    wide = load(path, device=device, dtype="float32", quant="none", offload="none")
    few = load(
        path,
        device=device,
        dtype="float32",
        offload="none",
        unet_quant=schemes.get("unet", "none"),
        text_quant=schemes.get("text", "none"),
        vae_quant=schemes.get("vae", "none"),
    )
    with wide, few:
        model = few.model
        watched, observers = observed(wide.model, model)
        pictures = []
        with Engine(watched) as reference:
            for request in requests:
                a, b = reference.run(request), few.run(replace(request, seed=request.seed))
                for seed, x, y in zip(a.request.seeds(), a.images, b.images, strict=True):
                    pictures.append((request.prompt, seed, psnr(x, y)))
        errors = tuple(layer_error(part, name, o) for (part, name), o in observers.items())
        return QuantReport(errors, tuple(part_size(model, p.part) for p in model.plan.parts), tuple(pictures))


def networks_of(model: Model) -> dict[str, nn.Module]:
    encoders = zip((use.part for use in model.config.text), model.text_encoders, strict=True)
    return {**dict(encoders), "unet": model.unet, "vae": model.vae}


def observed(wide: Model, few: Model) -> tuple[Model, dict[tuple[str, str], Observed]]:
    """The wide model with the layers of the other one beside its own; it draws what it drew before."""
    observers: dict[tuple[str, str], Observed] = {}
    twins: dict[str, nn.Module] = {}
    for part, network in networks_of(wide).items():
        shared = {id(t): t for t in (*network.parameters(), *network.buffers())}
        twins[part] = twin = copy.deepcopy(network, shared)
        for name, layer in networks_of(few)[part].named_modules():
            if isinstance(layer, Quantised):
                parent, _, last = name.rpartition(".")
                made = observers[part, name] = Observed(twin.get_submodule(name), layer)
                twin.get_submodule(parent).register_module(last, made)
    encoders = tuple(twins[use.part] for use in wide.config.text)
    return replace(wide, text_encoders=encoders, unet=twins["unet"], vae=twins["vae"]), observers


def layer_error(part: str, name: str, seen: Observed) -> LayerError:
    stored, weight = seen.stored, seen.layer.weight
    assert isinstance(stored, Quantised) and isinstance(weight, Tensor)
    wide = weight.double()
    error = float((stored.dequantised(torch.float64) - wide).norm() / wide.norm().clamp_min(1e-30))
    outputs = math.sqrt(seen.error / seen.norm) if seen.norm else None
    return LayerError(part, name, stored.scheme, stored.shape, error, outputs)


def part_size(model: Model, part: str) -> PartSize:
    own = model.plan.part(part)
    if part == "taesd":
        half = own.weight_bytes // own.dtype.value.itemsize * 2
        return PartSize(part, "none", half, half, 0, 0, ())
    shapes = shapes_of(model.config, part)
    half = sum(math.prod(shape) * 2 for shape in shapes.values())
    less = saved(own.layers, shapes, torch.float16)
    layers = sum(math.prod(shapes[f"{module}.weight"]) * 2 for module, _ in own.layers)
    left = tuple((why, len(names)) for why, names in reasons(part, shapes).items())
    return PartSize(part, own.quant.value, half, half - less, layers, layers - less, left)


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures, dB; infinite for equal ones."""
    x, y = (np.asarray(i.convert("RGB"), dtype=np.float64) for i in (a, b))
    square = float(((x - y) ** 2).mean())
    return math.inf if square == 0 else 10 * math.log10(255**2 / square)

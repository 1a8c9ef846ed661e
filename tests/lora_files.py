"""Adapter files for tiny models: random factors of every kind, under kohya's or PEFT's names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from minisd.config import ModelConfig
from minisd.weights_loader.keymap import hf_rules, unet_rules
from minisd.weights_loader.lora_names import Target, modules

Tensors = dict[str, Tensor]
RANK, ALPHA = 4, 2.0
PREFIX = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


def layers(config: ModelConfig) -> list[tuple[Target, str]]:
    """(module, its diffusers name) of every matrix and convolution of the UNet and the text encoders."""
    found = list(modules(unet_rules(config.unet), "unet"))
    for use in config.text:
        found += modules(hf_rules(use.config), use.part)
    return [(t, name) for t, name in found if len(t.shape) >= 2 and "embedding" not in t.module]


def kohya_name(target: Target, diffusers: str, *, one_encoder: bool) -> str:
    prefix = "lora_te_" if one_encoder and target.part != "unet" else PREFIX[target.part]
    return prefix + diffusers.replace(".", "_")


def lora_factors(target: Target, draw: Callable[..., Tensor], rank: int = RANK) -> Tensors:
    ones = (1,) * (len(target.shape) - 2)
    return {"down": draw(rank, *target.shape[1:]), "up": draw(target.shape[0], rank, *ones)}


def drawing(seed: int, dtype: torch.dtype = torch.float32) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.1).to(dtype)

    return draw


def kohya(
    config: ModelConfig, seed: int, *, dtype: torch.dtype = torch.float32, alpha: float | None = ALPHA
) -> Tensors:
    """A LoRA over every layer, as kohya's scripts save it."""
    draw, out = drawing(seed, dtype), Tensors()
    for target, diffusers in layers(config):
        name, f = kohya_name(target, diffusers, one_encoder=len(config.text) == 1), lora_factors(target, draw)
        out |= {f"{name}.lora_down.weight": f["down"], f"{name}.lora_up.weight": f["up"]}
        if alpha is not None:
            out[f"{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
    return out


def peft(
    config: ModelConfig, seed: int, *, dtype: torch.dtype = torch.float32, short: bool = False
) -> Tensors:
    """The same factors as diffusers saves them with PEFT; alpha is in the metadata. short: Transformers 5."""
    draw, out = drawing(seed, dtype), Tensors()
    for target, diffusers in layers(config):
        f = lora_factors(target, draw)
        path = diffusers.removeprefix("text_model.") if short else diffusers
        name = f"{target.part}.{path}"
        out |= {f"{name}.lora_A.weight": f["down"], f"{name}.lora_B.weight": f["up"]}
    return out


def peft_metadata(config: ModelConfig) -> dict[str, str]:
    parts = ["unet", *(use.part for use in config.text)]
    numbers = {f"{part}.{k}": v for part in parts for k, v in (("r", RANK), ("lora_alpha", ALPHA))}
    return {"lora_adapter_metadata": json.dumps(numbers)}


KINDS = (
    "lora locon_mid dora dora_in peft_dora loha loha_tucker lokr lokr_whole lokr_tucker "
    "ia3 ia3_in full glora oft boft"
).split()


def factors_of(kind: str, target: Target, draw: Callable[..., Tensor]) -> Tensors | None:
    """Factors of this kind for a layer, under LyCORIS' names; None where the kind has no form for it."""
    shape, r = target.shape, 2
    taps = shape[2:]
    wide = len(taps) == 2 and taps != (1, 1)
    out, inputs = shape[:2]
    flat = inputs * (taps[0] * taps[1] if taps else 1)
    ones = (1,) * len(taps)
    plain = {
        "lora_down.weight": draw(r, *shape[1:]),
        "lora_up.weight": draw(out, r, *ones),
        "alpha": torch.tensor(1.0),
    }
    magnitude = draw(out).abs() + 1
    if kind == "lora":
        return plain
    if kind == "dora":
        return plain | {"dora_scale": magnitude.reshape(-1, 1, *ones)}
    if kind == "dora_in":
        return plain | {"dora_scale": (draw(inputs).abs() + 1).reshape(1, -1, *ones)}
    if kind == "peft_dora":
        return plain | {"lora_magnitude_vector": magnitude}
    if kind == "locon_mid":
        mid = {"lora_mid.weight": draw(r, r, *taps), "lora_down.weight": draw(r, inputs, 1, 1)}
        return plain | mid if wide else None
    if kind == "loha":
        names = {"hada_w1_a": (out, r), "hada_w1_b": (r, flat), "hada_w2_a": (out, r), "hada_w2_b": (r, flat)}
        return {k: draw(*v) for k, v in names.items()} | {"alpha": torch.tensor(1.0)}
    if kind == "loha_tucker" and wide:
        halves = {f"hada_w{n}_{x}": draw(r, size) for n in (1, 2) for x, size in (("a", out), ("b", inputs))}
        return halves | {f"hada_t{n}": draw(r, r, *taps) for n in (1, 2)}
    if kind == "lokr" and inputs % 4 == 0 and out % 4 == 0:
        return {
            "lokr_w1_a": draw(4, r),
            "lokr_w1_b": draw(r, 4),
            "lokr_w2_a": draw(out // 4, r),
            "lokr_w2_b": draw(r, flat // 4),
            "alpha": torch.tensor(1.0),
        }
    if kind == "lokr_whole" and inputs % 4 == 0 and out % 4 == 0:
        return {
            "lokr_w1": draw(4, 4),
            "lokr_w2": draw(out // 4, inputs // 4, *taps),
            "alpha": torch.tensor(9.0),
        }
    if kind == "lokr_tucker" and wide and inputs % 4 == 0 and out % 4 == 0:
        return {
            "lokr_w1": draw(4, 4),
            "lokr_w2_a": draw(r, out // 4),
            "lokr_w2_b": draw(r, inputs // 4),
            "lokr_t2": draw(r, r, *taps),
        }
    if kind in ("ia3", "ia3_in"):
        vector = draw(inputs if kind == "ia3_in" else out)
        stored = vector.reshape(1, -1, 1, 1) if taps else vector
        return {"weight": stored, "on_input": torch.tensor(int(kind == "ia3_in"))}
    if kind == "full":
        return {"diff": draw(*shape)} | ({"diff_b": draw(out)} if target.bias else {})
    if kind == "glora":
        return {
            "a1.weight": draw(inputs, r),
            "a2.weight": draw(r, inputs),
            "b1.weight": draw(out, r),
            "b2.weight": draw(r, *shape[1:]),
            "alpha": torch.tensor(1),
        }
    if kind == "oft" and out % 8 == 0:
        return {
            "oft_blocks": draw(out // 8, 8, 8),
            "alpha": torch.tensor(0),
            "rescale": draw(out, 1, *ones) + 1,
        }
    if kind == "boft" and out % 32 == 0:
        return {"oft_blocks": draw(3, out // 8, 8, 8), "alpha": torch.tensor(0)}
    return None


def of_kind(config: ModelConfig, kind: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensors:
    """A file with one kind on every layer that it has a form for."""
    draw, out = drawing(seed, dtype), Tensors()
    for target, diffusers in layers(config):
        factors = factors_of(kind, target, draw)
        name = kohya_name(target, diffusers, one_encoder=len(config.text) == 1)
        out |= {f"{name}.{k}": v for k, v in (factors or {}).items()}
    return out


def write(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)
    return path


def only(tensors: Tensors, prefixes: Iterable[str]) -> Tensors:
    return {k: v for k, v in tensors.items() if k.startswith(tuple(prefixes))}

"""A file that holds a ControlNet, LLLite or T2I-Adapter: what it is, its config, its weights in our names.

    with open_control("control_v11p_sd15_canny.pth") as file:
        network.load_state_dict(file.state_dict(base=unet_weights), strict=True, assign=True)

Strict as `checkpoint.py`: every parameter filled exactly once, in the shape the config says. Some ControlNets
are differences to the UNet beside which they are used (marker `difference`), or low-rank ones (Control-LoRA);
these need its weights, `base`. Early files hold a whole SD1 model beside the ControlNet; that is left unread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor

from minisd.config import SDXL, ControlNetConfig, LLLiteConfig, T2IAdapterConfig, UNetConfig
from minisd.errors import CheckpointError, listed, quoted
from minisd.weights_loader.control_derive import derive_controlnet, derive_t2i_adapter
from minisd.weights_loader.control_keymap import controlnet_rules, t2i_adapter_rules
from minisd.weights_loader.control_lora import LoraReader, lora_rules
from minisd.weights_loader.kinds import FAMILY_NAMES, FAMILY_OF_CONTEXT
from minisd.weights_loader.lllite_file import PREFIX as LLLITE
from minisd.weights_loader.lllite_file import derive_lllite, lllite_rules
from minisd.weights_loader.open import open_source
from minisd.weights_loader.part import Part, PartReader, check_part, make_part
from minisd.weights_loader.places import below
from minisd.weights_loader.rule import same_names
from minisd.weights_loader.source import TensorSource
from minisd.weights_loader.unread import sort_leftovers

Kind = Literal["controlnet", "control_lora", "lllite", "t2i_adapter"]
DIFFERENCE = "difference"
LORA = "lora_controlnet"
WHOLE_MODEL = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")  # of 1.0 files
ENCODER = ("time_embed.", "label_emb.", "input_blocks.", "middle_block.")  # what differences are added to


@dataclass(frozen=True)
class Place:
    prefix: str
    layout: Literal["original", "diffusers"]


CONTROLNETS: dict[str, Place] = {  # mark: place
    "control_model.zero_convs.0.0.weight": Place("control_model.", "original"),
    "zero_convs.0.0.weight": Place("", "original"),
    "controlnet_cond_embedding.conv_in.weight": Place("", "diffusers"),
}
T2I_ADAPTERS: dict[str, Place] = {
    "body.0.block1.weight": Place("", "original"),
    "body.0.in_conv.weight": Place("", "original"),
    "adapter.body.0.resnets.0.block1.weight": Place("", "diffusers"),
    "adapter.body.0.in_conv.weight": Place("", "diffusers"),
}


class ControlFile:
    """An opened control network. Thread-safe to read; a context manager."""

    def __init__(self, source: TensorSource, kind: Kind, part: Part) -> None:
        self.source, self.kind, self.part = source, kind, part

    @property
    def name(self) -> str:
        return self.source.path.name

    @property
    def config(self) -> ControlNetConfig | LLLiteConfig | T2IAdapterConfig:
        assert isinstance(self.part.config, ControlNetConfig | LLLiteConfig | T2IAdapterConfig)
        return self.part.config

    @property
    def needs_base(self) -> bool:
        """Whether the weights are differences to those of the model's UNet."""
        return self.kind == "control_lora" or self.part.prefix + DIFFERENCE in self.source.tensors

    def check(self, unet: UNetConfig | None = None) -> None:
        """Whether it can be loaded (for a model with this UNet), by headers alone. Raises CheckpointError."""
        tensors = self.source.tensors
        check_part(self.part, tensors, f"{quoted(self.name)}: {self.kind}")
        markers = {self.part.prefix + DIFFERENCE, LORA}
        read = self.part.names(tensors) | markers
        rest = [n for n in tensors if n not in read]
        if self.part.prefix:
            rest = [n for n in rest if not n.startswith(WHOLE_MODEL)]
        unknown = sort_leftovers(rest)[1]
        if unknown:
            raise CheckpointError(
                f"{quoted(self.name)} was taken for a {self.kind}, but {len(unknown)} tensors are not of it: "
                f"{listed(unknown)}; it may be of another architecture"
            )
        if unet is not None and isinstance(self.config, ControlNetConfig):
            check_fits(self.name, self.config.unet, unet)

    def state_dict(
        self, *, dtype: torch.dtype | None = None, base: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Every parameter under our names, one tensor read at a time. base: the UNet's weights under its own
        names, where `needs_base`. Raises CheckpointError."""
        self.check()
        if not self.needs_base:
            reader = PartReader(self.source, self.part, dtype=dtype)
            return {rule.ours: reader.read(rule) for rule in self.part.rules}
        if base is None:
            raise CheckpointError(
                f"{quoted(self.name)} holds differences to a UNet's weights; it is loaded beside a model"
            )
        assert isinstance(self.config, ControlNetConfig)
        if self.kind == "control_lora":
            lora = LoraReader(self.source, self.part, self.config)
            return {name: lora.read(name, base, dtype) for name in lora.names}
        weights = {}
        reader = PartReader(self.source, self.part, dtype=torch.float32)
        for rule in self.part.rules:
            value = reader.read(rule)
            if rule.ours.startswith(ENCODER):
                value = value + base[rule.ours].to(value)
            weights[rule.ours] = value if dtype is None else value.to(dtype)
        return weights

    def close(self) -> None:
        self.source.close()

    def __enter__(self) -> ControlFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_control(path: str | os.PathLike[str], *, unet: UNetConfig | None = None) -> ControlFile:
    """Opens a control network, for a model with this UNet: heads and norm groups, which shapes cannot tell,
    are those of the model. Raises CheckpointError for what is none, or does not fit."""
    source = open_source(path)
    try:
        return control_of(source, unet)
    except BaseException:
        source.close()
        raise


def control_of(source: TensorSource, unet: UNetConfig | None = None) -> ControlFile:
    """The control network in an opened container."""
    tensors, name = source.tensors, source.path.name
    for mark, place in CONTROLNETS.items():
        if mark in tensors:
            shapes = below(tensors, place.prefix)
            lora = LORA in tensors
            config = derive_controlnet(shapes, place.layout, unet, lora=lora)
            if lora:
                rules = lora_rules(config, shapes)
            else:
                rules = controlnet_rules(config)
                rules = same_names(rules) if place.layout == "original" else rules
            kind: Kind = "control_lora" if lora else "controlnet"
            part = make_part(kind, place.prefix, place.layout, config, rules, tensors)
            file = ControlFile(source, kind, part)
            file.check(unet)
            return file
    for mark, place in T2I_ADAPTERS.items():
        if mark in tensors:
            adapter = derive_t2i_adapter(below(tensors, place.prefix), place.layout, unet)
            rules = t2i_adapter_rules(adapter)
            rules = same_names(rules) if place.layout == "original" else rules
            part = make_part("t2i_adapter", place.prefix, place.layout, adapter, rules, tensors)
            file = ControlFile(source, "t2i_adapter", part)
            file.check(unet)
            return file
    if any(n.startswith(LLLITE) for n in tensors):
        lllite = derive_lllite(below(tensors, ""), SDXL.unet if unet is None else unet)
        part = make_part("lllite", "", "original", lllite, tuple(lllite_rules(lllite)), tensors)
        file = ControlFile(source, "lllite", part)
        file.check(unet)
        return file
    raise CheckpointError(
        f"{quoted(name)} holds no ControlNet and no T2I-Adapter (its first tensors are "
        f"{listed(list(tensors)[:3])})"
    )


def check_fits(name: str, control: UNetConfig, unet: UNetConfig) -> None:
    """A ControlNet is a copy of its model's encoder: same widths, blocks and text. Raises CheckpointError."""
    if control.context_dim != unet.context_dim:
        known = [
            FAMILY_NAMES.get(FAMILY_OF_CONTEXT.get(d, ""), f"text {d} wide")
            for d in (control.context_dim, unet.context_dim)
        ]
        raise CheckpointError(
            f"{quoted(name)} is for {known[0]}, the model is {known[1]}; take the ControlNet of its family"
        )
    mine = (control.model_channels, control.channel_mult, control.num_res_blocks, control.y_dim)
    theirs = (unet.model_channels, unet.channel_mult, unet.num_res_blocks, unet.y_dim)
    if mine != theirs:
        raise CheckpointError(
            f"{quoted(name)} has (channels, multiples, blocks, vector) {mine}, the model {theirs}; "
            "take the ControlNet made for this model"
        )

"""Control-LoRA (Stability-AI): a ControlNet whose matrices are low-rank differences to its UNet's.

`X.up` [o, r] and `X.down` [r, i, k, k] stand for the matrix `X.weight` of the encoder half; biases, norms and
zero convolutions are stored as they are. weight = UNet's + up @ down; there is no alpha.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from minisd.config import ControlNetConfig
from minisd.errors import CheckpointError, quoted
from minisd.weights_loader.control_keymap import controlnet_rules
from minisd.weights_loader.keymap import Rules
from minisd.weights_loader.part import Part, PartReader
from minisd.weights_loader.rule import Rule, without_ones
from minisd.weights_loader.source import TensorSource

Shapes = Mapping[str, tuple[int, ...]]


def lora_rules(config: ControlNetConfig, shapes: Shapes) -> Rules:
    """One rule for each tensor that such a file must hold."""
    rules: list[Rule] = []
    for rule in controlnet_rules(config):
        module = rule.ours.removesuffix(".weight")
        up, down = f"{module}.up", f"{module}.down"
        if rule.ours == module or up not in shapes:
            rules.append(Rule(rule.ours, rule.shape, rule.ours))
            continue
        rank = shapes.get(down, (0,))[0]
        ones = (1, 1) if len(rule.shape) == 4 else ()
        rules.append(Rule(up, (rule.shape[0], rank, *ones), up))
        rules.append(Rule(down, (rank, *rule.shape[1:]), down))
    return tuple(rules)


class LoraReader:
    """Reads whole parameters of a Control-LoRA, checked before."""

    def __init__(self, source: TensorSource, part: Part, config: ControlNetConfig) -> None:
        self._rules = {r.ours: r for r in part.rules}
        self._shapes = {r.ours: r.shape for r in controlnet_rules(config)}
        self._reader = PartReader(source, part, dtype=torch.float32)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the ControlNet's parameters."""
        return tuple(self._shapes)

    def read(self, name: str, base: Mapping[str, Tensor], dtype: torch.dtype | None) -> Tensor:
        """The parameter in `dtype` (None: float32). base: the UNet's weights."""
        module = name.removesuffix(".weight")
        if f"{module}.up" not in self._rules:
            value = self._reader.read(self._rules[name])
        else:
            shape = self._shapes[name]
            if name not in base or without_ones(tuple(base[name].shape)) != without_ones(shape):
                raise CheckpointError(
                    f"this Control-LoRA changes {quoted(name)} {list(shape)}, which the model's UNet has "
                    "not; take the one made for its family"
                )
            up = self._reader.read(self._rules[f"{module}.up"]).flatten(1)
            down = self._reader.read(self._rules[f"{module}.down"]).flatten(1)
            value = base[name].float().cpu().reshape(shape) + (up @ down).reshape(shape)
        return value if dtype is None else value.to(dtype)

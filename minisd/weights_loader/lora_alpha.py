"""The number alpha of an adapter's module: a tensor beside its factors, or in the metadata of a PEFT file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from minisd.errors import CheckpointError, quoted
from minisd.weights_loader.lora_kinds import Kind

PEFT_METADATA = "lora_adapter_metadata"
MAX_PEFT_METADATA = 1_000_000  # characters


def read_alpha(here: str, alpha: Tensor, kind: Kind) -> float:
    if alpha.numel() != 1:
        raise CheckpointError(f"{here}: alpha is an array {list(alpha.shape)}; expected one number")
    value = float(alpha)
    if not math.isfinite(value) or value < 0 or (value == 0 and kind.name != "oft"):
        raise CheckpointError(f"{here}: alpha is {value}; expected a positive number")
    return value


@dataclass(frozen=True)
class PeftNumbers:
    """Alphas that recent diffusers keeps in the metadata: of each part, with exceptions by module."""

    values: Mapping[str, object]

    def of(self, name: str) -> tuple[float | None, bool]:
        """(alpha, whether divided by the root of the rank) of a module by its name in the file."""
        for part in ("text_encoder_2", "text_encoder", "unet", ""):
            prefix = f"{part}." if part else ""
            if name.startswith(prefix) and f"{prefix}lora_alpha" in self.values:
                break
        else:
            return None, False
        alpha = self.values[f"{prefix}lora_alpha"]
        patterns = self.values.get(f"{prefix}alpha_pattern")
        module = name.removeprefix(prefix)
        for pattern, other in patterns.items() if isinstance(patterns, dict) else ():
            if module == pattern or module.endswith(f".{pattern}"):  # a name, not read as an expression
                alpha = other
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
            raise CheckpointError(
                f"the metadata say lora_alpha {quoted(alpha, 40)} of {quoted(name)}; "
                "expected a positive number"
            )
        return float(alpha), self.values.get(f"{prefix}use_rslora") is True


def peft_numbers(metadata: Mapping[str, str], where: str) -> PeftNumbers:
    text = metadata.get(PEFT_METADATA)
    if text is None:
        return PeftNumbers({})
    try:
        if len(text) > MAX_PEFT_METADATA:
            raise ValueError("too long")
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{where}: the metadata {PEFT_METADATA} are not JSON: {quoted(error)}"
        ) from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{where}: the metadata {PEFT_METADATA} are no object; the file is damaged")
    return PeftNumbers(values)

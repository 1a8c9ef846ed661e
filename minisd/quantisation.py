"""Writing a model with its weights in few bits: a file that loads again, and says itself what it holds."""

from __future__ import annotations

import os
from pathlib import Path

from minisd.errors import PlanError, quoted
from minisd.plan_storage import shapes_of
from minisd.quantise.sensitive import Layers, layers_of
from minisd.weights_loader.checkpoint import Checkpoint, open_checkpoint
from minisd.weights_loader.convert import convert
from minisd.wishes import QUANTS, group_of


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    unet: str = "auto",
    text: str = "auto",
    vae: str = "auto",
    dtype: str | None = None,
    ema: bool | None = None,
) -> Path:
    """Write the model at `source` to `target`, a safetensors file that must not exist; returns its path.

    unet, text, vae: how weights of these parts are stored, "int8", "nf4", ... (`quantise.schemes`); "none" is
    wide, "auto" as they are. What stays wide is in `quantise.sensitive`; dtype: its float32, float16 or
    bfloat16 (None keeps each tensor's). ema: take the EMA copy as the weights. One tensor at a time is in
    memory. Raises CheckpointError, PlanError for a scheme that is not there; nothing is left behind then.
    """
    wishes = {"unet": unet, "text": text, "vae": vae}
    for wish in wishes.values():
        if wish not in QUANTS:
            raise PlanError(f"quant {quoted(wish)} is not one of {', '.join(QUANTS)}")
    with open_checkpoint(source) as checkpoint:
        layers = {
            part: layers_by(checkpoint, part, wishes[group_of(part)])
            for part in checkpoint.parts
            if part != "taesd"
        }
        return convert(checkpoint, target, dtype=dtype, ema=ema, layers=layers)


def layers_by(checkpoint: Checkpoint, part: str, wish: str) -> Layers:
    """What a wish comes to for a part of this checkpoint."""
    if wish == "auto":
        return checkpoint.stored_layers(part)
    if wish == "none" or checkpoint.config is None:
        return ()
    return layers_of(part, shapes_of(checkpoint.config, part), wish)

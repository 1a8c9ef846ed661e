"""Rewriting a model: `weights_loader/convert.py` for the weights, with the tokenizer that a diffusers folder
holds beside them."""

from __future__ import annotations

import os
from pathlib import Path

from minisd.text.tokenizer_files import tokenizer_files
from minisd.weights_loader.checkpoint import open_checkpoint
from minisd.weights_loader.convert import convert as convert_weights


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    layout: str = "original",
    dtype: str | None = None,
    prune_ema: bool = True,
    ema: bool | None = None,
) -> Path:
    """Write the model at `source` to `target`, which must not exist, and return that path.

    layout: "original" (one safetensors file) or "diffusers" (a folder that its from_pretrained opens). dtype:
    float32, float16, bfloat16; None keeps each tensor's. ema: take the EMA copy as the weights;
    prune_ema=False keeps it beside them (original layout). Raises CheckpointError; nothing is left behind
    then.
    """
    with open_checkpoint(source) as checkpoint:
        tokenizers = None
        if layout == "diffusers" and checkpoint.config is not None:
            tokenizers = tokenizer_files(checkpoint.config)
        return convert_weights(
            checkpoint,
            target,
            layout=layout,
            dtype=dtype,
            prune_ema=prune_ema,
            ema=ema,
            tokenizers=tokenizers,
        )

"""Rewriting a model: `weights_loader/convert.py` for the weights, with parts and adapters put into them, and
with the tokenizer that a diffusers folder holds beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from minisd.baking import baked, opened_uses
from minisd.hashes import file_sha256
from minisd.lora_use import LoraUse
from minisd.text.tokenizer_files import tokenizer_files
from minisd.weights_loader.checkpoint import Checkpoint, open_checkpoint
from minisd.weights_loader.convert import convert as convert_weights

KEY = "minisd.baked"


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    layout: str = "original",
    dtype: str | None = None,
    prune_ema: bool = True,
    ema: bool | None = None,
    vae: str | os.PathLike[str] | None = None,
    text_encoder: str | os.PathLike[str] | None = None,
    text_encoder_2: str | os.PathLike[str] | None = None,
    loras: Sequence[LoraUse | str] = (),
) -> Path:
    """Write the model at `source` to `target`, which must not exist, and return that path.

    layout: "original" (one safetensors file) or "diffusers" (a folder that its from_pretrained opens). dtype:
    float32, float16, bfloat16; float8_e4m3fn, float8_e5m2 for matrices of UNet and text encoders, with
    float16 for the rest; None keeps each tensor's. ema: take the EMA copy as the weights; prune_ema=False
    keeps it beside them (original layout). vae, text_encoder, text_encoder_2: files whose part is written
    instead. loras: adapters that become part of the weights, as a LoraUse whose name is a path, or
    `PATH[:WEIGHT[:TE]]`. Raises CheckpointError, RequestError; nothing is left behind then.
    """
    with ExitStack() as files:
        checkpoint = files.enter_context(open_checkpoint(source))
        own = (checkpoint.name, source)
        swaps = {"vae": vae, "text_encoder": text_encoder, "text_encoder_2": text_encoder_2}
        used = {part: path for part, path in swaps.items() if path is not None}
        for part, path in used.items():
            checkpoint = checkpoint.swap(part, files.enter_context(open_checkpoint(path)))
        uses = opened_uses(checkpoint, [LoraUse.of(value) for value in loras])
        metadata = {}
        if used or uses:
            account = {
                "model": {"name": own[0], "sha256": file_sha256(own[1])},
                "parts": {p: {"name": Path(f).name, "sha256": file_sha256(f)} for p, f in used.items()},
                "loras": [{**use.to_dict(), "name": a.name, "sha256": a.sha256} for a, use in uses],
            }
            metadata[KEY] = json.dumps(account, sort_keys=True)
        if uses:
            checkpoint, ema = baked(checkpoint, uses, ema=ema), None
        return write_model(
            checkpoint, target, layout=layout, dtype=dtype, prune_ema=prune_ema, ema=ema, metadata=metadata
        )


def write_model(
    checkpoint: Checkpoint,
    target: str | os.PathLike[str],
    *,
    layout: str = "original",
    dtype: str | None = None,
    prune_ema: bool = True,
    ema: bool | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write an opened checkpoint; see `convert`. metadata: further entries of the files' headers."""
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
        metadata=metadata,
    )

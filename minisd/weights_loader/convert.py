"""Writes a checkpoint anew: original single file or diffusers folder, other precision, with or without its
EMA copy.

Tensors go through one at a time, so a model larger than memory can be converted. Both layouts carry
`minisd.config`, which says what shapes cannot. A folder has weights and configs of every part and the
scheduler's, no tokenizer files: diffusers takes those of the family from elsewhere (`tokenizer=`).
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from minisd.config import ModelConfig, TextUse
from minisd.errors import CheckpointError, quoted
from minisd.quantise.schemes import SCHEMES, Form, form_of, quantise
from minisd.quantise.sensitive import Layers, names_of
from minisd.weights_loader import keymap
from minisd.weights_loader.checkpoint import Checkpoint
from minisd.weights_loader.config_json import KEY, config_to_json
from minisd.weights_loader.diffusers_config import (
    Json,
    dump,
    model_index,
    scheduler_json,
    text_json,
    unet_json,
    vae_json,
)
from minisd.weights_loader.folder import CONFIG_FILE
from minisd.weights_loader.keymap import Rules
from minisd.weights_loader.modelspec import model_spec
from minisd.weights_loader.networks import ema_names
from minisd.weights_loader.part import FP8, PartReader
from minisd.weights_loader.prediction import MARKERS
from minisd.weights_loader.quantised import KEY as QUANTISED
from minisd.weights_loader.quantised import Declared, beside, declaration
from minisd.weights_loader.rule import Rule, expected_theirs, same_names, theirs_from
from minisd.weights_loader.safetensors_file import write_safetensors
from minisd.weights_loader.source import TensorInfo

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
TEXT_PARTS = ("text_encoder", "text_encoder_2")
BESIDE_FP8 = torch.float16  # norms, biases and the VAE, which 8 bits would harm and which are small
Item = tuple[TensorInfo, Callable[[], Tensor]]


def convert(
    checkpoint: Checkpoint,
    target: str | os.PathLike[str],
    *,
    layout: str = "original",
    dtype: str | torch.dtype | None = None,
    prune_ema: bool = True,
    ema: bool | None = None,
    tokenizers: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    layers: Mapping[str, Layers] | None = None,
) -> Path:
    """Writes `checkpoint`, with its swapped parts, to `target` and returns the path.

    layout: "original" writes one safetensors file, "diffusers" a folder. dtype: float32, float16 or bfloat16
    for all floating point tensors; float8_e4m3fn or float8_e5m2 for matrices and convolutions of UNet and
    text encoders, with float16 for the rest; None keeps each one's. ema: write the EMA copy as the weights
    (None: see `Checkpoint.ema_choice`). prune_ema=False keeps the EMA copy beside the plain weights, in the
    original layout. tokenizers: {"tokenizer/vocab.json": text, ...}, which a diffusers folder holds beside
    the weights. metadata: further entries of the files' headers. layers: by part, (module, scheme) of weights
    to be stored in few bits, in the original layout.

    What is left unread when loading is not written; see `Checkpoint.report()`. Raises CheckpointError when
    the target exists, a part is damaged, or the layout cannot hold the model. Nothing is left behind then.
    Parts that the checkpoint lacks are lacking in the target.
    """
    target = Path(target)
    config = checkpoint.config
    if config is None:
        summary = checkpoint.detection.summary
        raise CheckpointError(f"{quoted(checkpoint.name)} is {summary}; only models with a UNet convert")
    if target.exists():
        raise CheckpointError(f"{quoted(target.name)} exists; give a name that is free")
    if layout not in ("original", "diffusers"):
        raise CheckpointError(f"layout is {quoted(layout)}; known are original and diffusers")
    wanted = _dtype(dtype)
    take_ema = checkpoint.ema_choice(ema)[0]
    if not prune_ema and (layout == "diffusers" or take_ema or not checkpoint.detection.has_ema):
        raise CheckpointError(
            "the EMA copy can be kept only beside plain weights, in the original layout, "
            "and from a file that has one"
        )
    for part in checkpoint.parts:
        checkpoint.check(part)
    if layout == "original":
        declared: Declared = {}
        items = list(_original(checkpoint, config, wanted, take_ema, layers or {}, declared))
        if not prune_ema:
            items += _ema(checkpoint, wanted)
        stored = {QUANTISED: declaration(declared)} if declared else {}
        told = _metadata(config, checkpoint.path.stem) | stored | dict(metadata or {})
        write_safetensors(target, items, told)
        return target
    if layers:
        raise CheckpointError("the diffusers layout has no place for quantised weights; write the original")
    told = {"format": "pt"} | dict(metadata or {})
    _write_folder(checkpoint, config, target, wanted, take_ema, tokenizers or {}, told)
    return target


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    known = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if known is None and dtype is not None or known is not None and known not in DTYPES.values():
        raise CheckpointError(f"dtype is {quoted(dtype)}; known are {', '.join(DTYPES)}")
    return known


def _metadata(config: ModelConfig, title: str) -> dict[str, str]:
    return {"format": "pt", KEY: config_to_json(config), **model_spec(config, title)}


def _original(
    checkpoint: Checkpoint,
    config: ModelConfig,
    dtype: torch.dtype | None,
    ema: bool,
    layers: Mapping[str, Layers],
    declared: Declared,
) -> Iterator[Item]:
    """Every tensor of the file. Those in few bits are written down in `declared`."""
    tables: dict[str, tuple[str, Rules]] = {
        "unet": ("model.diffusion_model.", same_names(keymap.unet_rules(config.unet))),
        "vae": ("first_stage_model.", same_names(keymap.vae_rules(config.vae))),
    }
    for use in config.text:
        rules = keymap.text_rules(use.config) if use.layout == "openclip" else keymap.hf_rules(use.config)
        tables[use.part] = (use.prefix, rules)
    if "taesd" in checkpoint.parts:
        tables["taesd"] = ("taesd.", same_names(checkpoint.part("taesd").rules))
    for part, (prefix, rules) in tables.items():
        if part in checkpoint.parts:
            few = layers.get(part, ())
            yield from _items(checkpoint, part, prefix, rules, dtype, ema, names_of(few), declared)
            if any(SCHEMES[scheme].whole for _, scheme in few):  # the mark by which others know scaled fp8
                codes = next(SCHEMES[scheme].codes for _, scheme in few if SCHEMES[scheme].whole)
                yield TensorInfo(prefix + "scaled_fp8", codes, (0,)), partial(torch.zeros, 0, dtype=codes)
    if config.family == "sdxl":  # where other programs look for them
        markers = ["v_pred"] if config.prediction == "v" else []
        for marker in [*markers, "ztsnr"] if config.zero_terminal_snr else markers:
            yield TensorInfo(marker, torch.float32, (0,)), partial(torch.zeros, 0)
    for name, info in checkpoint.source.tensors.items():
        if name in MARKERS and name.startswith("edm_"):  # these carry numbers
            yield info, partial(checkpoint.source.read, name)


def _items(
    checkpoint: Checkpoint,
    part: str,
    prefix: str,
    rules: Rules,
    dtype: torch.dtype | None,
    ema: bool,
    schemes: Mapping[str, str],
    declared: Declared,
) -> Iterator[Item]:
    """The tensors of a part under the names of `rules`, each made when it is written. schemes: of the weights
    that are to be stored in few bits."""
    copy = ema if part == "unet" else None
    narrow = dtype if dtype in FP8 else None
    source = checkpoint.reader(part, ema=copy)
    reader = checkpoint.reader(part, dtype=torch.float32 if narrow else dtype, ema=copy)
    other = checkpoint.reader(part, dtype=BESIDE_FP8, ema=copy) if narrow else reader
    by_name = {rule.ours: rule for rule in checkpoint.part(part).rules}
    stacked: dict[str, list[Rule]] = {}
    for rule in rules:
        stacked.setdefault(rule.theirs, []).append(rule)
    for theirs, shape in expected_theirs(rules).items():
        rows, small = stacked[theirs], part in ("unet", *TEXT_PARTS) and len(shape) >= 2
        scheme = schemes.get(rows[0].ours)
        if scheme is not None:
            declared[prefix + theirs] = scheme, shape
            sources = [by_name[rule.ours] for rule in rows]
            yield from _stored(source, prefix + theirs, shape, scheme, rows, sources)
            continue
        used = reader if small else other
        kept = narrow if narrow and small else used.dtype_of(by_name[rows[0].ours])
        info = TensorInfo(prefix + theirs, kept, shape)

        def make(rows: list[Rule] = rows, info: TensorInfo = info, used: PartReader = used) -> Tensor:
            [(_, tensor)] = theirs_from(rows, lambda name: used.read(by_name[name]).to(wide(info.dtype)))
            if info.dtype in FP8:
                check_range(tensor, info)
            return tensor.to(info.dtype)

        yield info, make


def _stored(
    reader: PartReader, name: str, shape: tuple[int, ...], scheme: str, rows: list[Rule], sources: list[Rule]
) -> Iterator[Item]:
    """The tensors of one weight in few bits: as the source has it where it is stored so there."""

    def form() -> Form:
        if len(sources) == 1:
            return reader.quantised(sources[0], scheme)
        by_name = {rule.ours: rule for rule in sources}
        [(_, tensor)] = theirs_from(rows, lambda ours: reader.read(by_name[ours]).float())
        return quantise(tensor, scheme)

    for part, (dtype, size) in form_of(scheme, shape).items():
        yield (
            TensorInfo(beside(name, part), dtype, size),
            lambda part=part, size=size: form()[part].reshape(size),
        )


def wide(dtype: torch.dtype) -> torch.dtype:
    """In which a tensor of this dtype is put together."""
    return torch.float32 if dtype in FP8 else dtype


def check_range(tensor: Tensor, info: TensorInfo) -> None:
    """Raises CheckpointError for values that 8 bits would cut off; torch does so without a word."""
    largest, limit = float(tensor.abs().max()) if tensor.numel() else 0.0, torch.finfo(info.dtype).max
    if largest > limit:
        raise CheckpointError(
            f"{quoted(info.name)} holds {largest:g}; {str(info.dtype)[6:]} ends at {limit:g}; use another"
        )


def _ema(checkpoint: Checkpoint, dtype: torch.dtype | None) -> Iterator[Item]:
    """The EMA copy under its own names."""
    source = checkpoint.source
    for copy in ema_names(checkpoint.part("unet"), source.tensors).values():
        info = source.tensors[copy]
        wanted = BESIDE_FP8 if dtype in FP8 and len(info.shape) < 2 else dtype
        yield replace(info, dtype=wanted or info.dtype), partial(source.read, copy, dtype=wanted)


def _write_folder(
    checkpoint: Checkpoint,
    config: ModelConfig,
    target: Path,
    dtype: torch.dtype | None,
    ema: bool,
    tokenizers: Mapping[str, str],
    metadata: Mapping[str, str],
) -> None:
    config = replace(config, text=tuple(_diffusers_use(use, config) for use in config.text))
    tables: dict[str, tuple[str, Rules, Json]] = {
        "unet": ("diffusion_pytorch_model", keymap.unet_rules(config.unet), unet_json(config)),
        "vae": ("diffusion_pytorch_model", keymap.vae_rules(config.vae), vae_json(config)),
    }
    for use in config.text:
        tables[use.part] = ("model", keymap.hf_rules(use.config), text_json(use))
    if "taesd" in checkpoint.parts:
        raise CheckpointError("the diffusers layout has no place for a TAESD; write the original layout")
    texts = {"scheduler/scheduler_config.json": dump(scheduler_json(config))}
    texts |= {CONFIG_FILE: config_to_json(config) + "\n"}
    present = [part for part in tables if part in checkpoint.parts]
    folders = {name.split("/")[0] for name in tokenizers}
    texts |= tokenizers
    texts |= {"model_index.json": dump(model_index(config, [*present, *folders]))}
    texts |= {f"{part}/config.json": dump(tables[part][2]) for part in present}
    part_of = target.with_name(f".{target.name[:64]}.{secrets.token_hex(8)}.part")
    try:
        for name, text in texts.items():
            (part_of / name).parent.mkdir(parents=True, exist_ok=True)
            (part_of / name).write_text(text, encoding="utf-8")
        for part in present:
            stem, rules, _ = tables[part]
            items = _items(checkpoint, part, "", rules, dtype, ema, {}, {})
            write_safetensors(part_of / part / f"{stem}.safetensors", items, metadata)
        part_of.rename(target)
    except OSError as error:
        raise CheckpointError(f"{quoted(target.name)} cannot be written: {quoted(error)}") from error
    finally:
        shutil.rmtree(part_of, ignore_errors=True)  # nothing is there after the rename


def _diffusers_use(use: TextUse, config: ModelConfig) -> TextUse:
    """The encoder as diffusers' pipelines use it: SD1 and SD2 read the last layer, SDXL the last but one."""
    text = use.config
    if config.size_conditioning == "none":
        if not use.final_norm:
            raise CheckpointError("diffusers applies the final norm in SD1 and SD2; this model does without")
        return replace(use, config=replace(text, layers=text.layers - use.skip), skip=0)
    if use.skip != 1 or use.final_norm or not text.final_layer_norm:
        raise CheckpointError(
            f"diffusers reads the last but one of all layers of {use.part}; in this file layers are missing; "
            f"take the {use.part} from another file"
        )
    return use

"""What a file is: kind, family, variant, configs, prediction and parts, from keys, shapes and metadata; never
from its name.

`detect` is a pure function of what the file's header declares. It says what is there and how it knows;
whether every tensor fits is decided by the strict load (`checkpoint.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor

from minisd.config import (
    FAMILIES,
    PLAYGROUND_MEAN,
    PLAYGROUND_SCALE,
    PLAYGROUND_STD,
    ModelConfig,
    TextUse,
    UNetConfig,
    VAEConfig,
)
from minisd.errors import CheckpointError
from minisd.weights_loader.config_json import KEY, Declared, config_from_json
from minisd.weights_loader.derive import Heads, derive_unet, published_heads
from minisd.weights_loader.detect_parts import detect_parts
from minisd.weights_loader.detection import Detection
from minisd.weights_loader.diffusers_config import norm_groups, unet_heads
from minisd.weights_loader.family import family_of, text_key, variant_of
from minisd.weights_loader.kinds import FAMILY_NAMES, NOT_RUN, not_a_model, other_task
from minisd.weights_loader.networks import check_groups, ema_names, text_part, unet_part, vae_part
from minisd.weights_loader.part import contents
from minisd.weights_loader.places import Place, below, places
from minisd.weights_loader.prediction import NORM1, training_of
from minisd.weights_loader.source import Tensors
from minisd.weights_loader.taesd import taesd_part

Read = Callable[[str], Tensor]


def detect(tensors: Tensors, metadata: Mapping[str, str], read: Read | None = None) -> Detection:
    """Tells what a file with these tensors is.

    `read` gives one tensor by name, for the statistic that tells SD2's eps and v weights apart; without it
    that is a guess. Raises CheckpointError only where a file of ours contradicts itself (blocks that make no
    UNet, bad `minisd.config`).
    """
    other = not_a_model(tensors)
    if other is not None:
        evidence = (f"{other.mark} is there: {other.kind}",)
        return Detection(
            other.kind, other.family, summary=other.what, evidence=evidence, refusal=other.sentence
        )
    if strange := other_task(tensors):
        what, why = strange
        return Detection(
            "foreign", summary=what, evidence=(why,), refusal=f"this is {what} ({why}), which {NOT_RUN}"
        )
    declared = config_from_json(metadata[KEY]) if KEY in metadata else None
    found: dict[str, list[Place]] = {}
    for place in places(tensors):
        found.setdefault(place.kind, []).append(place)
    if "unet" in found:
        return _model(tensors, metadata, read, declared, found)
    return detect_parts(tensors, metadata, declared, found)


def _model(
    tensors: Tensors,
    metadata: Mapping[str, str],
    read: Read | None,
    declared: Declared | None,
    found: Mapping[str, list[Place]],
) -> Detection:
    place = found["unet"][0]
    unet, heads = _unet_config(tensors, metadata, declared, place)
    family, why = family_of(unet, declared, found, text_key(tensors, place))
    row = FAMILIES[family]
    evidence = [why, str(heads)]
    parts = {"unet": unet_part(tensors, place, unet)}

    vae = row.vae
    if "vae" in found:
        published = row.vae.scale_factor, f"published for {FAMILY_NAMES[family]}"
        parts["vae"], vae, said = vae_part(tensors, found["vae"][0], metadata, declared, *published)
        evidence.append(said)
    uses = []
    for use in row.text:
        where = _text_place(use, row, found.get("text", []))
        if where is None:
            uses.append(use)
            continue
        part, use = text_part(tensors, where, use, declared, metadata)
        parts[use.part] = part
        uses.append(use)
    if "taesd" in found:
        parts["taesd"] = taesd_part(tensors, found["taesd"][0])

    variant, strange = variant_of(unet, vae.z_channels, declared)
    if strange:
        what = f"a model of {FAMILY_NAMES[family]} build for another task"
        refusal = f"this is {what} ({strange}), which {NOT_RUN}"
        return Detection("foreign", family, summary=what, evidence=(*evidence, strange), refusal=refusal)
    if variant != "none":
        evidence.append(f"the UNet takes {unet.in_channels} channels: {variant}")
    norm1 = next((place.prefix + r.theirs for r in parts["unet"].rules if r.ours == NORM1), "")
    training = training_of(
        tensors,
        metadata,
        family,
        plain=variant == "none",
        declared=declared,
        read_norm1=partial(read, norm1) if read is not None and norm1 in tensors else None,
    )
    evidence.append(training.evidence)
    if training.prediction == "edm_eps":
        vae = _playground(vae)
        evidence.append(f"latents of mean {vae.latents_mean} and spread {vae.latents_std}: as published")
    size = 768 if family == "sd2" and training.prediction == "v" else row.size
    config = replace(
        row,
        unet=unet,
        vae=vae,
        text=tuple(uses),
        prediction=training.prediction,
        zero_terminal_snr=training.zero_terminal_snr,
        concat=variant,
        schedule=training.schedule,
        size=declared.size if declared else size,
        size_conditioning=declared.size_conditioning if declared else row.size_conditioning,
    )
    kind = "unet" if list(parts) == ["unet"] and place.prefix == "" else "checkpoint"
    task = {"inpaint": " inpainting", "ip2p": " instruct-pix2pix", "depth": " depth"}.get(variant, "")
    ema = ema_names(parts["unet"], tensors)
    present = {name: part.contents for name, part in parts.items()}
    if depth := [t for n, t in tensors.items() if n.startswith("depth_model.")]:
        present["depth_model"] = contents(depth)
    if ema:
        present["ema"] = contents(tensors[n] for n in ema.values())
    return Detection(
        kind=kind,
        family=family,
        summary=f"an {FAMILY_NAMES[family]}{task} {'UNet' if kind == 'unet' else 'checkpoint'}",
        variant=variant,
        config=config,
        prediction=training.prediction,
        zero_terminal_snr=training.zero_terminal_snr,
        prediction_sure=training.sure,
        parts=parts,
        present=present,
        has_ema=bool(ema),
        evidence=tuple(evidence),
    )


def _unet_config(
    tensors: Tensors, metadata: Mapping[str, str], declared: Declared | None, place: Place
) -> tuple[UNetConfig, Heads]:
    shapes = below(tensors, place.prefix)
    layout = "original" if place.layout == "original" else "diffusers"
    unet = derive_unet(shapes, layout)
    heads = published_heads(unet.context_dim, unet.linear_proj)
    if declared:
        heads = Heads(declared.num_heads, declared.head_dim, "minisd.config in the metadata")
    elif said := metadata.get(place.prefix + "config.json"):
        heads = unet_heads(said, unet) or heads
    said = metadata.get(place.prefix + "config.json")
    groups = norm_groups(said, "unet/config.json") if said else 32
    groups = declared.norm_groups if declared else groups
    unet = replace(unet, num_heads=heads.num_heads, head_dim=heads.head_dim, norm_groups=groups)
    depths = [*unet.depth_in, *unet.depth_out]
    widths = [unet.model_channels * m for m in unet.channel_mult]
    check_groups("UNet", widths, groups)
    unit = heads.num_heads or heads.head_dim or 1
    if any(depths) and any(w % unit for w in widths):
        raise CheckpointError(
            f"the UNet is {widths} wide, which {unit} heads or head widths do not divide; "
            "a file of other widths than the published ones must say its heads in the metadata minisd.config"
        )
    return unet, heads


def _playground(vae: VAEConfig) -> VAEConfig:
    """With the mean and spread of Playground v2.5, the one model trained as EDM with eps."""
    return replace(
        vae,
        scale_factor=PLAYGROUND_SCALE,
        latents_mean=PLAYGROUND_MEAN,
        latents_std=PLAYGROUND_STD,
    )


def _text_place(use: TextUse, row: ModelConfig, found: list[Place]) -> Place | None:
    """The encoder in the file that this row of the family means."""
    wanted = [use.prefix, use.part + "/"]
    if len(row.text) == 1:  # then any encoder of the file is the one
        wanted += [p.prefix for p in found if p.prefix != ""]
    return next((p for prefix in wanted for p in found if p.prefix == prefix), None)

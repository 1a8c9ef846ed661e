"""Flags that commands share: the fields of Request, and what loads a model."""

from __future__ import annotations

import argparse
import typing
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING

from minisd.control import ControlUnit
from minisd.lora_use import LoraUse
from minisd.picture import Picture
from minisd.picture_prompt import PicturePrompt
from minisd.region import Region
from minisd.request import Request
from minisd.wishes import CALLS, OFFLOADS, QUANTS, Wishes, named_of

if TYPE_CHECKING:
    from minisd.engine import Engine

FIELD_HELP: dict[str, str] = {
    "negative_prompt": "what the picture should not show",
    "prompt_2": "SDXL: another prompt for the second text encoder (default: the same)",
    "negative_prompt_2": "SDXL: another negative prompt for the second text encoder (default: the same)",
    "prompt_to": "a second prompt: the picture lies between the two",
    "prompt_blend": "0..1: how far towards the second prompt",
    "prompt_path": "from prompt to prompt along an arc or a line",
    "styles": "names from the table of styles (--styles-file)",
    "image": "a picture to start from",
    "mask": "white where that picture is to be drawn anew, black where it is to stay",
    "strength": "0..1: how far the picture to start from is turned to noise (default: 0.75)",
    "resize": "how it is brought to another size (default: pad, or stretch to a size that is given)",
    "outpaint": "LEFT TOP RIGHT BOTTOM: pixels to draw around the picture",
    "mask_blur": "pixels over which the drawn part passes into the picture",
    "mask_invert": "draw where the mask is black",
    "mask_fill": "what the masked part starts from: the picture, colours around it, noise, nothing",
    "mask_area": "draw the whole picture, or only the masked part, at full size",
    "mask_padding": "pixels around the masked part that are drawn with it",
    "mask_soft": "grey in the mask: how far that place is changed (differential inpainting)",
    "image_cfg_scale": "instruct-pix2pix: how strongly the picture holds",
    "controls": "model=FILE,image=FILE,weight=0.8,preprocessor=canny: a control network; once for each",
    "loras": "NAME[:WEIGHT[:TE]] of the folder --lora-dir, or a file: an adapter; once for each; "
    "also :te2=, :start=, :end=, :blocks=",
    "picture_prompts": "model=FILE,encoder=FILE,image=FILE,weight=0.8: an IP-Adapter; once for each",
    "hires_scale": "1..8: draw a second pass at a size this many times larger",
    "hires_upscaler": "enlarges the first pass: lanczos, bicubic, latent, latent_bicubic, latent_nearest "
    "or the file of an upscaler such as RealESRGAN_x4plus.pth",
    "hires_strength": "0..1: how far the enlarged picture is turned to noise again",
    "hires_steps": "sampling steps of the second pass (default: as the first)",
    "refiner_at": "0..1: the part of the run after which --refiner takes over (default: 0.8 with one)",
    "refiner_rule": "what that part is counted in",
    "diffusion_tile": "pixels, a multiple of 8: the network sees tiles of this size, for large pictures",
    "seamless": "the picture goes on at its opposite edge: left and right (x), above and below (y), xy",
    "regions": "LEFT,TOP,RIGHT,BOTTOM: PROMPT (shares 0..1), or MASK.png: PROMPT; with PLACE@WEIGHT: PROMPT; "
    "a part of the picture with a prompt of its own; once for each",
    "inversion": "begin with the noise that the picture itself leads to, by this solver",
    "inversion_prompt": "what the picture shows, for its way to noise",
    "depth": "SD2 depth: a depth map, white is near",
    "width": "pixels, a multiple of 8 (default: the size the model was trained at)",
    "height": "pixels, a multiple of 8 (default: the size the model was trained at)",
    "seed": "picture i of a batch is the picture of seed + i alone (default: drawn at random and told)",
    "count": "number of pictures",
    "steps": "number of sampling steps",
    "sampler": "any name that `minisd samplers` lists, ours or another program's",
    "schedule": "which noise levels the steps visit; `minisd samplers` lists them",
    "cfg_scale": "guidance: how strongly the prompt pulls; 1 is off",
    "cfg_rescale": "0..1: keeps contrast down at high guidance",
    "guidance_start": "0..1: guidance begins at this part of the run",
    "guidance_end": "0..1: and ends at this one",
    "apg_eta": "share of guidance along the picture itself; 1 is off (adaptive projected guidance)",
    "apg_norm": "largest norm of the guidance; 0 is off",
    "apg_momentum": "weight of earlier guidance, usually negative; 0 is off",
    "mimic_scale": "keeps the range that guidance at this scale has; 0 is off (dynamic thresholding)",
    "mimic_percentile": "0.5..1: share of values held to that range",
    "pag_scale": "perturbed-attention guidance; 0 is off",
    "sag_scale": "self-attention guidance; 0 is off",
    "slg_scale": "skip-layer guidance; 0 is off",
    "slg_start": "0..1: skip-layer guidance begins at this part of the run",
    "slg_end": "0..1: and ends at this one",
    "freeu": "B1 B2 S1 S2: stronger backbone, weaker skips (1 1 1 1 is off)",
    "token_merging": "0..0.75: share of tokens that self-attention does without; 0 is off",
    "token_merging_levels": "of so many resolutions, from the finest with attention",
    "hypertile": "pixels, a multiple of 8: self-attention within tiles of this size",
    "hypertile_levels": "at so many resolutions, from the finest with attention",
    "deep_cache": "compute the whole network in every n-th step, its outermost blocks in all; 1 is off",
    "deep_cache_blocks": "how many outermost blocks, on both sides",
    "first_block_cache": "0..1: reuse the network but its first block, where that changes by less; 0 is off",
    "s_churn": "euler, heun, dpm_2: noise added before each step",
    "s_tmin": "churn only above this sigma",
    "s_tmax": "churn only below this sigma",
    "s_noise": "standard deviation of added noise",
    "sigmas": "noise levels by hand, falling, the last 0; replaces steps and schedule",
    "sigma_min": "lowest level of karras, exponential and the like (default: the model's)",
    "sigma_max": "their highest level (default: the model's)",
    "variation_seed": "seed of the variation (default: drawn)",
    "variation_strength": "0..1: how far towards the variation's noise",
    "seed_size": "HEIGHT WIDTH whose noise is placed in the middle, to keep a seed's composition",
    "eta_seed_delta": "added to the seed for the noise of the steps",
    "discard": "leave out the next-to-last noise level",
    "eta": "0..1: noise of stochastic samplers (default: the sampler's own)",
    "clip_skip": "text layer counted from the last; 1 is the last",
    "original_size": "SDXL: HEIGHT WIDTH the picture should look to have come from",
    "crop": "SDXL: TOP LEFT of the crop it should look to be",
    "target_size": "SDXL: HEIGHT WIDTH it should look to be for",
    "aesthetic_score": "SDXL refiner: 0..10",
    "negative_aesthetic_score": "SDXL refiner: 0..10, for the negative prompt",
    "conventions": "minisd, a1111, diffusers or sgm: sets the choices below as that program makes them",
    "initial_noise": "sigma: scaled by sigma; variance: by sqrt(1 + sigma^2)",
    "spacing": "which trained timesteps the normal schedule visits",
    "steps_offset": "added to the timesteps of leading spacing",
    "interpolation": "between trained noise levels",
    "quantised": "use only trained timesteps",
    "ddim_end": "where DDIM ends: at zero noise or at the first trained level",
    "rng": "philox: the same numbers on every machine; torch, cuda: torch's generators",
    "empty_negative": "SDXL: an empty negative prompt is all zeros, or is encoded",
    "composition": "AND in a prompt joins prompts with weights (a AND b :0.5), or is a word",
    "strength_rule": "how many steps a strength makes",
    "vae_latent": "a picture's latents: the mean or a sample",
    "mask_cells": "which latents a mask covers",
    "mask_edge": "the blur of a mask stays inside, or goes across its edge",
    "paste": "lay the given picture over the drawn one where the mask is black",
    "long_prompt": "beyond 75 tokens: further chunks cut at commas, or after 75, or nothing",
    "chunk_padding": "all prompts take as many chunks as the longest, or each its own number",
    "prompt_language": "the community's with or without A1111's accidents, Compel's weights, or plain text",
    "emphasis": "how the weights of words act (default: as the language has it)",
    "choices": "{a|b} and __list__ are drawn by seed, or are text",
}


SHORT = {"controls": ("--control",), "loras": ("--lora",), "regions": ("--region",)}  # said once for each


def add_request_flags(parser: argparse.ArgumentParser, *without: str) -> None:
    """One flag for each field of Request but the prompt and those in `without`. A flag that is not given
    leaves the field's default."""
    group = parser.add_argument_group("the picture")
    forks = parser.add_argument_group("choices in which programs differ (see --conventions)")
    hints = typing.get_type_hints(Request)
    place = group
    for field in fields(Request):
        if field.name in ("prompt", *without):
            continue
        place = forks if field.name == "conventions" else place
        kinds = [
            k for k in (typing.get_args(hints[field.name]) or (hints[field.name],)) if k is not type(None)
        ]
        options: dict[str, object] = {"default": argparse.SUPPRESS, "help": FIELD_HELP[field.name]}
        if bool in kinds:
            options["action"] = argparse.BooleanOptionalAction
        elif hints[field.name] == tuple[int, int] or tuple[int, int] in kinds:
            options |= {"type": int, "nargs": 2, "metavar": "N"}
        elif hints[field.name] in (tuple[ControlUnit, ...], tuple[PicturePrompt, ...]):
            options |= {"action": "append", "metavar": "UNIT"}
        elif hints[field.name] == tuple[Region, ...]:
            options |= {"action": "append", "metavar": "REGION"}
        elif hints[field.name] == tuple[LoraUse, ...]:
            options |= {"action": "append", "metavar": "LORA"}
        elif tuple[int, ...] in kinds:
            options |= {"type": int, "nargs": "+", "metavar": "N"}
        elif hints[field.name] == tuple[str, ...]:
            options |= {"nargs": "+", "metavar": "NAME"}
        elif tuple[float, ...] in kinds:
            options |= {"type": float, "nargs": "+", "metavar": "N"}
        elif typing.get_origin(kinds[0]) is typing.Literal:
            options["choices"] = typing.get_args(kinds[0])
        elif kinds[0] is Picture:
            options["metavar"] = "PATH"
        elif kinds[0] in (int, float):
            options |= {"type": kinds[0], "metavar": "N"}
        else:
            options["metavar"] = field.name.split("_")[-1].upper()
        if field.default not in (None, MISSING, "", ()) and "default" not in str(options["help"]):
            options["help"] = f"{options['help']} (default: {field.default})"
        flags = ["--" + field.name.replace("_", "-"), *SHORT.get(field.name, ())]
        place.add_argument(*flags, dest=field.name, **options)  # type: ignore[arg-type]


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the model")
    group.add_argument(
        "-m", "--model", metavar="PATH", help="checkpoint file or diffusers folder (default: embedded)"
    )
    group.add_argument("--vae", metavar="PATH", help="take the VAE from this file")
    group.add_argument("--text-encoder", metavar="PATH", help="take the text encoder from this file")
    group.add_argument(
        "--text-encoder-2", metavar="PATH", help="take the second text encoder (SDXL) from this file"
    )
    group.add_argument("--sha256", metavar="HEX", help="the model file must have this sha256")
    group.add_argument(
        "--signature", metavar="PATH", help="a bundle of model-signing, which must cover the model"
    )
    group.add_argument("--public-key", metavar="PEM", help="the key that this signature must be by")
    group.add_argument("--lora-dir", metavar="DIR", help="LoRA files, by their names")
    group.add_argument("--embeddings", metavar="DIR", help="textual inversions: words that prompts may use")
    group.add_argument("--wildcards", metavar="DIR", help="lists that prompts may name: __colours__")
    group.add_argument("--styles-file", metavar="CSV", help="table of styles that --styles names")
    group.add_argument("--ema", action=argparse.BooleanOptionalAction, help="take the EMA copy of the UNet")
    group.add_argument(
        "--kernels",
        default="auto",
        metavar="NAMES",
        help="for each operation; `minisd kernels list` has them",
    )
    add_plan_flags(parser)


WISH_HELP: dict[str, str] = {
    "device": "cpu, cuda, cuda:1, mps, xpu (default: what torch finds)",
    "unet_device": "the same for the UNet alone",
    "text_device": "the same for the text encoders alone",
    "vae_device": "the same for the VAE alone",
    "dtype": "float32, bfloat16, float16 (default: as the device likes)",
    "unet_dtype": "the same for the UNet alone",
    "text_dtype": "the same for the text encoders alone",
    "vae_dtype": "the same for the VAE alone",
    "quant": "store weights in few bits: int8, nf4, ... (default: as the file; none: wide)",
    "unet_quant": "the same for the UNet alone",
    "text_quant": "the same for the text encoders alone",
    "vae_quant": "the same for the VAE alone",
    "offload": "none: weights stay; staged: each network comes for its stage; streamed: block by block; "
    "disk: block by block, nothing kept (default: the first that fits)",
    "memory": "the most to take, as 6GiB or 900MB (default: what is free)",
    "cfg": "both predictions of guidance in one call, or apart (default: as the device likes)",
    "cfg_device": "make the unconditional prediction of guidance on this device, at the same time",
    "attention": "sdpa, sliced, reference",
    "vae_tile": "decode in tiles of this size, to save memory",
}
WISH_CHOICES = {"offload": OFFLOADS, "cfg": CALLS}
WISH_CHOICES |= dict.fromkeys(("quant", "unet_quant", "text_quant", "vae_quant"), QUANTS)


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each field of Wishes. A flag that is not given leaves the decision to the plan."""
    group = parser.add_argument_group("where and how it runs (`minisd plan` shows what that comes to)")
    for field in fields(Wishes):
        options: dict[str, object] = {"default": field.default, "help": WISH_HELP[field.name]}
        if field.name in WISH_CHOICES:
            options["choices"] = WISH_CHOICES[field.name]
        else:
            options["metavar"] = "PIXELS" if field.name == "vae_tile" else field.name.split("_")[-1].upper()
        if field.name == "vae_tile":
            options["type"] = int
        group.add_argument("--" + field.name.replace("_", "-"), **options)  # type: ignore[arg-type]
    group.add_argument(
        "--keep-freed-memory",
        action="store_true",
        help="faster on a CPU for more memory: what is freed stays with the program (Linux with glibc)",
    )


def wishes_of(args: argparse.Namespace) -> Wishes:
    """What the flags of `add_plan_flags` ask for."""
    return Wishes(**{f.name: getattr(args, f.name) for f in fields(Wishes)})


def engine_of(args: argparse.Namespace, request: Request | None = None) -> Engine:
    """The engine that the model flags ask for; `request` is what room is to be left for."""
    from minisd.engine import load

    return load(
        args.model,
        vae=args.vae,
        text_encoder=args.text_encoder,
        text_encoder_2=args.text_encoder_2,
        ema=args.ema,
        kernels=args.kernels,
        request=request,
        **named_of(wishes_of(args)),
        loras=args.lora_dir,
        embeddings=args.embeddings,
        wildcards=args.wildcards,
        styles=args.styles_file,
        sha256=args.sha256,
        signature=args.signature,
        public_key=args.public_key,
    )


def refiner_of(args: argparse.Namespace) -> AbstractContextManager[Engine | None]:
    """The engine of --refiner, or None."""
    if args.refiner is None:
        return nullcontext()
    from minisd.engine import load

    return load(args.refiner, **named_of(wishes_of(args)))

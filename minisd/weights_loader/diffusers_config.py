"""config.json of a diffusers folder: the few facts that shapes do not tell, read; whole configs, written.

In a UNet's config `attention_head_dim` is the number of heads, not their width: a historical misnomer that
both directions keep. Sources: diffusers 0.42 (UNet2DConditionModel, AutoencoderKL, schedulers), transformers
(CLIPTextConfig).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from minisd.config import ModelConfig, TextConfig, TextUse, UNetConfig, VAEConfig
from minisd.errors import CheckpointError, quoted
from minisd.weights_loader.derive import Heads
from minisd.weights_loader.prediction import read_json

Json = dict[str, object]


def unet_heads(text: str, unet: UNetConfig) -> Heads | None:
    """Heads from unet/config.json, None if it is silent. `unet` is the config that shapes gave."""
    where = "unet/config.json"
    data = read_json(text, where)
    said = data.get("num_attention_heads") or data.get("attention_head_dim")
    if said is None:
        return None
    levels = len(unet.channel_mult)
    listed = said if isinstance(said, list) else [said] * levels
    heads = [h for h in listed if type(h) is int and h > 0]
    if len(heads) != len(listed) or len(heads) != levels:
        raise CheckpointError(
            f"{where}: the heads are {quoted(said)}; expected one whole number, or {levels}"
        )
    if len(set(heads)) == 1:
        return Heads(heads[0], None, where)
    widths = [unet.model_channels * m for m in unet.channel_mult]
    dims = {width / h for width, h in zip(widths, heads, strict=True)}
    dim = dims.pop()
    if dims or not dim.is_integer():
        raise CheckpointError(
            f"{where}: heads {heads} at widths {widths}; expected equal heads or head widths on all levels"
        )
    return Heads(None, int(dim), where)


def norm_groups(text: str, where: str) -> int:
    """norm_num_groups from a config.json; 32 where it is silent."""
    value = read_json(text, where).get("norm_num_groups")
    if value is None:
        return 32
    if type(value) is not int or not 1 <= value <= 1024:
        raise CheckpointError(
            f"{where}: norm_num_groups is {quoted(value)}; expected a whole number in 1..1024"
        )
    return value


def vae_scale_factor(text: str) -> float | None:
    """scaling_factor from vae/config.json; None where the key is missing (files of 2022)."""
    value = read_json(text, "vae/config.json").get("scaling_factor")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-6 <= value <= 1e6:
        raise CheckpointError(
            f"vae/config.json: scaling_factor is {quoted(value)}; expected a positive number"
        )
    return float(value)


def text_numbers(text: str, where: str, config: TextConfig) -> tuple[int, str]:
    """(num_heads, activation) from a text encoder's config.json, else those of `config`."""
    data = read_json(text, where)
    heads, activation = (
        data.get("num_attention_heads", config.num_heads),
        data.get("hidden_act", config.activation),
    )
    if type(heads) is not int or not 1 <= heads <= config.width or config.width % heads:
        raise CheckpointError(
            f"{where}: num_attention_heads is {quoted(heads)}; expected a divisor of {config.width}"
        )
    if activation not in ("quick_gelu", "gelu"):
        raise CheckpointError(f"{where}: hidden_act is {quoted(activation)}; known are quick_gelu and gelu")
    return heads, str(activation)


def unet_json(config: ModelConfig) -> Json:
    """unet/config.json. Raises CheckpointError for a UNet that diffusers' class cannot build."""
    unet = config.unet
    widths = [unet.model_channels * m for m in unet.channel_mult]
    ins, outs = (
        _depths(unet.depth_in, unet.num_res_blocks),
        _depths(unet.depth_out, tuple(n + 1 for n in reversed(unet.num_res_blocks))),
    )
    if len(set(unet.num_res_blocks)) != 1:
        raise _cannot(f"residual blocks per level {list(unet.num_res_blocks)}, which diffusers wants equal")
    if unet.depth_mid == 0 or unet.mid_blocks != 2:
        raise _cannot("no attention in the middle, where diffusers keeps one residual block only")
    if outs[::-1] != ins:
        raise _cannot(
            f"transformer depths {ins} on the way in and {outs[::-1]} out, which diffusers wants equal"
        )
    if ins[-1] not in (0, unet.depth_mid):
        raise _cannot(
            f"depth {unet.depth_mid} in the middle and {ins[-1]} beside it, which diffusers wants equal"
        )
    depths = [
        *(d or 1 for d in ins[:-1]),
        unet.depth_mid,
    ]  # the middle takes the last level's; 1 is never used
    heads = [unet.heads(width)[0] for width in widths]
    data: Json = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.19.0",
        "act_fn": "silu",
        "attention_head_dim": heads[0] if len(set(heads)) == 1 else heads,
        "block_out_channels": widths,
        "center_input_sample": False,
        "cross_attention_dim": unet.context_dim,
        "down_block_types": ["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in ins],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": unet.in_channels,
        "layers_per_block": unet.num_res_blocks[0],
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-05,
        "norm_num_groups": unet.norm_groups,
        "out_channels": unet.out_channels,
        "sample_size": config.size // config.vae.factor,
        "transformer_layers_per_block": depths[0] if len(set(depths)) == 1 else depths,
        "up_block_types": ["CrossAttnUpBlock2D" if d else "UpBlock2D" for d in outs],
        "upcast_attention": config.family == "sd2" and config.prediction == "v",
        "use_linear_projection": unet.linear_proj,
    }
    if unet.y_dim is not None:
        data["addition_embed_type"] = "text_time"
        data["addition_time_embed_dim"] = 256
        data["projection_class_embeddings_input_dim"] = unet.y_dim
    return data


def _depths(depths: tuple[int, ...], blocks: tuple[int, ...]) -> list[int]:
    """One transformer depth per level."""
    per_level, at = [], 0
    for count in blocks:
        level = set(depths[at : at + count])
        at += count
        if len(level) != 1:
            raise _cannot(f"transformer depths {sorted(level)} within one level, which diffusers wants equal")
        per_level.append(level.pop())
    return per_level


def _cannot(why: str) -> CheckpointError:
    return CheckpointError(
        f"this UNet cannot be written in diffusers layout: it has {why}; write the original layout"
    )


def vae_json(config: ModelConfig) -> Json:
    """vae/config.json."""
    vae: VAEConfig = config.vae
    if vae.embed_dim != vae.z_channels:
        raise CheckpointError(
            f"this VAE cannot be written in diffusers layout: embed_dim {vae.embed_dim} and "
            f"z_channels {vae.z_channels}, which diffusers wants equal"
        )
    levels = len(vae.ch_mult)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.19.0",
        "act_fn": "silu",
        "block_out_channels": [vae.ch * m for m in vae.ch_mult],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": config.size_conditioning != "none",
        "in_channels": vae.in_channels,
        "latent_channels": vae.z_channels,
        **({} if vae.latents_mean is None else {"latents_mean": list(vae.latents_mean)}),
        **({} if vae.latents_std is None else {"latents_std": list(vae.latents_std)}),
        "layers_per_block": vae.num_res_blocks,
        "norm_num_groups": vae.norm_groups,
        "out_channels": vae.out_channels,
        "sample_size": config.size,
        "scaling_factor": vae.scale_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def text_json(use: TextUse) -> Json:
    """config.json of a text encoder, as transformers reads it."""
    text = use.config
    name = "CLIPTextModel" if text.projection_dim is None else "CLIPTextModelWithProjection"
    return {
        "architectures": [name],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,  # not the real id: transformers then pools at the largest id, as CLIP does
        "hidden_act": text.activation,
        "hidden_size": text.width,
        "intermediate_size": text.mlp_dim,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": text.max_length,
        "model_type": "clip_text_model",
        "num_attention_heads": text.num_heads,
        "num_hidden_layers": text.layers,
        "pad_token_id": 1,
        "projection_dim": text.projection_dim or text.width,
        "vocab_size": text.vocab_size,
    }


def scheduler_json(config: ModelConfig) -> Json:
    """scheduler/scheduler_config.json: the training schedule, and what the UNet predicts."""
    names = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
    if config.prediction not in names:
        raise CheckpointError(
            f"prediction {config.prediction} has no place in the scheduler config that minisd writes; "
            "write the original layout"
        )
    schedule = config.schedule
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.19.0",
        "beta_end": schedule.beta_end,
        "beta_schedule": schedule.beta_schedule,
        "beta_start": schedule.beta_start,
        "clip_sample": False,
        "num_train_timesteps": schedule.num_train_timesteps,
        "prediction_type": names[config.prediction],
        "rescale_betas_zero_snr": config.zero_terminal_snr,
        "set_alpha_to_one": False,
        "steps_offset": 0 if config.zero_terminal_snr else 1,
        "timestep_spacing": "trailing" if config.zero_terminal_snr else "leading",
    }


PIPELINES = {  # (family, what the UNet takes beside the latent)
    ("sd1", "none"): "StableDiffusionPipeline",
    ("sd1", "inpaint"): "StableDiffusionInpaintPipeline",
    ("sd1", "ip2p"): "StableDiffusionInstructPix2PixPipeline",
    ("sd2", "none"): "StableDiffusionPipeline",
    ("sd2", "inpaint"): "StableDiffusionInpaintPipeline",
    ("sd2", "depth"): "StableDiffusionDepth2ImgPipeline",
    ("sdxl", "none"): "StableDiffusionXLPipeline",
    ("sdxl", "inpaint"): "StableDiffusionXLInpaintPipeline",
    ("sdxl", "ip2p"): "StableDiffusionXLInstructPix2PixPipeline",
    ("sdxl-refiner", "none"): "StableDiffusionXLImg2ImgPipeline",
}


def model_index(config: ModelConfig, present: list[str]) -> Json:
    """model_index.json. What is not `present` (parts and tokenizers) is null: the caller of diffusers
    supplies it."""
    pipeline = PIPELINES.get((config.family, config.concat))
    if pipeline is None:
        raise CheckpointError(
            f"diffusers has no pipeline for {config.family} with {config.concat}; write the original layout"
        )
    nothing = [None, None]
    xl = config.size_conditioning != "none"
    names = ("text_encoder", "text_encoder_2") if xl else ("text_encoder",)
    data: Json = {
        "_class_name": pipeline,
        "_diffusers_version": "0.19.0",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for name in names:
        pooled = any(use.part == name and use.config.projection_dim is not None for use in config.text)
        data[name] = ["transformers", "CLIPTextModelWithProjection" if pooled else "CLIPTextModel"]
        tokenizer = name.replace("text_encoder", "tokenizer")
        data[tokenizer] = ["transformers", "CLIPTokenizer"] if tokenizer in present else nothing
    for name in ("unet", "vae", *names):
        if name not in present:
            data[name] = nothing
    if xl:
        data["force_zeros_for_empty_prompt"] = config.size_conditioning == "sdxl"
    else:
        data |= {"safety_checker": nothing, "feature_extractor": nothing, "requires_safety_checker": False}
    return data


def dump(data: Mapping[str, object]) -> str:
    return json.dumps(data, indent=2, sort_keys=True) + "\n"

"""A loaded model: the networks of a checkpoint, built and placed as the plan says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minisd.config import ModelConfig
from minisd.errors import CheckpointError
from minisd.models.clip import TextEncoder
from minisd.models.taesd import TAESD
from minisd.models.unet import UNet
from minisd.models.vae import AutoencoderKL
from minisd.placement import PartPlan, Plan, make_plan
from minisd.samplers.scaling import Prediction
from minisd.weights_loader.checkpoint import Checkpoint, open_checkpoint


@dataclass(frozen=True)
class Model:
    """Networks ready to draw. Holds no state of a drawing; any number of threads may use it."""

    name: str
    config: ModelConfig
    text_encoders: tuple[TextEncoder, ...]
    unet: UNet
    vae: AutoencoderKL
    plan: Plan
    tiny_vae: TAESD | None = None

    @property
    def unet_device(self) -> torch.device:
        return torch.device(self.plan.part("unet").device)

    @property
    def unet_dtype(self) -> torch.dtype:
        return self.plan.part("unet").dtype.value

    @property
    def prediction(self) -> Prediction:
        prediction = self.config.prediction
        assert prediction in ("eps", "v", "x0"), "load refuses the others"
        return prediction  # type: ignore[return-value]  # pyright does not narrow a Literal by `in`


def build(network: nn.Module, weights: Mapping[str, Tensor], plan: PartPlan, *, channels_last: bool) -> None:
    """Fill a network built on the meta device, and place it. Takes the tensors as they are: nothing is copied that already
    has its dtype and device."""
    network.load_state_dict(weights, strict=True, assign=True)
    network.requires_grad_(False).eval()
    network.to(plan.device)
    if channels_last:
        network.to(memory_format=torch.channels_last)


def load_model(
    path: str | os.PathLike[str],
    *,
    vae: str | os.PathLike[str] | None = None,
    text_encoder: str | os.PathLike[str] | None = None,
    text_encoder_2: str | os.PathLike[str] | None = None,
    tiny_vae: str | os.PathLike[str] | None = None,
    ema: bool | None = None,
    device: str = "auto",
    dtype: str = "auto",
    vae_dtype: str = "auto",
    attention: str = "auto",
    vae_tile: int | None = None,
) -> Model:
    """Open, plan, build. Parts named by a path replace those of the checkpoint, or supply what it lacks."""
    checkpoint = open_checkpoint(path)
    swaps = {"vae": vae, "text_encoder": text_encoder, "text_encoder_2": text_encoder_2}
    for part, other in swaps.items():
        if other is not None:
            checkpoint = checkpoint.swap(part, open_checkpoint(other))
    tiny = open_checkpoint(tiny_vae) if tiny_vae is not None else None
    config = usable(checkpoint)
    elements = {part: checkpoint.elements(part) for part in (*(u.part for u in config.text), "unet", "vae")}
    if tiny is not None:
        elements["taesd"] = tiny.elements("taesd")
    plan = make_plan(
        elements, device=device, dtype=dtype, vae_dtype=vae_dtype, attention=attention, vae_tile=vae_tile
    )

    def place(network: nn.Module, source: Checkpoint, part: str, channels_last: bool) -> None:
        part_plan = plan.part(part)
        build(
            network,
            source.state_dict(part, dtype=part_plan.dtype.value, ema=ema),
            part_plan,
            channels_last=channels_last,
        )
        for module in network.modules():
            if hasattr(module, "implementation"):
                module.implementation = plan.attention.value

    with torch.device("meta"):
        text_encoders = tuple(TextEncoder(u.config) for u in config.text)
        unet, autoencoder = UNet(config.unet), AutoencoderKL(config.vae)
        taesd = TAESD(tiny.taesd_config) if tiny is not None else None
    for use, encoder in zip(config.text, text_encoders, strict=True):
        place(encoder, checkpoint, use.part, False)
    place(unet, checkpoint, "unet", plan.channels_last.value)
    place(autoencoder, checkpoint, "vae", plan.channels_last.value)
    if taesd is not None and tiny is not None:
        place(taesd, tiny, "taesd", plan.channels_last.value)
    return Model(
        name=checkpoint.name,
        config=config,
        text_encoders=text_encoders,
        unet=unet,
        vae=autoencoder,
        plan=plan,
        tiny_vae=taesd,
    )


def usable(checkpoint: Checkpoint) -> ModelConfig:
    """The config of a checkpoint that can draw. Raises CheckpointError saying what is missing and how to supply it."""
    config = checkpoint.config
    if config is None or "unet" not in checkpoint.parts:
        raise CheckpointError(f"{checkpoint.name} is {checkpoint.detection.summary}, not a model that draws by itself")
    for part in (*(u.part for u in config.text), "vae"):
        if part not in checkpoint.parts:
            raise CheckpointError(f"{checkpoint.name} holds no {part}; name a file that does: load(..., {part}=PATH)")
    if config.prediction not in ("eps", "v", "x0"):
        raise CheckpointError(f"{checkpoint.name} was trained as {config.prediction} (EDM), which minisd does not sample yet")
    return config

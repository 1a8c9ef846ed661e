"""A loaded model: the networks of a checkpoint, built and placed as the plan says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn

from minisd.config import ModelConfig
from minisd.errors import CheckpointError
from minisd.models.clip import TextEncoder
from minisd.models.fused import use
from minisd.models.graph import Graphs
from minisd.models.taesd import TAESD
from minisd.models.unet import UNet, compile_regions
from minisd.models.vae import AutoencoderKL
from minisd.placement import Plan, make_plan
from minisd.text.embeddings import Embedding
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
    embeddings: Mapping[str, Embedding] = field(default_factory=dict)  # learned words, by name

    @property
    def unet_device(self) -> torch.device:
        return torch.device(self.plan.part("unet").device)

    @property
    def unet_dtype(self) -> torch.dtype:
        return self.plan.part("unet").dtype.value


def fill(network: nn.Module, checkpoint: Checkpoint, plan: Plan, part: str, ema: bool | None) -> None:
    """Weights into a network built on the meta device, then to where and how the plan wants it."""
    where = plan.part(part)
    weights = checkpoint.state_dict(part, dtype=where.dtype.value, ema=ema)
    network.load_state_dict(weights, strict=True, assign=True)
    del weights  # what moves below must not be held twice
    network.requires_grad_(False).eval()
    network.to(where.device)
    if part in plan.channels_last.value:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # of torch's stubs
    kernels = plan.kernels.value
    use(network, kernels)
    if isinstance(network, UNet):
        network.graphs = Graphs() if kernels.graph else None
        if kernels.compiled:
            compile_regions(network)


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
    kernels: str = "auto",
    vae_tile: int | None = None,
) -> Model:
    """Open, plan, build. Parts named by a path replace those of the checkpoint, or supply what it lacks.

    Weights are read tensor by tensor into their planned dtype, a part at a time.
    """
    with ExitStack() as files:
        checkpoint = files.enter_context(open_checkpoint(path))
        swaps = {
            "vae": vae,
            "text_encoder": text_encoder,
            "text_encoder_2": text_encoder_2,
            "taesd": tiny_vae,
        }
        for part, other in swaps.items():
            if other is not None:
                checkpoint = checkpoint.swap(part, files.enter_context(open_checkpoint(other)))
        config = usable(checkpoint)
        names = [*(u.part for u in config.text), "unet", "vae", *(["taesd"] if tiny_vae is not None else [])]
        plan = make_plan(
            {name: checkpoint.elements(name) for name in names},
            device=device,
            dtype=dtype,
            vae_dtype=vae_dtype,
            attention=attention,
            kernels=kernels,
            vae_tile=vae_tile,
        )
        with torch.device("meta"):
            networks: dict[str, nn.Module] = {use.part: TextEncoder(use.config) for use in config.text}
            networks |= {"unet": UNet(config.unet), "vae": AutoencoderKL(config.vae)}
            if tiny_vae is not None:
                networks["taesd"] = TAESD(checkpoint.taesd_config)
        for name, network in networks.items():
            fill(network, checkpoint, plan, name, ema)
    return Model(
        name=checkpoint.path.stem,
        config=config,
        text_encoders=tuple(cast(TextEncoder, networks[use.part]) for use in config.text),
        unet=cast(UNet, networks["unet"]),
        vae=cast(AutoencoderKL, networks["vae"]),
        plan=plan,
        tiny_vae=cast(TAESD | None, networks.get("taesd")),
    )


def usable(checkpoint: Checkpoint) -> ModelConfig:
    """The config of a checkpoint that can draw. Raises CheckpointError saying what is missing and how to
    supply it."""
    config = checkpoint.config
    if config is None or "unet" not in checkpoint.parts:
        raise CheckpointError(
            f"{checkpoint.name} is {checkpoint.detection.summary}, not a model that draws by itself"
        )
    for part in (*(u.part for u in config.text), "vae"):
        if part not in checkpoint.parts:
            raise CheckpointError(
                f"{checkpoint.name} holds no {part}; name a file that does: load(..., {part}=PATH)"
            )
    if config.prediction == "edm_eps":
        raise CheckpointError(
            f"{checkpoint.name} was trained as EDM on latents of its own mean and spread (Playground v2.5); "
            "minisd has no place for these yet"
        )
    return config

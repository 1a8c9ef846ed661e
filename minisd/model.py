"""A loaded model: the networks of a checkpoint, built and placed as the plan says."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Unpack, cast

import torch
from torch import nn

from minisd.config import ModelConfig
from minisd.errors import CheckpointError, quoted
from minisd.executor import Executor
from minisd.hashes import Stamp
from minisd.models.clip import TextEncoder
from minisd.models.fused import use
from minisd.models.graph import Graphs
from minisd.models.packing import pack
from minisd.models.quantised import quantised
from minisd.models.taesd import TAESD
from minisd.models.unet import UNet, compile_regions
from minisd.models.vae import AutoencoderKL
from minisd.placement import Plan, make_plan
from minisd.plan_devices import device_facts
from minisd.planner import Sizes, choose
from minisd.request import Request
from minisd.residency import all_tensors
from minisd.shortage import lowered, ran_out, shortage
from minisd.text.embeddings import Embedding
from minisd.trust import NO_PROOF, Proof, proven
from minisd.weights import FileWeights
from minisd.weights_loader.checkpoint import Checkpoint, open_checkpoint
from minisd.wishes import UNCOND, Named, Wishes, file_part, named_of


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
    second: UNet | None = None  # for the unconditional prediction, where that has a device of its own
    embeddings: Mapping[str, Embedding] = field(default_factory=dict)  # learned words, by name
    files: tuple[Stamp, ...] = ()  # what it was loaded from
    executor: Executor | None = None  # of weights that do not stay
    again: Callable[[Named], Model] | None = None  # loads it once more, with further wishes; None: as it is

    @property
    def unet_device(self) -> torch.device:
        return torch.device(self.plan.part("unet").device)

    @property
    def unet_dtype(self) -> torch.dtype:
        return self.plan.part("unet").dtype.value


def fill(network: nn.Module, weights: FileWeights, plan: Plan, part: str, executor: Executor) -> None:
    """Weights into a network built on the meta device: now, or by the executor whenever they are needed."""
    own = plan.part(part)
    quantised(network, own.layers, own.dtype.value)
    network.requires_grad_(False).eval()
    places = all_tensors(network)
    weights.check_names(set(places))
    residency = own.residency.value
    if residency == "resident":
        network.load_state_dict(weights.fresh(tuple(places)), strict=True, assign=True)
        network.requires_grad_(False)
    else:
        executor.manage(part, network, residency, weights.fresh)
        if isinstance(network, TextEncoder):
            network.place = torch.device(own.device)
    kernels = plan.kernels.value
    use(network, kernels)
    if kernels.packed and residency == "resident" and isinstance(network, UNet | AutoencoderKL):
        pack(network)
    if isinstance(network, UNet):
        network.graphs = Graphs() if kernels.graph else None
        if kernels.compiled:
            compile_regions(network)


def file_weights(checkpoint: Checkpoint, plan: Plan, part: str, ema: bool | None) -> FileWeights:
    where = plan.part(part)
    device = torch.device(where.device)
    return FileWeights(
        checkpoint,
        file_part(part),
        dtype=where.dtype.value,
        device=device,
        ema=ema,
        channels_last=part in plan.channels_last.value,
        # beside another device's memory, the host's holds what comes and goes, unless nothing is to be kept
        kept=device.type != "cpu" and where.residency.value in ("staged", "streamed"),
        layers=where.layers,
    )


@dataclass(frozen=True)
class Paths:
    """Files that parts are taken from instead of the checkpoint."""

    vae: str | os.PathLike[str] | None = None
    text_encoder: str | os.PathLike[str] | None = None
    text_encoder_2: str | os.PathLike[str] | None = None
    tiny_vae: str | os.PathLike[str] | None = None


def opened(path: str | os.PathLike[str], paths: Paths, files: ExitStack) -> Checkpoint:
    """The checkpoint with its parts exchanged; `files` closes what was opened."""
    checkpoint = files.enter_context(open_checkpoint(path))
    swaps = {
        "vae": paths.vae,
        "text_encoder": paths.text_encoder,
        "text_encoder_2": paths.text_encoder_2,
        "taesd": paths.tiny_vae,
    }
    for part, other in swaps.items():
        if other is not None:
            checkpoint = checkpoint.swap(part, files.enter_context(open_checkpoint(other)))
    return checkpoint


def plan_of(
    checkpoint: Checkpoint,
    request: Request | None,
    paths: Paths,
    wishes: Wishes,
    *,
    kernels: str = "auto",
    count: bool = True,
) -> Plan:
    """The plan for a checkpoint, by its headers. `request` says what is to be drawn; without one, a picture
    of the size the model was trained at."""
    config = usable(checkpoint)
    names = [
        *(u.part for u in config.text),
        "unet",
        "vae",
        *(["taesd"] if paths.tiny_vae is not None else []),
    ]
    elements = {name: checkpoint.elements(name) for name in names}
    places = {p.device for p in make_plan(elements, **named_of(wishes)).parts}
    devices = {place: device_facts(place) for place in places}
    sizes = Sizes.of(config, request)
    stored = {name: checkpoint.stored_layers(name) for name in names}
    return choose(config, elements, sizes, wishes, devices, stored=stored, kernels=kernels, count=count)


def plan(
    path: str | os.PathLike[str],
    request: Request | None = None,
    *,
    vae: str | os.PathLike[str] | None = None,
    text_encoder: str | os.PathLike[str] | None = None,
    text_encoder_2: str | os.PathLike[str] | None = None,
    tiny_vae: str | os.PathLike[str] | None = None,
    kernels: str = "auto",
    **named: Unpack[Named],
) -> Plan:
    """What loading this file for this request would do: where each part lives, in what precision, why, and
    how much memory each stage takes. Reads headers only. `named`: the fields of `Wishes`.

    Raises CheckpointError, PlanError (what would fit), RequestError.
    """
    paths = Paths(vae, text_encoder, text_encoder_2, tiny_vae)
    with ExitStack() as files:
        return plan_of(opened(path, paths, files), request, paths, Wishes(**named), kernels=kernels)


def load_model(
    path: str | os.PathLike[str],
    *,
    vae: str | os.PathLike[str] | None = None,
    text_encoder: str | os.PathLike[str] | None = None,
    text_encoder_2: str | os.PathLike[str] | None = None,
    tiny_vae: str | os.PathLike[str] | None = None,
    ema: bool | None = None,
    kernels: str = "auto",
    request: Request | None = None,
    proof: Proof = NO_PROOF,
    **named: Unpack[Named],
) -> Model:
    """Open, plan, build. Parts named by a path replace those of the checkpoint, or supply what it lacks.

    Weights that stay are read tensor by tensor into their planned dtype, a part at a time; for others the
    files stay open until the model's executor is closed. request: what room is to be left for. proof: what
    the checkpoint must be; held against it before a tensor is used.

    Where memory runs out all the same, and `offload` was not asked for by name, it is tried once more with
    the next rung of the ladder (`shortage.py`).
    """
    paths = Paths(vae, text_encoder, text_encoder_2, tiny_vae)

    def again(further: Named) -> Model:
        made = loaded(path, paths, Wishes(**(named | further)), ema, kernels, request, proof)
        if isinstance(made, Short):
            raise ran_out(made.plan, made.said)
        return made

    made = loaded(path, paths, Wishes(**named), ema, kernels, request, proof)
    by_name = Wishes(**named).offload != "auto"
    if isinstance(made, Short):
        if by_name:
            raise ran_out(made.plan, made.said)
        made = lowered(again, made.plan, made.said)
    return made if by_name else replace(made, again=again)


@dataclass(frozen=True)
class Short:
    """Memory ran out while this plan was carried out."""

    plan: Plan
    said: str


def loaded(
    path: str | os.PathLike[str],
    paths: Paths,
    wishes: Wishes,
    ema: bool | None,
    kernels: str,
    request: Request | None,
    proof: Proof,
) -> Model | Short:
    # before anything is read: what is read is then what was stamped, or the stamp no longer holds
    given = (path, paths.vae, paths.text_encoder, paths.text_encoder_2)
    stamps = tuple(Stamp.of(p) for p in given if p is not None)
    with ExitStack() as files:
        with proven(path, proof):
            checkpoint = opened(path, paths, files)
        config = usable(checkpoint)
        plan = plan_of(checkpoint, request, paths, wishes, kernels=kernels, count=False)
        with torch.device("meta"):
            networks: dict[str, nn.Module] = {use.part: TextEncoder(use.config) for use in config.text}
            networks |= {"unet": UNet(config.unet), "vae": AutoencoderKL(config.vae)}
            if any(p.part == UNCOND for p in plan.parts):
                networks[UNCOND] = UNet(config.unet)
            if paths.tiny_vae is not None:
                networks["taesd"] = TAESD(checkpoint.taesd_config)
        executor = Executor()
        try:
            for name, network in networks.items():
                fill(network, file_weights(checkpoint, plan, name, ema), plan, name, executor)
        except (RuntimeError, MemoryError) as error:
            said = shortage(error)
            if said is None:
                raise
            return Short(plan, said)
        moves = any(p.residency.value != "resident" for p in plan.parts)
        if moves:
            executor.closes(files.pop_all().close)
    return Model(
        name=checkpoint.path.stem,
        config=config,
        text_encoders=tuple(cast(TextEncoder, networks[use.part]) for use in config.text),
        unet=cast(UNet, networks["unet"]),
        vae=cast(AutoencoderKL, networks["vae"]),
        plan=plan,
        tiny_vae=cast(TAESD | None, networks.get("taesd")),
        second=None if plan.cfg_device.value is None else cast(UNet, networks.get(UNCOND, networks["unet"])),
        executor=executor if moves else None,
        files=stamps,
    )


def usable(checkpoint: Checkpoint) -> ModelConfig:
    """The config of a checkpoint that can draw. Raises CheckpointError saying what is missing and how to
    supply it."""
    config = checkpoint.config
    if checkpoint.detection.refusal is not None:
        raise CheckpointError(f"{quoted(checkpoint.name)}: {checkpoint.detection.refusal}")
    if config is None or "unet" not in checkpoint.parts:
        raise CheckpointError(
            f"{checkpoint.name} is {checkpoint.detection.summary}, not a model that draws by itself"
        )
    for part in (*(u.part for u in config.text), "vae"):
        if part not in checkpoint.parts:
            raise CheckpointError(
                f"{checkpoint.name} holds no {part}; name a file that does: load(..., {part}=PATH)"
            )
    return config

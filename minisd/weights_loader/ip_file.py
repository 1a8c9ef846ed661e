"""Files of IP-Adapters and of CLIP's image towers: configs from shapes, weights under our names, strictly.

`.bin` files nest two dicts, `.safetensors` files join their names with dots; both read the same here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

import torch
from torch import Tensor

from minisd.config import IPAdapterConfig, UNetConfig, VisionConfig
from minisd.errors import CheckpointError, listed, quoted
from minisd.weights_loader.derive import Outline
from minisd.weights_loader.keymap import Rules, linear, norm
from minisd.weights_loader.open import open_source
from minisd.weights_loader.part import Part, PartReader, check_part, make_part
from minisd.weights_loader.places import below
from minisd.weights_loader.rule import Rule
from minisd.weights_loader.source import TensorSource

Shapes = Mapping[str, tuple[int, ...]]
C = TypeVar("C", IPAdapterConfig, VisionConfig)
STEMS = ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin")  # of a folder
IGNORED = ("vision_model.embeddings.position_ids",)  # counts 0, 1, 2, ...
HEADS = 16  # of all three towers


class ImageFile(Generic[C]):
    """An opened IP-Adapter or image tower. Thread-safe to read; a context manager."""

    def __init__(self, source: TensorSource, config: C, part: Part) -> None:
        self.source, self.config, self.part = source, config, part

    def state_dict(self, *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Every parameter under our names, one tensor read at a time. Raises CheckpointError."""
        reader = PartReader(self.source, self.part, dtype=dtype)
        return {rule.ours: reader.read(rule) for rule in self.part.rules}

    def close(self) -> None:
        self.source.close()

    def __enter__(self) -> ImageFile[C]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_ip_adapter(
    path: str | os.PathLike[str], *, unet: UNetConfig | None = None
) -> ImageFile[IPAdapterConfig]:
    """Raises CheckpointError for what is no IP-Adapter, not a whole one, or not for this UNet."""
    source = open_source(path)
    try:
        return ip_adapter_of(source, unet)
    except BaseException:
        source.close()
        raise


def open_vision(path: str | os.PathLike[str]) -> ImageFile[VisionConfig]:
    """An image tower in Hugging Face's names: a file or its folder. Raises CheckpointError."""
    if os.path.isdir(path):
        found = next((Path(path) / s for s in STEMS if (Path(path) / s).is_file()), None)
        if found is None:
            raise CheckpointError(f"the folder {quoted(Path(path).name)} holds none of {listed(STEMS)}")
        path = found
    source = open_source(path)
    try:
        return vision_of(source)
    except BaseException:
        source.close()
        raise


def ip_adapter_of(source: TensorSource, unet: UNetConfig | None = None) -> ImageFile[IPAdapterConfig]:
    """The IP-Adapter in an opened container."""
    name, shapes = source.path.name, below(source.tensors, "")
    if not any(n.startswith("ip_adapter.") for n in shapes):
        raise CheckpointError(f"{quoted(name)} holds no IP-Adapter (its names begin image_proj, ip_adapter)")
    if any("_lora." in n for n in shapes):
        raise CheckpointError(
            f"{quoted(name)} is an IP-Adapter FaceID: it needs a network that recognises faces, which minisd "
            "has not; use a plain or plus adapter"
        )
    config = derive_ip_adapter(shapes)
    wanted = None if unet is None else (attention_widths(unet), unet.context_dim)
    if wanted is not None and wanted != (config.attentions, config.context_dim):
        raise CheckpointError(
            f"{quoted(name)} has {len(config.attentions)} attentions to text {config.context_dim} wide, the "
            f"model {len(wanted[0])} to {wanted[1]}; take the IP-Adapter of its family"
        )
    part = whole_part(source, "ip_adapter", config, tuple(ip_adapter_rules(config)))
    return ImageFile(source, config, part)


def vision_of(source: TensorSource) -> ImageFile[VisionConfig]:
    """The image tower in an opened container."""
    shapes = below(source.tensors, "")
    if "vision_model.embeddings.class_embedding" not in shapes:
        raise CheckpointError(
            f"{quoted(source.path.name)} holds no image encoder in Hugging Face's names "
            "(vision_model.embeddings...)"
        )
    config = derive_vision(shapes)
    return ImageFile(source, config, whole_part(source, "image_encoder", config, tuple(vision_rules(config))))


def whole_part(source: TensorSource, kind: str, config: IPAdapterConfig | VisionConfig, rules: Rules) -> Part:
    """All that a file holds, and nothing else."""
    part = make_part(kind, "", "original", config, rules, source.tensors)
    check_part(part, source.tensors, f"{quoted(source.path.name)}: {kind}")
    unknown = [n for n in source.tensors if n not in part.names(source.tensors) and n not in IGNORED]
    if unknown:
        raise CheckpointError(
            f"{quoted(source.path.name)}: {len(unknown)} tensors are not of this {kind}: {listed(unknown)}"
        )
    return part


def attention_widths(unet: UNetConfig) -> tuple[int, ...]:
    """Channels of every attention to the text, in the order of diffusers' processors: down, up, middle."""
    levels = [unet.model_channels * m for m in unet.channel_mult]
    down = [c for c, n in zip(levels, unet.num_res_blocks, strict=True) for _ in range(n)]
    backwards = list(zip(levels, unet.num_res_blocks, strict=True))[::-1]
    rising = [c for c, n in backwards for _ in range(n + 1)]
    widths = [c for c, d in zip(down, unet.depth_in, strict=True) for _ in range(d)]
    widths += [c for c, d in zip(rising, unet.depth_out, strict=True) for _ in range(d)]
    return (*widths, *[levels[-1]] * unet.depth_mid)


def derive_ip_adapter(shapes: Shapes) -> IPAdapterConfig:
    """From names. Raises CheckpointError for a kind that is not known."""
    outline = Outline(shapes, "IP-Adapter")
    numbers = sorted(
        int(n.split(".")[1])
        for n in shapes
        if n.startswith("ip_adapter.") and n.endswith(".to_k_ip.weight") and n.split(".")[1].isdecimal()
    )
    if numbers != list(range(1, 2 * len(numbers), 2)) or not numbers:
        raise CheckpointError(f"IP-Adapter: attentions are numbered {numbers[:6]}...; expected 1, 3, 5, ...")
    attentions = tuple(outline.size(f"ip_adapter.{n}.to_k_ip.weight", 0) for n in numbers)
    context_dim = outline.size("ip_adapter.1.to_k_ip.weight", 1)
    if "image_proj.latents" in shapes:
        return IPAdapterConfig(
            "resampler",
            outline.size("image_proj.proj_in.weight", 1),
            context_dim,
            attentions,
            tokens=outline.size("image_proj.latents", 1),
            depth=outline.count("image_proj.layers"),
            width=outline.size("image_proj.latents", 2),
            mlp_dim=outline.size("image_proj.layers.0.1.1.weight", 0),
        )
    if "image_proj.proj.3.weight" in shapes:
        return IPAdapterConfig("mlp", outline.size("image_proj.proj.0.weight", 1), context_dim, attentions)
    if "image_proj.proj.weight" in shapes:
        tokens = outline.size("image_proj.proj.weight", 0) // max(context_dim, 1)
        clip_dim = outline.size("image_proj.proj.weight", 1)
        return IPAdapterConfig("linear", clip_dim, context_dim, attentions, tokens=tokens)
    raise CheckpointError(
        "IP-Adapter: what makes tokens of the picture is of a kind that minisd does not know"
    )


def ip_adapter_rules(config: IPAdapterConfig) -> Iterator[Rule]:
    c, ctx, p = config.clip_dim, config.context_dim, "image_proj"
    if config.kind == "linear":
        yield from linear(f"{p}.proj", f"{p}.proj", c, config.tokens * ctx)
        yield from norm(f"{p}.norm", f"{p}.norm", ctx)
    elif config.kind == "mlp":
        yield from linear(f"{p}.proj.0", f"{p}.proj.0", c, c)
        yield from linear(f"{p}.proj.2", f"{p}.proj.2", c, ctx)
        yield from norm(f"{p}.proj.3", f"{p}.proj.3", ctx)
    else:
        w = config.width
        yield Rule(f"{p}.latents", (1, config.tokens, w), f"{p}.latents")
        yield from linear(f"{p}.proj_in", f"{p}.proj_in", c, w)
        yield from linear(f"{p}.proj_out", f"{p}.proj_out", w, ctx)
        yield from norm(f"{p}.norm_out", f"{p}.norm_out", ctx)
        for n in range(config.depth):
            attend, feed = f"{p}.layers.{n}.0", f"{p}.layers.{n}.1"
            for name in ("norm1", "norm2"):
                yield from norm(f"{attend}.{name}", f"{attend}.{name}", w)
            for name, rows in (("to_q", w), ("to_kv", 2 * w), ("to_out", w)):
                yield Rule(f"{attend}.{name}.weight", (rows, w), f"{attend}.{name}.weight")
            yield from norm(f"{feed}.0", f"{feed}.0", w)
            yield Rule(f"{feed}.1.weight", (config.mlp_dim, w), f"{feed}.1.weight")
            yield Rule(f"{feed}.3.weight", (w, config.mlp_dim), f"{feed}.3.weight")
    for i, width in enumerate(config.attentions):
        for which in ("to_k_ip", "to_v_ip"):
            name = f"ip_adapter.{2 * i + 1}.{which}.weight"
            yield Rule(name, (width, ctx), name)


def derive_vision(shapes: Shapes) -> VisionConfig:
    outline, root = Outline(shapes, "image encoder"), "vision_model"
    width = outline.size(f"{root}.embeddings.patch_embedding.weight", 0)
    patch = outline.size(f"{root}.embeddings.patch_embedding.weight", 2)
    places = outline.size(f"{root}.embeddings.position_embedding.weight", 0)
    return VisionConfig(
        image_size=round(max(places - 1, 1) ** 0.5) * patch,
        patch=patch,
        width=width,
        layers=outline.count(f"{root}.encoder.layers"),
        num_heads=HEADS,
        mlp_dim=outline.size(f"{root}.encoder.layers.0.mlp.fc1.weight", 0),
        activation="quick_gelu" if width == 1024 else "gelu",  # OpenAI's ViT-L; OpenCLIP's are wider
        projection_dim=outline.size("visual_projection.weight", 0),
    )


def vision_rules(config: VisionConfig) -> Iterator[Rule]:
    w, root = config.width, "vision_model"
    places = (config.image_size // config.patch) ** 2 + 1

    def same(name: str, *shape: int) -> Rule:
        return Rule(name, shape, name)

    yield same(f"{root}.embeddings.class_embedding", w)
    yield same(f"{root}.embeddings.patch_embedding.weight", w, 3, config.patch, config.patch)
    yield same(f"{root}.embeddings.position_embedding.weight", places, w)
    for name in ("pre_layrnorm", "post_layernorm"):
        yield from norm(f"{root}.{name}", f"{root}.{name}", w)
    for n in range(config.layers):
        layer = f"{root}.encoder.layers.{n}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from linear(f"{layer}.self_attn.{name}", f"{layer}.self_attn.{name}", w, w)
        for name in ("layer_norm1", "layer_norm2"):
            yield from norm(f"{layer}.{name}", f"{layer}.{name}", w)
        yield from linear(f"{layer}.mlp.fc1", f"{layer}.mlp.fc1", w, config.mlp_dim)
        yield from linear(f"{layer}.mlp.fc2", f"{layer}.mlp.fc2", config.mlp_dim, w)
    yield same("visual_projection.weight", config.projection_dim, w)

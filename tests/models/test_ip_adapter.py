"""Oracle: transformers' CLIP image tower, diffusers' IP-Adapter in its UNet, float64, 1e-10; key lists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from minisd.config import SD1, SDXL, IPAdapterConfig, ModelConfig, VisionConfig
from minisd.engine import Engine
from minisd.errors import CheckpointError, RequestError
from minisd.models.clip_vision import ImageEncoder, Seen
from minisd.models.ip_adapter import IPAdapter
from minisd.picture import Picture
from minisd.picture_prompt import PicturePrompt
from minisd.picture_prompt_nets import vision_pixels
from minisd.picture_prompt_run import Guest, with_pictures
from minisd.request import Request
from minisd.text.conditioning import Conditioning
from minisd.weights_loader.ip_file import (
    attention_widths,
    derive_ip_adapter,
    ip_adapter_of,
    ip_adapter_rules,
    vision_of,
    vision_rules,
)
from tests import oracles, tiny
from tests.control_files import map_of
from tests.weights_loader.fake import FakeSource, of_rows
from tests.weights_loader.manifests import manifest

ADAPTERS: dict[str, tuple[ModelConfig, str]] = {
    "ip-adapter_sd15": (SD1, "linear"),
    "ip-adapter-plus_sd15": (SD1, "resampler"),
    "ip-adapter-full-face_sd15": (SD1, "mlp"),
    "ip-adapter_sdxl": (SDXL, "linear"),
    "ip-adapter_sdxl_vit-h": (SDXL, "linear"),
    "ip-adapter-plus_sdxl_vit-h": (SDXL, "resampler"),
}
TOWERS = {
    "CLIP ViT-H/14 vision (IP-Adapter SD15 image_encoder)": VisionConfig(),
    "CLIP ViT-bigG/14 vision (IP-Adapter SDXL image_encoder)": VisionConfig(
        width=1664, layers=48, mlp_dim=8192, projection_dim=1280
    ),
    "CLIP ViT-L/14 vision": VisionConfig(
        width=1024, layers=24, mlp_dim=4096, activation="quick_gelu", projection_dim=768
    ),
}
TOWER = VisionConfig(image_size=28, patch=7, width=64, layers=3, mlp_dim=48, projection_dim=24)
UNET = tiny.TINY["sd1"].unet
LINEAR = IPAdapterConfig("linear", 24, 32, attention_widths(UNET), tokens=4)
KINDS = {
    "linear": LINEAR,
    "mlp": replace(LINEAR, kind="mlp", clip_dim=64),
    "resampler": replace(
        LINEAR, kind="resampler", clip_dim=64, tokens=5, depth=4, width=64, mlp_dim=256, head_dim=64
    ),
}


def rows(label: str) -> dict[str, list]:
    return manifest("adapters")[label]


@pytest.mark.parametrize("label", ADAPTERS)
def test_published_adapters_load_strictly(label: str) -> None:
    family, kind = ADAPTERS[label]
    file = ip_adapter_of(FakeSource(of_rows(rows(label))), family.unet)
    assert file.config.kind == kind and len(file.part.rules) == len(rows(label))
    with torch.device("meta"):
        network = IPAdapter(file.config)
    network.load_state_dict(file.state_dict(), strict=True, assign=True)


@pytest.mark.parametrize("label", TOWERS)
def test_published_towers_load_strictly(label: str) -> None:
    more = {"vision_model.embeddings.position_ids": ["I64", 1, 257]}  # older files count places
    file = vision_of(FakeSource(of_rows(rows(label) | more)))
    assert file.config == TOWERS[label]
    with torch.device("meta"):
        network = ImageEncoder(file.config)
    network.load_state_dict(file.state_dict(), strict=True, assign=True)


def test_what_is_refused() -> None:
    with pytest.raises(CheckpointError, match="recognises faces"):
        ip_adapter_of(FakeSource(of_rows(rows("ip-adapter-faceid_sd15"))))
    with pytest.raises(CheckpointError, match="family"):
        ip_adapter_of(FakeSource(of_rows(rows("ip-adapter_sdxl"))), SD1.unet)
    short = {k: v for k, v in rows("ip-adapter_sd15").items() if "ip_adapter.7" not in k}
    with pytest.raises(CheckpointError, match="1, 3, 5"):
        ip_adapter_of(FakeSource(of_rows(short)))
    with pytest.raises(CheckpointError, match="holds no IP-Adapter"):
        ip_adapter_of(FakeSource(of_rows(rows("CLIP ViT-L/14 vision"))))
    with pytest.raises(CheckpointError, match="no image encoder"):
        vision_of(FakeSource(of_rows(rows("ip-adapter_sd15"))))


def tower(activation: str = "gelu") -> tuple[ImageEncoder, dict[str, torch.Tensor], VisionConfig]:
    config = replace(TOWER, activation=activation)
    weights = tiny.random_weights({r.ours: r.shape for r in vision_rules(config)}, 7)
    with torch.device("meta"):
        network = ImageEncoder(config)
    tiny.filled(network, weights)
    return network, weights, config


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_tower_as_transformers(activation: str) -> None:
    mine, weights, config = tower(activation)
    with torch.device("meta"):
        other = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=config.width,
                intermediate_size=config.mlp_dim,
                projection_dim=config.projection_dim,
                num_hidden_layers=config.layers,
                num_attention_heads=config.num_heads,
                image_size=config.image_size,
                patch_size=config.patch,
                hidden_act=activation,
            )
        )
    for module in other.modules():  # a buffer that no file holds
        if hasattr(module, "position_ids"):
            module.position_ids = torch.arange((config.image_size // config.patch) ** 2 + 1)[None]
    other.load_state_dict(weights, strict=True, assign=True)
    pixels = torch.randn(2, 3, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        got = mine(pixels)
        want = other.eval()(pixels, output_hidden_states=True)
    assert (got.embeds - want.image_embeds).abs().max() <= 1e-10
    assert (got.tokens - want.hidden_states[-2]).abs().max() <= 1e-10


@pytest.mark.parametrize("size", [(300, 200), (224, 224), (97, 341)])
def test_pixels_as_transformers(size: tuple[int, int]) -> None:
    image = map_of(*size)
    want = CLIPImageProcessor()(image, return_tensors="pt").pixel_values
    assert (vision_pixels(image, 224) - want).abs().max() <= 1.5 / 255 / 0.26  # one 8-bit level


def adapter(kind: str) -> tuple[IPAdapter, dict[str, torch.Tensor]]:
    config = KINDS[kind]
    weights = tiny.random_weights({r.ours: r.shape for r in ip_adapter_rules(config)}, 8)
    weights = {k: v.float().double() for k, v in weights.items()}  # diffusers reads them as float32
    found = derive_ip_adapter({k: tuple(v.shape) for k, v in weights.items()})
    assert replace(found, head_dim=config.head_dim, tokens=config.tokens) == config
    with torch.device("meta"):
        network = IPAdapter(config)
    tiny.filled(network, weights)
    return network, weights


@pytest.mark.parametrize("kind", KINDS)
def test_unet_with_a_picture_as_diffusers(kind: str) -> None:
    """Both sides see the same of the picture; two images, conditional and unconditional in one call."""
    network, weights = adapter(kind)
    unet_weights = tiny.network_weights(tiny.TINY["sd1"])["unet"]
    mine, other = tiny.unet(UNET, unet_weights), oracles.diffusers_unet(UNET, unet_weights)
    nested: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in weights.items():
        part, rest = name.split(".", 1)
        nested[part][rest] = value.clone()
    other._load_ip_adapter_weights([nested], low_cpu_mem_usage=False)
    other.double()
    for processor in other.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [0.6]
    g = torch.Generator().manual_seed(9)
    seen = [
        Seen(
            torch.randn(1, 24, dtype=torch.float64, generator=g),
            torch.randn(1, 17, 64, dtype=torch.float64, generator=g),
        )
        for _ in range(2)
    ]
    x = torch.randn(2, 4, 16, 16, dtype=torch.float64, generator=g)
    cond, uncond = (
        Conditioning(torch.randn(1, 7, 32, dtype=torch.float64, generator=g), None, 7, 7) for _ in range(2)
    )
    prompt = PicturePrompt("ip", "tower", Picture.of(map_of(8, 8)), weight=0.6)
    timesteps = torch.tensor([500.0], dtype=torch.float64)
    with torch.inference_mode():
        guest = Guest(prompt, network(seen[0]), network(seen[1]))
        edits = with_pictures({}, [guest], UNET, [cond, uncond], uncond, 2, 5.0, [10.0, 5.0, 0.0])
        context = torch.cat([p.context.expand(2, -1, -1) for p in (cond, uncond)])
        stacked = x.repeat(2, 1, 1, 1)
        got = mine(stacked, timesteps, context, edits=edits)
        plain = mine(stacked, timesteps, context)
        field = "embeds" if kind == "linear" else "tokens"
        embeds = torch.cat([getattr(s, field).expand(2, *getattr(s, field).shape[1:]) for s in seen])
        want = other(
            stacked,
            timesteps,
            context,
            added_cond_kwargs={"image_embeds": [embeds[:, None]]},
            return_dict=False,
        )[0]
    assert (got - plain).abs().max() > 1e-3
    assert (got - want).abs().max() <= 1e-10


def request(*prompts: PicturePrompt) -> Request:
    return Request(
        prompt="a red apple",
        width=64,
        height=64,
        seed=3,
        steps=4,
        sampler="euler",
        cfg_scale=4.0,
        picture_prompts=prompts,
    )


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("ip")
    encoder = folder / "tower"
    encoder.mkdir()
    save_file({k: v.float() for k, v in tower()[1].items()}, encoder / "model.safetensors")
    for kind in KINDS:
        save_file({k: v.float() for k, v in adapter(kind)[1].items()}, folder / f"{kind}.safetensors")
    files = {kind: folder / f"{kind}.safetensors" for kind in KINDS} | {"tower": encoder}
    return Engine(tiny.tiny_model("sd1"), controls=files)


def test_a_picture_prompt_in_a_run(engine: Engine) -> None:
    """Oracle: the run without it; at weight 0 and outside of its steps the same bits."""
    image = Picture.of(map_of(60, 40))

    def drawn(**fields: object) -> np.ndarray:
        prompt = PicturePrompt("linear", "tower", image, **fields)  # type: ignore[arg-type]
        return engine.run(request(prompt)).drawing.latents.numpy()

    plain = engine.run(request()).drawing.latents.numpy()
    assert np.array_equal(drawn(weight=0.0), plain)
    full, half = drawn(), drawn(start=0.5)
    assert not np.array_equal(full, plain) and not np.array_equal(half, full)
    assert not np.array_equal(drawn(weight=0.5), full)
    both = engine.run(
        request(PicturePrompt("mlp", "tower", image), PicturePrompt("resampler", "tower", image, weight=0.5))
    )
    assert not np.array_equal(both.drawing.latents.numpy(), plain)


def test_wrong_picture_prompts(engine: Engine, tmp_path: Path) -> None:
    image = Picture.of(map_of(8, 8))
    with pytest.raises(RequestError, match="no control network or adapter 'gone'"):
        engine.run(request(PicturePrompt("gone", "tower", image)))
    with pytest.raises(RequestError, match="not after its start"):
        PicturePrompt("a", "b", image, start=0.5, end=0.25)
    with pytest.raises(RequestError, match="weight of a picture prompt"):
        PicturePrompt("a", "b", image, weight=float("inf"))
    with pytest.raises(RequestError, match="named here"):
        PicturePrompt.of(
            {"model": "a/b", "encoder": "c", "image": {"sha256": image.sha256}},
            paths=False,
            pictures={image.sha256: image},
        )
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    made = Request.from_dict({"picture_prompts": [f"model=a,encoder=b,weight=0.5,image={tmp_path}/p.png"]})
    assert made.picture_prompts[0].weight == 0.5
    plain = made.to_dict()
    known = {made.picture_prompts[0].image.sha256: made.picture_prompts[0].image}
    assert Request.from_dict(plain, pictures=known) == made

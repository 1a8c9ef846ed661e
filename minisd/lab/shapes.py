"""Where operations are called: the sites of real models, counted, and inputs for a site.

`sites_of_model` runs the networks of a family on the meta device, which computes shapes and nothing else, and
listens at every layer that is an operation. `QUICK` is a small set for a machine without a GPU: every head
dim, ragged sizes, a text of one and of two chunks, more images than one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from minisd.config import SD1, SD2, SDXL, ModelConfig
from minisd.kernels.attention import attention_op
from minisd.kernels.registry import Site
from minisd.models.clip import TextEncoder
from minisd.models.fused import GEGLU
from minisd.models.unet import UNet
from minisd.models.vae import AttnBlock, AutoencoderKL

FAMILIES: dict[str, tuple[ModelConfig, tuple[int, ...]]] = {
    "sd1": (SD1, (512, 768)),
    "sd2": (SD2, (512, 768)),
    "sdxl": (SDXL, (768, 1024)),
}
BATCHES = (1, 2, 8)
TOKENS = 77
KINDS = ("random", "large", "equal", "strided")
F32 = torch.float32

QUICK: dict[str, tuple[Site, ...]] = {
    "self_attention": (
        *(Site("self_attention", F32, b=2, h=2, n=n, m=n, d=d) for n, d in ((70, 40), (33, 80), (17, 160))),
        Site("self_attention", F32, b=3, h=2, n=200, m=200, d=64),
        Site("self_attention", F32, b=1, h=1, n=513, m=513, d=64),
    ),
    "cross_attention": (
        *(Site("cross_attention", F32, b=2, h=2, n=65, m=77, d=d) for d in (40, 64, 80, 160)),
        Site("cross_attention", F32, b=2, h=2, n=31, m=154, d=64),
        Site("cross_attention", F32, b=2, h=1, n=40, m=231, d=64),
        Site("cross_attention", F32, b=1, h=2, n=5, m=1, d=40),
    ),
    "causal_attention": (
        Site("causal_attention", F32, b=2, h=3, n=77, m=77, d=64),
        Site("causal_attention", F32, b=2, h=2, n=9, m=9, d=8),
    ),
    "wide_attention": (Site("wide_attention", F32, b=2, h=1, n=63, m=63, d=512),),
    "group_norm_silu": (
        Site("group_norm_silu", F32, b=2, h=4, n=600, d=64),
        Site("group_norm_silu", F32, b=1, h=32, n=35, d=320),
        Site("group_norm_silu", F32, b=3, h=4, n=49, d=96),
    ),
    "layer_norm": (
        Site("layer_norm", F32, b=2, n=34, d=320),
        Site("layer_norm", F32, b=2, n=10, d=60),
    ),
    "geglu": (Site("geglu", F32, b=2, n=90, m=100, d=150), Site("geglu", F32, b=2, n=10, m=320, d=64)),
    "guidance": (Site("guidance", F32, b=2, n=4 * 33 * 31), Site("guidance", F32, b=2, n=7)),
    "upsample_conv": (
        Site("upsample_conv", F32, b=2, n=35, m=24, d=16),
        Site("upsample_conv", F32, b=2, n=1, m=8, d=8),
    ),
    "quantised_linear": (
        Site("quantised_linear", F32, b=2, n=90, m=100, d=150),
        Site("quantised_linear", F32, b=2, n=3, m=64, d=64),
    ),
}


@dataclass(frozen=True)
class Called:
    """A site of a model, and how often a forward pass calls it. where: "unet", "vae" or "text"."""

    site: Site
    count: int
    where: str


def site_of(layer: nn.Module, arguments: tuple[object, ...], dtype: torch.dtype) -> Site:
    """The site of one call of a layer that is an operation."""
    x = arguments[0]
    assert isinstance(x, Tensor)
    op = str(getattr(layer, "operation", ""))
    if op.endswith("attention"):
        if isinstance(layer, AttnBlock):
            b, d, n = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
            return Site(op, dtype, b=b, n=n, m=n, d=d)
        (b, n, width), heads = x.shape, int(getattr(layer, "num_heads", 1))
        text = arguments[1] if len(arguments) > 1 else None
        m = text.shape[1] if isinstance(text, Tensor) else n
        op = attention_op(n, m, heads, width // heads, op == "causal_attention")
        return Site(op, dtype, b=b, h=heads, n=n, m=m, d=width // heads)
    if op == "group_norm_silu":
        groups = int(getattr(layer, "num_groups", 32))
        return Site(op, dtype, b=x.shape[0], h=groups, n=x.shape[2] * x.shape[3], d=x.shape[1])
    if op == "upsample_conv":
        return Site(op, dtype, b=x.shape[0], n=x.shape[2] * x.shape[3], m=x.shape[1], d=x.shape[1])
    if isinstance(layer, GEGLU):
        inner = layer.proj.out_features // 2
        return Site(op, dtype, b=x.shape[0], n=x.shape[1], m=x.shape[2], d=inner)
    return Site(op, dtype, b=x.shape[0], n=x.shape[1], d=x.shape[2])


def heard(network: nn.Module, run: Callable[[], object], dtype: torch.dtype) -> Counter[Site]:
    """The sites that `run` calls in the network."""
    found: Counter[Site] = Counter()

    def listen(layer: nn.Module, arguments: tuple[object, ...]) -> None:
        found[site_of(layer, arguments, dtype)] += 1

    hooks = [m.register_forward_pre_hook(listen) for m in network.modules() if hasattr(m, "operation")]
    try:
        with torch.inference_mode():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


@lru_cache(maxsize=64)
def sites_of_model(
    config: ModelConfig, size: int, batch: int = 2, tokens: int = TOKENS, dtype: torch.dtype = torch.bfloat16
) -> tuple[Called, ...]:
    """Every site of a model at size x size pixels: one pass of the UNet over `batch` latents, one picture
    decoded, one text encoded."""
    latent = size // config.vae.factor
    with torch.device("meta"):
        unet, vae = UNet(config.unet), AutoencoderKL(config.vae)
        texts = [TextEncoder(use.config) for use in config.text]
        x, z = (torch.empty(b, config.unet.in_channels, latent, latent, dtype=dtype) for b in (batch, 1))
        context = torch.empty(batch, tokens, config.unet.context_dim, dtype=dtype)
        times, ids = torch.empty(batch), torch.zeros(1, 77, dtype=torch.long)
        y = None if config.unet.y_dim is None else torch.empty(batch, config.unet.y_dim, dtype=dtype)
    for network in (unet, vae, *texts):
        network.to(dtype)
    calls: list[tuple[str, nn.Module, Callable[[], object]]] = [
        ("unet", unet, lambda: unet(x, times, context, y))
    ]
    calls.append(("vae", vae, lambda: vae.decode(z[:, : config.vae.z_channels])))
    calls += [("text", text, lambda text=text: text(ids)) for text in texts]
    found: list[Called] = []
    for where, network, run in calls:
        found += [Called(site, count, where) for site, count in heard(network, run, dtype).items()]
    return tuple(found)


@lru_cache(maxsize=1)
def real_sites() -> tuple[Site, ...]:
    """The sites of all families at all sizes, each once; batches 1, 2 and 8 of the UNet, one and two chunks
    of text."""
    sites: dict[Site, None] = {}
    for config, sizes in FAMILIES.values():
        for size in sizes:
            for called in sites_of_model(config, size, 2):
                site = called.site
                if called.where != "unet":
                    sites[site] = None
                    continue
                sites |= dict.fromkeys(replace(site, b=batch) for batch in BATCHES)
                if site.op == "cross_attention":
                    sites[replace(site, m=2 * TOKENS)] = None
    return tuple(sites)


@dataclass(frozen=True)
class Case:
    """Inputs of one call. batched: which of the arguments have the images first."""

    arguments: tuple[object, ...]
    named: dict[str, object]
    batched: tuple[int, ...]

    def of_image(self, image: int) -> Case:
        """The same for one image alone."""
        cut = slice(image, image + 1)
        arguments = [a[cut] if i in self.batched else a for i, a in enumerate(self.arguments)]  # type: ignore[index]
        named = {k: v[cut] if isinstance(v, Tensor) else v for k, v in self.named.items()}
        return replace(self, arguments=tuple(arguments), named=named)

    def to(self, dtype: torch.dtype) -> Case:
        """Floating-point tensors in another precision."""

        def cast(value: object) -> object:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return Case(
            tuple(cast(a) for a in self.arguments), {k: cast(v) for k, v in self.named.items()}, self.batched
        )


def make_case(site: Site, kind: str = "random", seed: int = 0, device: str = "cpu") -> Case:
    """Inputs for a site. kind: random normal; large (scores in the hundreds, means far from 0); equal (all
    rows the same); strided (views of a wider tensor, as a fused projection gives them)."""
    generator = torch.Generator().manual_seed(seed)
    big = 8.0 if kind == "large" else 1.0

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(device=device, dtype=site.dtype)

    def tokens(b: int, n: int, width: int, part: int) -> Tensor:
        if kind == "strided":
            return normal(b, n, 3 * width)[:, :, part * width : (part + 1) * width]
        x = normal(b, n, width) * big
        return x[:, :1].expand(b, n, width).contiguous() if kind == "equal" else x

    op, b, h, n, m, d = site.op, site.b, site.h, site.n, site.m, site.d
    if op.endswith("attention"):
        named: dict[str, object] = {"causal": op == "causal_attention"}
        q, k, v = tokens(b, n, h * d, 0), tokens(b, m, h * d, 1), tokens(b, m, h * d, 2)
        return Case((q, k, v, h), named, (0, 1, 2))
    if op == "group_norm_silu":
        height = next(a for a in range(int(n**0.5), 0, -1) if n % a == 0)
        x = tokens(b, n, d, 0) + (30.0 if kind == "large" else 0.0)
        picture = x.transpose(1, 2).unflatten(-1, (height, -1))  # channels last
        return Case((picture, normal(d), normal(d), h, 1e-5), {"silu": True}, (0,))
    if op == "layer_norm":
        residual = tokens(b, n, d, 1)
        return Case((tokens(b, n, d, 0), normal(d), normal(d), 1e-5), {"residual": residual}, (0,))
    if op == "geglu":
        return Case((tokens(b, n, m, 0), normal(2 * d, m) / m**0.5, normal(2 * d)), {}, (0,))
    if op == "guidance":
        return Case((normal(b, n), normal(b, n), normal(b, n), 7.5, 0.8, -0.6 * big, 0.9), {}, (0, 1, 2))
    if op == "upsample_conv":
        height = next(a for a in range(int(n**0.5), 0, -1) if n % a == 0)
        x = tokens(b, n, m, 0).transpose(1, 2).unflatten(-1, (height, -1))
        return Case((x, normal(d, m, 3, 3) / (9 * m) ** 0.5, normal(d)), {}, (0,))
    assert op == "quantised_linear", f"no inputs for {op}"
    weight = torch.randint(-127, 128, (d, m), generator=generator, dtype=torch.int8).to(device)
    return Case((tokens(b, n, m, 0), weight, normal(d).abs() / (60 * m**0.5), normal(d)), {}, (0,))

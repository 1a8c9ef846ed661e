"""What a network takes while it runs: its forward pass on the meta device, with every tensor's life counted.

Nothing is computed and nothing is allocated; a UNet of SDXL takes a third of a second. The count is that of a
device whose operations take nothing beside their inputs and outputs; what oneDNN's convolutions take is added
(`reorders`). Attention counts as a fused kernel unless the plan names one that is not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minisd.config import TextConfig, UNetConfig, VAEConfig
from minisd.empty_results import RULES
from minisd.models.clip import TextEncoder
from minisd.models.conv import beside
from minisd.models.quantised import quantised
from minisd.models.transformer import CrossAttention
from minisd.models.unet import UNet
from minisd.models.vae import AttnBlock, AutoencoderKL
from minisd.quantise.sensitive import Layers
from minisd.residency import all_tensors, pieces
from minisd.wishes import Residency

COUNTED = ("sliced", "reference")  # attention that makes its scores out of plain operations


class Tally(TorchFunctionMode):
    """Counts the bytes of tensors that live at the same time. `peak` is the most there were.

    owned: tensors that are not counted (weights). reorders: convolutions copy what they read.
    """

    def __init__(self, owned: list[Tensor], reorders: bool) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.reorders = reorders
        self._seen = {t.untyped_storage()._cdata for t in owned}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = RULES.get(func, func)(*args, **(kwargs or {}))
        extra = beside(args[0], args[1]) if func is torch.conv2d and self.reorders else 0
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, Tensor):
                self._count(t)
        self.peak = max(self.peak, self.live + extra)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def counted(
    network: nn.Module,
    attention: str,
    run: Callable[[], object],
    reorders: bool,
    flow: Residency = "resident",
) -> int:
    """Most bytes that live at once during `run`, without the network's weights; with those of its pieces that
    are there at that moment, where they come and go (flow "streamed" or "disk")."""
    for module in network.modules():
        if isinstance(module, CrossAttention | AttnBlock):
            module.implementation = attention if attention in COUNTED else "sdpa"
    tally = Tally([*network.parameters()], reorders)
    with torch.inference_mode(), tally if flow == "resident" else Flowing(tally, network, flow, run):
        run()
    return tally.peak


class Flowing:
    """Counts pieces of a network among what lives, as they come and go: `with Flowing(...): run()`.

    The order is that of a first run, which is not counted. flow "streamed": the next piece is there before
    the one that computes has gone.
    """

    def __init__(self, tally: Tally, network: nn.Module, flow: Residency, run: Callable[[], object]) -> None:
        self.tally, self.ahead = tally, flow == "streamed"
        self.order: list[str] = []
        self.sizes: dict[str, int] = {}
        self.present: set[str] = set()
        tensors = all_tensors(network)
        self.entered: Callable[[str], None] = self.order.append
        self.left: Callable[[str], None] = lambda name: None
        for piece in pieces(network):
            name = piece.module
            self.sizes[name] = sum(tensors[t].nbytes for t in piece.tensors)
            self._watch(network.get_submodule(name), name)
        with tally:
            run()
        tally.live = tally.peak = self.at = 0
        self.entered, self.left = self.come, self.go

    def _watch(self, module: nn.Module, name: str) -> None:
        module.register_forward_pre_hook(lambda m, a: self.entered(name))
        module.register_forward_hook(lambda m, a, o: self.left(name))

    def come(self, name: str) -> None:
        self.add(name)
        self.at += 1
        if self.ahead and self.at < len(self.order):
            self.add(self.order[self.at])

    def add(self, name: str) -> None:
        if name not in self.present:
            self.present.add(name)
            self.tally.live += self.sizes[name]
            self.tally.peak = max(self.tally.peak, self.tally.live)

    def go(self, name: str) -> None:
        self.present.discard(name)
        self.tally.live -= self.sizes[name]

    def __enter__(self) -> None:
        self.tally.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.tally.__exit__(*error)


def built(make: Callable[[], nn.Module], dtype: torch.dtype, layers: Layers) -> nn.Module:
    with torch.device("meta"):
        network = make()
    network.to(dtype).requires_grad_(False).eval()
    quantised(network, layers, dtype)
    return network


@lru_cache(maxsize=64)
def unet_work(
    config: UNetConfig,
    height: int,
    width: int,
    batch: int,
    tokens: int,
    dtype: torch.dtype,
    attention: str = "sdpa",
    reorders: bool = False,
    flow: Residency = "resident",
    layers: Layers = (),
) -> int:
    """Bytes of one call of the UNet over `batch` latents of this size, `tokens` of text each, beside its
    weights."""
    # a second transformer block takes what the first one gave back
    once = replace(
        config,
        depth_in=tuple(min(d, 1) for d in config.depth_in),
        depth_mid=min(config.depth_mid, 1),
        depth_out=tuple(min(d, 1) for d in config.depth_out),
    )
    network = built(lambda: UNet(once if flow == "resident" else config), dtype, layers)
    like = {"device": "meta", "dtype": dtype}

    def run() -> None:
        x = torch.empty(batch, config.in_channels, height, width, **like)
        context = torch.empty(batch, tokens, config.context_dim, **like)
        y = None if config.y_dim is None else torch.empty(batch, config.y_dim, **like)
        network(x, torch.empty(1, device="meta"), context, y)

    return counted(network, attention, run, reorders, flow)


@lru_cache(maxsize=256)
def vae_work(
    config: VAEConfig,
    height: int,
    width: int,
    tile: int | None,
    dtype: torch.dtype,
    attention: str = "sdpa",
    reorders: bool = False,
    flow: Residency = "resident",
    layers: Layers = (),
) -> int:
    """Bytes of decoding one latent of this size, in tiles of `tile` latents if given, beside the weights."""
    network = built(lambda: AutoencoderKL(config), dtype, layers)
    assert isinstance(network, AutoencoderKL)
    like = {"device": "meta", "dtype": dtype}

    def run() -> None:
        z = torch.empty(1, config.embed_dim, height, width, **like)
        if tile is None or (tile >= height and tile >= width):
            network.decode(z)
        else:
            canvas = torch.empty(1, 4, height * config.factor, width * config.factor, **like)  # and weights
            part = network.decode(z[..., :tile, :tile])
            del canvas, part

    return counted(network, attention, run, reorders, flow)


@lru_cache(maxsize=64)
def text_work(
    config: TextConfig, dtype: torch.dtype, flow: Residency = "resident", layers: Layers = ()
) -> int:
    """Bytes of encoding one row of 77 tokens, beside the weights."""
    once = replace(config, layers=1)
    network = built(lambda: TextEncoder(once if flow == "resident" else config), dtype, layers)
    row = torch.empty(1, config.max_length, dtype=torch.int64, device="meta")
    norm = config.final_layer_norm  # what is pooled is one row more
    return counted(network, "sdpa", lambda: network(row, final_norm=norm), False, flow)

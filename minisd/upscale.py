"""Upscaler: a picture made larger by a network of ESRGAN's kind, in tiles when it is large.

    upscaler = load_upscaler("RealESRGAN_x4plus.pth")
    large = upscaler(image)

These networks see no further than `config.reach` pixels. A tile with as wide a margin gives exactly what the
whole picture gives there; the default margin is narrower where that would cost more than it shows.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minisd.config import CompactConfig, OtherUpscalerConfig, RRDBNetConfig, UpscalerConfig
from minisd.control import is_path
from minisd.errors import ImageError, NumericalError, PlanError, RequestError, listed, quoted
from minisd.hires import FILTERS, LATENT
from minisd.models.compact import Compact
from minisd.models.rrdbnet import RRDBNet
from minisd.placement import choose_device, choose_dtype
from minisd.request import Request
from minisd.upscale_others import other_network
from minisd.weights_loader.open import open_source
from minisd.weights_loader.upscaler_file import OtherArchitecture, open_upscaler

TILE, MARGIN = 256, 48  # pixels of the picture given
MAX_PIXELS = 16384 * 16384  # of the picture made


@dataclass(frozen=True)
class Upscaler:
    """A loaded network; any number of threads may use it."""

    name: str
    network: Callable[[Tensor], Tensor]
    config: UpscalerConfig | OtherUpscalerConfig
    device: str
    dtype: torch.dtype

    @property
    def scale(self) -> int:
        return self.config.scale

    def __call__(
        self, image: Image.Image, *, tile: int | None = TILE, margin: int | None = None
    ) -> Image.Image:
        """An RGB image `scale` times as large. tile: pixels of a side that are enlarged at once; None: all,
        as always for a network that tells parts from the whole. margin: pixels around a tile that are seen
        with it; None: what the network sees, at most MARGIN.

        Raises ImageError for a picture that would get too large, NumericalError for values that are not
        finite."""
        width, height = (n * self.scale for n in image.size)
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"the picture would have {width} x {height} pixels; at most {MAX_PIXELS:,} are made"
            )
        grey = self.config.channels == 1
        pixels = np.array(image.convert("L" if grey else "RGB")).reshape(*image.size[::-1], -1)
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        with torch.inference_mode():
            out = self.enlarged(x.to(self.device, self.dtype) / 255, tile=tile, margin=margin)
        if not torch.isfinite(out).all():
            raise NumericalError(f"the upscaler {self.name} gave values that are not finite in {self.dtype}")
        levels = (out[0].float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return Image.fromarray(np.ascontiguousarray(levels[..., 0] if grey else levels)).convert("RGB")

    def enlarged(self, x: Tensor, *, tile: int | None = TILE, margin: int | None = None) -> Tensor:
        """Picture b c h w, values 0..1 -> b c (scale h) (scale w), values about 0..1."""
        around = min(self.config.reach, MARGIN) if margin is None else margin
        square = self.config.unshuffle if isinstance(self.config, RRDBNetConfig) else 1
        if around < 0 or (tile is not None and tile < 1):
            raise PlanError(f"tile {tile} and margin {around} must be at least 1 and 0 pixels")
        h, w = x.shape[-2:]
        padded = F.pad(x, (0, -w % square, 0, -h % square), mode="replicate") if square > 1 else x
        if isinstance(self.config, OtherUpscalerConfig) and not self.config.tiled:
            tile = None
        whole = tile is None or (tile >= h and tile >= w)
        out = self.network(padded) if whole else self.tiles(padded, up(tile or 1, square), up(around, square))
        return out[..., : h * self.scale, : w * self.scale]

    def tiles(self, x: Tensor, tile: int, margin: int) -> Tensor:
        h, w = x.shape[-2:]
        s = self.scale
        out = x.new_empty(*x.shape[:2], h * s, w * s)
        for top in range(0, h, tile):
            for left in range(0, w, tile):
                bottom, right = min(top + tile, h), min(left + tile, w)
                above, before = max(0, top - margin), max(0, left - margin)
                seen = x[..., above : min(bottom + margin, h), before : min(right + margin, w)]
                part = self.network(seen)
                rows = slice((top - above) * s, (bottom - above) * s)
                columns = slice((left - before) * s, (right - before) * s)
                out[..., top * s : bottom * s, left * s : right * s] = part[..., rows, columns]
        return out


def up(n: int, multiple: int) -> int:
    """The next multiple."""
    return -(-n // multiple) * multiple


def network_of(config: UpscalerConfig) -> nn.Module:
    """Built on the device that is set, as torch.device("meta")."""
    return Compact(config) if isinstance(config, CompactConfig) else RRDBNet(config)


def load_upscaler(path: str | os.PathLike[str], *, device: str = "auto", dtype: str = "auto") -> Upscaler:
    """An RRDBNet (ESRGAN, BSRGAN, Real-ESRGAN) or SRVGGNetCompact from its file; with the extra `upscalers`,
    what spandrel knows, too. device, dtype: by name instead of automatic. Raises CheckpointError, PlanError.
    """
    place = choose_device(device).value
    compute = choose_dtype(dtype, place).value
    try:
        file = open_upscaler(path)
    except OtherArchitecture as why:
        source = open_source(path)
        try:
            network, config, compute = other_network(source, why, place, compute, named=dtype != "auto")
            return Upscaler(source.path.stem, network, config, place, compute)
        finally:
            source.close()
    with file:
        with torch.device("meta"):
            network = network_of(file.config)
        network.load_state_dict(file.state_dict(dtype=compute), strict=True, assign=True)
        network.requires_grad_(False).eval().to(place)
        return Upscaler(file.source.path.stem, network, file.config, place, compute)


class Upscalers:
    """Upscalers of an engine, by name or path. Thread-safe; the one that was used last stays loaded."""

    def __init__(self, names: Mapping[str, str | os.PathLike[str]] | None = None) -> None:
        self._names = {name: os.fspath(path) for name, path in (names or {}).items()}
        self._kept: tuple[tuple[object, ...], Upscaler] | None = None
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    def add(self, name: str, path: str | os.PathLike[str]) -> None:
        """From now on `name` means this file."""
        with self._lock:
            self._names[name] = os.fspath(path)

    def path(self, name: str) -> str | None:
        """The file that a request's `hires_upscaler` means; None for a filter."""
        return None if name in LATENT or name in FILTERS else self._names.get(name, name)

    def of(self, request: Request, device: str) -> Upscaler | None:
        """What a request names beside the filters there always are; None where it names none. Raises
        RequestError for a name that is not known, CheckpointError for a file that is no upscaler."""
        name = request.hires_upscaler
        path = self.path(name)
        if path is None:
            return None
        if name not in self._names and not is_path(name):
            known = listed([*FILTERS, *LATENT, *self.names])
            raise RequestError(
                f"there is no upscaler {quoted(name)}; known are {known}; or give the path of a file",
                field="hires_upscaler",
            )
        with self._lock:  # held while loading: two threads that want one network load it once
            try:
                stat = os.stat(path)
            except OSError:
                stat = None  # load_upscaler says what is wrong
            key = (os.path.abspath(path), stat and (stat.st_size, stat.st_mtime_ns), device)
            if self._kept is None or self._kept[0] != key:
                self._kept = key, load_upscaler(path, device=device)
            return self._kept[1]

    def clear(self) -> None:
        """Let go of it."""
        with self._lock:
            self._kept = None

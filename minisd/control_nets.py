"""Control networks of an engine: found by name or path, loaded beside its model, a few kept."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from minisd.config import ControlNetConfig, LLLiteConfig, T2IAdapterConfig
from minisd.control import REFERENCE, ControlUnit, is_path
from minisd.control_run import Network
from minisd.errors import CheckpointError, RequestError, listed, quoted
from minisd.model import Model
from minisd.models.controlnet import ControlNet
from minisd.models.fused import use
from minisd.models.lllite import LLLite
from minisd.models.t2i_adapter import T2IAdapter
from minisd.weights_loader.control_file import open_control

KEPT = 4  # networks that stay loaded
STEMS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")


def load_control(path: str | os.PathLike[str], model: Model) -> Network:
    """A control network of any kind for this model, on its UNet's device and in its dtype.

    path: a file, or a diffusers folder of one network. Raises CheckpointError for what does not fit.
    """
    with open_control(file_of(path), unet=model.config.unet) as file:
        base = model.unet.state_dict() if file.needs_base else None
        weights = file.state_dict(dtype=model.unet_dtype, base=base)
        with torch.device("meta"):
            config = file.config
            network = built(config)
    network.load_state_dict(weights, strict=True, assign=True)
    del weights
    network.requires_grad_(False).eval().to(model.unet_device)
    if "unet" in model.plan.channels_last.value:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # of torch's stubs
    use(network, model.plan.kernels.value)
    return network


def built(config: ControlNetConfig | LLLiteConfig | T2IAdapterConfig) -> Network:
    if isinstance(config, ControlNetConfig):
        return ControlNet(config)
    return LLLite(config) if isinstance(config, LLLiteConfig) else T2IAdapter(config)


def file_of(path: str | os.PathLike[str]) -> Path:
    """The weights at a path: itself, or those of a diffusers folder."""
    if not os.path.isdir(path):
        return Path(path)
    found = next((Path(path) / stem for stem in STEMS if (Path(path) / stem).is_file()), None)
    if found is None:
        raise CheckpointError(f"the folder {quoted(Path(path).name)} holds none of {listed(STEMS)}")
    return found


class ControlNets:
    """Control networks by name. Thread-safe; holds at most KEPT of them, the longest unused is let go."""

    def __init__(self, names: Mapping[str, str | os.PathLike[str]] | None = None) -> None:
        self._names = {name: Path(path) for name, path in (names or {}).items()}
        self._kept: OrderedDict[tuple[str, int, int], Network] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    def add(self, name: str, path: str | os.PathLike[str]) -> None:
        """From now on `name` means this file."""
        with self._lock:
            self._names[name] = Path(path)

    def path(self, name: str, field: str = "controls") -> Path:
        """The file that a name means: one that was given, or a path. Raises RequestError for this field of
        a Request."""
        if name in self._names:
            return self._names[name]
        if not is_path(name) and not os.path.isdir(name):
            known = f"known are {listed(self.names)}" if self.names else "the engine knows none by name"
            raise RequestError(
                f"there is no control network or adapter {quoted(name)}; {known}; or give the path of a file",
                field=field,
            )
        return Path(name)

    def networks(self, units: Iterable[ControlUnit], model: Model) -> dict[str, Network]:
        """{name: network} of the units that act; loads what is not there."""
        acting = [u for u in units if u.weight != 0.0 and u.model != REFERENCE]
        return {u.model: self._network(self.path(u.model), model) for u in acting}

    def _network(self, path: Path, model: Model) -> Network:
        file = file_of(path)
        try:
            stat = file.stat()
        except OSError as error:
            raise CheckpointError(
                f"cannot read the control network {quoted(path)}: {error.strerror or error}"
            ) from error
        key = (os.path.abspath(file), stat.st_size, stat.st_mtime_ns)
        with self._lock:  # held while loading: two threads that want one network load it once
            if key not in self._kept:
                self._kept[key] = load_control(file, model)
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]

    def clear(self) -> None:
        """Let go of all networks."""
        with self._lock:
            self._kept.clear()

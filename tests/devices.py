"""Devices that are not there: their tensors lie in this machine's memory, and everything else is as on a real
one.

    with FakeDevices() as there:                      # "xpu:0", "xpu:1", ...
        engine = minisd.load(path, unet_device="xpu:0", vae_device="xpu:1")
        there.peak["xpu:0"], there.moved[-1]          # bytes that lived at once; (from, to, shape)

Operations on tensors of two devices raise, as torch's do; what moves from one to another is noted; bytes are
counted from a storage's making to its end. What is computed is what the CPU computes, bit for bit.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._device import _device_constructors

from minisd.plan_devices import DeviceFacts, device_facts

MAKERS = ("empty", "zeros", "ones", "full", "arange", "tensor", "linspace", "randn")
COUNT = 4
KIND = "xpu"  # a kind that torch knows and this project treats like any other accelerator
Move = tuple[str, str, tuple[int, ...]]
to_real, cpu_real = Tensor.to, Tensor.cpu


class Placed(Tensor):
    """A tensor on a fake device; `world` and `place` say where."""

    world: FakeDevices
    place: str

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        world = next(t for t in tensors_in((args, kwargs)) if isinstance(t, Placed)).world
        return world.run(func, args, kwargs or {})


def tensors_in(what: Any) -> Iterator[Tensor]:
    if isinstance(what, Tensor):
        yield what
    elif isinstance(what, tuple | list):
        for one in what:
            yield from tensors_in(one)
    elif isinstance(what, dict):
        yield from tensors_in(list(what.values()))


def place_of(tensor: Tensor) -> str:
    return tensor.place if isinstance(tensor, Placed) else "cpu"


class FakeDevices:
    """Some devices of one kind, while the `with` block lasts. free: bytes that each is said to
    have."""

    def __init__(self, free: int | None = None) -> None:
        self.free = free
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.moved: list[Move] = []
        self.threads: set[tuple[str, int]] = set()  # (device, thread) of every convolution
        self._seen: set[int] = set()
        self._lock = threading.RLock()
        self._patches: list[Any] = []

    def __enter__(self) -> FakeDevices:
        _device_constructors()  # torch's own list of these functions, made when first needed
        self._patches = [patch.object(torch, name, self.maker(getattr(torch, name))) for name in MAKERS]
        self._patches += [
            patch.object(Tensor, "to", lambda tensor, *a, **k: self.to(tensor, *a, **k)),
            patch.object(Tensor, "cpu", lambda tensor: self.to(tensor, "cpu")),
            patch.object(torch.accelerator, "current_accelerator", lambda **_: torch.device(KIND)),
            patch.object(torch.accelerator, "device_count", lambda: COUNT),
            patch("minisd.model.device_facts", self.facts),
        ]
        for one in self._patches:
            one.start()
        return self

    def __exit__(self, *error: object) -> None:
        for one in reversed(self._patches):
            one.stop()

    def facts(self, name: str) -> DeviceFacts:
        if torch.device(name).type != KIND:
            return device_facts(name)
        return DeviceFacts(name, self.free, 0, True, "it says so", fp8=False, host=False, reorders=False)

    def put(self, tensor: Tensor, place: str) -> Tensor:
        """The plain tensor as one of this device."""
        if place == "cpu" or isinstance(tensor, Placed):
            return tensor
        out = tensor.as_subclass(Placed)
        out.world, out.place = self, place
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        with self._lock:
            if key not in self._seen:
                self._seen.add(key)
                self.live[place] += size
                self.peak[place] = max(self.peak[place], self.live[place])
                weakref.finalize(storage, self._gone, key, place, size)
        return out

    def _gone(self, key: int, place: str, size: int) -> None:
        with self._lock:
            self._seen.discard(key)
            self.live[place] -= size

    def maker(self, real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def make(*args: Any, **kwargs: Any) -> Tensor:
            device = kwargs.get("device")
            if device is None or torch.device(device).type != KIND:
                return real(*args, **kwargs)
            return self.put(real(*args, **{**kwargs, "device": "cpu"}), str(device))

        return make

    def to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As Tensor.to: a copy where the device or the dtype is another."""
        place = place_of(tensor)
        given = [*args, *kwargs.values()]
        like = next((g for g in given if isinstance(g, Tensor)), None)
        devices = [str(g) for g in given if isinstance(g, str | torch.device)]
        there = place_of(like) if like is not None else devices[0] if devices else place
        dtypes = [like.dtype] if like is not None else [g for g in given if isinstance(g, torch.dtype)]
        layout = {k: v for k, v in kwargs.items() if k == "memory_format"}
        if KIND not in place + there:
            return to_real(tensor, *args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            if there == place:
                out = to_real(tensor, *dtypes, **layout)
                return tensor if out is tensor else self.put(out, place)
            out = to_real(tensor, *dtypes, copy=True, **layout).as_subclass(Tensor)
        with self._lock:
            self.moved.append((place, there, tuple(tensor.shape)))
        return self.put(out, there)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = getattr(func, "__name__", "")
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return torch.device(place_of(args[0]))
        if name == "numpy":
            raise TypeError("can't convert a tensor of a device to numpy; use Tensor.cpu()")
        given = list(tensors_in((args, kwargs)))
        places = {place_of(t) for t in given if isinstance(t, Placed) or t.ndim}
        if name == "__getitem__":  # a CPU's indices find their way
            places = {place_of(args[0])}
        if len(places) > 1 and name not in ("copy_", "__set__"):
            raise RuntimeError(f"{name}: all tensors must be on one device, not on {sorted(places)}")
        place = places.pop() if places else "cpu"
        device = kwargs.get("device")
        if device is not None:
            place, kwargs = str(device), {**kwargs, "device": "cpu"}
        if name == "conv2d":
            self.threads.add((place, threading.get_ident()))
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **kwargs)
        return self._placed(out, place)

    def _placed(self, out: Any, place: str) -> Any:
        if isinstance(out, Tensor):
            return self.put(out, place)
        if type(out) in (tuple, list):
            return type(out)(self._placed(one, place) for one in out)
        return out

"""CUDA graphs: the kernels of one network call recorded once and replayed, without a launch from Python for
each of some 700 (SD1.5) or 1900 (SDXL).

A recording holds the addresses it was made with: inputs are copied to fixed places, the result is copied
out. One recording for each set of shapes. Not run on hardware by this project's tests: they see that inputs
and results go to the right places.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # calls before recording: libraries choose their algorithms and allocate
Run = Callable[..., Tensor]
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


def record_cuda(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """(replay, the tensor that holds its result)."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph.replay, out


class Graphs:
    """Recordings of one network. Threads take turns: the places of inputs are shared."""

    def __init__(self, record: Record = record_cuda) -> None:
        self._record = record
        self._made: dict[tuple[object, ...], tuple[list[Tensor], Callable[[], None], Tensor]] = {}
        self._lock = threading.Lock()

    def run(self, function: Run, *inputs: Tensor | None) -> Tensor:
        """function(*inputs), recorded at the first call with these shapes and replayed from then on."""
        given = [t for t in inputs if t is not None]
        key = tuple(None if t is None else (t.shape, t.dtype, t.device, t.stride()) for t in inputs)
        with self._lock:
            if key not in self._made:
                places = [t.clone(memory_format=torch.preserve_format) for t in given]
                fixed = iter(places)
                arguments = [None if t is None else next(fixed) for t in inputs]
                self._made[key] = places, *self._record(lambda: function(*arguments))
            places, replay, out = self._made[key]
            for place, tensor in zip(places, given, strict=True):
                place.copy_(tensor)
            replay()
            return out.clone()

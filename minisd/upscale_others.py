"""Upscalers of other architectures (SwinIR, DAT, HAT, SPAN and more): the package spandrel builds and runs
the network. Its file is read by our own loader: spandrel gets named tensors, never a file. Needs the extra
`upscalers`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minisd.config import OtherUpscalerConfig
from minisd.errors import CheckpointError, PlanError, quoted
from minisd.weights_loader.source import TensorSource
from minisd.weights_loader.upscaler_file import PREFIXES, OtherArchitecture

Network = Callable[[Tensor], Tensor]


def other_network(
    source: TensorSource, why: OtherArchitecture, device: str, dtype: torch.dtype, *, named: bool
) -> tuple[Network, OtherUpscalerConfig, torch.dtype]:
    """(network, what it is, what it computes in). why: what our own loader said. named: whether the dtype was
    asked for by name; otherwise float32 takes its place where the network does not bear it.

    Raises CheckpointError for a file that spandrel does not know either, or without spandrel.
    """
    try:
        import spandrel  # type: ignore[import-not-found]
    except ImportError:
        raise CheckpointError(f"{why}; for other architectures install minisd[upscalers]") from why
    name = quoted(source.path.name)
    try:
        made = spandrel.ModelLoader().load_from_state_dict(tensors_of(source))
    except spandrel.UnsupportedModelError as error:
        raise CheckpointError(f"{why}; spandrel does not know it either") from error
    except (RuntimeError, ValueError, KeyError, IndexError, AssertionError, TypeError) as error:
        raise CheckpointError(f"{name}: spandrel cannot build it ({type(error).__name__})") from error
    if not isinstance(made, spandrel.ImageModelDescriptor):
        raise CheckpointError(f"{name} is {made.architecture.name}, which takes a mask beside the picture")
    kind = made.architecture.name
    if made.input_channels not in (1, 3) or made.output_channels != made.input_channels:
        raise CheckpointError(
            f"{name} is {kind} from {made.input_channels} to {made.output_channels} channels; expected 3 or 1"
        )
    bears = {torch.float16: made.supports_half, torch.bfloat16: made.supports_bfloat16}.get(dtype, True)
    if not bears and named:
        raise PlanError(f"{kind} does not compute in {str(dtype).removeprefix('torch.')}; use float32")
    compute = dtype if bears else torch.float32
    made.model.requires_grad_(False)
    made.eval().to(torch.device(device), compute)
    tiled = made.tiling == spandrel.ModelTiling.SUPPORTED
    return made, OtherUpscalerConfig(kind, made.input_channels, made.scale, tiled), compute


def tensors_of(source: TensorSource) -> dict[str, Tensor]:
    """Those of the network, without the prefix of their dictionary; the copy without EMA is left out."""
    names = list(source.tensors)
    prefix = next(p for p in PREFIXES if any(n.startswith(p) for n in names) or not p)
    return {n.removeprefix(prefix): source.read(n) for n in names if n.startswith(prefix)}

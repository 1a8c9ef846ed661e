"""What the tools for adapters share: the model that a file fits, factors of a change, and writing."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from minisd.config import FAMILIES, ModelConfig
from minisd.errors import CheckpointError, RequestError, quoted
from minisd.weights_loader.checkpoint import open_checkpoint
from minisd.weights_loader.lora_file import match
from minisd.weights_loader.lora_names import spellings
from minisd.weights_loader.modelspec import model_spec
from minisd.weights_loader.safetensors_file import write_safetensors
from minisd.weights_loader.source import TensorInfo, TensorSource

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BASES = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0", "sdxl-refiner": "sdxl_refiner_v1-0"}
NOISE = 1e-13  # of the largest squared singular value, in float64: below it there is nothing


def fitting(source: TensorSource) -> list[ModelConfig]:
    """The published families that this adapter fits, by headers alone."""
    found = []
    for config in FAMILIES.values():
        try:
            match(source, spellings(config))
        except CheckpointError:
            continue
        found.append(config)
    return found


def config_of(source: TensorSource, model: str | os.PathLike[str] | None = None) -> ModelConfig:
    """The config of the model at a path, or of the first published family that fits. Raises CheckpointError,
    with what is wrong for the family that fits best."""
    if model is not None:
        with open_checkpoint(model) as checkpoint:
            if checkpoint.config is None:
                raise CheckpointError(
                    f"{quoted(checkpoint.name)} is {checkpoint.detection.summary}, no model"
                )
            match(source, spellings(checkpoint.config))
            return checkpoint.config
    if found := fitting(source):
        return found[0]
    shared = {name: known(source.tensors, spellings(config)) for name, config in FAMILIES.items()}
    match(source, spellings(FAMILIES[max(shared, key=lambda name: shared[name])]))
    raise AssertionError("it fits after all")


def known(names: Iterable[str], modules: Mapping[str, object]) -> int:
    """How many of these names begin with that of a module."""
    return sum(any(n[:i] in modules for i, c in enumerate(n) if c == ".") for n in names)


def truncated(change: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """The best approximation up @ down of a matrix [o, n] (Eckart and Young 1936): up [o, r], down [r, n] in
    float64, sum of squares of the matrix and of what is left out. r: `rank`, or less where that is exact.

    By the eigenvectors of the smaller Gram matrix: several times as fast as a decomposition of the matrix,
    with relative errors of some 1e-8.
    """
    wide = change.to(torch.float64)
    whole = float(wide.square().sum())
    lying = wide.shape[0] <= wide.shape[1]
    values, vectors = torch.linalg.eigh(wide @ wide.t() if lying else wide.t() @ wide)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    kept = max(1, min(rank, int((values > NOISE * values[0]).sum())))
    side = vectors[:, :kept]
    other = side.t() @ wide if lying else wide @ side
    root = (
        values[:kept].clamp_min(torch.finfo(torch.float64).tiny).pow(0.25)
    )  # square root of the singular values
    up, down = (side * root, other / root[:, None]) if lying else (other / root, side.t() * root[:, None])
    return up, down, whole, float((wide - up @ down).square().sum())


def checked_target(target: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> Path:
    """The path to write. Raises CheckpointError where it is taken."""
    path = Path(target)
    if path.exists():
        raise CheckpointError(f"{quoted(path.name)} exists; give a name that is free")
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{quoted(path.name)} must end in .safetensors")
    if not path.parent.is_dir():
        raise CheckpointError(f"the folder {quoted(path.parent)} does not exist; make it first")
    return path


def checked_rank(what: str, rank: int) -> int:
    if type(rank) is not int or not 1 <= rank <= 4096:
        raise RequestError(f"{what} is {quoted(rank)}; expected a whole number in 1..4096")
    return rank


def checked_dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise RequestError(f"dtype is {quoted(name)}; known are {', '.join(DTYPES)}")
    return DTYPES[name]


def lora_factors(up: Tensor, down: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """Factors of a weight of this shape as kohya writes them; alpha is the rank, so that the scale is 1, and
    float32: bfloat16 holds no 301."""
    rank = up.shape[1]
    ones = (1,) * (len(shape) - 2)
    return {
        "lora_up.weight": up.reshape(shape[0], rank, *ones).to(dtype),
        "lora_down.weight": down.reshape(rank, *shape[1:]).to(dtype),
        "alpha": torch.tensor(float(rank)),
    }


def write_adapter(
    path: Path,
    modules: Mapping[str, Mapping[str, Tensor]],
    config: ModelConfig,
    more: Mapping[str, str],
) -> None:
    """Modules by kohya's names to a file, with the metadata that other programs look for. Raises
    CheckpointError, also for factors that their dtype cannot hold."""
    tensors = {f"{name}.{factor}": t.contiguous() for name, f in modules.items() for factor, t in f.items()}
    if not tensors:
        raise CheckpointError("there is no difference to write")
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{quoted(name)} is not finite in {str(tensor.dtype)[6:]}; use a wider dtype"
            )
    ranks = [f["lora_down.weight"].shape[0] for f in modules.values() if "lora_down.weight" in f]
    rank = max(ranks, default=0)
    metadata = {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "ss_base_model_version": BASES[config.family],
        **model_spec(config, path.stem, kind="lora"),
        **more,
    }
    infos = [(TensorInfo(n, t.dtype, tuple(t.shape)), lambda t=t: t) for n, t in tensors.items()]
    write_safetensors(path, infos, metadata)


def energy(up: Tensor, down: Tensor) -> float:
    """The sum of squares of up @ down, without the product."""
    return float(((up.t() @ up) * (down @ down.t())).sum())


def kept_part(whole: float, lost: float) -> float:
    """The share of a sum of squares that is kept, 0..1; 1 of nothing."""
    return 1.0 if whole == 0.0 else max(0.0, 1.0 - lost / whole)


def root(value: float) -> float:
    return math.sqrt(max(0.0, value))

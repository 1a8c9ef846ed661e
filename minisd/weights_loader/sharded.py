"""A model cut into several safetensors files, named by a `*.safetensors.index.json`, as one TensorSource.

Format: huggingface_hub `split_torch_state_dict_into_shards`: {"metadata": {"total_size"}, "weight_map":
{name: file}}. The index says which files to open, so it is held to the folder it lies in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minisd.errors import CheckpointError, listed, quoted
from minisd.weights_loader.binary_file import BinaryFile
from minisd.weights_loader.limits import check_count
from minisd.weights_loader.safetensors_file import SafetensorsFile
from minisd.weights_loader.source import TensorInfo

MAX_INDEX_BYTES = 16_000_000  # SDXL's index takes 0.2 MB
MAX_SHARDS = 1_000


class ShardedSource:
    """A `TensorSource` over all shards; opening reads every header. `metadata` is the shards', the first
    one's first.

    Raises CheckpointError when the index names a file outside its folder or one that is not there, and when
    index and shards disagree in a single name or in the total size.
    """

    container = "sharded safetensors"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        where, weight_map, total = _read_index(self.path)
        folder = self.path.parent
        shards = list(dict.fromkeys(weight_map.values()))
        if len(shards) > MAX_SHARDS:
            raise CheckpointError(f"{where} names {len(shards):,} shards; the limit is {MAX_SHARDS:,}")
        paths = {shard: _inside(folder, shard, where) for shard in shards}
        self._files: dict[str, SafetensorsFile] = {}
        tensors: dict[str, TensorInfo] = {}
        metadata: dict[str, str] = {}
        try:
            for shard in shards:
                file = self._files[shard] = SafetensorsFile(paths[shard])
                _check_shard(shard, file.tensors, weight_map, where)
                tensors.update(file.tensors)
                metadata = {**file.metadata, **metadata}
            missing = [name for name in weight_map if name not in tensors]
            if missing:
                raise CheckpointError(f"{where} names tensors that their shards lack: {listed(missing)}")
            size = sum(info.nbytes for info in tensors.values())
            if total is not None and total != size:
                raise CheckpointError(
                    f"{where} says total_size {total:,}, the shards hold {size:,} bytes; incomplete?"
                )
        except BaseException:
            self.close()
            raise
        self.tensors: Mapping[str, TensorInfo] = tensors
        self.metadata: Mapping[str, str] = metadata
        self._weight_map = weight_map

    def read(self, name: str, *, dtype: torch.dtype | None = None) -> Tensor:
        """As `SafetensorsFile.read`, from the shard that holds the tensor."""
        return self._files[self._weight_map[name]].read(name, dtype=dtype)

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def _read_index(path: Path) -> tuple[str, dict[str, str], int | None]:
    """The index's name for messages, its weight map, and its total size if it has one. Raises
    CheckpointError.
    """
    file = BinaryFile(path)
    try:
        where = file.name
        if file.size > MAX_INDEX_BYTES:
            raise CheckpointError(
                f"{where} has {file.size:,} bytes; the limit of an index is {MAX_INDEX_BYTES:,}"
            )
        raw = file.read(0, file.size)
    finally:
        file.close()
    try:
        index = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a name twice, nested beyond reason
        raise CheckpointError(f"{where} is not an index of shards: {quoted(error)}") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(s, str) for s in weight_map.values())
    ):
        raise CheckpointError(f"{where} has no weight_map of tensor names to file names")
    check_count(len(weight_map), where)
    metadata = index.get("metadata", {})
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(total, float) and total.is_integer():
        total = int(total)  # written so by some versions of transformers
    if total is not None and type(total) is not int:
        raise CheckpointError(f"{where} has total_size {quoted(total)}; expected a number of bytes")
    return where, weight_map, total


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made: dict[str, object] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"{name!r} appears twice")
        made[name] = value
    return made


def _inside(folder: Path, shard: str, where: str) -> Path:
    """The path of a shard, which must be a safetensors file of this folder."""
    parts = shard.split("/")
    outside = f"{where} names {quoted(shard)}, outside the model folder; refusing"
    if "\\" in shard or ":" in shard or "\0" in shard or not all(parts) or "." in parts or ".." in parts:
        raise CheckpointError(outside)
    if not shard.endswith(".safetensors"):
        raise CheckpointError(f"{where} names {quoted(shard)}; only shards in safetensors format are read")
    path = folder / shard
    if not os.path.exists(path):
        raise CheckpointError(f"{where} names {quoted(shard)}, which is not in the folder; download it, too")
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(root) for root in _roots(folder)):
        raise CheckpointError(outside)
    return path


def _roots(folder: Path) -> list[Path]:
    """Where shards may lie: the folder; in a Hugging Face cache also the blobs that a snapshot's links point
    to.
    """
    real = Path(os.path.realpath(folder))
    above = [p for p in (real, *real.parents) if p.parent.name == "snapshots"]
    return [real, *(p.parent.parent / "blobs" for p in above[:1] if (p.parent.parent / "refs").is_dir())]


def _check_shard(
    shard: str, tensors: Mapping[str, TensorInfo], weight_map: dict[str, str], where: str
) -> None:
    for name in tensors:
        if name not in weight_map:
            raise CheckpointError(
                f"{quoted(shard)} holds {quoted(name)}, which {where} does not name; refusing"
            )
        if weight_map[name] != shard:
            raise CheckpointError(
                f"{quoted(shard)} holds {quoted(name)}, which {where} places in {quoted(weight_map[name])}; "
                "refusing"
            )

"""Oracle: huggingface_hub's layout of shards, by hand: what is whole is read equal, every lie of the index is
refused.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from minisd.errors import CheckpointError
from minisd.weights_loader.sharded import ShardedSource

INDEX = "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TENSORS = {"a": torch.arange(4.0), "b": torch.ones(2, 3).half(), "c": torch.zeros(0)}
MAP = {"a": ONE, "b": TWO, "c": TWO}


def make(folder: Path, weight_map: object = None, metadata: object = None) -> Path:
    """A whole model of two shards, with what the index says replaced if given."""
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file({"a": TENSORS["a"]}, folder / ONE, metadata={"format": "pt", "n": "1"})
    safetensors.torch.save_file({k: TENSORS[k] for k in "bc"}, folder / TWO, metadata={"n": "2", "m": "3"})
    index = {
        "metadata": {"total_size": 28} if metadata is None else metadata,
        "weight_map": weight_map or MAP,
    }
    (folder / INDEX).write_text(json.dumps(index))
    return folder / INDEX


def test_reads_all_shards_as_one(tmp_path: Path) -> None:
    source = ShardedSource(make(tmp_path))
    assert source.container == "sharded safetensors" and source.path == tmp_path / INDEX
    assert set(source.tensors) == set(TENSORS)
    assert dict(source.metadata) == {"format": "pt", "n": "1", "m": "3"}
    assert all(torch.equal(source.read(name), value) for name, value in TENSORS.items())
    assert source.read("b", dtype=torch.float32).dtype == torch.float32
    source.close()
    with pytest.raises(CheckpointError, match="was closed"):
        source.read("a")


@pytest.mark.parametrize("metadata", [{}, {"total_size": 28.0}, {"other": 1}])
def test_total_size_may_be_absent_or_a_whole_float(tmp_path: Path, metadata: object) -> None:
    assert ShardedSource(make(tmp_path, metadata=metadata)).tensors


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "C:/x.safetensors", "C:x.safetensors"]
    + [
        "..\\x.safetensors",
        "\\\\host\\share\\x.safetensors",
        "./x.safetensors",
        "a//x.safetensors",
        "",
        "x\0.safetensors",
    ],
)
def test_shard_outside_the_folder_is_refused(tmp_path: Path, shard: str) -> None:
    folder = tmp_path / "model"
    safetensors.torch.save_file({"a": TENSORS["a"]}, tmp_path / "x.safetensors")
    path = make(folder, {**MAP, "a": shard})
    with pytest.raises(CheckpointError, match="names .*, outside the model folder; refusing"):
        ShardedSource(path)


def test_symbolic_link_out_is_refused_and_one_inside_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    path = make(folder)
    os.rename(folder / ONE, tmp_path / "elsewhere.safetensors")
    os.symlink(tmp_path / "elsewhere.safetensors", folder / ONE)
    with pytest.raises(CheckpointError, match=f"names '{ONE}', outside the model folder"):
        ShardedSource(path)
    os.remove(folder / ONE)
    os.rename(tmp_path / "elsewhere.safetensors", folder / "inside.safetensors")
    os.symlink("inside.safetensors", folder / ONE)
    assert torch.equal(ShardedSource(path).read("a"), TENSORS["a"])
    os.symlink(folder, tmp_path / "link")
    assert torch.equal(ShardedSource(tmp_path / "link" / INDEX).read("a"), TENSORS["a"])
    os.remove(folder / ONE)
    os.symlink(ONE, folder / ONE)
    with pytest.raises(CheckpointError, match="which is not in the folder"):
        ShardedSource(path)


def test_hugging_face_cache_links_into_its_blobs(tmp_path: Path) -> None:
    """Oracle: the layout of huggingface_hub's cache: snapshots/<revision>/file -> ../../blobs/<hash>, beside
    refs.
    """
    repo = tmp_path / "models--a--b"
    folder = repo / "snapshots" / "0123" / "unet"
    for made in (repo / "blobs", repo / "refs", folder):
        made.mkdir(parents=True)
    path = make(folder)
    for name in (ONE, TWO, INDEX):
        os.rename(folder / name, repo / "blobs" / name.replace(".", ""))
        os.symlink(f"../../../blobs/{name.replace('.', '')}", folder / name)
    assert torch.equal(ShardedSource(path).read("a"), TENSORS["a"])
    os.remove(folder / ONE)
    os.rename(repo / "blobs" / ONE.replace(".", ""), tmp_path / "x")
    os.symlink(tmp_path / "x", folder / ONE)
    with pytest.raises(CheckpointError, match="outside the model folder"):
        ShardedSource(path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (
            {**MAP, "a": "gone.safetensors"},
            "names 'gone.safetensors', which is not in the folder; download it",
        ),
        ({**MAP, "a": "x.bin"}, "only shards in safetensors format"),
        ({**MAP, "a": TWO}, "names tensors that their shards lack: 'a'"),
        ({**MAP, "d": ONE}, "names tensors that their shards lack: 'd'"),
        ({"a": ONE, "b": TWO}, f"'{TWO}' holds 'c', which .* does not name"),
        ({**MAP, "b": ONE}, f"'{TWO}' holds 'b', which .* places in '{ONE}'"),
        ([1], "has no weight_map"),
        ({"a": 1}, "has no weight_map"),
        ({str(i): f"{i}.safetensors" for i in range(1001)}, "1,001 shards; the limit is 1,000"),
        ({str(i): ONE for i in range(20_001)}, "20,001 tensors; the limit is 20,000"),
    ],
)
def test_index_and_shards_must_agree(tmp_path: Path, weight_map: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ShardedSource(make(tmp_path, weight_map))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"total_size": 29}, "says total_size 29, the shards hold 28 bytes"),
        ({"total_size": "28"}, "total_size '28'; expected a number"),
    ],
)
def test_total_size_that_lies_is_refused(tmp_path: Path, metadata: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ShardedSource(make(tmp_path, metadata=metadata))


def test_same_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    safetensors.torch.save_file(TENSORS, tmp_path / TWO)
    with pytest.raises(CheckpointError, match=f"'{TWO}' holds 'a', which .* places in '{ONE}'"):
        ShardedSource(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an index of shards"),
        (b"\xff", "is not an index of shards"),
        (b"[" * 100_000, "is not an index of shards"),
        (b'{"weight_map": {"a": "1", "a": "2"}}', "'a' appears twice"),
        (b"[]", "has no weight_map"),
        (b'{"weight_map": {}}', "has no weight_map"),
        (b" " * 16_000_001, "16,000,001 bytes; the limit of an index"),
    ],
    ids=range(7),
)
def test_malformed_index(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        ShardedSource(tmp_path / INDEX)


def test_damaged_shard_is_named_and_the_others_are_closed(tmp_path: Path) -> None:
    path = make(tmp_path)
    (tmp_path / TWO).write_bytes((tmp_path / TWO).read_bytes()[:-1])
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with pytest.raises(CheckpointError, match=f"^{TWO}.*truncated"):
        ShardedSource(path)
    assert not before or len(os.listdir("/proc/self/fd")) == before

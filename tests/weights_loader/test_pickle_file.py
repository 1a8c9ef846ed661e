"""Oracle: torch.load (what torch.save writes we read equal); for hostile files, the refusal and that nothing
ran.
"""

from __future__ import annotations

import collections
import io
import os
import pickle
import resource
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from minisd.errors import CheckpointError
from minisd.weights_loader import binary_file
from minisd.weights_loader.pickle_file import PickleFile
from minisd.weights_loader.pickle_values import NAMES, Inert
from tests.weights_loader.malformed import Case, written
from tests.weights_loader.malformed_pickle import (
    FOUR,
    GOOD_PICKLE,
    LEGACY_CASES,
    PICKLE_CASES,
    glob,
    legacy,
    raw,
    state,
    storage,
    tensor,
    text,
    tup,
)
from tests.weights_loader.malformed_zip import ZIP_CASES, Rec, archive, checkpoint

ALL: list[Case] = [
    *((f"pickle-{name}", checkpoint(program), message) for name, program, message in PICKLE_CASES),
    *((f"zip-{name}", content, message) for name, content, message in ZIP_CASES),
    *((f"legacy-{name}", content, message) for name, content, message in LEGACY_CASES),
]


def same(a: Tensor, b: Tensor) -> bool:
    a, b = a.detach().contiguous(), b.detach().contiguous()
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    kinds = (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
    )
    made = {str(kind): (base * 10).to(kind) for kind in (*kinds, torch.int8, torch.uint8, torch.bool)}
    views = {
        "base": base,
        "transposed": base.t(),
        "rows": base[2:4],
        "strided": base[1::2, ::3],
        "column": base[:, 5],
        "scalar": base[3, 3],
        "expanded": torch.arange(77).expand(3, -1),
        "permuted": base.view(2, 3, 2, 4).permute(3, 1, 0, 2),
        "empty": torch.zeros(0, 5),
        "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "buffer": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "nan": torch.tensor([float("nan"), float("-inf")]),
    }
    return made | views


@pytest.mark.parametrize(("content", "message"), [c[1:] for c in ALL], ids=[c[0] for c in ALL])
def test_malformed_is_refused_and_nothing_runs(
    tmp_path: Path, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, "bad.ckpt", content)
    modules, started = set(sys.modules), time.perf_counter()
    with pytest.raises(CheckpointError, match=message) as caught:
        file = PickleFile(path)
        for name in file.tensors:
            file.read(name)
    assert time.perf_counter() - started < 4
    assert set(sys.modules) == modules
    assert os.listdir(tmp_path) == ["bad.ckpt"]
    assert str(caught.value).startswith("bad.ckpt") and str(caught.value).isprintable()


def test_canary_would_run_in_pickle_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases above are live: Python's own unpickler executes one and leaves the file."""
    monkeypatch.chdir(tmp_path)
    program = next(program for name, program, _ in PICKLE_CASES if name == "L34-posix")
    pickle.loads(program)
    assert os.listdir(tmp_path) == ["CANARY"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_reads_what_torch_saves(tmp_path: Path, zipped: bool) -> None:
    path, expected = tmp_path / "x.ckpt", tensors()
    torch.save(expected, path, _use_new_zipfile_serialization=zipped)
    oracle = torch.load(path, weights_only=True)
    file = PickleFile(path)
    assert file.container == ("torch zip" if zipped else "torch legacy")
    assert file.tensors.keys() == oracle.keys() and not file.ignored and file.locations == ("cpu",)
    for name, value in oracle.items():
        assert file.tensors[name].shape == tuple(value.shape) and file.tensors[name].dtype == value.dtype
        assert same(file.read(name), value) and file.read(name).is_contiguous()
        if value.is_floating_point():
            assert same(file.read(name, dtype=torch.float16), value.half())
    file.read("base").zero_()
    assert same(file.read("rows"), oracle["rows"])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_reads_float8(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.randn(5, 3).to(dtype)
    torch.save({"a": value, "b": value[1:3]}, tmp_path / "x")
    file = PickleFile(tmp_path / "x")
    assert same(file.read("a"), value) and same(file.read("b"), value[1:3])
    assert same(file.read("b", dtype=torch.float32), value[1:3].float())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_training_checkpoint(tmp_path: Path, zipped: bool) -> None:
    """Oracle: a module's state_dict and optimizer saved by torch, the way Lightning lays them out."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    top = {
        "epoch": 6,
        "global_step": 470_000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": {"state_dict": model.state_dict(), "best": 0.5},
        "optimizer_states": [optimizer.state_dict()],
        "numpy": np.float32(3),
        "callbacks": {"x": {1, 2}},
        "none": None,
    }
    torch.save(top, tmp_path / "x", _use_new_zipfile_serialization=zipped)
    file = PickleFile(tmp_path / "x")
    expected = {"epoch": "6", "global_step": "470000", "pytorch-lightning_version": "1.4.2", "best": "0.5"}
    assert dict(file.metadata) == expected
    assert file.ignored == ("optimizer_states", "numpy", "callbacks", "none")
    assert file.tensors.keys() == model.state_dict().keys()
    assert all(same(file.read(name), value) for name, value in model.state_dict().items())


def test_lightning_class_as_a_key_is_inert(tmp_path: Path) -> None:
    """Oracle: the layout of sd-v1-4.ckpt as its disassembly shows it (a callback class is a dict key)."""
    callback = glob("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
    score = glob("numpy.core.multiarray.scalar") + tup(glob("numpy.dtype"), b"N") + b"R"
    callbacks = b"}" + callback + b"}" + text("best") + score + b"ss"
    file = PickleFile(
        written(tmp_path, "x", checkpoint(state(callbacks=callbacks, state_dict=state(a=tensor())[2:-1])))
    )
    assert list(file.tensors) == ["a"] and file.ignored == ("callbacks",)
    assert "pytorch_lightning" not in sys.modules


def test_textual_inversion_and_nested_dicts_get_dotted_names(tmp_path: Path) -> None:
    """Oracle: torch.nn.ParameterDict saved by torch, and the names of the safetensors form of IP-Adapter."""
    embedding = torch.randn(2, 768)
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(embedding)})
    top = {
        "string_to_param": parameters,
        "string_to_token": {"*": torch.tensor(265)},
        "name": "cat",
        "step": 500,
    }
    torch.save(top, tmp_path / "ti.pt")
    file = PickleFile(tmp_path / "ti.pt")
    assert set(file.tensors) == {"string_to_param.*", "string_to_token.*"}
    assert same(file.read("string_to_param.*"), embedding)
    assert dict(file.metadata) == {"name": "cat", "step": "500"}
    ordered = collections.OrderedDict(
        image_proj={"norm.weight": torch.ones(2)}, ip_adapter={"1.to_k.weight": torch.ones(3), 5: 6}
    )
    torch.save(ordered, tmp_path / "ip.bin")
    file = PickleFile(tmp_path / "ip.bin")
    assert set(file.tensors) == {"image_proj.norm.weight", "ip_adapter.1.to_k.weight"}
    assert file.ignored == ("ip_adapter.5",)


def test_reading_a_view_does_not_read_its_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = torch.arange(1_000_000.0)
    torch.save({"big": big, "slice": big[10:20]}, tmp_path / "x", _use_new_zipfile_serialization=False)
    file = PickleFile(tmp_path / "x")
    sizes: list[int] = []
    original = binary_file.BinaryFile.read_into

    def spy(self: binary_file.BinaryFile, at: int, target: memoryview) -> None:
        sizes.append(len(target))
        original(self, at, target)

    monkeypatch.setattr(binary_file.BinaryFile, "read_into", spy)
    assert same(file.read("slice"), big[10:20])
    assert sizes == [40]


def test_checksum_is_held_once_per_record_and_by_every_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = torch.randn(1000)
    torch.save({str(i): base[i:] for i in range(20)}, tmp_path / "x")
    file = PickleFile(tmp_path / "x")
    checked: list[int] = []
    original = binary_file.BinaryFile.crc32

    def spy(self: binary_file.BinaryFile, at: int, count: int) -> int:
        checked.append(count)
        return original(self, at, count)

    monkeypatch.setattr(binary_file.BinaryFile, "crc32", spy)
    file.read("0")
    outcomes: list[bool] = []
    threads = [
        threading.Thread(target=lambda i=i: outcomes.append(same(file.read(str(i)), base[i:])))
        for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert checked == [4000] and outcomes == [True] * 20


def test_damage_in_one_record_spares_the_others(tmp_path: Path) -> None:
    two = state(a=tensor(), b=tensor(storage(key="1")))
    content = archive([Rec("x/data.pkl", two), Rec("x/data/0", FOUR, crc=7), Rec("x/data/1", FOUR)])
    file = PickleFile(written(tmp_path, "x", content))
    assert file.read("b").tolist() == [1, 2, 3, 4]
    for _ in range(2):
        with pytest.raises(CheckpointError, match="'x/data/0' do not match their CRC-32"):
            file.read("a")


def test_hand_made_files_are_otherwise_good(tmp_path: Path) -> None:
    """Oracle: torch.load. The generators behind the refusals make files that are accepted when they tell the
    truth.
    """
    for content in (checkpoint(), legacy(), checkpoint(state(a=tensor(storage(location="cuda:99"))))):
        path = written(tmp_path, "x", content)
        file = PickleFile(path)
        assert torch.equal(file.read("a"), torch.load(path, weights_only=True, map_location="cpu")["a"])
        assert file.locations in (("cpu",), ("cuda:99",))


def test_small_expanded_views_are_read(tmp_path: Path) -> None:
    program = state(a=tensor(shape=[256, 256], stride=[0, 0]), b=tensor(shape=[3, 2], stride=[1, 1]))
    file = PickleFile(written(tmp_path, "x", checkpoint(program)))
    assert torch.equal(file.read("a"), torch.ones(256, 256))
    assert file.read("b").tolist() == [[1, 2], [2, 3], [3, 4]]


def test_too_many_tensors_is_refused_quickly(tmp_path: Path) -> None:
    shared = tensor() + b"q\0"
    items = b"".join(text(str(i)) + (shared if i == 0 else b"h\0") for i in range(20_001))
    with pytest.raises(CheckpointError, match="20,001 tensors; the limit is 20,000"):
        PickleFile(written(tmp_path, "x", checkpoint(raw(b"}(" + items + b"u"))))


def test_bombs_cost_little_memory(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, program, _ in PICKLE_CASES:
        if name in ("L39-dag", "L39-depth-tuple", "L38-string-over-file", "L42-expanded", "L42-overflow"):
            with pytest.raises(CheckpointError):
                PickleFile(written(tmp_path, "x", checkpoint(program)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        PickleFile(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match=r"empty \(0 bytes\)"):
        PickleFile(written(tmp_path, "x.ckpt", b""))


def test_table_of_names_has_no_way_out() -> None:
    """Oracle: the root modules listed by hand; of those that can reach code, only inert names are known."""
    roots = {name.split(".")[0] for name in NAMES}
    assert roots == {
        "collections",
        "torch",
        "_codecs",
        "__builtin__",
        "argparse",
        "numpy",
        "pytorch_lightning",
    }
    assert {name for name in NAMES if name.startswith("__builtin__")} == {"__builtin__.set"}
    made = [
        known.make((tup, b"x")) for name, known in NAMES.items() if name.startswith("numpy") and known.make
    ]
    assert len(made) == 6 and all(isinstance(value, Inert) for value in made)


def _saved(zipped: bool) -> bytes:
    base = torch.arange(6.0)
    buffer = io.BytesIO()
    top = {"state_dict": {"a": base.view(2, 3).t(), "b": base[1:3]}, "step": 3}
    torch.save(top, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


SEEDS = (_saved(True), _saved(False), checkpoint(), legacy())


@settings(max_examples=400, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_fuzz_files_only_checkpoint_errors(tmp_path: Path, data: st.DataObject) -> None:
    """Oracle: torch.load(weights_only=True), where both accept a mutant: equal tensors."""
    blob = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(blob) - 1))
        if data.draw(st.booleans()):
            blob[at] = data.draw(st.integers(0, 255))
        else:
            blob[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
        if not blob:
            break
    path = written(tmp_path, "fuzz.ckpt", bytes(blob))
    try:
        file = PickleFile(path)
        ours = {name: file.read(name) for name in file.tensors}
    except CheckpointError:
        return
    try:
        theirs = torch.load(path, weights_only=True)
    except Exception:  # torch raises anything, and needs records that we do not read
        return
    theirs = theirs.get("state_dict", theirs)
    assert all(same(value, theirs[name]) for name, value in ours.items() if name in theirs)


@settings(max_examples=400, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_fuzz_pickle_programs_only_checkpoint_errors(tmp_path: Path, data: st.DataObject) -> None:
    """Opcodes in any order, in a sound archive, so that all of them reach the machine."""
    known = (
        b"(",
        b"}",
        b"]",
        b")",
        b"N",
        b"\x88",
        b"t",
        b"\x85",
        b"\x87",
        b"s",
        b"u",
        b"a",
        b"e",
        b"R",
        b"\x81",
        b"b",
        b"Q",
    )
    parts = (
        text("a"),
        text("storage"),
        b"K\4",
        b"q\0",
        b"h\0",
        b"q\1",
        b"h\1",
        storage(),
        tensor(),
        GOOD_PICKLE[2:-1],
    )
    names = tuple(glob(name) for name in sorted(NAMES))
    program = b"".join(data.draw(st.lists(st.sampled_from(known + parts + names), max_size=30)))
    path = written(tmp_path, "fuzz.ckpt", checkpoint(raw(program)))
    modules = set(sys.modules)
    try:
        file = PickleFile(path)
        for name in file.tensors:
            file.read(name)
    except CheckpointError as error:
        assert str(error).isprintable()
    assert set(sys.modules) == modules

"""Oracle: the safetensors package (what it writes we read; what we write it reads; what we accept it
accepts).
"""

from __future__ import annotations

import os
import re
import resource
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from minisd.errors import CheckpointError
from minisd.weights_loader import binary_file
from minisd.weights_loader.binary_file import BinaryFile
from minisd.weights_loader.safetensors_file import SafetensorsFile, write_safetensors
from minisd.weights_loader.source import DTYPES, TensorInfo
from tests.weights_loader.malformed import GOOD, SAFETENSORS_CASES, entry, written
from tests.weights_loader.malformed import safetensors as build


def same(a: Tensor, b: Tensor) -> bool:
    """Equal dtype, shape and bytes; NaN included."""
    a, b = a.contiguous().reshape(-1), b.contiguous().reshape(-1)
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def examples() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {f"x.{code}": torch.randn(3, 5, generator=generator).to(dtype) for code, dtype in DTYPES.items()}
    made |= {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "nan": torch.tensor([float("nan"), 1.0]),
    }
    return made | {"ünïcode 名": torch.ones(1)}


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    write_safetensors(
        path, [(TensorInfo(n, t.dtype, tuple(t.shape)), lambda t=t: t) for n, t in tensors.items()], metadata
    )
    return path


@pytest.mark.parametrize(
    ("content", "message"), [c[1:] for c in SAFETENSORS_CASES], ids=[c[0] for c in SAFETENSORS_CASES]
)
def test_malformed_is_refused_with_its_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = written(tmp_path, "bad.safetensors", content)
    started = time.perf_counter()
    with pytest.raises(CheckpointError, match=message) as caught:
        file = SafetensorsFile(path)
        for name in file.tensors:
            file.read(name)
    assert time.perf_counter() - started < 1
    assert "bad.safetensors" in str(caught.value)
    assert str(caught.value).isprintable()


def test_reads_what_the_package_writes(tmp_path: Path) -> None:
    tensors, path = examples(), tmp_path / "x.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt", "note": "é\n"})
    file = SafetensorsFile(path)
    assert dict(file.metadata) == {"format": "pt", "note": "é\n"}
    assert set(file.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert file.tensors[name] == TensorInfo(name, tensor.dtype, tuple(tensor.shape))
        assert same(file.read(name), tensor)
        assert file.read(name).shape == tensor.shape
    file.close()


def test_package_reads_what_we_write(tmp_path: Path) -> None:
    tensors = examples()
    path = save(tmp_path / "x.safetensors", tensors, {"b": "2", "a": "é"})
    loaded = safetensors.torch.load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(same(loaded[n], t) and loaded[n].shape == t.shape for n, t in tensors.items())
    with safetensors.safe_open(path, "pt") as opened:
        assert opened.metadata() == {"a": "é", "b": "2"}


def test_written_bytes_do_not_depend_on_order_and_are_aligned(tmp_path: Path) -> None:
    tensors = examples()
    one = save(tmp_path / "1", tensors, {"a": "1", "b": "2"}).read_bytes()
    two = save(tmp_path / "2", dict(reversed(tensors.items())), {"b": "2", "a": "1"}).read_bytes()
    assert one == two
    assert int.from_bytes(one[:8], "little") % 8 == 0
    file = SafetensorsFile(tmp_path / "1")
    sizes = [info.dtype.itemsize for info in file.tensors.values() if info.nbytes]
    assert sizes == sorted(sizes, reverse=True)


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = save(tmp_path / "x.safetensors", {"a": torch.ones(2)})
    before = path.read_bytes()

    def fail() -> Tensor:
        raise RuntimeError("source died")

    info = TensorInfo("a", torch.float32, (2,))
    with pytest.raises(RuntimeError, match="source died"):
        write_safetensors(path, [(info, fail)])
    with pytest.raises(
        ValueError, match=r"'a' was announced as torch.float32 \[2\], came as torch.float32 \[3\]"
    ):
        write_safetensors(path, [(info, lambda: torch.ones(3))])
    with pytest.raises(ValueError, match="'a' is given twice"):
        write_safetensors(path, [(info, lambda: torch.ones(2))] * 2)
    with pytest.raises(CheckpointError, match="control character"):
        write_safetensors(path, [(TensorInfo("a\n", torch.float32, (2,)), lambda: torch.ones(2))])
    with pytest.raises(CheckpointError, match="safetensors takes F64"):
        write_safetensors(
            path, [(TensorInfo("c", torch.complex64, (1,)), lambda: torch.zeros(1, dtype=torch.complex64))]
        )
    with pytest.raises(CheckpointError, match=r"cannot be written: No such file or directory \(ENOENT\)"):
        write_safetensors(tmp_path / "gone" / "x", [(info, lambda: torch.ones(2))])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("spaces", range(8))
def test_any_padding_and_alignment(tmp_path: Path, spaces: int) -> None:
    tensors = {"a": torch.randn(5), "b": torch.randn(3).half()}
    blob = safetensors.torch.save(tensors)
    size = int.from_bytes(blob[:8], "little")
    header = b" " * (spaces % 3) + blob[8 : 8 + size].rstrip() + b" " * spaces
    path = written(tmp_path, "x", len(header).to_bytes(8, "little") + header + blob[8 + size :])
    file = SafetensorsFile(path)
    assert all(same(file.read(n), t) for n, t in tensors.items())


def test_no_tensors_and_empty_tensors_anywhere(tmp_path: Path) -> None:
    assert not SafetensorsFile(written(tmp_path, "none", build("{}"))).tensors
    header = {"z": entry(shape=[0], offsets=[0, 0]), "a": entry(), "m": entry(shape=[2, 0], offsets=[16, 16])}
    file = SafetensorsFile(written(tmp_path, "some", build(header, bytes(16))))
    assert file.read("z").shape == (0,) and file.read("m", dtype=torch.float16).shape == (2, 0)


@pytest.mark.parametrize("target", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_conversion_equals_torch(
    tmp_path: Path, target: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binary_file, "CHUNK", 64)  # several chunks, the last one ragged
    tensors = examples() | {"big": torch.randn(1001)}
    file = SafetensorsFile(save(tmp_path / "x", tensors))
    for name, tensor in tensors.items():
        got = file.read(name, dtype=target)
        assert got.shape == tensor.shape and same(got, tensor.to(target))


def test_values_are_fresh_and_on_cpu_whatever_the_default_device(tmp_path: Path) -> None:
    file = SafetensorsFile(written(tmp_path, "x", GOOD))
    file.read("a").zero_()
    with torch.device("meta"):
        again = file.read("a")
    assert again.device.type == "cpu" and again.abs().sum() > 0


def test_reading_without_preadv_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = examples()
    path = save(tmp_path / "x", tensors)
    monkeypatch.delattr(os, "preadv")
    file = SafetensorsFile(path)
    assert all(same(file.read(n), t) for n, t in tensors.items())


def test_one_call_may_return_less_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary_file, "_ONE_CALL", 7)
    tensor = torch.randn(100)
    assert same(SafetensorsFile(save(tmp_path / "x", {"a": tensor})).read("a"), tensor)


def test_change_and_truncation_after_opening_are_errors(tmp_path: Path) -> None:
    path = save(tmp_path / "x", {"a": torch.randn(100_000)})
    file = SafetensorsFile(path)
    os.truncate(path, 1000)
    with pytest.raises(CheckpointError, match=r"changed while open \(400,\d{3} bytes then, 1,000 now\)"):
        file.read("a")
    path = save(tmp_path / "y", {"a": torch.randn(10)})
    file = SafetensorsFile(path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(CheckpointError, match="changed while open"):
        file.read("a")


def test_short_read_is_an_error_even_if_the_size_looks_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = SafetensorsFile(save(tmp_path / "x", {"a": torch.randn(10)}))
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(CheckpointError, match="truncated while open"):
        file.read("a")

    def fails(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(CheckpointError, match=r"failed at byte [\d,]+: Input/output error \(EIO\)"):
        file.read("a")


def test_replaced_file_is_still_the_one_that_was_opened(tmp_path: Path) -> None:
    path = save(tmp_path / "x", {"a": torch.ones(4)})
    file = SafetensorsFile(path)
    save(path, {"a": torch.zeros(4)})
    assert torch.equal(file.read("a"), torch.ones(4))


def test_threads_read_equal_and_close_waits_for_them(tmp_path: Path) -> None:
    tensors = {str(i): torch.full((50_000,), float(i)) for i in range(8)}
    file = SafetensorsFile(save(tmp_path / "x", tensors))
    outcomes: list[bool] = []

    def work(i: int) -> None:
        try:
            while True:
                outcomes.append(same(file.read(str(i)), tensors[str(i)]))
        except CheckpointError as error:
            outcomes.append("was closed" in str(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    file.close()
    file.close()
    for thread in threads:
        thread.join()
    assert len(outcomes) >= 8 and all(outcomes)


def test_opening_sdxl_sized_file_is_quick_and_small(tmp_path: Path) -> None:
    names = [
        f"model.diffusion_model.input_blocks.{i}.1.transformer_blocks.9.attn2.to_out.0.weight"
        for i in range(2515)
    ]
    step = 2_754_000
    header = {n: entry("F16", [step // 2], [i * step, (i + 1) * step]) for i, n in enumerate(names)}
    path = written(tmp_path, "big.safetensors", build(header))
    os.truncate(path, path.stat().st_size + step * len(names))  # sparse: 6.9 GB that take no disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    file = SafetensorsFile(path)
    took = time.process_time() - started
    assert len(file.tensors) == 2515 and path.stat().st_size > 6.9e9
    assert took < 0.2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB
    assert file.read(names[-1]).numel() == step // 2


def test_refused_paths(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    cases = {
        tmp_path: "is a directory",
        tmp_path / "fifo": "is a FIFO",
        Path("/dev/null"): "is a device",
        tmp_path / "none": "does not exist",
        tmp_path / ("x" * 300): r"File name too long \(ENAMETOOLONG\)",
        tmp_path / "a\0b": "is no path",
    }
    for path, message in cases.items():
        with pytest.raises(CheckpointError, match=message):
            BinaryFile(path)


def test_permission_denied_names_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "x", GOOD)

    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)  # the tests may run as a user whom no mode stops
    with pytest.raises(CheckpointError, match=r"x cannot be opened: Permission denied \(EACCES\)"):
        SafetensorsFile(path)


def accepted(path: Path) -> dict[str, Tensor] | None:
    try:
        file = SafetensorsFile(path)
        return {name: file.read(name) for name in file.tensors}
    except CheckpointError:
        return None


@settings(max_examples=300, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_fuzz_only_checkpoint_errors_and_never_more_lenient_than_the_package(
    tmp_path: Path, data: st.DataObject
) -> None:
    blob = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(blob) - 1))
        action = data.draw(st.sampled_from(["set", "digit", "cut", "insert", "swap"]))
        if action == "set":
            blob[at] = data.draw(st.integers(0, 255))
        elif action == "digit":  # numbers are where headers lie
            digits = [i for i, byte in enumerate(blob) if 0x30 <= byte <= 0x39]
            if digits:
                blob[data.draw(st.sampled_from(digits))] = data.draw(st.sampled_from(b"0123456789-."))
        elif action == "cut":
            del blob[at : at + data.draw(st.integers(1, 20))]
        elif action == "insert":
            blob[at:at] = data.draw(
                st.sampled_from([b'"', b"{", b"}", b",", b" ", b"9", b"\\u0041", b'"a":1,', bytes(3)])
            )
        else:
            blob[at], blob[-at - 1] = blob[-at - 1], blob[at]
        if not blob:
            break
        if data.draw(st.booleans()):  # repair the length, so that mutations reach the parser
            end = bytes(blob).rfind(b"}")
            blob[:8] = max(end - 7, 0).to_bytes(8, "little")
    path = written(tmp_path, "fuzz.safetensors", bytes(blob))
    ours = accepted(path)
    if ours is not None:
        theirs = safetensors.torch.load(bytes(blob))
        assert ours.keys() == theirs.keys()
        assert all(same(ours[n], theirs[n]) for n in ours)


@settings(max_examples=100, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_fuzz_round_trip(tmp_path: Path, data: st.DataObject) -> None:
    names = data.draw(
        st.lists(
            st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=30), unique=True, max_size=5
        )
    )
    tensors: dict[str, Tensor] = {}
    for name in names:
        if name == "__metadata__":
            continue
        shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
        count = int(np.prod(shape))
        flat = torch.frombuffer(
            bytearray(data.draw(st.binary(min_size=count * 4 + 4, max_size=count * 4 + 4))), dtype=torch.int32
        )
        tensors[name] = (
            flat[:count].view(data.draw(st.sampled_from([torch.int32, torch.float32]))).view(shape)
        )
    path = save(tmp_path / "x", tensors)
    ours = accepted(path)
    assert ours is not None and ours.keys() == tensors.keys()
    assert all(same(ours[n], t) and ours[n].shape == t.shape for n, t in tensors.items())
    assert safetensors.torch.load_file(path).keys() == tensors.keys()


def test_messages_do_not_hold_escape_sequences(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(written(tmp_path, "evil\x1b[31m.safetensors", b"short"))
    assert re.search(r"evil\\x1b\[31m", str(caught.value))

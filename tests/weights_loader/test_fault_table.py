"""Oracle: the fault table L01 to L47, made file by file: each is refused with its sentence, or survives as
the table says.

A row is a number, what is wrong, a function that makes it in a folder and runs into it, and the pattern of
the sentence; None where the file is to be read all the same. L01 to L23 and L34 to L43 take every file of the
generators whose name begins with their number.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minisd.cli import main
from minisd.engine import Engine, load
from minisd.errors import CheckpointError, CheckpointWarning
from minisd.hashes import file_sha256
from minisd.loras import embeddings_from
from minisd.request import Request
from minisd.weights_loader import binary_file
from minisd.weights_loader.open import open_source
from minisd.weights_loader.sharded import ShardedSource
from tests import tiny
from tests.weights_loader.malformed import GOOD, SAFETENSORS_CASES, written
from tests.weights_loader.malformed_pickle import (
    LEGACY_CASES,
    PICKLE_CASES,
    glob,
    legacy,
    state,
    storage,
    tensor,
)
from tests.weights_loader.malformed_zip import ZIP_CASES, checkpoint
from tests.weights_loader.test_open import FOREIGN
from tests.weights_loader.test_sharded import MAP, ONE, TWO, make

Run = Callable[[Path], object]
Row = tuple[str, str, Run, str | None]
CONFIG = tiny.TINY["sd1"]
UNET = "model.diffusion_model."
FIRST = UNET + "input_blocks.0.0.weight"
QUERY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
WIDE = 64  # channels of the middle block


def content(name: str, raw: bytes) -> Run:
    """A file with this content, all tensors read."""

    def run(folder: Path) -> None:
        source = open_source(written(folder, name, raw))
        for each in source.tensors:
            source.read(each)

    return run


def model(change: Callable[[dict[str, torch.Tensor]], object]) -> Run:
    """A tiny SD1 file with its tensors changed in place, loaded."""

    def run(folder: Path) -> None:
        tensors = tiny.original_tensors(CONFIG, tiny.network_weights(CONFIG, dtype=torch.float32))
        change(tensors)
        path = folder / "tiny.safetensors"
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)
        load(path, device="cpu").close()

    return run


def put(name: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: value})


def spoil(tensors: dict[str, torch.Tensor]) -> None:
    tensors[FIRST][0, 2, 1, 1:] = torch.tensor([float("nan"), float("inf")])


def without(*prefixes: str) -> Callable[[dict[str, torch.Tensor]], object]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.startswith(prefixes)]:
            del tensors[name]

    return change


def given_as_model(**tensors: torch.Tensor) -> Run:
    def run(folder: Path) -> None:
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "x.safetensors")
        load(folder / "x.safetensors")

    return run


def shards(
    mapping: object = None, metadata: object = None, change: Callable[[Path], object] | None = None
) -> Run:
    def run(folder: Path) -> None:
        index = make(folder, mapping, metadata)
        if change is not None:
            change(folder)
        source = ShardedSource(index)
        assert set(source.tensors) == set(MAP)

    return run


def link_out(folder: Path) -> None:
    os.rename(folder / ONE, folder.parent / "elsewhere.safetensors")
    os.symlink(folder.parent / "elsewhere.safetensors", folder / ONE)


def lora(**shapes: tuple[int, ...] | float) -> Run:
    """An adapter of zeros of these shapes (or one number), asked for by a prompt."""

    def run(folder: Path) -> None:
        tensors = {k: torch.zeros(v) if isinstance(v, tuple) else torch.tensor(v) for k, v in shapes.items()}
        save_file({k.replace("__", "."): v for k, v in tensors.items()}, folder / "bad.safetensors")
        engine = Engine(tiny.tiny_model("sd1"), loras=folder)
        engine.run(Request(prompt="a cat <lora:bad:1>", steps=1))

    return run


def pair(module: str, down: tuple[int, ...], up: tuple[int, ...]) -> dict[str, tuple[int, ...] | float]:
    return {f"{module}__lora_down__weight": down, f"{module}__lora_up__weight": up}


GOOD_PAIR = pair(QUERY, (4, WIDE), (WIDE, 4))


def word(name: str, *shape: int) -> Run:
    def run(folder: Path) -> None:
        save_file({"emb_params": torch.ones(shape)}, folder / f"{name}.safetensors")
        words = embeddings_from(folder, tiny.tiny_model("sd1"))
        if not words:  # of a folder, files for other models are left out; named, they are refused
            embeddings_from({name: folder / f"{name}.safetensors"}, tiny.tiny_model("sd1"))

    return run


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "x.ckpt")
    open_source(folder / "x.ckpt")


def device(folder: Path) -> None:
    open_source("/dev/zero")


def directory(folder: Path) -> None:
    open_source(folder)


def denied(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        patch.setattr(os, "open", refuse)
        open_source(written(folder, "x.safetensors", GOOD))


def changed(folder: Path) -> None:
    source = open_source(written(folder, "x.safetensors", GOOD))
    (folder / "x.safetensors").write_bytes(GOOD + b"more")
    source.read("a")


def shrunk(folder: Path) -> None:
    save_file({"a": torch.ones(100_000)}, folder / "x.safetensors")
    source = open_source(folder / "x.safetensors")
    os.truncate(folder / "x.safetensors", 1000)
    source.read("a")


def broken_disk(folder: Path) -> None:
    source = open_source(written(folder, "x.safetensors", GOOD))
    with pytest.MonkeyPatch.context() as patch:

        def fail(*_: object) -> int:
            raise OSError(5, "Input/output error")

        patch.setattr(binary_file.BinaryFile, "_read_once", fail)
        source.read("a")


def pinned(folder: Path) -> None:
    read: list[str] = []
    path = tiny.write_checkpoint(folder / "tiny.safetensors", CONFIG)
    load(path, device="cpu", sha256=file_sha256(path)).close()
    with pytest.MonkeyPatch.context() as patch:
        inner = binary_file.BinaryFile.read_elements

        def counted(self: binary_file.BinaryFile, *arguments: object) -> torch.Tensor:
            read.append("tensor")
            return inner(self, *arguments)  # type: ignore[arg-type]

        patch.setattr(binary_file.BinaryFile, "read_elements", counted)
        try:
            load(path, sha256="cd" * 32)
        finally:
            assert read == []  # nothing of it was used


def named(first: str) -> bytes:
    """The content of a foreign file by its label in test_open."""
    return next(raw for label, raw, _ in FOREIGN if label == first)


def diffusers_folder(folder: Path) -> None:
    (folder / "model_index.json").write_bytes(b"{}")
    open_source(folder)


LIGHTNING = glob("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
HALVES = torch.zeros(2, 2)
ROWS: list[Row] = [
    ("L05", "HTML page", content("x.safetensors", named("html")), "is an HTML page, not weights .*404 Not"),
    ("L05", "JSON error page", content("x.ckpt", named("json-error")), "'Repository not found'"),
    ("L05", "text", content("x.safetensors", named("text")), "is text, not weights .*'Entry not found'"),
    (
        "L06",
        "git-lfs pointer",
        content("x.ckpt", named("lfs")),
        r"git-lfs pointer to a 4\.27 GB file.*lfs pull",
    ),
    (
        "L07",
        "zip as .safetensors",
        content("x.safetensors", checkpoint()),
        "PyTorch zip checkpoint though .*ckpt",
    ),
    (
        "L07",
        "pickle as .safetensors",
        content("x.safetensors", legacy()),
        "PyTorch pickle though the name says",
    ),
    ("L07", "safetensors as .ckpt", content("x.ckpt", GOOD), None),  # holds no code: harmless
    ("L08", "GGUF", content("x.safetensors", named("gguf")), "is a GGUF file"),
    ("L08", "ONNX", content("x.safetensors", named("onnx")), "is an ONNX model"),
    ("L08", "diffusers folder", diffusers_folder, "is a diffusers folder, not one file"),
    (
        "L24",
        "NaN and infinity",
        model(spoil),
        r"2 values in 'model.*input_blocks.0.0.weight' are not finite.*\[0, 2, 1, 1\]",
    ),
    ("L25", "dead matrices", model(put(FIRST, torch.zeros(32, 4, 3, 3))), None),
    (
        "L26",
        "missing keys",
        model(without(UNET + "input_blocks.1.0.emb_layers")),
        r"SD1.x UNet: 2 of \d+ tensors missing: .*taken for",
    ),
    (
        "L27",
        "unexpected keys",
        model(put(UNET + "extra.weight", HALVES)),
        "1 tensors are not of it: '.*extra.weight'",
    ),
    ("L27", "buffers of training", model(put("alphas_cumprod", torch.ones(1000))), None),
    (
        "L28",
        "wrong shape",
        model(put(UNET + "middle_block.0.in_layers.0.weight", torch.ones(63))),
        r"is \[63\]; needs \[64\]",
    ),
    (
        "L29",
        "LoRA as a model",
        given_as_model(
            **{f"{QUERY}.lora_down.weight": torch.ones(16, 8), f"{QUERY}.lora_up.weight": torch.ones(8, 16)}
        ),
        r"this is a LoRA \(rank 16, 1 modules\).*, not a model; load it as a LoRA",
    ),
    (
        "L29",
        "embedding as a model",
        given_as_model(emb_params=torch.ones(2, 768)),
        "this is a textual inversion for CLIP-L, not a model",
    ),
    (
        "L29",
        "ControlNet as a model",
        given_as_model(**{"zero_convs.0.0.weight": HALVES}),
        "this is a ControlNet, not a model",
    ),
    (
        "L29",
        "Flux",
        given_as_model(**{"double_blocks.0.img_attn.qkv.weight": HALVES}),
        "this is a Flux-like transformer",
    ),
    (
        "L29",
        "SD3",
        given_as_model(**{"model.diffusion_model.joint_blocks.0.x.weight": HALVES}),
        "Stable Diffusion 3 transformer",
    ),
    ("L29", "Cascade", given_as_model(**{"clip_txt_mapper.weight": HALVES}), "Stable Cascade network"),
    (
        "L30",
        "no VAE",
        model(without("first_stage_model.")),
        r"holds no vae; name a file that does: load\(\.\.\., vae=PATH\)",
    ),
    ("L30", "no text encoder", model(without("cond_stage_model.")), r"holds no text_encoder; name a file"),
    (
        "L31",
        "int8 weights",
        model(put(FIRST, torch.ones(32, 4, 3, 3, dtype=torch.int8))),
        "quantised weights that minisd does not read: '.*input_blocks.0.0.weight'",
    ),
    (
        "L32",
        "shard outside by ..",
        shards({**MAP, "a": "../../x.safetensors"}),
        r"names '\.\./\.\./x.safetensors', outside the model folder",
    ),
    ("L32", "shard by absolute path", shards({**MAP, "a": "/etc/x.safetensors"}), "outside the model folder"),
    (
        "L32",
        "shard by drive or share",
        shards({**MAP, "a": r"\\host\x.safetensors"}),
        "outside the model folder",
    ),
    ("L32", "symbolic link out", shards(change=link_out), "outside the model folder"),
    (
        "L33",
        "shard missing",
        shards(change=lambda f: os.remove(f / ONE)),
        f"names '{ONE}', which is not in the folder",
    ),
    (
        "L33",
        "tensor in two shards",
        shards({**MAP, "b": ONE}),
        f"'{TWO}' holds 'b', which .* places in '{ONE}'",
    ),
    ("L33", "tensor in no shard", shards({**MAP, "d": ONE}), "names tensors that their shards lack: 'd'"),
    ("L33", "total_size lies", shards(metadata={"total_size": 29}), "says total_size 29, the shards hold 28"),
    ("L35", "tar of torch 0.1", content("x.ckpt", named("tar")), "tar archive .*isolated machine"),
    ("L35", "stacked pickles", content("x.ckpt", legacy()), None),
    (
        "L36",
        "Lightning callback",
        content("x.ckpt", checkpoint(state(a=tensor(), callbacks=b"}" + LIGHTNING + b"Ns"))),
        None,
    ),
    (
        "L43",
        "saved on cuda:99",
        content("x.ckpt", checkpoint(state(a=tensor(storage(location="cuda:99"))))),
        None,
    ),
    ("L44", "ranks differ", lora(**pair(QUERY, (16, WIDE), (WIDE, 8))), "ranks 16 and 8 differ"),
    ("L44", "alpha NaN", lora(**GOOD_PAIR, **{f"{QUERY}__alpha": float("nan")}), "alpha"),
    ("L44", "alpha infinite", lora(**GOOD_PAIR, **{f"{QUERY}__alpha": float("inf")}), "alpha"),
    ("L44", "alpha an array", lora(**GOOD_PAIR, **{f"{QUERY}__alpha": (3,)}), "alpha"),
    (
        "L44",
        "half of a pair",
        lora(**{f"{QUERY}__lora_down__weight": (4, WIDE)}),
        "lora_down without lora_up",
    ),
    (
        "L44",
        "module not in the model",
        lora(**GOOD_PAIR, **pair("lora_unet_nowhere", (4, 8), (8, 4))),
        "1 of 2 modules are not in this model: 'lora_unet_nowhere'",
    ),
    ("L44", "for another family", lora(**pair(QUERY, (4, 1280), (1280, 4))), "make no change of"),
    ("L44", "mixed kinds", lora(**GOOD_PAIR, **{f"{QUERY}__hada_w1_a": (WIDE, 4)}), "mixes kinds"),
    ("L45", "wrong width", word("zzyzx", 2, 33), "vectors of width 33"),
    ("L45", "too many vectors", word("zzyzx", 76, 32), "76 vectors; at most 75"),
    ("L45", "called as a word", word("apple", 1, 32), "'apple' is called as a word of the vocabulary"),
    ("L46", "FIFO", fifo, "x.ckpt is a FIFO; expected a checkpoint file"),
    ("L46", "device", device, "zero is a device"),
    ("L46", "directory", directory, "is a directory"),
    ("L46", "permission denied", denied, r"cannot be opened: Permission denied \(EACCES\)"),
    ("L46", "changed while open", changed, "changed while open"),
    ("L46", "shrunk while open", shrunk, "changed while open"),
    ("L46", "EIO in the middle", broken_disk, r"failed at byte \d+: Input/output error \(EIO\)"),
    ("L47", "another sha256", pinned, f"sha256 is [0-9a-f]{{64}}, expected {'cd' * 32}"),
]
ROWS += [(n[:3], n[4:], content("bad.safetensors", raw), m) for n, raw, m in SAFETENSORS_CASES if n[0] == "L"]
ROWS += [
    (n[:3], f"pickle {n[4:]}", content("bad.ckpt", checkpoint(raw)), m)
    for n, raw, m in PICKLE_CASES
    if n[0] == "L"
]
ROWS += [(n[:3], f"zip {n[4:]}", content("bad.ckpt", raw), m) for n, raw, m in ZIP_CASES if n[0] == "L"]
ROWS += [(n[:3], f"legacy {n[4:]}", content("bad.ckpt", raw), m) for n, raw, m in LEGACY_CASES if n[0] == "L"]
ROWS.sort(key=lambda row: row[0])


def test_every_number_of_the_table_is_here() -> None:
    assert [n for n in dict.fromkeys(row[0] for row in ROWS)] == [f"L{n:02d}" for n in range(1, 48)]


@pytest.mark.parametrize("number,what,run,message", ROWS, ids=[f"{n}: {what}" for n, what, _, _ in ROWS])
def test_fault(number: str, what: str, run: Run, message: str | None, tmp_path: Path) -> None:
    modules, started = set(sys.modules), time.perf_counter()
    if number == "L25":
        with pytest.warns(CheckpointWarning, match=r"1 of \d+ tensors of the unet hold one value only"):
            run(tmp_path)
    elif message is None:
        run(tmp_path)
    else:
        with pytest.raises(CheckpointError, match=message) as caught:
            run(tmp_path)
        said = str(caught.value)
        assert said.isprintable() and len(said) < 1200  # one line, controls escaped
    if number in ("L34", "L36", "L37"):
        assert set(sys.modules) == modules and "pytorch_lightning" not in sys.modules
    assert time.perf_counter() - started < 10


FILES = [
    *SAFETENSORS_CASES,
    *((n, checkpoint(raw), m) for n, raw, m in PICKLE_CASES),
    *ZIP_CASES,
    *LEGACY_CASES,
]


def test_the_command_line_says_one_line_and_exits_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the contract above the table, for what is seen when a file is opened."""
    for name, raw, _ in FILES:
        path = written(
            tmp_path, "bad.ckpt" if raw[:2] == b"PK" or raw[:1] == b"\x80" else "bad.safetensors", raw
        )
        code = main(["inspect", str(path)])
        out, err = capsys.readouterr()
        if code == 0:
            continue  # damage of values is met when they are read
        assert code == 3 and out == "" and re.fullmatch(r"minisd: [^\n]+\n", err), name


MEASURED = """
import json, pathlib, resource, sys, time
from minisd.errors import CheckpointError
from minisd.weights_loader.open import open_source
folder, good = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
open_source(good).read("a")
before, slowest, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0, 0
for path in sorted(folder.iterdir()):
    started = time.perf_counter()
    try:
        source = open_source(path)
        for name in source.tensors:
            source.read(name)
    except CheckpointError:
        refused += 1
    slowest = max(slowest, time.perf_counter() - started)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"grown": grown, "slowest": slowest, "refused": refused}))
"""


def test_no_file_costs_50_megabytes(tmp_path: Path) -> None:
    """Oracle: the largest resident set of a process of its own that opens them all, in kilobytes."""
    folder = tmp_path / "files"
    folder.mkdir()
    for index, (_, raw, _) in enumerate(FILES):
        suffix = "ckpt" if raw[:2] == b"PK" or raw[:1] == b"\x80" else "safetensors"
        written(folder, f"{index}.{suffix}", raw)
    good = written(tmp_path, "good.safetensors", GOOD)
    command = [sys.executable, "-c", MEASURED, str(folder), str(good)]
    seen = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert seen["refused"] == len(FILES)
    assert seen["grown"] < 50_000 and seen["slowest"] < 5, seen

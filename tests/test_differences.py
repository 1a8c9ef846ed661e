"""Oracle: the measures written again in NumPy, float64; what was done to the second file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from minisd.cli import main
from minisd.conversion import convert
from minisd.differences import CHUNK, Difference, compare, measured
from minisd.weights_loader.checkpoint import open_checkpoint
from tests import lora_files
from tests.tiny import TINY, write_checkpoint

CONFIG = TINY["sd1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors", CONFIG)


def by_name(found: tuple[Difference, ...]) -> dict[str, Difference]:
    return {f"{d.part}.{d.name}": d for d in found}


@pytest.mark.parametrize("name", ["sd1", "sd2-v", "sdxl"])
def test_layouts_are_the_same(name: str, tmp_path: Path) -> None:
    """Oracle: conversion without a change; stacked, transposed and squeezed weights are among them."""
    path = write_checkpoint(tmp_path / "model.safetensors", TINY[name])
    found = compare(path, convert(path, tmp_path / "folder", layout="diffusers"))
    with open_checkpoint(path) as opened:
        count = sum(len(opened.part(p).rules) for p in opened.parts)
    compared = [d for d in found.differences if d.part != "other"]
    skipped = [d.name for d in compared if d.status != "same"]
    assert len(compared) == count and (not skipped or name == "sd2-v")
    assert all(
        n.startswith("text_model.encoder.layers.2.") for n in skipped
    )  # of SD2 the last is not written
    assert {d.status for d in found.differences if d.part == "other"} <= {"only_a"}  # what nothing reads


def test_precision_is_told_from_change(model: Path, tmp_path: Path) -> None:
    """Oracle: NumPy's rounding to half precision, both ways and across layouts."""
    half = convert(model, tmp_path / "half", layout="diffusers", dtype="float16")
    found = compare(model, half)
    assert {d.status for d in found.differences} == {"rounded"}
    with open_checkpoint(model) as opened:
        for part, told in found.totals().items():
            change = whole = largest = 0.0
            for value in opened.state_dict(part).values():
                a = value.numpy().astype(np.float64)
                b = value.numpy().astype(np.float16).astype(np.float64)
                change, whole = change + ((a - b) ** 2).sum(), whole + (a**2).sum()
                largest = max(largest, np.abs(a - b).max())
            assert told["max_abs"] == largest
            assert told["relative_l2"] == pytest.approx((change / whole) ** 0.5, rel=1e-12)
    assert {d.status for d in compare(half, model).differences} == {"rounded"}


def test_what_an_adapter_changed(model: Path, tmp_path: Path) -> None:
    """Oracle: the modules of the adapter, and the weights of both files."""
    tensors = {k: v for k, v in lora_files.kohya(CONFIG, 1).items() if "attn2" in k or "layers_1" in k}
    lora = lora_files.write(tmp_path / "film.safetensors", tensors)
    tuned = convert(model, tmp_path / "tuned", layout="diffusers", loras=[str(lora)])
    found = by_name(compare(model, tuned).differences)
    modules = {
        f"{t.part}.{t.module}.weight"
        for t, name in lora_files.layers(CONFIG)
        if f"{lora_files.kohya_name(t, name, one_encoder=True)}.alpha" in tensors
    }
    assert {n for n, d in found.items() if d.status != "same"} == modules and len(modules) > 60
    with open_checkpoint(model) as one, open_checkpoint(tuned) as two:
        states = {p: (one.state_dict(p), two.state_dict(p)) for p in one.parts}
    for name in modules:
        part, _, ours = name.partition(".")
        a, b = (s[ours].numpy().astype(np.float64) for s in states[part])
        d = found[name]
        assert d.max_abs == np.abs(a - b).max() and d.changed == (a != b).sum() and d.values == a.size
        assert d.relative == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-12)
    first = compare(model, tuned).largest_first
    assert [d.relative for d in first] == sorted((d.relative for d in first), reverse=True)  # type: ignore[type-var]


@pytest.mark.parametrize(
    "x,y,status,changed,nonfinite,largest",
    [
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]), "same", 0, 1, 0.0),
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.5, float("nan")]), "changed", 1, 1, 0.5),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("inf")]), "changed", 1, 1, 0.0),
        (torch.tensor([0.0]), torch.tensor([-0.0]), "changed", 0, 0, 0.0),
        (torch.tensor([5]), torch.tensor([5.0]), "rounded", 0, 0, 0.0),
        (torch.tensor([1]), torch.tensor([2]), "changed", 1, 0, 1.0),
        (torch.tensor([0.1]), torch.tensor([0.1]).to(torch.bfloat16), "rounded", 1, 0, 0.1 - 0.10009765625),
        (torch.tensor([0.1]), torch.tensor([0.2]).half(), "changed", 1, 0, None),
        (torch.tensor([0.3]).to(torch.float8_e4m3fn), torch.tensor([0.3125]), "rounded", 0, 0, 0.0),
        (torch.zeros(0), torch.zeros(0).half(), "rounded", 0, 0, 0.0),
        (torch.tensor(3.0), torch.tensor(2.0), "changed", 1, 0, 1.0),
        (torch.tensor([True, False]), torch.tensor([True, True]), "changed", 1, 0, 1.0),
    ],
)
def test_one_tensor(
    x: Tensor, y: Tensor, status: str, changed: int, nonfinite: int, largest: float | None
) -> None:
    """Oracle: by hand: values that are no numbers, zeros with a sign, whole numbers, 8 bits, nothing."""
    d = measured("p", "n", x, y)
    assert (d.status, d.changed, d.nonfinite) == (status, changed, nonfinite)
    if largest is not None:
        assert d.max_abs == pytest.approx(abs(largest), abs=1e-8)


def test_pieces_are_the_whole() -> None:
    """Oracle: the same values in one step, with changes in the last piece alone."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(2 * CHUNK + 7))
    y = x.clone()
    y[-3:] += 0.5
    d = measured("p", "n", x, y)
    assert (d.status, d.changed, d.values) == ("changed", 3, 2 * CHUNK + 7)
    assert d.relative == pytest.approx(float((y - x).norm() / x.norm()), rel=1e-12)
    assert measured("p", "n", x, x.float()).status == "rounded"


def test_files_that_are_no_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: by hand; the JSON is JSON."""
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    one, two = torch.ones(1), torch.ones(2)
    save_file({"x": two, "only": one, "s": torch.ones(2, 3), "z": torch.zeros(1)}, a)
    save_file({"x": two, "new": one, "s": torch.ones(3, 2), "z": torch.ones(1)}, b)
    assert main(["diff", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "other only: only in A" in out and "other s: [2, 3] in A, [3, 2] in B" in out
    assert "other new: only in B" in out and "other z: relative -, largest 1, 1 of 1 values" in out
    assert main(["diff", str(a), str(b), "--json", "--exit-code"]) == 1

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    told = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert told["same"] is False and [t["name"] for t in told["tensors"][:2]] == ["s", "z"]
    assert (
        told["parts"]["other"] | {"max_abs": 1.0, "same": 1, "changed": 1, "shape": 1, "only_a": 1}
        == (told["parts"]["other"])
    )
    assert main(["diff", str(a), str(a), "--exit-code", "--limit", "0"]) == 0
    assert "every tensor is the same, bit by bit" in capsys.readouterr().out
    assert main(["diff", str(a), str(tmp_path / "none.safetensors")]) == 3


def test_parts_that_one_lacks(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the parts; a model of another family differs in names and shapes."""
    other = write_checkpoint(tmp_path / "xl.safetensors", TINY["sdxl"])
    assert main(["diff", str(model), str(other), "--limit", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["a"]["what"] != told["b"]["what"] and told["parts"]["vae"]["same"] > 100
    assert told["parts"]["text_encoder_2"]["only_b"] > 40 and told["parts"]["text_encoder_2"]["same"] == 0
    assert told["parts"]["unet"]["shape"] > 0 and told["parts"]["unet"]["only_a"] > 0

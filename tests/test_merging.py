"""Oracle: the formulas written again in NumPy, float64; the sources' own bits."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minisd.blocks import read_blocks
from minisd.cli import main
from minisd.errors import CheckpointError, RequestError
from minisd.hashes import file_sha256
from minisd.merging import Recipe, dropped, elected, merged, trimmed, uniform
from minisd.samplers.noise import philox4x32
from minisd.weights_loader.checkpoint import Checkpoint, checkpoint_of, open_checkpoint
from minisd.weights_loader.config_json import KEY, config_to_json
from tests.tiny import TINY, network_weights, original_tensors, write_checkpoint
from tests.weights_loader.fake import FakeSource, of_tensors

Array = np.ndarray
RATE = "unet.output_blocks.3.0.in_layers.2.weight"


def made(name: str = "sd1", seed: int = 0, dtype: torch.dtype = torch.float64, file: str = "a") -> Checkpoint:
    config = TINY[name]
    tensors = original_tensors(config, network_weights(config, seed=seed, dtype=dtype))
    return checkpoint_of(
        FakeSource(of_tensors(tensors), tensors, {KEY: config_to_json(config)}, f"{file}.safetensors")
    )


def weights(checkpoint: Checkpoint) -> dict[str, Array]:
    return {
        f"{part}.{k}": v.numpy() for part in checkpoint.parts for k, v in checkpoint.state_dict(part).items()
    }


@pytest.fixture(scope="module")
def three() -> tuple[Checkpoint, Checkpoint, Checkpoint]:
    return made(), made(seed=1, file="b"), made(seed=2, file="c")


def close(got: dict[str, Array], wanted: Callable[[str], Array]) -> None:
    for name, value in got.items():
        expected = wanted(name)
        assert value.shape == expected.shape
        assert np.abs(value - expected).max() <= 1e-14 * max(1.0, np.abs(expected).max()), name


def test_weighted_and_difference(three: tuple[Checkpoint, ...]) -> None:
    """Oracle: the formulas; the VAE is the first model's by default."""
    a, b, c = (weights(x) for x in three)
    close(
        weights(merged(three[:2], Recipe(weight=0.3, vae="merge"))),
        lambda n: 0.7 * a[n] + 0.3 * b[n],
    )
    got = weights(merged(three, Recipe("difference", weight=0.8)))
    close(got, lambda n: a[n] if n.startswith("vae.") else a[n] + 0.8 * (b[n] - c[n]))
    mixed = weights(merged(three, Recipe("difference", weight=1.0, text=1, vae=2)))
    assert all(np.array_equal(mixed[n], b[n]) for n in mixed if n.startswith("text_encoder."))
    assert all(np.array_equal(mixed[n], c[n]) for n in mixed if n.startswith("vae."))


@pytest.mark.parametrize("weight,source", [(0.0, 0), (1.0, 1)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_ends_are_the_sources_to_the_bit(weight: float, source: int, dtype: torch.dtype) -> None:
    """Oracle: the bytes of the sources, a negative zero among them."""
    models = [made(seed=n, dtype=dtype) for n in (0, 1)]
    for model in models:
        model.source._given["model.diffusion_model.out.2.bias"][0] = -0.0  # type: ignore[attr-defined]
    got = merged(models, Recipe(weight=weight, vae="merge"))
    for part in got.parts:
        state = models[source].state_dict(part)
        for name, value in got.state_dict(part).items():
            wanted = state[name]
            assert value.dtype == dtype and value.numpy().tobytes() == wanted.numpy().tobytes(), name


def test_numbers_of_blocks(three: tuple[Checkpoint, ...]) -> None:
    """Oracle: a merge with one number for all, block by block; lists and names are the same."""
    numbers = [0.01 * n for n in range(26)]
    got = weights(merged(three[:2], Recipe(blocks=numbers, vae="merge")))  # type: ignore[arg-type]
    a, b = weights(three[0]), weights(three[1])

    def share(name: str) -> float:
        part, *path = name.split(".")
        if part == "unet" and path[0] == "middle_block":
            return numbers[13]
        if part == "unet" and path[0] in ("input_blocks", "output_blocks"):
            return numbers[(1 if path[0] == "input_blocks" else 14) + int(path[1])]
        return numbers[0]

    close(got, lambda n: (1 - share(n)) * a[n] + share(n) * b[n])
    without = weights(merged(three[:2], Recipe(weight=0.0, blocks=numbers[1:], vae="merge")))  # type: ignore[arg-type]
    assert all(np.array_equal(without[n], got[n]) for n in got)
    only = weights(merged(three[:2], Recipe(weight=0.0, blocks=read_blocks("OUT03=1"))))
    for name, value in only.items():
        inside = name.startswith("unet.output_blocks.3.")
        assert np.array_equal(value, b[name] if inside else a[name])


def numpy_ties(a: Array, others: list[Array], shares: list[float], density: float, m: float) -> Array:
    """Place by place, as the paper's algorithm 1 says."""
    changes = []
    for other in others:
        delta = (other - a).ravel().copy()
        kept = max(1, round(density * delta.size))
        order = np.argsort(-np.abs(delta), kind="stable")
        delta[order[kept:]] = 0.0
        changes.append(delta)
    out = np.zeros(a.size)
    for place in range(a.size):
        values = [s * c[place] for s, c in zip(shares, changes, strict=True)]
        sign = np.sign(sum(values))
        agree = [(v, s) for v, s in zip(values, shares, strict=True) if v != 0 and np.sign(v) == sign]
        if agree:
            out[place] = sum(v for v, _ in agree) / sum(abs(s) for _, s in agree)
    return a + m * out.reshape(a.shape)


def test_ties(three: tuple[Checkpoint, ...]) -> None:
    """Oracle: the paper's algorithm, place by place, with shares that differ."""
    shares, density = [1.0, 0.4], 0.3
    got = weights(merged(three, Recipe("ties", weight=0.9, shares=tuple(shares), density=density)))
    a, b, c = (weights(x) for x in three)
    some = [
        n for n in got if n.startswith("unet.middle_block.1") or n.startswith("text_encoder.text_model.e")
    ]
    assert len(some) > 20
    for name in some:
        wanted = numpy_ties(a[name], [b[name], c[name]], shares, density, 0.9)
        assert np.abs(got[name] - wanted).max() <= 1e-13


def test_trimming_keeps_the_largest() -> None:
    """Oracle: sorting."""
    delta = torch.tensor([0.1, -3.0, 2.0, -0.5, 0.0])
    assert trimmed(delta, 0.4).tolist() == [0.0, -3.0, 2.0, 0.0, 0.0]
    assert torch.equal(trimmed(delta, 1.0), delta)
    assert elected([torch.tensor([1.0, -1.0, 0.0])], (2.0,)).tolist() == [1.0, -1.0, 0.0]


def test_what_is_dropped() -> None:
    """Oracle: Philox4x32 asked for each place by itself; the share kept; the mean is kept."""
    numbers = uniform(7, "0 unet.x", 0, 1000)
    again = np.concatenate([uniform(7, "0 unet.x", start, 100) for start in range(0, 1000, 100)])
    assert np.array_equal(numbers, again) and 0 <= numbers.min() and numbers.max() < 1
    stream = np.frombuffer(hashlib.blake2b(b"0 unet.x", digest_size=8).digest(), dtype="<u4")
    for place in (0, 1, 5, 999):
        words = philox4x32(np.array([[stream[0]], [stream[1]], [place // 4], [1]], dtype=np.uint32), (7, 0))
        assert numbers[place] == words[place % 4, 0] / 2**32
    delta = torch.ones(40_000, dtype=torch.float64)
    kept = dropped(delta, 0.2, 7, "x")
    assert set(kept.tolist()) == {0.0, 5.0} and abs(float(kept.mean()) - 1) < 0.05
    assert torch.equal(dropped(delta, 1.0, 7, "x"), delta)
    for seed, name in ((8, "x"), (7, "y")):
        assert not torch.equal(dropped(delta, 0.2, seed, name), kept)


def test_dare(three: tuple[Checkpoint, ...]) -> None:
    """Oracle: the formula with the masks drawn in one piece; the same seed gives the same model."""
    recipe = Recipe("dare", weight=0.5, shares=(1.0, 2.0), density=0.25, seed=3)
    got = weights(merged(three, recipe))
    a, b, c = (weights(x) for x in three)

    def kept(n: int, name: str) -> Array:
        return uniform(3, f"{n} {name}", 0, a[name].size).reshape(a[name].shape) < 0.25

    def wanted(name: str) -> Array:
        if name.startswith("vae."):
            return a[name]
        drop = [(x[name] - a[name]) * kept(n, name) / 0.25 for n, x in enumerate((b, c))]
        return a[name] + 0.5 * (drop[0] + 2.0 * drop[1])

    close(got, wanted)
    assert all(np.array_equal(v, got[n]) for n, v in weights(merged(three, recipe)).items())
    other = weights(merged(three, replace(recipe, seed=4)))
    assert not np.array_equal(other[RATE], got[RATE])
    voted = weights(merged(three, replace(recipe, method="dare_ties")))
    drop = [torch.from_numpy((x[RATE] - a[RATE]) * kept(n, RATE) / 0.25) for n, x in enumerate((b, c))]
    assert np.abs(voted[RATE] - (a[RATE] + 0.5 * elected(drop, (1.0, 2.0)).numpy())).max() <= 1e-13


def test_an_inpainting_model_from_a_plain_one(three: tuple[Checkpoint, ...]) -> None:
    """Oracle: the community's recipe inpainting + (custom - base): channels of mask and picture stay."""
    inpaint = made("sd1-inpaint", seed=5)
    got = merged([inpaint, *three[1:]], Recipe("difference"))
    a, b, c = (weights(x) for x in (inpaint, *three[1:]))
    first = "unet.input_blocks.0.0.weight"
    expected = a[first].copy()
    expected[:, :4] += b[first] - c[first]
    assert np.abs(weights(got)[first] - expected).max() <= 1e-14
    assert got.config is not None and got.config.concat == "inpaint"
    with pytest.raises(CheckpointError, match="name the one with more first"):
        merged([three[0], inpaint], Recipe())


@pytest.mark.parametrize(
    "others,message",
    [
        (["sdxl"], "one is SD1.x, the other SDXL"),
        (["sd2-eps"], "one is SD1.x, the other SD2.x"),
    ],
)
def test_other_families(three: tuple[Checkpoint, ...], others: list[str], message: str) -> None:
    """Oracle: the reason in the message."""
    with pytest.raises(CheckpointError, match=message):
        merged([three[0], *(made(n, file="b") for n in others)], Recipe())


def test_what_does_not_go_together(three: tuple[Checkpoint, ...]) -> None:
    """Oracle: a table of refusals."""
    with pytest.raises(CheckpointError, match="one predicts eps, the other v"):
        merged([made("sd2-eps"), made("sd2-v")], Recipe())
    for recipe, models, message in (
        (Recipe(), three, "weighted takes 2 models, got 3"),
        (Recipe("difference"), three[:2], "difference takes 3 models, got 2"),
        (Recipe("ties", shares=(1.0,)), three, "expected one for each model after the first"),
        (
            Recipe(blocks=read_blocks("input_blocks.44=1")),
            three[:2],
            "'input_blocks.44', which 'a.safetensors'",
        ),
        (Recipe(vae=2), three[:2], "the vae is to be of model 2"),
    ):
        with pytest.raises(RequestError, match=message):
            merged(models, recipe)
    for fields, message in (
        ({"method": "average"}, "method is 'average'"),
        ({"weight": float("nan")}, "weight is 'nan'"),
        ({"density": 0.0}, "density"),
        ({"seed": -1}, "seed"),
        ({"text": "x"}, "text is 'x'"),
    ):
        with pytest.raises(RequestError, match=message):
            Recipe(**fields)  # type: ignore[arg-type]


def test_parts_that_one_model_lacks(three: tuple[Checkpoint, ...]) -> None:
    """Oracle: the part of the model that has it."""
    tensors = {
        f"model.diffusion_model.{k}": v
        for k, v in network_weights(TINY["sd1"], seed=3, dtype=torch.float64)["unet"].items()
    }
    bare = checkpoint_of(FakeSource(of_tensors(tensors), tensors, {KEY: config_to_json(TINY["sd1"])}, "u"))
    got = weights(merged([bare, three[1]], Recipe()))
    b = weights(three[1])
    assert all(np.array_equal(got[n], b[n]) for n in got if not n.startswith("unet."))
    assert {n.split(".")[0] for n in got} == {"unet", "vae", "text_encoder"}
    with pytest.raises(CheckpointError, match="'u' holds no text_encoder; take it from 'b.safetensors'"):
        merged([bare, three[1]], Recipe(text=0))


def test_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the merge itself; recipe and digests of the inputs in the header; inputs are left alone."""
    a = write_checkpoint(tmp_path / "a.safetensors", TINY["sd1"])
    b = write_checkpoint(tmp_path / "b.safetensors", TINY["sd1"], seed=1, dtype=torch.float16)
    before = [p.read_bytes() for p in (a, b)]
    out = tmp_path / "c.safetensors"
    args = [
        "merge",
        str(a),
        str(b),
        "-o",
        str(out),
        "--weight",
        "0.25",
        "--dtype",
        "float16",
        "--vae-from",
        "B",
    ]
    assert main([*args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(out)
    with open_checkpoint(out) as c, open_checkpoint(a) as first, open_checkpoint(b) as second:
        recipe = json.loads(c.source.metadata["minisd.merge"])
        assert recipe["models"] == [{"name": p.name, "sha256": file_sha256(p)} for p in (a, b)]
        assert (recipe["method"], recipe["weight"], recipe["vae"]) == ("weighted", 0.25, 1)
        assert c.source.metadata["modelspec.merged_from"] == "a, b"
        assert c.source.metadata["modelspec.architecture"] == "stable-diffusion-v1"
        x, y = (m.state_dict("unet", dtype=torch.float32) for m in (first, second))
        for name, value in c.state_dict("unet").items():
            assert torch.equal(value, (x[name] * 0.75 + y[name] * 0.25).half())
        assert all(torch.equal(v, second.state_dict("vae")[n]) for n, v in c.state_dict("vae").items())
    assert main(args) == 3
    assert "exists" in capsys.readouterr().err
    assert main(["merge", str(a), str(b), "-o", str(a)]) == 3
    assert [p.read_bytes() for p in (a, b)] == before
    folder = tmp_path / "folder"
    assert main(["merge", str(a), str(b), "-o", str(folder), "--layout", "diffusers"]) == 0
    with open_checkpoint(folder) as c:
        assert c.source.metadata is not None and "unet" in c.parts
    left = {"a.safetensors", "b.safetensors", "c.safetensors", "folder"}
    assert {p.name for p in tmp_path.iterdir()} == left


MEASURE = """
import sys, torch
from minisd.merging import Recipe, merge
from minisd.weights_loader.checkpoint import open_checkpoint
def told(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
for path in sys.argv[1:3]:
    open_checkpoint(path).close()
before = told("VmRSS")
merge(sys.argv[1:3], sys.argv[3], Recipe(sys.argv[4]))
print(before, told("VmHWM"))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
def test_memory_is_bounded_by_one_tensor(tmp_path: Path) -> None:
    """Oracle: the peak of a process of its own: some copies of the largest tensor in float32, while the files
    are twenty times as large as it."""
    config = replace(TINY["sd1"], unet=replace(TINY["sd1"].unet, model_channels=160))
    paths = [
        write_checkpoint(tmp_path / f"{n}.safetensors", config, seed=n, dtype=torch.float16) for n in (0, 1)
    ]
    with open_checkpoint(paths[0]) as opened:
        largest = max(t.nbytes for t in opened.source.tensors.values()) * 2  # in float32
    size = paths[0].stat().st_size
    for method in ("weighted", "dare"):
        command = [sys.executable, "-c", MEASURE, *map(str, paths), str(tmp_path / method), method]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        before, peak = map(int, done.stdout.split())
        assert peak - before < 10 * largest + 60 * 2**20, (method, peak - before, largest, size)
    assert size > 20 * largest

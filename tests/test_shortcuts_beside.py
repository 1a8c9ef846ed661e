"""Oracle: whole passes of the UNet counted by hand, where networks change on the way or others stand beside
it; bits of the plain run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minisd.control import REFERENCE, ControlUnit
from minisd.control_run import Control
from minisd.engine import Engine, load
from minisd.errors import RequestError
from minisd.models.controlnet import ControlNet
from minisd.models.unet import Told, UNet
from minisd.picture import Picture
from minisd.request import Request
from minisd.shortcuts import NO_SHORTCUTS, Shortcuts, check_beside
from tests import control_files, lora_files, test_lllite
from tests.tiny import TINY, tiny_model, write_checkpoint

MAP = Picture.of(control_files.map_of(64, 64))
ASKED = Request(
    prompt="a cat",
    negative_prompt="dark",
    seed=3,
    steps=4,
    sampler="euler",
    width=64,
    height=64,
    deep_cache=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("beside")
    lora_files.write(root / "film.safetensors", lora_files.kohya(TINY["sd1"], 1))
    config = control_files.control_config(TINY["sd1"].unet)
    control_files.write_control(root / "edges.safetensors", config)
    write_checkpoint(root / "model.safetensors", TINY["sd1"])
    return root


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine(tiny_model("sd1"), loras=folder, controls={"edges": folder / "edges.safetensors"})


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One item for each pass that is computed whole, by any UNet."""
    passes, middle = list[int](), UNet.middle

    def counting(self: UNet, h: Tensor, told: Told) -> Tensor:
        passes.append(len(h))
        return middle(self, h, told)

    monkeypatch.setattr(UNet, "middle", counting)
    return passes


def unit(model: str = "edges", **fields: object) -> ControlUnit:
    return ControlUnit(model, MAP, **fields)  # type: ignore[arg-type]


# of 4 steps of two predictions: the first is whole, and the first after each change
COUNTS: list[tuple[dict[str, object], int]] = [
    ({}, 2),
    ({"loras": ("film",)}, 2),
    ({"loras": ({"name": "film", "start": 0.5},)}, 4),
    ({"loras": ({"name": "film", "start": 0.25, "end": 0.5},)}, 6),
    ({"controls": (unit(),)}, 2),
    ({"controls": (unit(end=0.5),)}, 4),
    ({"controls": (unit(weight=0.0),)}, 2),
    ({"controls": (unit(REFERENCE),)}, 2 + 8),  # the reference passes whole in each
    ({"image": MAP, "strength": 1.0, "inversion": "ddim", "cfg_scale": 1.0}, 4 + 1),  # the way there is whole
    ({"refiner_at": 0.5}, 4),
]


@pytest.mark.parametrize("fields,count", COUNTS, ids=lambda v: str(v)[:50])
def test_what_changes_on_the_way(
    fields: dict[str, object], count: int, engine: Engine, whole: list[int]
) -> None:
    """Oracle: counted by hand; finite latents, not those of a run that is whole."""
    refiner = Engine(tiny_model("sd1", seed=3)) if "refiner_at" in fields else None
    request = replace(ASKED, **fields)  # type: ignore[arg-type]
    out = engine.run(request, refiner=refiner).drawing.latents
    assert len(whole) == count and torch.isfinite(out).all()
    exact = engine.run(replace(request, deep_cache=1), refiner=refiner).drawing.latents
    assert float((out - exact).abs().max()) > 1e-4


def test_a_control_network_is_asked_in_every_step(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: counted: of each step and prediction."""
    calls, inner = list[int](), ControlNet.residuals

    def counting(self: ControlNet, *args: object, **more: object) -> tuple[Tensor, ...]:
        calls.append(1)
        return inner(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ControlNet, "residuals", counting)
    engine.run(replace(ASKED, controls=(unit(),)))
    assert len(calls) == 8


@pytest.mark.parametrize(
    "named", [{"offload": "streamed"}, {"cfg_device": "cpu"}, {"cfg": "together"}], ids=str
)
def test_wherever_it_runs(named: dict[str, str], folder: Path) -> None:
    """Oracle: the plain run's bits: blocks that come and go, halves of guidance in two threads, one call."""
    shortcuts: list[dict[str, object]] = [
        {"deep_cache": 2},
        {"deep_cache": 1, "first_block_cache": 0.9},
        {"deep_cache": 3, "token_merging": 0.5, "hypertile": 32},
    ]
    with (
        load(folder / "model.safetensors", device="cpu", dtype="float32") as plain,
        load(folder / "model.safetensors", device="cpu", dtype="float32", **named) as other,  # type: ignore[arg-type]
    ):
        for fields in shortcuts:
            request = replace(ASKED, guidance_start=0.26, **fields)  # type: ignore[arg-type]
            wanted, out = (e.run(request).drawing.latents for e in (plain, other))
            assert torch.equal(wanted, out), fields


def test_lllite_is_refused() -> None:
    """Oracle: a sentence that names both; other networks, and shortcuts that leave tokens alone, pass."""
    control = Control(test_lllite.network(), (unit("line.safetensors"),), ())
    for shortcuts, name in ((Shortcuts(merging=0.5), "token_merging"), (Shortcuts(tile=4), "hypertile")):
        with pytest.raises(RequestError, match=f"line.safetensors.*LLLite.*{name}"):
            check_beside(shortcuts, [control])
    for shortcuts in (NO_SHORTCUTS, Shortcuts(interval=3), Shortcuts(change=0.1)):
        check_beside(shortcuts, [control])


def test_a_refiner_that_is_less_deep(whole: list[int]) -> None:
    """Oracle: 12 input blocks of the first model are more than the 8 of the second; nothing is drawn."""
    small, depths = tiny_model("sd1", seed=3), {"depth_in": (1, 1, 1, 0), "depth_out": (0, 0, *(1,) * 6)}
    unet = replace(TINY["sd1"].unet, num_res_blocks=(1, 1, 1, 1), **depths)
    less = Engine(replace(small, config=replace(small.config, unet=unet)))
    request = replace(ASKED, deep_cache_blocks=12, refiner_at=0.5)
    with pytest.raises(RequestError, match="deep_cache_blocks is 12, and this model has 8"):
        Engine(tiny_model("sd1")).run(request, refiner=less)
    assert not whole

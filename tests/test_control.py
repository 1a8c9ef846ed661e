"""Oracle: diffusers' ControlNet and T2I-Adapter pipelines, pixels within one level; and equality of runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    T2IAdapter,
)
from PIL import Image

from minisd.control import ControlUnit
from minisd.control_run import Control, Seen, residuals_of
from minisd.engine import Engine
from minisd.errors import CheckpointError, RequestError
from minisd.models.controlnet import ControlNet
from minisd.picture import Picture
from minisd.request import Request
from minisd.text.conditioning import Conditioning
from minisd.trail import Trail
from minisd.weights_loader.control_keymap import t2i_adapter_rules
from tests import control_files, oracles, tiny
from tests.models.test_controlnet import ControlNetModel
from tests.models.test_controlnet import theirs as diffusers_control
from tests.test_pipeline import close, pipeline, pixels

WIDTH, HEIGHT = 64, 96
MAP = control_files.map_of(WIDTH, HEIGHT)
REQUEST = Request(
    prompt="a red apple",
    negative_prompt="blurry",
    width=WIDTH,
    height=HEIGHT,
    seed=42,
    steps=4,
    sampler="euler",
    cfg_scale=5.0,
    conventions="diffusers",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("controls")
    for name in ("sd1", "sdxl"):
        config = control_files.control_config(tiny.TINY[name].unet)
        control_files.write_control(path / f"{name}.safetensors", config)
        control_files.write_control(path / f"{name}-diffusers.safetensors", config, "diffusers")
    union = control_files.control_config(tiny.TINY["sdxl"].unet, types=6)
    control_files.write_control(path / "union.safetensors", union)
    adapter = control_files.adapter_config(tiny.TINY["sd1"].unet)
    control_files.write_adapter(path / "adapter.safetensors", adapter)
    return path


def engine(name: str, folder: Path) -> Engine:
    files = {p.stem: p for p in folder.glob("*.safetensors")}
    return Engine(tiny.tiny_model(name), controls=files)


def unit(model: str, **fields: object) -> ControlUnit:
    return ControlUnit(model, Picture.of(MAP), **fields)  # type: ignore[arg-type]


def drawn(name: str, folder: Path, *units: ControlUnit, **fields: object) -> torch.Tensor:
    """The last latents."""
    request = replace(REQUEST, controls=units, **fields)
    return engine(name, folder).run(request).drawing.latents


def their_picture(kind: type, name: str, **arguments: object) -> list[Image.Image]:
    """Drawn by a diffusers pipeline of this kind, with the parts of the plain one."""
    parts = {k: v for k, v in pipeline(name, "euler").components.items() if v is not None}
    network = arguments.pop("network")
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    more = {"add_watermarker": False} if name == "sdxl" else none
    pipe = kind(**parts, **network, **more)
    pipe.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        return pipe(
            REQUEST.prompt,
            negative_prompt=REQUEST.negative_prompt,
            num_inference_steps=REQUEST.steps,
            guidance_scale=REQUEST.cfg_scale,
            width=WIDTH,
            height=HEIGHT,
            generator=[torch.Generator().manual_seed(42)],
            **arguments,
        ).images


@pytest.mark.parametrize(
    "name,weight,start,end", [("sd1", 1.0, 0.0, 1.0), ("sd1", 0.6, 0.25, 0.75), ("sdxl", 0.8, 0.0, 1.0)]
)
def test_every_pixel_within_one_level_of_diffusers(
    name: str, weight: float, start: float, end: float, folder: Path
) -> None:
    config = control_files.control_config(tiny.TINY[name].unet)
    network = diffusers_control(ControlNetModel, config, control_files.control_weights(config))
    kind = StableDiffusionXLControlNetPipeline if name == "sdxl" else StableDiffusionControlNetPipeline
    reference = their_picture(
        kind,
        name,
        network={"controlnet": network},
        image=MAP,
        controlnet_conditioning_scale=weight,
        control_guidance_start=start,
        control_guidance_end=end,
    )
    request = replace(REQUEST, controls=(unit(name, weight=weight, start=start, end=end),))
    made = engine(name, folder).run(request)
    plain = engine(name, folder).run(REQUEST)
    ours = pixels(made.images)
    assert abs(ours - pixels(plain.images)).mean() > 2  # it does something
    close(ours, pixels(reference))


def test_t2i_adapter_within_one_level_of_diffusers(folder: Path) -> None:
    unet = tiny.TINY["sd1"].unet
    config = control_files.adapter_config(unet)
    with torch.device("meta"):
        network = T2IAdapter(
            in_channels=3,
            channels=list(config.widths),
            num_res_blocks=2,
            downscale_factor=8,
            adapter_type="full_adapter",
        )
    oracles.load(network, t2i_adapter_rules(config), control_files.adapter_weights(config))
    reference = their_picture(
        StableDiffusionAdapterPipeline,
        "sd1",
        network={"adapter": network},
        image=MAP,
        adapter_conditioning_scale=0.7,
    )
    request = replace(REQUEST, controls=(unit("adapter", weight=0.7),))
    made = engine("sd1", folder).run(request)
    assert abs(pixels(made.images) - pixels(engine("sd1", folder).run(REQUEST).images)).mean() > 2
    close(pixels(made.images), pixels(reference))


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts calls of control networks."""
    counted: list[int] = []
    inner = ControlNet.residuals

    def residuals(self: ControlNet, x: torch.Tensor, *args: object, **more: object) -> object:
        counted.append(len(x))
        return inner(self, x, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ControlNet, "residuals", residuals)
    return counted


def test_off_is_bit_equal_and_costs_no_call(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the run without control units."""
    counted = calls(monkeypatch)
    plain = drawn("sd1", folder)
    assert torch.equal(plain, drawn("sd1", folder, unit("sd1", weight=0.0)))
    assert counted == []
    on = drawn("sd1", folder, unit("sd1"))
    assert counted == [1] * (REQUEST.steps * 2) and not torch.equal(plain, on)
    counted.clear()
    drawn("sd1", folder, unit("sd1", start=0.5))
    assert len(counted) == REQUEST.steps
    counted.clear()
    drawn("sd1", folder, unit("sd1", mode="control", end=0.25))
    assert len(counted) == 1  # one step, and not for the negative prompt


def test_weight_0_loads_nothing() -> None:
    request = replace(REQUEST, steps=1, controls=(unit("missing.safetensors", weight=0.0),))
    assert Engine(tiny.tiny_model("sd1")).run(request).images


def test_outside_of_its_part_a_run_is_the_run_without(folder: Path) -> None:
    """Oracle: latents of each step of a run without; the steps before `start` are the same bits."""
    trails = []
    for controls in ((), (unit("sd1", start=0.5),)):
        trail = Trail(keep=True)
        engine("sd1", folder).run(replace(REQUEST, controls=controls), trail=trail)
        trails.append([m.digests for m in trail.settle() if m.name.startswith("step")])
    equal = [a == b for a, b in zip(*trails, strict=True)]
    assert equal == [True, True, False, False]


def test_two_halves_are_a_whole(folder: Path) -> None:
    """Oracle: one unit of full weight; also that both layouts hold the same network."""
    one = drawn("sd1", folder, unit("sd1"))
    two = drawn("sd1", folder, unit("sd1", weight=0.5), unit("sd1-diffusers", weight=0.5))
    torch.testing.assert_close(two, one, rtol=0, atol=1e-4)


def test_images_of_a_batch_are_those_alone(folder: Path) -> None:
    both = drawn("sd1", folder, unit("sd1"), unit("adapter", mode="prompt"), count=2)
    second = drawn("sd1", folder, unit("sd1"), unit("adapter", mode="prompt"), seed=43)
    assert torch.equal(both[1:], second)


def test_a_union_reads_two_hints_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = calls(monkeypatch)
    one = unit("union", kind="depth")
    alone = drawn("sdxl", folder, one, cfg_scale=1.0)
    assert len(counted) == REQUEST.steps
    both = drawn("sdxl", folder, one, unit("union", kind="line"), cfg_scale=1.0)
    assert len(counted) == 2 * REQUEST.steps and not torch.equal(alone, both)
    counted.clear()
    drawn("sdxl", folder, one, unit("union", kind="line", weight=0.5), cfg_scale=1.0)
    assert len(counted) == 2 * REQUEST.steps  # two strengths are two calls


def tiny_control(mode: str, pooled: bool = False) -> Control:
    unet = tiny.TINY["sd1"].unet
    config = control_files.control_config(unet)
    with torch.device("meta"):
        network = ControlNet(config)
    tiny.filled(network, {k: v.double() for k, v in control_files.control_weights(config).items()})
    feature = torch.randn(1, 32, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return Control(network, (unit("x", mode=mode, weight=0.7, pooled=pooled),), (feature,))


def test_guess_mode_and_pooling() -> None:
    """Oracle: the residuals of the network itself, times weight * 0.825^(12 - i), none for the negative
    prompt."""
    g = torch.Generator().manual_seed(4)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=g)
    cond, uncond = (
        Conditioning(torch.randn(1, 7, 32, dtype=torch.float64, generator=g), None, 7, 7) for _ in range(2)
    )
    timesteps = torch.tensor([500.0])
    balanced = tiny_control("balanced")
    network = balanced.network
    assert isinstance(network, ControlNet)
    with torch.inference_mode():
        seen = Seen(x, timesteps, [cond, uncond])
        contexts = [p.context.expand(2, -1, -1) for p in (cond, uncond)]
        plain = [network.residuals(x, timesteps, c, balanced.features) for c in contexts]
        for mode, pooled in (("balanced", False), ("prompt", False), ("control", False), ("balanced", True)):
            control = tiny_control(mode, pooled)
            got = residuals_of([control], seen, uncond, 5.0, [10.0, 5.0, 0.0])
            assert got is not None and got.to_middle is not None
            for i, residual in enumerate((*got.to_skips, got.to_middle)):
                assert residual is not None
                factor = 0.7 if mode == "balanced" else 0.7 * 0.825 ** (12 - i)
                wanted = [p[i] * factor for p in plain]
                if pooled:
                    wanted = [w.mean(dim=(2, 3), keepdim=True) for w in wanted]
                if mode == "control" or pooled:
                    wanted[1] = torch.zeros_like(wanted[1])
                torch.testing.assert_close(residual, torch.cat(wanted), rtol=0, atol=1e-12)


def test_units_in_words() -> None:
    """Oracle: the same unit made by its fields."""
    made = unit("edge", weight=0.8, end=0.5, mode="prompt", preprocessor="canny")
    request = Request(controls=(made,))
    plain = request.to_dict()
    assert plain["controls"] == [made.to_dict()]
    known = {made.image.sha256: made.image}
    assert Request.from_dict(plain, pictures=known) == request
    assert "image" in made.to_dict() and "start" not in made.to_dict()


def test_units_as_flags(tmp_path: Path) -> None:
    path = tmp_path / "a, b.png"
    MAP.save(path)
    text = f"model=edge,image={path},weight=0.8,mode=prompt,pooled=true"
    request = Request.from_dict({"controls": [text]})
    assert request.controls == (unit("edge", weight=0.8, mode="prompt", pooled=True),)


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"weight": float("nan")}, "weight of a control unit"),
        ({"start": 0.5, "end": 0.5}, "not after its start"),
        ({"mode": "loud"}, "balanced, prompt, control"),
        ({"kind": "depths"}, "openpose"),
        ({"preprocessor": 3}, "canny"),
        ({"model": ""}, "name or a path"),
    ],
)
def test_wrong_units_are_refused_by_name(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        ControlUnit(**{"model": "edge", "image": Picture.of(MAP), **fields})  # type: ignore[arg-type]
    assert caught.value.field == "controls"


def test_wrong_units_of_a_request(folder: Path) -> None:
    with pytest.raises(RequestError, match="no control network or adapter 'edge'; known are"):
        drawn("sd1", folder, unit("edge"))
    with pytest.raises(CheckpointError, match="family"):
        drawn("sd1", folder, unit("sdxl"))
    with pytest.raises(CheckpointError, match="cannot read"):
        drawn("sd1", folder, unit("gone.safetensors"))
    with pytest.raises(RequestError, match="leave out kind"):
        drawn("sd1", folder, unit("sd1", kind="depth"))
    with pytest.raises(RequestError, match="say the kind"):
        drawn("sdxl", folder, unit("union"))
    with pytest.raises(RequestError, match="not given by path"):
        image = {"sha256": unit("x").image.sha256}
        Request.from_dict(
            {"controls": [{"model": "a/b", "image": image}]},
            paths=False,
            pictures={unit("x").image.sha256: unit("x").image},
        )
    with pytest.raises(RequestError, match="at most 16"):
        Request(controls=(unit("x"),) * 17)


def test_the_engine_keeps_a_few_networks(folder: Path) -> None:
    made = engine("sd1", folder)
    units = (unit("sd1"), unit("sd1-diffusers"))
    first = made.controls.networks(units, made.model)
    again = made.controls.networks(units, made.model)
    assert all(first[n] is again[n] for n in first) and len(first) == 2
    made.controls.clear()
    assert made.controls.networks(units, made.model)["sd1"] is not first["sd1"]

"""Oracle: the picture of one device, bit for bit; bytes and moves as devices count that are not there."""

from __future__ import annotations

import gc
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Unpack

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from minisd.control import ControlUnit
from minisd.engine import load
from minisd.errors import Cancelled, PlanError, RequestError
from minisd.model import plan
from minisd.models.unet import UNet
from minisd.picture import Picture
from minisd.request import Request
from minisd.result import Result
from minisd.wishes import Named
from tests.devices import FakeDevices
from tests.tiny import TINY, write_checkpoint

BLANK = Image.new("RGB", (64, 64), (120, 40, 200))
REQUEST = Request(prompt="a cat", negative_prompt="dark", seed=5, steps=2, cfg_scale=7.5)
ONE = Named(device="xpu:0", dtype="float32")
THREE = Named(device="xpu:0", text_device="xpu:1", vae_device="xpu:2", dtype="float32")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    names = ("sd1", "sdxl", "sdxl-refiner")
    return {n: write_checkpoint(folder / f"{n}.safetensors", TINY[n]) for n in names}


def drawn(path: Path, request: Request = REQUEST, **named: Unpack[Named]) -> tuple[Result, FakeDevices]:
    with FakeDevices() as there, load(path, request=request, **named) as engine:
        there.moved.clear()
        return engine.run(request), there


def same(a: Result, b: Result) -> bool:
    return torch.equal(a.drawing.latents, b.drawing.latents) and a.image.tobytes() == b.image.tobytes()


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_parts_on_three_devices_draw_the_same_picture(name: str, files: dict[str, Path]) -> None:
    """Oracle: the picture of one device; and what went from device to device: each text once, the latents
    once to the VAE."""
    expected, _ = drawn(files[name], **ONE)
    result, there = drawn(files[name], **THREE)
    assert same(result, expected)
    text = TINY[name].unet.context_dim
    moves = [m for m in there.moved if "cpu" not in m[:2]]
    contexts = [m for m in moves if m[2][-1] == text and len(m[2]) == 3]
    assert contexts == [("xpu:1", "xpu:0", (1, 77, text))] * 2
    ys = [m for m in moves if len(m[2]) == 2]
    assert len(ys) == (0 if name == "sd1" else 2) and all(m[:2] == ("xpu:1", "xpu:0") for m in ys)
    assert [m for m in moves if len(m[2]) == 4] == [("xpu:0", "xpu:2", (1, 4, 8, 8))]
    assert len(moves) == len(contexts) + len(ys) + 1


@pytest.mark.parametrize("task", ["mask", "hires"])
def test_other_tasks_cross_at_the_same_seams(task: str, files: dict[str, Path]) -> None:
    """Oracle: the same task on one device; and on the CPU, beside which the UNet alone is on a device: there
    convolutions lie channels last, so bits differ."""
    picture, mask = Image.new("RGB", (64, 64), (200, 60, 20)), Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 48, 48))
    start = Picture.of(picture)
    request = replace(REQUEST, image=start, mask=Picture.of(mask))
    if task == "hires":
        request = replace(REQUEST, image=start, hires_scale=1.5, hires_strength=0.9)
    expected, _ = drawn(files["sd1"], request, **ONE)
    assert same(drawn(files["sd1"], request, **THREE)[0], expected)
    result, there = drawn(files["sd1"], request, device="cpu", unet_device="xpu:0", dtype="float64")
    latents = drawn(files["sd1"], request, device="cpu", dtype="float64")[0].drawing.latents
    assert torch.allclose(result.drawing.latents, latents, atol=1e-8, rtol=0)
    assert set(there.peak) == {"xpu:0"}


@pytest.mark.parametrize("offload", ["none", "staged", "streamed", "disk"])
def test_every_device_takes_what_was_predicted(offload: str, files: dict[str, Path]) -> None:
    """Oracle: bytes that lived at once on each device, within 5 %; none are left after close."""
    request = replace(REQUEST, width=256, height=256)
    with FakeDevices() as there:
        stages = plan(files["sd1"], request, offload=offload, **THREE).stages
        assert [s.device for s in stages] == ["xpu:1", "xpu:0", "xpu:2"]
        with load(files["sd1"], request=request, offload=offload, **THREE) as engine:
            engine.run(request)
        for stage in stages:
            assert abs(there.peak[stage.device] - stage.peak) <= 0.05 * stage.peak, (stage, there.peak)
    del engine
    gc.collect()
    assert not any(there.live.values())


def test_a_refiner_on_another_device(files: dict[str, Path]) -> None:
    """Oracle: both models on one device."""

    def pair(device: str) -> Result:
        with FakeDevices():
            base = load(files["sdxl"], device="xpu:0", dtype="float32")
            with base, load(files["sdxl-refiner"], device=device, dtype="float32") as other:
                return base.run(replace(REQUEST, steps=3), refiner=other)

    assert same(pair("xpu:1"), pair("xpu:0"))


def test_a_learned_word_finds_encoders_that_are_away(files: dict[str, Path], tmp_path: Path) -> None:
    """Oracle: the picture of a model whose weights stay, on a CPU."""
    width = TINY["sd1"].text[0].config.width
    vectors: Tensor = torch.linspace(-1, 1, 2 * width).view(2, width)
    save_file({"emb_params": vectors}, tmp_path / "zebrastyle.safetensors")
    words = {"zebrastyle": tmp_path / "zebrastyle.safetensors"}
    request = replace(REQUEST, prompt="a cat, zebrastyle")
    with load(files["sd1"], device="cpu", embeddings=words) as engine:
        expected = engine.run(request)
        assert not same(engine.run(REQUEST), expected)
    with load(files["sd1"], device="cpu", embeddings=words, offload="staged") as engine:
        assert same(engine.run(request), expected)
    with FakeDevices(), load(files["sd1"], embeddings=words, offload="staged", **THREE) as engine:
        result = engine.run(request)
    with FakeDevices(), load(files["sd1"], embeddings=words, **ONE) as engine:
        assert same(engine.run(request), result)


@pytest.mark.parametrize(("text", "unet"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_parts_in_two_precisions(text: str, unet: str, files: dict[str, Path]) -> None:
    """Oracle: the dtypes of the plan; the picture differs from that of one precision, but not by much."""
    with load(files["sdxl"], device="cpu", dtype="float32") as engine:
        one = engine.run(REQUEST).drawing.latents
    with load(files["sdxl"], device="cpu", text_dtype=text, unet_dtype=unet) as engine:
        two = engine.run(REQUEST).drawing.latents
    assert not torch.equal(one, two) and (one - two).norm() < 0.1 * one.norm()


def test_what_another_device_lacks_is_said_before_anything_is_read(files: dict[str, Path]) -> None:
    """Oracle: PlanError naming the device that is short, or the kind of device that a kernel is not for."""
    with FakeDevices(free=10**7) as there:
        with pytest.raises(PlanError, match=r"needs more than the 0\.01 GB xpu:2 has: at least 0\.05 GB"):
            plan(files["sd1"], Request(width=256, height=256), vae_tile=256, **THREE)
        assert not there.peak
        with pytest.raises(PlanError, match="a part of the model is on xpu: packed"):
            plan(files["sd1"], REQUEST, device="cpu", vae_device="xpu:0", kernels="packed")


def test_a_fake_device_refuses_what_a_real_one_does() -> None:
    """Oracle: torch's own rules: no operation over two devices, no numpy from a device."""
    with FakeDevices() as there:
        a, b = torch.ones(2, device="xpu:0"), torch.ones(2, device="xpu:1")
        with pytest.raises(RuntimeError, match="one device"):
            a + b
        with pytest.raises(RuntimeError, match="one device"):
            a + torch.ones(2)
        with pytest.raises(TypeError, match="numpy"):
            a.numpy()
        assert (a * torch.tensor(2.0) + b.to(a)).cpu().tolist() == [3.0, 3.0]
        assert there.moved == [("xpu:1", "xpu:0", (2,)), ("xpu:0", "cpu", (2,))]
        assert there.live["xpu:1"] == 8
        del b
        assert there.live["xpu:1"] == 0


HALVES = Named(device="xpu:0", cfg_device="xpu:1", dtype="float32")
APART = Named(device="xpu:0", cfg="apart", dtype="float32")
RULES = (
    {},
    {"sag_scale": 0.5, "pag_scale": 0.5},
    {"sampler": "euler_cfg_pp", "count": 2},
    {"prompt": "a [cat:dog:0.5] AND a tree :0.6", "diffusion_tile": 64, "width": 96},
)


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_halves_of_guidance_on_two_devices(rules: dict[str, object], files: dict[str, Path]) -> None:
    """Oracle: both predictions on one device, one after the other, to the bit; the devices and threads that
    computed."""
    request = Request.from_dict({**asdict(REQUEST), **rules})
    expected, _ = drawn(files["sd1"], request, **APART)
    result, there = drawn(files["sd1"], request, **HALVES)
    assert same(result, expected)
    mine = threading.get_ident()
    assert {d for d, thread in there.threads if thread == mine} == {"xpu:0"}
    assert {d for d, thread in there.threads if thread != mine} == {"xpu:1"}
    texts = [m for m in there.moved if m[:2] == ("xpu:0", "xpu:1") and len(m[2]) == 3]
    assert len(texts) == 1, "the negative prompt crosses once in a run"
    assert not any("minisd-uncond" in t.name for t in threading.enumerate())


def test_both_halves_compute_at_the_same_time(files: dict[str, Path]) -> None:
    """Oracle: a barrier inside both networks, which one alone does not pass."""

    def meet(seconds: float, *networks: UNet | None) -> None:
        barrier = threading.Barrier(2)

        def wait(*_: object) -> None:
            barrier.wait(timeout=seconds)

        for network in networks:
            assert network is not None
            network.out.register_forward_pre_hook(wait)

    with FakeDevices(), load(files["sd1"], **HALVES) as engine:
        meet(60, engine.model.unet, engine.model.second)
        engine.run(REQUEST)
    with FakeDevices(), load(files["sd1"], **APART) as engine:
        meet(0.1, engine.model.unet)
        with pytest.raises(threading.BrokenBarrierError):
            engine.run(REQUEST)


def test_halves_of_guidance_on_one_cpu(files: dict[str, Path]) -> None:
    """Oracle: the ordinary run, to the bit, whatever is kept where; no second copy of the weights."""
    expected, _ = drawn(files["sdxl"], device="cpu", dtype="float32")
    for offload in ("none", "staged", "streamed"):
        with load(files["sdxl"], device="cpu", cfg_device="cpu", dtype="float32", offload=offload) as engine:
            assert engine.model.second is engine.model.unet
            assert same(engine.run(REQUEST), expected)


@pytest.mark.parametrize("offload", ["none", "staged", "streamed"])
def test_both_halves_are_counted_and_given_back(offload: str, files: dict[str, Path]) -> None:
    """Oracle: bytes that lived at once on each device, within 5 %; nothing is left after close. The picture
    of weights that stay."""
    request = replace(REQUEST, width=256, height=256)
    expected, _ = drawn(files["sd1"], request, **APART)
    named = Named(vae_device="cpu", text_device="cpu", **HALVES)
    with FakeDevices() as there:
        stages = plan(files["sd1"], request, offload=offload, **named).stages
        sample = {s.device: s for s in stages if s.stage == "sample"}
        assert sample.keys() == {"xpu:0", "xpu:1"}
        with load(files["sd1"], request=request, offload=offload, **named) as engine:
            assert torch.equal(engine.run(request).drawing.latents, expected.drawing.latents)
        for device, stage in sample.items():
            assert abs(there.peak[device] - stage.peak) <= 0.05 * stage.peak, (stage, there.peak)
    del engine
    gc.collect()
    assert not any(there.live.values())


def test_adapters_act_in_both_halves(files: dict[str, Path], tmp_path: Path) -> None:
    """Oracle: both predictions on one device, with an adapter merged for the second half of the run."""
    name = "input_blocks.1.1.transformer_blocks.0.attn2.to_q"
    width = TINY["sd1"].unet.model_channels
    flat = f"lora_unet_{name}".replace(".", "_")
    factors = {
        f"{flat}.lora_down.weight": torch.linspace(-1, 1, 2 * width).view(2, width),
        f"{flat}.lora_up.weight": torch.linspace(1, -1, 2 * width).view(width, 2),
    }
    save_file(factors, tmp_path / "film.safetensors")
    request = Request.from_dict({**asdict(REQUEST), "loras": [{"name": "film", "weight": 0.8, "start": 0.5}]})
    plain, _ = drawn(files["sd1"], **APART)

    def with_lora(offload: str, **named: Unpack[Named]) -> Result:
        with FakeDevices(), load(files["sd1"], loras=tmp_path, offload=offload, **named) as engine:
            return engine.run(request)

    for offload in ("none", "staged"):  # merged, and beside weights that are away
        expected = with_lora(offload, **APART)
        assert not same(expected, plain)
        assert same(with_lora(offload, **HALVES), expected)


class At:
    """A token that is set when it is asked for the n-th time."""

    def __init__(self, times: int) -> None:
        self.left, self.lock = times, threading.Lock()

    def is_set(self) -> bool:
        with self.lock:
            self.left -= 1
            return self.left <= 0


def test_a_half_that_is_cancelled_leaves_nothing(files: dict[str, Path]) -> None:
    """Oracle: Cancelled wherever it comes; threads that are left; the next picture's bits."""
    expected, _ = drawn(files["sd1"], **APART)
    with FakeDevices(), load(files["sd1"], offload="staged", **HALVES) as engine:
        for times in (2, 3, 4, 5):
            with pytest.raises(Cancelled):
                engine.run(REQUEST, cancel=At(times))
            assert not any("minisd-uncond" in t.name for t in threading.enumerate())
        assert same(engine.run(REQUEST), expected)


def test_halves_by_name_or_not_at_all(files: dict[str, Path], tmp_path: Path) -> None:
    """Oracle: the plan's words, and the errors' for what two devices cannot do."""
    with FakeDevices():
        made = plan(files["sd1"], REQUEST, **HALVES)
        assert made.part("unet_uncond").device == "xpu:1" and not made.batching.value.prompts
        assert "on xpu:1 too: asked for by name" in str(made) and made.to_dict()["cfg_device"] == "xpu:1"
        with pytest.raises(PlanError, match="cfg together makes both predictions in one call"):
            plan(files["sd1"], REQUEST, cfg="together", **HALVES)
        with pytest.raises(PlanError, match="float16 computes"):
            plan(files["sd1"], REQUEST, device="xpu:0", cfg_device="cpu", dtype="float16")
        plain = plan(files["sd1"], REQUEST, **APART)
        assert plain.cfg_device.value is None and "unet_uncond" not in str(plain)
        request = replace(REQUEST, controls=(ControlUnit(model="reference-only", image=Picture.of(BLANK)),))
        with load(files["sd1"], **HALVES) as engine, pytest.raises(RequestError, match="on one device"):
            engine.run(request)

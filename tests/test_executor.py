"""Oracle: the picture of a model whose weights stay, bit for bit; counts of what is in memory."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from minisd.engine import Engine, load
from minisd.errors import Cancelled, CheckpointError, PlanError
from minisd.events import Progress
from minisd.request import Request
from tests.tiny import TINY, write_checkpoint

REQUEST = Request(prompt="a cat", negative_prompt="dark", seed=5, steps=2, cfg_scale=7.5)
MOVING = ("staged", "streamed", "disk")


def loaded(engine: Engine) -> dict[str, bool]:
    """Which parts have any weight in memory."""
    model = engine.model
    networks = {"unet": model.unet, "vae": model.vae, "text_encoder": model.text_encoders[0]}
    return {name: any(not p.is_meta for p in n.parameters()) for name, n in networks.items()}


@pytest.mark.parametrize("name", ["sd1", "sd2-v", "sdxl"])
def test_moving_weights_changes_no_bit(name: str, tmp_path: Path) -> None:
    """Oracle: the same request where weights stay; drawn twice, since the order is learnt from the first."""
    path = write_checkpoint(tmp_path / "tiny.safetensors", TINY[name])
    with load(path, device="cpu", offload="none") as engine:
        assert engine.model.executor is None
        expected = engine.run(REQUEST)
    for offload in MOVING:
        with load(path, device="cpu", offload=offload) as engine:
            for _ in range(2):
                result = engine.run(REQUEST)
                assert torch.equal(result.drawing.latents, expected.drawing.latents), offload
                assert result.image.tobytes() == expected.image.tobytes()
                assert not any(loaded(engine).values()), "what was there for the drawing has gone"


def test_a_staged_network_is_there_for_its_stage_alone(tmp_path: Path) -> None:
    """Oracle: which parts are in memory while the UNet runs and while the VAE decodes."""
    path = write_checkpoint(tmp_path / "tiny.safetensors", TINY["sd1"])
    seen: list[dict[str, bool]] = []
    with load(path, device="cpu", offload="staged") as engine:
        handles = [
            module.register_forward_pre_hook(lambda *_: seen.append(loaded(engine)))
            for module in (engine.model.unet.out, engine.model.vae.decoder.conv_out)
        ]
        engine.run(REQUEST)
        for handle in handles:
            handle.remove()
    assert seen[0] == {"unet": True, "vae": False, "text_encoder": False}
    assert seen[-1] == {"unet": False, "vae": True, "text_encoder": False}


def test_streamed_blocks_are_few_at_a_time(tmp_path: Path) -> None:
    """Oracle: the share of parameters in memory at the end of the UNet: this piece and the one after it."""
    path = write_checkpoint(tmp_path / "tiny.safetensors", TINY["sd1"])
    seen: list[int] = []
    with load(path, device="cpu", offload="streamed") as engine:
        unet = engine.model.unet
        total = sum(1 for _ in unet.parameters())
        unet.out.register_forward_pre_hook(
            lambda *_: seen.append(sum(not p.is_meta for p in unet.parameters()))
        )
        engine.run(REQUEST)
    assert seen and max(seen) < total / 10


@pytest.mark.parametrize("offload", MOVING)
def test_threads_share_what_comes_and_goes(offload: str, tmp_path: Path) -> None:
    """Oracle: the same requests one after the other, where weights stay."""
    path = write_checkpoint(tmp_path / "tiny.safetensors", TINY["sd1"])
    requests = [Request(prompt=f"cat {n}", seed=n, steps=3, cfg_scale=7.5) for n in range(4)]
    with load(path, device="cpu", offload="none") as engine:
        expected = [engine.run(r).drawing.latents for r in requests]
    with load(path, device="cpu", offload=offload) as engine, ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda r: engine.run(r).drawing.latents, requests))
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("offload", MOVING)
def test_a_cancelled_drawing_leaves_nothing_in_memory(offload: str, tmp_path: Path) -> None:
    """Oracle: no parameter in memory after it, and the next picture's bits."""
    path = write_checkpoint(tmp_path / "tiny.safetensors", TINY["sd1"])
    token = threading.Event()

    def stop(event: object) -> None:
        if isinstance(event, Progress):
            token.set()

    with load(path, device="cpu", offload="none") as engine:
        expected = engine.run(REQUEST).drawing.latents
    with load(path, device="cpu", offload=offload) as engine:
        with pytest.raises(Cancelled):
            engine.run(REQUEST, on_event=stop, cancel=token)
        assert not any(loaded(engine).values())
        assert torch.equal(engine.run(REQUEST).drawing.latents, expected)


@pytest.mark.parametrize("offload", ["none", *MOVING])
def test_close_gives_everything_back(offload: str, tmp_path: Path) -> None:
    """Oracle: weak references to the networks and every parameter, and the threads that are left."""
    path = write_checkpoint(tmp_path / "tiny.safetensors", TINY["sd1"])
    engine = load(path, device="cpu", offload=offload)
    engine.run(REQUEST)
    model = engine.model
    references = [weakref.ref(n) for n in (model.unet, model.vae, *model.text_encoders)]
    references += [weakref.ref(p) for n in (model.unet, model.vae) for p in n.parameters()]
    del model
    engine.close()
    engine.close()
    gc.collect()
    assert not any(r() is not None for r in references)
    assert not any("minisd-weights" in t.name for t in threading.enumerate())


def test_a_file_that_changes_under_a_streamed_model(tmp_path: Path) -> None:
    """Oracle: CheckpointError naming the file; and PlanError for what keeps what it made of weights."""
    path = write_checkpoint(tmp_path / "tiny.safetensors", TINY["sd1"])
    with load(path, device="cpu", offload="streamed") as engine:
        engine.run(REQUEST)
        with open(path, "ab") as file:
            file.write(b"more")
        with pytest.raises(CheckpointError, match=r"tiny\.safetensors changed"):
            engine.run(REQUEST)
    path = write_checkpoint(tmp_path / "other.safetensors", TINY["sd1"])
    with pytest.raises(PlanError, match="fused_qkv"):
        load(path, device="cpu", offload="staged", kernels="fused_qkv")


def test_a_hundred_engines_leave_no_growth() -> None:
    """Oracle: resident memory of this process after 20 cycles of the embedded model, and after 100."""

    def resident() -> int:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096

    request = Request(prompt="a red apple", seed=1, steps=1, cfg_scale=1.0, width=64, height=64)
    sizes = []
    for _ in range(100):
        with load(device="cpu") as engine:
            engine.run(request)
        sizes.append(resident())
    assert sizes[-1] - sizes[19] < 8 * 10**6, [s // 10**6 for s in sizes[19::10]]

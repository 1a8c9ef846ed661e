"""Oracle: the picture of the same model that stays in memory, bit for bit; weak references to what failed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from minisd.engine import load
from minisd.errors import PlanError
from minisd.events import Progress
from minisd.placement import Plan
from minisd.request import Request
from minisd.shortage import shortage
from minisd.trail import Trail
from minisd.verify import record_of, verify
from minisd.weights import FileWeights
from tests.tiny import TINY, write_checkpoint

REQUEST = Request(prompt="a cat", negative_prompt="dark", seed=5, steps=2, cfg_scale=7.5)
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB."
HOST = "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: "
HOST += "you tried to allocate 80 bytes. Error code 12"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors", TINY["sd1"])


@pytest.fixture(scope="module")
def expected(path: Path) -> Tensor:
    with load(path, device="cpu", offload="none") as engine:
        return engine.run(REQUEST).drawing.latents


def fails(module: nn.Module, times: int = 1) -> Callable[[], None]:
    """From now on the module has no memory, this often."""
    left = [times]

    def refuse(_module: nn.Module, _args: object) -> None:
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError(CUDA)

    return module.register_forward_pre_hook(refuse).remove


def test_what_counts_as_a_shortage() -> None:
    """Oracle: messages of torch 2.13; an allocation that no machine can give."""
    assert shortage(torch.OutOfMemoryError(CUDA)) == "no memory for 2.00 GiB more"
    assert shortage(RuntimeError(HOST)) == "no memory for 80 bytes more"
    assert shortage(MemoryError()) == "no memory left"
    assert shortage(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert shortage(caught.value) == f"no memory for {2**60} bytes more"


@pytest.mark.parametrize("where", ["text_encoders", "unet", "vae"])
def test_drawn_once_more_one_rung_lower(where: str, path: Path, expected: Tensor) -> None:
    """Oracle: the same bits; the plan; the old networks gone when the new ones are read; one retry a run."""
    with load(path, device="cpu") as engine:
        found = getattr(engine.model, where)
        fails(
            found[0].text_model.final_layer_norm
            if where == "text_encoders"
            else found.out
            if where == "unet"
            else found.decoder.conv_out
        )
        old = [weakref.ref(p) for p in (*engine.model.unet.parameters(), *engine.model.vae.parameters())]
        del found
        trail, steps = Trail(), []
        result = engine.run(
            REQUEST, trail=trail, on_event=lambda e: steps.append(e.step) if isinstance(e, Progress) else None
        )
        assert torch.equal(result.drawing.latents, expected)
        assert [m.name for m in trail.settle()] == ["text", "start", "step 1", "step 2", "latents"]
        assert all(ref() is None for ref in old)
        plan = engine.plan
        assert result.plan is plan and plan.rung.value == "staged"
        assert plan.shortage == "no memory for 2.00 GiB more where all weights stay"
        assert all(p.residency.value == "staged" and plan.shortage in p.residency.reason for p in plan.parts)
        assert plan.shortage in str(plan) and plan.to_dict()["shortage"] == plan.shortage
        assert all("by name" not in p.dtype.reason for p in plan.parts)
        fails(engine.model.unet.out)
        assert torch.equal(engine.run(REQUEST).drawing.latents, expected)
        assert engine.plan.rung.value == "streamed"


def test_told_by_the_receipt(path: Path, tmp_path: Path) -> None:
    """Oracle: the record in the file; verify, which a plan that only moves data does not disturb."""
    with load(path, device="cpu") as engine:
        fails(engine.model.vae.decoder.conv_out)
        engine.run(REQUEST).save(tmp_path / "cat.png")
    own = record_of(tmp_path / "cat.png")["receipt"]
    assert isinstance(own, dict) and own["shortage"] == "no memory for 2.00 GiB more where all weights stay"
    with load(path, device="cpu") as engine:
        finding = verify(tmp_path / "cat.png", engine)
        assert finding.verdict == "proven" and finding.level.startswith("R4"), finding
        engine.run(REQUEST).save(tmp_path / "plain.png")
    own = record_of(tmp_path / "plain.png")["receipt"]
    assert isinstance(own, dict) and "shortage" not in own


@pytest.mark.parametrize("offload", ["none", "streamed", "disk"])
def test_what_was_asked_for_by_name_is_not_changed(offload: str, path: Path, expected: Tensor) -> None:
    """Oracle: PlanError, the same networks, and the same bits once there is memory."""
    with load(path, device="cpu", offload=offload) as engine:
        model = engine.model
        fails(model.unet.out)
        with pytest.raises(
            PlanError, match="no memory for 2.00 GiB more where .*; ask for a smaller picture"
        ):
            engine.run(REQUEST)
        assert engine.model is model
        assert torch.equal(engine.run(REQUEST).drawing.latents, expected)
        if offload != "none":
            assert all(p.is_meta for p in model.unet.parameters()), "nothing of the failed run stays"


@pytest.mark.parametrize("offload", ["streamed", "disk"])
def test_weights_that_find_no_room(offload: str, path: Path, expected: Tensor) -> None:
    """Oracle: PlanError; then the same bits, and nothing left behind: a group whose weights did not come
    counts as one that nobody uses."""
    fresh, left = FileWeights.fresh, [5]

    def few(self: FileWeights, names: tuple[str, ...]) -> dict[str, Tensor]:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError(HOST)
        return fresh(self, names)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileWeights, "fresh", few)
        with load(path, device="cpu", offload=offload) as engine:
            with pytest.raises(PlanError, match="no memory for 80 bytes"):
                engine.run(REQUEST)
            assert torch.equal(engine.run(REQUEST).drawing.latents, expected)
            model = engine.model
            for network in (model.unet, model.vae, *model.text_encoders):
                assert all(p.is_meta for p in network.parameters())


def test_twice_is_an_error(path: Path, expected: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: PlanError where the lower rung has no memory either; the engine draws afterwards."""
    with load(path, device="cpu") as engine:
        lower = engine._lower

        def lower_and_fail(plan: Plan, said: str) -> None:
            lower(plan, said)
            fails(engine.model.unet.out)

        monkeypatch.setattr(engine, "_lower", lower_and_fail)
        fails(engine.model.unet.out)
        with pytest.raises(PlanError, match="where each network comes for its stage"):
            engine.run(REQUEST)
        assert torch.equal(engine.run(REQUEST).drawing.latents, expected)


def test_no_lower_rung(path: Path) -> None:
    """Oracle: what kernels named ask for; the engine is as it was."""
    with load(path, device="cpu", kernels="fused_qkv") as engine:
        fails(engine.model.unet.out)
        with pytest.raises(PlanError, match="fused_qkv, graph, compiled"):
            engine.run(REQUEST)
        assert engine.plan.rung.value == "none" and engine.run(REQUEST).images


@pytest.mark.parametrize("offload", ["auto", "none"])
def test_while_loading(offload: str, path: Path, expected: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the rung below, or PlanError where the rung has a name."""
    fresh, left = FileWeights.fresh, [3]

    def few(self: FileWeights, names: tuple[str, ...]) -> dict[str, Tensor]:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError(HOST)
        return fresh(self, names)

    monkeypatch.setattr(FileWeights, "fresh", few)
    if offload == "none":
        with pytest.raises(PlanError, match="no memory for 80 bytes more where all weights stay"):
            load(path, device="cpu", offload=offload)
        return
    with load(path, device="cpu", offload=offload) as engine:
        assert engine.plan.rung.value == "staged" and engine.plan.shortage is not None
        assert torch.equal(engine.run(REQUEST).drawing.latents, expected)


def test_another_error_is_left_alone(path: Path) -> None:
    """Oracle: the error itself, the model itself."""
    with load(path, device="cpu") as engine:
        model = engine.model

        def refuse(_module: nn.Module, _args: object) -> None:
            raise RuntimeError("cuBLAS is not well")

        handle = model.unet.out.register_forward_pre_hook(refuse)
        with pytest.raises(RuntimeError, match="cuBLAS is not well"):
            engine.run(REQUEST)
        handle.remove()
        assert engine.model is model and engine.run(REQUEST).images

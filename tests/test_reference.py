"""Oracle: reference-only written out by hooks on the same UNet, float64; and equality of runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minisd.control import ControlUnit
from minisd.engine import Engine
from minisd.errors import RequestError
from minisd.models.transformer import CrossAttention
from minisd.models.unet import UNet
from minisd.picture import Picture
from minisd.reference_run import Recorded, Recorder, with_references
from minisd.request import Request
from minisd.trail import Trail
from tests import control_files, tiny

REQUEST = Request(prompt="a red apple", width=64, height=96, seed=42, steps=4, sampler="euler")


def unit(**fields: object) -> ControlUnit:
    picture = Picture.of(control_files.map_of(80, 96))
    return ControlUnit("reference-only", picture, **fields)  # type: ignore[arg-type]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    out = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
    return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_attention_to_both_as_written_out(name: str, weight: float) -> None:
    config = tiny.TINY[name]
    unet = tiny.unet(config.unet, tiny.network_weights(config)["unet"])
    g = torch.Generator().manual_seed(1)
    x, other = torch.randn(2, 2, 4, 16, 8, generator=g, dtype=torch.float64)
    context = torch.randn(2, 7, config.unet.context_dim, generator=g, dtype=torch.float64)
    y = torch.randn(2, config.unet.y_dim or 1, generator=g, dtype=torch.float64)
    rest = (torch.tensor([500.0]), context, y if config.unet.y_dim else None)
    read: dict[CrossAttention, list[torch.Tensor]] = {}

    def keep(layer: CrossAttention, inputs: tuple[torch.Tensor, ...]) -> None:
        read.setdefault(layer, []).append(inputs[0])

    def instead(layer: CrossAttention, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        tokens = inputs[0]
        theirs = read[layer].pop(0) if len(tokens) == 1 else torch.cat(read[layer])
        whole = torch.cat([tokens, theirs], dim=1)
        q, k, v = layer.to_q(tokens), layer.to_k(whole), layer.to_v(whole)
        both = layer.to_out(attend(q, k, v, layer.num_heads))
        return out + weight * (both - out)  # the output layer is affine

    layers = [m for m in unet.modules() if isinstance(m, CrossAttention) and m.of_itself]
    with torch.inference_mode():
        recorder = Recorder(config.unet)
        unet(other, *rest, edits=recorder.edits)
        edits = with_references({}, [Recorded(recorder, (weight, weight))], config.unet)
        ours, plain = unet(x, *rest, edits=edits), unet(x, *rest)
        hooks = [m.register_forward_pre_hook(keep) for m in layers]
        unet(other, *rest)
        for hook in hooks:
            hook.remove()
        for m in layers:
            m.register_forward_hook(instead)
        wanted = unet(x, *rest)
    assert (ours - wanted).abs().max() <= 1e-10
    assert (ours - plain).abs().max() > 1e-3


def drawn(*units: ControlUnit, name: str = "sd1", **fields: object) -> torch.Tensor:
    request = replace(REQUEST, controls=units, **fields)
    return Engine(tiny.tiny_model(name)).run(request).drawing.latents


def test_off_is_bit_equal_and_costs_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the run without; calls of the UNet are counted."""
    calls: list[int] = []
    inner = UNet.forward

    def forward(self: UNet, *arguments: object, **more: object) -> torch.Tensor:
        calls.append(1)
        return inner(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(UNet, "forward", forward)
    plain, usual = drawn(), 2 * REQUEST.steps
    assert len(calls) == usual
    assert torch.equal(plain, drawn(unit(weight=0.0))) and len(calls) == 2 * usual
    calls.clear()
    assert not torch.equal(plain, drawn(unit())) and len(calls) == 2 * usual
    calls.clear()
    drawn(unit(end=0.5))
    assert len(calls) == usual + usual // 2
    calls.clear()
    drawn(unit(mode="control"))
    assert len(calls) == usual + REQUEST.steps  # not for the negative prompt


def test_before_its_start_every_step_has_the_same_bits() -> None:
    trails = []
    for controls in ((), (unit(start=0.5),)):
        trail = Trail(keep=True)
        Engine(tiny.tiny_model("sd1")).run(replace(REQUEST, controls=controls), trail=trail)
        trails.append([m.digests for m in trail.settle() if m.name.startswith("step")])
    assert [a == b for a, b in zip(*trails, strict=True)] == [True, True, False, False]


def test_an_image_of_a_batch_is_the_image_alone() -> None:
    both = drawn(unit(weight=0.6), count=2)
    assert torch.equal(both[1:], drawn(unit(weight=0.6), seed=43))


def test_two_references_and_a_model_that_sdxl_is() -> None:
    one = drawn(unit(), name="sdxl")
    other = replace(unit(), image=Picture.of(control_files.map_of(64, 64, seed=2)))
    assert not torch.equal(one, drawn(unit(), other, name="sdxl"))


def test_what_a_reference_has_no_use_for() -> None:
    for fields in ({"mode": "prompt"}, {"preprocessor": "canny"}, {"kind": "depth"}, {"pooled": True}):
        with pytest.raises(RequestError, match="reference-only takes mode balanced or control"):
            unit(**fields)
    with pytest.raises(RequestError, match="looks at a whole picture, and diffusion_tile"):
        drawn(unit(), diffusion_tile=64)
    with pytest.raises(RequestError, match=r"weight of reference-only must be in 0\.\.1, got 1.5"):
        unit(weight=1.5)
    request = Request.from_dict(
        {"controls": [unit(weight=0.5).to_dict()]}, pictures={unit().image.sha256: unit().image}
    )
    assert request.controls == (unit(weight=0.5),)
    inpainting = replace(
        REQUEST, image=Picture.of(control_files.map_of(64, 96)), mask=Picture.of(control_files.map_of(64, 96))
    )
    with pytest.raises(RequestError, match="needs a model that takes latents alone; this one takes 9"):
        Engine(tiny.tiny_model("sd1-inpaint")).run(replace(inpainting, controls=(unit(),)))

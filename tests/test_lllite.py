"""Oracle: the formula of kohya's code, in numpy before each projection of our own UNet, float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from minisd.config import SDXL, LLLiteConfig, UNetConfig
from minisd.control import ControlUnit
from minisd.control_nets import load_control
from minisd.control_run import Control, Seen
from minisd.engine import Engine
from minisd.errors import CheckpointError, RequestError
from minisd.lllite_run import with_shifts
from minisd.models.lllite import LLLite
from minisd.picture import Picture
from minisd.request import Request
from minisd.text.conditioning import Conditioning
from minisd.weights_loader.control_file import control_of
from minisd.weights_loader.keymap import unet_rules
from minisd.weights_loader.lllite_file import READERS, lllite_rules
from minisd.weights_loader.lora_names import flat, modules
from tests import control_files, tiny
from tests.weights_loader.fake import FakeSource, of_shapes, of_tensors

HINT, INNER = 8, 6
UNET = tiny.TINY["sdxl"].unet
REQUEST = Request(prompt="a red apple", width=64, height=96, seed=42, steps=4, sampler="euler")
STRIDES = {"input_blocks.4": (4, 4), "input_blocks.5": (4, 4)}  # the finer of SDXL's levels with attention
Weights = dict[str, torch.Tensor]


def kohya_shapes(unet: UNetConfig, *, diffusers: bool = False) -> dict[str, tuple[int, ...]]:
    """As sd-scripts makes them: before q, k, v of attn1 and q of attn2, in input and middle blocks."""
    shapes: dict[str, tuple[int, ...]] = {}
    for target, other in modules(unet_rules(unet), "unet"):
        if not target.module.endswith(READERS) or target.module.startswith("output"):
            continue
        name = "lllite_unet_" + flat(other if diffusers else target.module)
        strides = next(
            (s for block, s in STRIDES.items() if target.module.startswith(block + ".")), (4, 4, 2)
        )
        widths = (3, *[HINT // 2] * (len(strides) - 1), HINT)
        for n, k in enumerate(strides):
            shapes |= {f"{name}.conditioning1.{2 * n}.weight": (widths[n + 1], widths[n], k, k)}
            shapes |= {f"{name}.conditioning1.{2 * n}.bias": (widths[n + 1],)}
        c = target.shape[1]
        for part, a, b in (("down", c, INNER), ("mid", INNER + HINT, INNER), ("up", INNER, c)):
            shapes |= {f"{name}.{part}.0.weight": (b, a), f"{name}.{part}.0.bias": (b,)}
    return shapes


def weights(seed: int = 3, *, diffusers: bool = False) -> Weights:
    return tiny.random_weights(kohya_shapes(UNET, diffusers=diffusers), seed)


def network(seed: int = 3) -> LLLite:
    given = weights(seed)
    file = control_of(FakeSource(of_tensors(given), given), UNET)
    with torch.device("meta"):
        made = LLLite(file.config)  # type: ignore[arg-type]
    return tiny.filled(made, file.state_dict())  # type: ignore[return-value]


def strided(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A convolution whose stride is its kernel, on c h w."""
    k, (c, h, width) = w.shape[-1], x.shape
    squares = x.reshape(c, h // k, k, width // k, k).transpose(1, 3, 0, 2, 4).reshape(-1, c * k * k)
    return (squares @ w.reshape(len(w), -1).T + b).T.reshape(len(w), h // k, width // k)


def formula(given: Weights, name: str, x: np.ndarray, hint: np.ndarray) -> np.ndarray:
    """What is added to tokens x b n c. hint: 3 H W, 0..1."""
    w = {k.removeprefix(name + "."): v.numpy() for k, v in given.items() if k.startswith(name + ".")}
    seen = hint * 2 - 1
    for n in range(0, 6, 2):
        if f"conditioning1.{n}.weight" in w:
            seen = np.maximum(seen, 0) if n else seen
            seen = strided(seen, w[f"conditioning1.{n}.weight"], w[f"conditioning1.{n}.bias"])
    tokens = np.broadcast_to(seen.reshape(HINT, -1).T, (len(x), x.shape[1], HINT))
    inner = np.maximum(x @ w["down.0.weight"].T + w["down.0.bias"], 0)
    inner = np.concatenate([tokens, inner], axis=2) @ w["mid.0.weight"].T + w["mid.0.bias"]
    return np.maximum(inner, 0) @ w["up.0.weight"].T + w["up.0.bias"]


def unit(**fields: object) -> ControlUnit:
    picture = Picture.of(control_files.map_of(64, 96))
    return ControlUnit("lite", picture, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["balanced", "control"])
def test_before_every_projection_as_the_formula(mode: str) -> None:
    config = tiny.TINY["sdxl"]
    unet = tiny.unet(UNET, tiny.network_weights(config)["unet"])
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 12, 8, generator=g, dtype=torch.float64)
    hint = torch.rand(1, 3, 96, 64, generator=g, dtype=torch.float64)
    y = torch.randn(4, UNET.y_dim or 0, generator=g, dtype=torch.float64)
    cond, uncond = (
        Conditioning(torch.randn(1, 7, UNET.context_dim, generator=g, dtype=torch.float64), None, 7, 7)
        for _ in range(2)
    )
    lite, given, weight = network(), weights(), 0.7
    timesteps = torch.tensor([500.0])
    context = torch.cat([c.context.expand(2, -1, -1) for c in (cond, uncond)])
    control = Control(lite, (unit(weight=weight, mode=mode),), lite.read(hint))
    with torch.inference_mode():
        seen = Seen(x, timesteps, [cond, uncond])
        edits = with_shifts({}, [control], UNET, seen, uncond, 5.0, [10.0, 5.0, 0.0])
        ours = unet(x.repeat(2, 1, 1, 1), timesteps, context, y, edits=edits)
        plain = unet(x.repeat(2, 1, 1, 1), timesteps, context, y)
        kept = torch.tensor([1.0, 1.0, 0.0, 0.0] if mode == "control" else [1.0] * 4).double()[:, None, None]
        hooks = []
        for name, module, *_ in lite.control.places:

            def before(_: object, inputs: tuple[torch.Tensor], name: str = name) -> torch.Tensor:
                (tokens,) = inputs
                rows = kept
                if len(tokens) == 1:  # few tokens: image by image
                    rows = kept[counted[name] : counted[name] + 1]
                    counted[name] += 1
                added = torch.from_numpy(formula(given, name, tokens.numpy(), hint[0].numpy()))
                return tokens + weight * rows * added

            hooks.append(unet.get_submodule(module).register_forward_pre_hook(before))
        counted = {name: 0 for name, *_ in lite.control.places}
        wanted = unet(x.repeat(2, 1, 1, 1), timesteps, context, y)
    assert (ours - wanted).abs().max() <= 1e-10
    assert (ours - plain)[:2].abs().max() > 1e-3
    assert torch.equal(ours[2:], plain[2:]) == (mode == "control")


def test_both_namings_are_one_network() -> None:
    """Oracle: the same weights under sgm's and under diffusers' blocks."""
    ours, theirs = weights(), weights(diffusers=True)
    one = control_of(FakeSource(of_tensors(ours), ours), UNET)
    two = control_of(FakeSource(of_tensors(theirs), theirs), UNET)
    assert [p[1:] for p in one.config.places] == [p[1:] for p in two.config.places]  # type: ignore[union-attr]


def test_the_whole_of_sdxl_loads_strictly() -> None:
    """Oracle: the modules that sd-scripts makes: 4 for each of 34 transformer blocks."""
    shapes = kohya_shapes(SDXL.unet)
    file = control_of(FakeSource(of_shapes(shapes)))
    config = cast(LLLiteConfig, file.config)
    assert len(config.places) == 4 * 34
    assert {r.theirs for r in lllite_rules(config)} == set(shapes)
    with torch.device("meta"):
        made = LLLite(config)
    made.load_state_dict(file.state_dict(), strict=True, assign=True)


def test_what_does_not_fit_is_named() -> None:
    shapes = kohya_shapes(UNET)
    first = next(iter(shapes)).split(".")[0]
    for change, message in (
        ({f"{first}.up.0.bias": (3,)}, r"wrong shapes: '.*up.0.bias' is \[3\]"),
        ({"lllite_unet_nowhere.down.0.weight": (6, 8)}, "1 of .* modules are not before projections"),
        ({f"{first}.conditioning1.0.weight": (4, 3, 8, 8)}, "strides"),
        ({f"{first}.mid.0.weight": (6, 6)}, "expected matrices"),
        ({f"{first}.extra": (6, 6)}, "1 tensors are not of it"),
    ):
        with pytest.raises(CheckpointError, match=message):
            control_of(FakeSource(of_shapes(shapes | change)), UNET)
    missing = {k: v for k, v in shapes.items() if k != f"{first}.down.0.bias"}
    with pytest.raises(CheckpointError, match="1 of .* tensors missing"):
        control_of(FakeSource(of_shapes(missing)), UNET)


def drawn(folder: Path, *units: ControlUnit, **fields: object) -> torch.Tensor:
    engine = Engine(tiny.tiny_model("sdxl"), controls={"lite": folder / "lite.safetensors"})
    return engine.run(replace(REQUEST, controls=units, **fields)).drawing.latents


def test_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the run without; weight 0 and steps outside are bit-equal to it and call nothing."""
    save_file({k: v.float() for k, v in weights().items()}, tmp_path / "lite.safetensors")
    calls: list[int] = []
    inner = LLLite.read

    def counted(self: LLLite, hint: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(1)
        return inner(self, hint)

    monkeypatch.setattr(LLLite, "read", counted)
    plain = drawn(tmp_path)
    assert torch.equal(plain, drawn(tmp_path, unit(weight=0.0))) and calls == []
    on = drawn(tmp_path, unit())
    assert calls == [1] and not torch.equal(plain, on)
    assert not torch.equal(on, drawn(tmp_path, unit(end=0.5)))
    both = drawn(tmp_path, unit(mode="control"), count=2)
    assert torch.equal(both[1:], drawn(tmp_path, unit(mode="control"), seed=43))
    with pytest.raises(RequestError, match="multiples of 32, got 64 x 72"):
        drawn(tmp_path, unit(), height=72)
    with pytest.raises(RequestError, match="reads the whole picture, and diffusion_tile"):
        drawn(tmp_path, unit(), diffusion_tile=64)
    with pytest.raises(RequestError, match="is a ControlNet-LLLite; it takes mode"):
        drawn(tmp_path, unit(mode="prompt"))
    with pytest.raises(CheckpointError, match="not before projections of this model"):
        load_control(tmp_path / "lite.safetensors", tiny.tiny_model("sd1"))

"""Oracle: the weights that stored forms stand for, in plain layers; bits where nothing may be lost, half a
step of the codes where something is."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minisd.adapters import adapted
from minisd.cli import main
from minisd.config import FAMILIES
from minisd.engine import Engine, load
from minisd.errors import CheckpointError, PlanError
from minisd.lora_use import LoraUse
from minisd.model import Model
from minisd.models.conv import Conv2d, PointwiseConv
from minisd.models.quantised import Quantised, quantised
from minisd.plan_storage import saved, shapes_of
from minisd.quantisation import quantize
from minisd.quantise import dynamic
from minisd.quantise.schemes import GROUP, NF4, SCHEMES, dequantise, form_of, quantise, stored_bytes
from minisd.quantise.sensitive import _TABLE, layers_of, why_left
from minisd.quantise_report import psnr, quant_report
from minisd.request import Request
from minisd.weights_loader.checkpoint import open_checkpoint
from minisd.weights_loader.config_json import KEY as CONFIG
from minisd.weights_loader.lora_file import open_adapter
from minisd.weights_loader.lora_names import spellings
from minisd.weights_loader.quantised import KEY
from minisd.wishes import QUANTS
from tests import lora_files
from tests.tiny import TINY, write_checkpoint

SHAPES = [(5, 64), (7, 100), (4, 3, 3, 3), (6, 32, 1, 1), (3, 128)]
REQUEST = Request(prompt="a cat", negative_prompt="dark", seed=5, steps=2, cfg_scale=7.5)


def weight(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    w[0] = 0  # an output that is off
    return w


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors", TINY["sd1"])


def test_names() -> None:
    """Oracle: what a person may ask for is what there is."""
    assert QUANTS == ("auto", "none", *SCHEMES)


def test_nf4_is_made_of_quantiles() -> None:
    """Oracle: the paper's construction: quantiles of N(0, 1) in equal steps of probability, eight above 0 and
    seven below, scaled to 1."""
    ends = 0.9677083
    above = torch.special.ndtri(torch.linspace(ends, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(ends, 0.5, 8, dtype=torch.float64)[:-1])
    table = torch.cat([above, below, torch.zeros(1, dtype=torch.float64)]).sort().values
    assert torch.allclose(table / table.max(), torch.tensor(NF4, dtype=torch.float64), atol=2e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_number_is_further_than_half_a_step(scheme: str, shape: tuple[int, ...]) -> None:
    """Oracle: the distance between neighbouring codes; and what is stored comes back as itself."""
    w, s = weight(shape), SCHEMES[scheme]
    form = quantise(w, scheme)
    assert {n: (t.dtype, tuple(t.shape)) for n, t in form.items()} == form_of(scheme, shape)
    assert sum(t.nbytes for t in form.values()) == stored_bytes(scheme, shape)
    back = dequantise(form, scheme, shape, torch.float32)
    error, rows = (back - w).abs().flatten(1), w.flatten(1)
    if s.packed:
        padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
        step = (padded.amax(-1) - padded.amin(-1)) / 15 if scheme == "int4" else padded.abs().amax(-1) * 0.304
        room = (step * 0.51 + padded.abs().amax(-1) * 2**-10).repeat_interleave(GROUP, 1)
        assert bool((error <= room[:, : rows.shape[1]]).all())
    elif s.codes == torch.int8:
        assert bool((error <= rows.abs().amax(1, keepdim=True) / 127 * 0.5001).all())
    else:
        top, bits = (
            rows.abs().max() if s.whole else rows.abs().amax(1, keepdim=True),
            4 if "e4" in scheme else 3,
        )
        smallest = top / torch.finfo(s.codes).max * torch.finfo(s.codes).smallest_normal
        assert bool((error <= torch.maximum(rows.abs(), smallest) * 2.0**-bits * 1.001).all())
    if scheme != "int4":  # its zero is a code near 0
        assert not back[0].any()
    again = quantise(back, scheme)
    if s.codes == torch.int8:
        assert torch.equal(again["weight"], form["weight"])


def test_integers_multiply_exactly() -> None:
    """Oracle: int64."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-127, 128, (n, 3000), dtype=torch.int8, generator=g) for n in (5, 9))
    a[:3], b[:3] = (torch.randint(101, 128, (3, 3000), dtype=torch.int8, generator=g) for _ in "ab")
    exact = a.long() @ b.long().t()
    assert torch.equal(dynamic.product(a, b).long(), exact)
    assert torch.equal(dynamic.in_pieces(a, b).long(), exact)
    assert not torch.equal((a.float() @ b.float().t()).long(), exact), "why it is done in pieces"


@pytest.mark.parametrize("make", [nn.Linear, Conv2d, PointwiseConv, nn.Conv2d])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_layers(scheme: str, make: Callable[..., nn.Module]) -> None:
    """Oracle: the plain layer with the weight that is stored: the same bits, but for int8, whose scale comes
    after the product, and w8a8, which rounds what it multiplies."""
    torch.manual_seed(0)
    plain = nn.Sequential(make(48, 20, *((3, 2, 1) if make is Conv2d else (1,) if make is nn.Conv2d else ())))
    layer = cast(nn.Linear, plain[0]).requires_grad_(False)
    stored = copy.deepcopy(plain)
    quantised(stored, [("0", scheme), ("not there", scheme)], torch.float32)
    made = cast(Quantised, stored[0])
    form = quantise(layer.weight, scheme)
    stored.load_state_dict({f"0.{n}": t for n, t in form.items()} | {"0.bias": layer.bias}, assign=True)
    layer.weight.copy_(made.dequantised())
    x = torch.randn(2, 6, 48) if make is nn.Linear else torch.randn(2, 48, 9, 7)
    wide, few = plain(x), stored(x)
    if scheme == "w8a8":
        assert float((few - wide).norm() / wide.norm()) < 0.02
        assert torch.equal(stored(x[1:]), few[1:]), "an image has its own scale"
    elif scheme == "int8":
        assert torch.allclose(few, wide, atol=2e-5)
    else:
        assert torch.equal(few, wide)
    if make in (PointwiseConv, nn.Conv2d) and scheme != "w8a8":
        tokens = made(x.flatten(2).transpose(1, 2))
        assert torch.allclose(tokens.transpose(1, 2).unflatten(2, (9, 7)), wide, atol=2e-5)


def test_w8a8_of_a_convolution_is_that_of_its_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: float64 convolution of the integers; any number of rows at a time gives the same bits."""
    x, w = torch.randn(2, 5, 9, 8), weight((6, 5, 3, 3))
    form = quantise(w, "int8")
    codes, scale = dynamic.to_int8(x, (1, 2, 3))
    whole = torch.conv2d(codes.double(), form["weight"].double(), stride=2, padding=1)
    expected = whole * scale * form["scale_weight"][:, None, None].double()
    arguments = x, form["weight"], form["scale_weight"], None, (2, 2), (1, 1)
    out = dynamic.conv(*arguments)
    assert torch.allclose(out, expected.float(), rtol=1e-6)
    monkeypatch.setattr(dynamic, "COLUMNS", 1)
    assert torch.equal(dynamic.conv(*arguments), out)


def networks(model: Model) -> dict[str, nn.Module]:
    encoders = {u.part: e for u, e in zip(model.config.text, model.text_encoders, strict=True)}
    return {**encoders, "unet": model.unet, "vae": model.vae}


def resident(model: Model, part: str) -> int:
    return sum(t.nbytes for t in networks(model)[part].parameters())


def widened(model: Model) -> Model:
    """Plain layers with the weights that are stored."""
    out = copy.deepcopy(model)
    for network in networks(out).values():
        for name, layer in [(n, m) for n, m in network.named_modules() if isinstance(m, Quantised)]:
            parent, _, last = name.rpartition(".")
            with torch.device("meta"):
                if len(layer.shape) == 2:
                    plain: nn.Module = nn.Linear(layer.shape[1], layer.shape[0], layer.bias is not None)
                else:
                    size, at, edge = layer.shape[2], layer.stride, layer.padding
                    plain = Conv2d(*layer.shape[1::-1], size, at, edge, bias=layer.bias is not None)
            state = {"weight": layer.dequantised()} | ({} if layer.bias is None else {"bias": layer.bias})
            plain.load_state_dict(state, assign=True)
            network.get_submodule(parent).register_module(last, plain.requires_grad_(False))
    return out


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("scheme", "name"), [*((s, "sd1") for s in SCHEMES), ("int8", "sdxl"), ("nf4", "sdxl")]
)
def test_models(scheme: str, name: str, tmp_path: Path) -> None:
    """Oracle: the plain networks over the same weights; bytes of the plan against those in memory."""
    path = write_checkpoint(tmp_path / "tiny.safetensors", TINY[name])
    with load(path, device="cpu", quant=scheme) as engine:
        model, plan = engine.model, engine.plan
        result = engine.run(REQUEST).drawing.latents
        for part in networks(model):
            own = plan.part(part)
            assert own.weight_bytes == resident(model, part) and own.quant.value == scheme
            assert len(own.layers) == sum(isinstance(m, Quantised) for m in networks(model)[part].modules())
            assert own.layers and scheme in str(plan) and own.quant.reason.startswith("asked for by name; ")
        expected = Engine(widened(model)).run(REQUEST).drawing.latents
        # what rounds activations too, and convolutions that are products over pixels in the original
        assert difference(result, expected) < (0.2 if scheme == "w8a8" else 1e-4)
    with load(path, device="cpu", unet_quant=scheme, dtype="bfloat16") as engine:
        model = engine.model
        assert [engine.plan.part(p).quant.value for p in networks(model)][-2:] == [scheme, "none"]
        assert engine.plan.part("unet").weight_bytes == resident(model, "unet")
        assert bool(torch.isfinite(engine.run(REQUEST).drawing.latents).all())


@pytest.mark.parametrize("scheme", ["int8", "nf4", "w8a8", "e4m3_tensor"])
def test_moving_stored_weights_changes_no_bit(scheme: str, tiny_file: Path) -> None:
    """Oracle: the same request where weights stay."""
    with load(tiny_file, device="cpu", quant=scheme, offload="none") as engine:
        expected = engine.run(REQUEST).drawing.latents
    for offload in ("staged", "streamed", "disk"):
        with load(tiny_file, device="cpu", quant=scheme, offload=offload) as engine:
            assert all(torch.equal(engine.run(REQUEST).drawing.latents, expected) for _ in range(2))


@pytest.mark.parametrize(
    ("scheme", "name"),
    [("int8", "sd1"), ("int8", "sd2-v"), ("int4", "sd1"), ("nf4", "sdxl"), ("e4m3", "sdxl"), ("w8a8", "sd1")],
)
def test_files_load_as_what_they_were_made_from(scheme: str, name: str, tmp_path: Path) -> None:
    """Oracle: the source quantised when it is loaded, bit for bit; safetensors' own reader for what is in the
    file; and the weights themselves where they are made wide again."""
    path = write_checkpoint(tmp_path / "tiny.safetensors", TINY[name], dtype=torch.float16)
    (tmp_path / "few").mkdir()
    few = tmp_path / "few" / path.name  # the title in the file is that of the source
    small = quantize(path, few, unet=scheme, text=scheme, vae=scheme)
    with load(path, device="cpu", quant=scheme) as engine:
        expected, plan = engine.run(REQUEST).drawing.latents, engine.plan
    with load(small, device="cpu") as engine:
        assert torch.equal(engine.run(REQUEST).drawing.latents, expected)
        reasons = [engine.plan.part(p).quant.reason for p in networks(engine.model)]
        assert all(r.startswith("as the file stores them") for r in reasons)
        assert [p.weight_bytes for p in engine.plan.parts] == [p.weight_bytes for p in plan.parts]
    dtypes = {str(t.dtype)[6:] for t in load_file(small).values()}
    codes = str(SCHEMES[scheme].codes)[6:]
    assert codes in dtypes and dtypes <= {codes, "float32", "float16"}
    again = quantize(small, tmp_path / "again.safetensors")
    assert again.read_bytes() == small.read_bytes()
    with load(small, device="cpu", quant="none") as engine:
        assert all(p.quant.value == "none" for p in engine.plan.parts)
        assert not any(isinstance(m, Quantised) for m in engine.model.unet.modules())
        wide = engine.run(REQUEST).drawing.latents
        assert difference(wide, expected) < (0.2 if scheme == "w8a8" else 1e-4)
    report = str(open_checkpoint(small).report())
    assert codes in report and "unknown" not in report


def test_fp8_of_other_programs(tiny_file: Path, tmp_path: Path) -> None:
    """Oracle: fp8 * scale_weight in plain weights, bit for bit; it stays in 8 bits, also without scales."""
    tensors = load_file(tiny_file)
    with safe_open(tiny_file, "pt") as file:
        metadata = {CONFIG: file.metadata()[CONFIG]}
    for scaled in (True, False):
        few, wide = dict(tensors), dict(tensors)
        for name, tensor in tensors.items():
            if name.startswith("model.diffusion_model.") and name.endswith(".weight") and tensor.ndim > 1:
                scale = tensor.abs().max() / 448 if scaled else torch.ones(())
                few[name] = (tensor / scale).to(torch.float8_e4m3fn)
                wide[name] = few[name].float() * scale
                if scaled:
                    few[name.replace(".weight", ".scale_weight")] = scale
        mark = {"model.diffusion_model.scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
        save_file(few | (mark if scaled else {}), tmp_path / "few.safetensors", metadata)
        save_file(wide, tmp_path / "wide.safetensors", metadata)
        with load(tmp_path / "wide.safetensors", device="cpu") as engine:
            expected, before = engine.run(REQUEST).drawing.latents, resident(engine.model, "unet")
        with load(tmp_path / "few.safetensors", device="cpu") as engine:
            assert torch.equal(engine.run(REQUEST).drawing.latents, expected)
            assert engine.plan.part("unet").quant.value == "e4m3_tensor"
            assert resident(engine.model, "unet") < 0.5 * before
        with load(tmp_path / "few.safetensors", device="cpu", unet_quant="e4m3") as engine:
            assert torch.equal(engine.run(REQUEST).drawing.latents, expected), "its codes are kept"


def test_ours_in_fp8_is_spelled_as_others_spell_it(tiny_file: Path, tmp_path: Path) -> None:
    """Oracle: the names and shapes of ComfyUI's scaled fp8; without our metadata it is the same model."""
    path = quantize(tiny_file, tmp_path / "few.safetensors", unet="e4m3_tensor")
    tensors = load_file(path)
    name = "model.diffusion_model.middle_block.1.proj_in"
    assert (
        tensors[f"{name}.weight"].dtype == torch.float8_e4m3fn and tensors[f"{name}.scale_weight"].shape == ()
    )
    assert tensors["model.diffusion_model.scaled_fp8"].dtype == torch.float8_e4m3fn
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata.pop(KEY)
    save_file(tensors, tmp_path / "theirs.safetensors", metadata)
    with load(path, device="cpu") as a, load(tmp_path / "theirs.safetensors", device="cpu") as b:
        assert torch.equal(a.run(REQUEST).drawing.latents, b.run(REQUEST).drawing.latents)


def changed_file(
    path: Path, target: Path, change: Callable[[dict[str, Tensor], dict[str, object]], None]
) -> Path:
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    data = json.loads(metadata[KEY])
    change(tensors, data)
    save_file(tensors, target, metadata | {KEY: json.dumps(data)})
    return target


LAYER = "model.diffusion_model.middle_block.1.proj_in"


def entry(value: object) -> Callable[[dict[str, Tensor], dict[str, object]], None]:
    return lambda tensors, data: cast(dict[str, object], data["layers"]).update({f"{LAYER}.weight": value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, d: t.pop(f"{LAYER}.scale_weight"), r"lacks .*proj_in\.scale_weight"),
        (lambda t, d: t.update({f"{LAYER}.scale_weight": torch.ones(3)}), r"scale_weight.* \[3\]; expected"),
        (
            lambda t, d: t.update({f"{LAYER}.weight": torch.ones(32, 32)}),
            r"float32 \[32, 32\]; expected uint8",
        ),
        (lambda t, d: t.update({f"{LAYER}.more_weight": torch.ones(3)}), "are not of it"),
        (lambda t, d: t[f"{LAYER}.scale_weight"].fill_(math.nan), "scale_weight' is not finite"),
        (lambda t, d: d.update(format=2), "of format 1 with layers"),
        (lambda t, d: d.update(layers=[]), "of format 1 with layers"),
        (entry(["int3", [64, 64, 1, 1]]), "expected one of e4m3"),
        (entry(["nf4", [64, 64, -1, 1]]), "and a shape"),
        (entry(["nf4", [64, 128, 1, 1]]), "expected uint8"),
        (entry("nf4"), "expected one of e4m3"),
        (lambda t, d: cast(dict[str, object], d["layers"]).pop(f"{LAYER}.weight"), "proj_in"),
    ],
)
def test_files_that_are_not_what_they_say(
    change: Callable[[dict[str, Tensor], dict[str, object]], None],
    message: str,
    tiny_file: Path,
    tmp_path: Path,
) -> None:
    """Oracle: one sentence of CheckpointError; the file before the change loads."""
    good = quantize(tiny_file, tmp_path / "good.safetensors", unet="nf4")
    bad = changed_file(good, tmp_path / "bad.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        load(bad, device="cpu")
    load(changed_file(good, tmp_path / "fine.safetensors", lambda t, d: None), device="cpu").close()


def test_weights_that_cannot_be_stored(tiny_file: Path, tmp_path: Path) -> None:
    """Oracle: CheckpointError by name; nothing is left behind."""
    tensors = load_file(tiny_file)
    with safe_open(tiny_file, "pt") as file:
        metadata = file.metadata()
    for value, message in ((math.inf, "not finite"), (1e8, "too large for nf4")):
        save_file(
            tensors | {f"{LAYER}.weight": torch.full_like(tensors[f"{LAYER}.weight"], value)},
            tmp_path / "a",
            metadata,
        )
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / "a", device="cpu", unet_quant="nf4")
        with pytest.raises(CheckpointError, match=message):
            quantize(tmp_path / "a", tmp_path / "b", unet="nf4")
        assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_loras_go_beside_stored_weights(tiny_file: Path, tmp_path: Path) -> None:
    """Oracle: the same adapter merged into the plain networks over the same weights."""
    path = lora_files.write(tmp_path / "film.safetensors", lora_files.kohya(TINY["sd1"], 1))
    film = open_adapter(path, spellings(TINY["sd1"]))
    for scheme, room in (("int8", 1e-4), ("nf4", 1e-4), ("e4m3", 1e-4), ("w8a8", 0.2)):
        with load(tiny_file, device="cpu", quant=scheme) as engine:
            model, plain = engine.model, engine.run(REQUEST).drawing.latents
            beside = Engine(adapted(model, [(film, LoraUse("film", 0.7))])).run(REQUEST).drawing.latents
            merged = adapted(widened(model), [(film, LoraUse("film", 0.7))], way="merged")
            expected = Engine(merged).run(REQUEST).drawing.latents
            assert difference(beside, expected) < room < difference(plain, expected)
            with pytest.raises(PlanError, match="can only go beside"):
                adapted(model, [(film, LoraUse("film"))], way="merged")
            again = engine.run(replace(REQUEST, loras=())).drawing.latents
            assert torch.equal(again, plain)


@pytest.mark.parametrize("offload", ["staged", "streamed", "disk"])
def test_loras_beside_weights_that_come_and_go(offload: str, tiny_file: Path, tmp_path: Path) -> None:
    """Oracle: the same where weights stay; there wide layers have it merged."""
    lora_files.write(tmp_path / "film.safetensors", lora_files.kohya(TINY["sd1"], 1))
    request = replace(REQUEST, loras=(LoraUse("film", 0.7),))
    with load(tiny_file, device="cpu", offload="none", loras=tmp_path, quant="int8") as engine:
        expected = engine.run(request).drawing.latents
    with load(tiny_file, device="cpu", offload=offload, loras=tmp_path, quant="int8") as engine:
        assert difference(engine.run(request).drawing.latents, expected) < 1e-4


def test_every_line_of_the_table_leaves_something_alone() -> None:
    """Oracle: the parameters of the published families."""
    for kind, pattern, why in _TABLE:
        found = 0
        for config in FAMILIES.values():
            parts = [u.part for u in config.text] if kind == "text" else [kind]
            for part in parts:
                names = shapes_of(config, part)
                found += sum(why_left(part, name, shape) == why for name, shape in names.items())
        assert found, pattern
    assert why_left("taesd", "decoder.1.weight", (64, 4, 3, 3)) is not None


@pytest.mark.parametrize(
    ("family", "part", "most"),
    [
        *((f, "unet", 0.52) for f in ("sd1", "sd2", "sdxl")),
        ("sd1", "vae", 0.505),
        ("sdxl", "text_encoder_2", 0.56),
    ],
)
def test_int8_is_half_of_16_bits(family: str, part: str, most: float) -> None:
    """Oracle: bytes of every parameter of the published models."""
    shapes = shapes_of(FAMILIES[family], part)
    half = 2 * sum(math.prod(s) for s in shapes.values())
    layers = layers_of(part, shapes, "int8")
    assert 0.5 < (half - saved(layers, shapes, torch.float16)) / half < most


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_whole_model_in_int8_is_at_most_055_of_16_bits(family: str) -> None:
    """Oracle: bytes of every parameter of the published models."""
    config, half, less = FAMILIES[family], 0, 0
    for part in [*(u.part for u in config.text), "unet", "vae"]:
        shapes = shapes_of(config, part)
        half += 2 * sum(math.prod(s) for s in shapes.values())
        less += saved(layers_of(part, shapes, "int8"), shapes, torch.float16)
    assert (half - less) / half <= 0.55


def test_by_name_or_not_at_all(tiny_file: Path) -> None:
    """Oracle: PlanError with the name."""
    with pytest.raises(PlanError, match="quant 'int3' is not one of"):
        load(tiny_file, device="cpu", quant="int3")
    with pytest.raises(PlanError, match="fused_qkv rearranges wide weights"):
        load(tiny_file, device="cpu", unet_quant="int8", kernels="fused_qkv")
    with pytest.raises(PlanError, match="upsample_conv=sub_pixel rearranges"):
        load(tiny_file, device="cpu", unet_quant="int8", kernels="upsample_conv=sub_pixel")
    with load(
        tiny_file, device="cpu", quant="int8", text_quant="none", kernels="text_once,times_once"
    ) as engine:
        assert [p.quant.value for p in engine.plan.parts] == ["none", "int8", "int8"]
        expected = engine.run(REQUEST).drawing.latents
    with load(tiny_file, device="cpu", quant="int8", text_quant="none") as engine:
        assert torch.equal(engine.run(REQUEST).drawing.latents, expected)


def test_an_implementation_by_name(tiny_file: Path) -> None:
    """Oracle: the float64 reference of the operation, called for every int8 linear layer."""
    with load(tiny_file, device="cpu", unet_quant="int8", kernels="quantised_linear=reference") as engine:
        named = [
            getattr(m, "implementation", "") for m in engine.model.unet.modules() if isinstance(m, Quantised)
        ]
        assert "reference" in named
        exact = engine.run(REQUEST).drawing.latents
    with load(tiny_file, device="cpu", unet_quant="int8") as engine:
        plain = engine.run(REQUEST).drawing.latents
    assert 0 < difference(plain, exact) < 1e-4


def test_a_report_of_what_it_costs() -> None:
    """Oracle: errors of weights measured by hand; the picture that the wide model draws."""
    request = Request(prompt="a red apple", seed=1, steps=4)
    report = quant_report(None, [request], {"unet": "int8", "vae": "nf4"}, device="cpu")
    with load(device="cpu") as wide, load(device="cpu", unet_quant="int8", vae_quant="nf4") as few:
        drawn = psnr(wide.run(request).image, few.run(request).image)
        assert report.pictures == ((request.prompt, 1, pytest.approx(drawn)),)
        name = "middle_block.0.out_layers.3"
        one = next(e for e in report.layers if e.part == "unet" and e.layer == name)
        layer = few.model.unet.get_submodule(name)
        assert isinstance(layer, Quantised)
        true = wide.model.unet.get_submodule(name).weight
        assert isinstance(true, Tensor)
        assert one.weights == pytest.approx(difference(layer.dequantised(), true), rel=1e-3)
        assert one.outputs is not None and 0 < one.outputs < 0.03
    called = {e.layer for e in report.layers if e.outputs is None}
    assert called == {e.layer for e in report.layers if e.layer.startswith("encoder.")}
    text = str(report)
    assert all(word in text for word in ("middle_block.0.out_layers.3", "left alone", "mean PSNR", "nf4"))
    assert 0.25 < next(p for p in report.parts if p.part == "vae").stored / report.parts[-2].half < 0.35


def test_pictures_in_int8() -> None:
    """Oracle: the same pictures in float32: 35 dB and more (45 dB over 32 pictures, see the report)."""
    requests = [Request(prompt=p, seed=3, steps=12) for p in ("a red apple", "a cat")]
    with load(device="cpu") as wide, load(device="cpu", quant="int8") as few:
        pictures = [psnr(wide.run(r).image, few.run(r).image) for r in requests]
    assert sum(pictures) / 2 >= 35, pictures


def test_the_command(tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the file, one JSON object, exit codes."""
    target = tmp_path / "small.safetensors"
    size = ["--width", "64", "--height", "64", "--steps", "2", "--seeds", "1", "--prompt", "a cat"]
    flags = ["--unet", "int8", "--dtype", "float16", "--report", "--device", "cpu", *size, "--json"]
    assert main(["quantize", str(tiny_file), "-o", str(target), *flags]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["path"] == str(target) and target.stat().st_size < tiny_file.stat().st_size
    assert answer["psnr"] > 20 and answer["layers"][0]["scheme"] == "int8"
    assert main(["quantize", str(tiny_file), "-o", str(target), "--unet", "int8"]) == 3
    assert main(["quantize", str(tiny_file)]) == 1
    assert "nothing to do" in capsys.readouterr().err
    assert main(["plan", str(tiny_file), "--unet-quant", "nf4", "--device", "cpu"]) == 0
    assert "layers stored as nf4" in capsys.readouterr().out

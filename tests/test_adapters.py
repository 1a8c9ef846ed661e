"""Oracle: the same layer computed with the low-rank sum beside it; the bytes of the loaded model."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from minisd.adapters import adapted, changed, networks_of
from minisd.errors import CheckpointError, NumericalError, PlanError
from minisd.lora_use import LoraUse
from minisd.model import Model
from minisd.weights_loader.lora_file import Adapter, open_adapter, read_adapter
from minisd.weights_loader.lora_names import spellings
from tests import lora_files
from tests.tiny import TINY, tiny_model
from tests.weights_loader.fake import FakeSource, of_tensors

CONFIG = TINY["sd1"]


def adapter(
    tensors: Mapping[str, Tensor], name: str = "sd1", file: str = "a", metadata: dict[str, str] | None = None
) -> Adapter:
    source = FakeSource(of_tensors(tensors), tensors, metadata, f"{file}.safetensors")
    return read_adapter(source, spellings(TINY[name]))


def outputs(model: Model) -> list[Tensor]:
    """What every network makes of the same random input."""
    g = torch.Generator().manual_seed(5)
    dtype, config = model.unet_dtype, model.config
    x = torch.randn(1, config.unet.in_channels, 8, 8, generator=g, dtype=torch.float64).to(dtype)
    context = torch.randn(1, 5, config.unet.context_dim, generator=g, dtype=torch.float64).to(dtype)
    width = config.unet.y_dim
    y = None if width is None else torch.randn(1, width, generator=g, dtype=torch.float64).to(dtype)
    ids = torch.randint(0, 49406, (1, 9), generator=g)
    ids[0, -1] = 49407
    with torch.inference_mode():
        texts = [
            encoder(ids, pooled=use.pooled)
            for use, encoder in zip(config.text, model.text_encoders, strict=True)
        ]
        out = [t for text in texts for t in text if t is not None]
        return [*out, model.unet(x, torch.tensor([500.0]), context, y)]


def digest(model: Model) -> str:
    sha = hashlib.sha256()
    for part, network in networks_of(model).items():
        for name, tensor in network.state_dict().items():
            sha.update(f"{part}.{name}{tensor.dtype}{list(tensor.shape)}".encode())
            sha.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "kind,name", [*((kind, "sd1") for kind in lora_files.KINDS), ("lora", "sdxl"), ("oft", "sdxl")]
)
def test_merged_and_beside_are_the_same_network(kind: str, name: str) -> None:
    """Oracle: the other way of the two, float64, every kind on every layer."""
    model = tiny_model(name, dtype="float64")
    one = adapter(lora_files.of_kind(TINY[name], kind), name)
    use = LoraUse("a", 0.7)
    merged = outputs(adapted(model, [(one, use)], way="merged"))
    side = outputs(adapted(model, [(one, use)], way="beside"))
    for a, b, plain in zip(merged, side, outputs(model), strict=True):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()
        if kind not in ("locon_mid", "loha_tucker", "lokr_tucker") or a is merged[-1]:
            assert (a - plain).abs().max() > 1e-6


def low_rank_hooks(network: nn.Module, part: str, tensors: Mapping[str, Tensor], weight: float) -> None:
    """Adds the plain formula of a LoRA to the output of every layer: written again, from the file's names."""
    for target, diffusers in lora_files.layers(CONFIG):
        if target.part != part:
            continue
        name = lora_files.kohya_name(target, diffusers, one_encoder=True)
        down, up = (tensors[f"{name}.lora_{d}.weight"] for d in ("down", "up"))
        delta = (
            weight * lora_files.ALPHA / lora_files.RANK * torch.einsum("or,r...->o...", up.flatten(1), down)
        )
        layer = network.get_submodule(target.module)
        with torch.no_grad():
            layer.register_parameter(
                "weight", nn.Parameter(cast(Tensor, layer.weight) + delta, requires_grad=False)
            )


def test_against_the_formula() -> None:
    """Oracle: W + weight * alpha / rank * up down on every layer by its diffusers name; float64."""
    tensors = lora_files.kohya(CONFIG, 1, dtype=torch.float64)
    model, plain = tiny_model("sd1", dtype="float64"), tiny_model("sd1", dtype="float64")
    for part, network in networks_of(plain).items():
        low_rank_hooks(network, part, tensors, 0.8)
    made = outputs(adapted(model, [(adapter(tensors), LoraUse("a", 0.8))]))
    for a, b in zip(made, outputs(plain), strict=True):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()


@pytest.mark.parametrize("name", ["sd1", "sd2-v", "sdxl"])
def test_kohya_and_peft_files_give_the_same_bits(name: str) -> None:
    """Oracle: the other file of the same LoRA."""
    config, model = TINY[name], tiny_model(name)
    a = adapter(lora_files.kohya(config, 2), name)
    metadata = lora_files.peft_metadata(config)
    b = adapter(lora_files.peft(config, 2), name, metadata=metadata)
    c = adapter(lora_files.peft(config, 2, short=True), name, metadata=metadata)
    first, *others = (outputs(adapted(model, [(x, LoraUse("a"))])) for x in (a, b, c))
    assert all(same(first, other) for other in others)
    assert not same(first, outputs(model))
    assert {x.report for x in (a, b, c)} == {a.report}


def test_report() -> None:
    """Oracle: the count of layers."""
    count = len(lora_files.layers(CONFIG))
    text = sum(t.part == "text_encoder" for t, _ in lora_files.layers(CONFIG))
    made = adapter(lora_files.kohya(CONFIG, 3))
    expected = f"applied {count}/{count} modules: {count - text} unet, {text} text_encoder (lora)"
    assert made.report == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fifty_cycles_leave_every_byte(dtype: str) -> None:
    """Oracle: sha256 of all weights before; the picture without adapters after."""
    model = tiny_model("sd1", dtype=dtype)
    before, plain = digest(model), outputs(model)
    three = [adapter(lora_files.kohya(CONFIG, seed), file=f"l{seed}") for seed in (1, 2, 3)]
    first: dict[int, str] = {}
    for cycle in range(50):
        uses = [(three[(cycle + k) % 3], LoraUse("x", 0.5 + 0.1 * k)) for k in range(1 + cycle % 3)]
        key = cycle % 3 * 10 + cycle % 3
        made = digest(adapted(model, uses))
        assert made != before and made == first.setdefault(key, made)
        assert digest(model) == before
    assert same(outputs(model), plain)


def test_order_does_not_matter() -> None:
    """Oracle: every order of the same three; inverse: added one after the other, bits differ."""
    model = tiny_model("sd1", dtype="bfloat16")
    three = [(adapter(lora_files.kohya(CONFIG, seed)), LoraUse(str(seed), 0.3 * seed)) for seed in (1, 2, 3)]
    made = {digest(adapted(model, order)) for order in itertools.permutations(three)}
    assert len(made) == 1
    one_by_one = model
    for use in three:
        one_by_one = adapted(one_by_one, [use])
    assert digest(one_by_one) not in made


def test_weight_zero_is_the_model_itself() -> None:
    """Oracle: identity of the networks."""
    model = tiny_model("sd1")
    made = adapted(model, [(adapter(lora_files.kohya(CONFIG, 1)), LoraUse("a", 0.0))])
    assert all(networks_of(made)[k] is v for k, v in networks_of(model).items())
    assert changed(model, made) == 0


def test_what_is_not_changed_is_shared() -> None:
    """Oracle: the number of layers of one block."""
    tensors = lora_files.only(lora_files.kohya(CONFIG, 1), ["lora_unet_mid_block_"])
    model = tiny_model("sd1")
    made = adapted(model, [(adapter(tensors), LoraUse("a"))])
    layers = [t for t, _ in lora_files.layers(CONFIG) if t.module.startswith("middle_block.")]
    assert changed(model, made) == len(layers)
    assert made.text_encoders[0] is model.text_encoders[0]
    for module, old in zip(made.unet.modules(), model.unet.modules(), strict=True):
        assert getattr(module, "implementation", None) == getattr(old, "implementation", None)


def test_weights_of_encoders_and_blocks() -> None:
    """Oracle: a file that holds only what should act."""
    everything = lora_files.kohya(TINY["sdxl"], 4)
    model = tiny_model("sdxl")

    def made(use: LoraUse, tensors: Mapping[str, Tensor] = everything) -> str:
        return digest(adapted(model, [(adapter(tensors, "sdxl"), use)]))

    assert made(LoraUse("a", 1.0, 0.0)) == made(LoraUse("a"), lora_files.only(everything, ["lora_unet_"]))
    te1 = lora_files.only(everything, ["lora_te1_"])
    assert made(LoraUse("a", 0.0, 1.0, 0.0)) == made(LoraUse("a"), te1)
    assert made(LoraUse("a", 0.0, 0.5, 0.5)) == made(
        LoraUse("a", 0.5), lora_files.only(everything, ["lora_te"])
    )
    middle = lora_files.only(everything, ["lora_unet_mid_block_"])
    base = lora_files.only(everything, ["lora_unet_time_", "lora_unet_add_", "lora_unet_conv_out"])
    zeros = (("input_blocks", 0.0), ("output_blocks", 0.0), ("BASE", 0.0), ("M00", 0.6))
    assert made(LoraUse("a", 1.0, 0.0, blocks=zeros)) == made(LoraUse("a", 0.6), middle)
    only_base = (("input_blocks", 0.0), ("output_blocks", 0.0), ("MID", 0.0))
    assert made(LoraUse("a", 1.0, 0.0, blocks=only_base)) == made(LoraUse("a"), base)


def test_longest_block_counts() -> None:
    """Oracle: the rule by hand."""
    use = LoraUse("a", 2.0, blocks=(("output_blocks", 0.5), ("OUT03", 0.25), ("text_encoder", 3.0)))
    assert use.multiplier("unet", "output_blocks.3.0.in_layers.2") == 0.5
    assert use.multiplier("unet", "output_blocks.30.0") == 1.0
    assert use.multiplier("unet", "time_embed.0") == 2.0
    assert use.multiplier("text_encoder", "text_model.encoder.layers.0.mlp.fc1") == 6.0


def test_biases_and_norms() -> None:
    """Oracle: addition by hand."""
    model = tiny_model("sd1", dtype="float64")
    norm, proj = (
        model.unet.get_submodule("middle_block.1.norm"),
        model.unet.get_submodule("middle_block.1.proj_in"),
    )
    draw = lora_files.drawing(1, torch.float64)
    name = "lora_unet_mid_block_attentions_0_"
    tensors = {
        f"{name}norm.w_norm": draw(64),
        f"{name}norm.b_norm": draw(64),
        f"{name}proj_in.diff_b": draw(64),
    }
    made = adapted(model, [(adapter(tensors), LoraUse("a", 0.5))]).unet
    for module, path, kind, factor in (
        (norm, "middle_block.1.norm", "weight", "norm.w_norm"),
        (norm, "middle_block.1.norm", "bias", "norm.b_norm"),
        (proj, "middle_block.1.proj_in", "bias", "proj_in.diff_b"),
    ):
        got = getattr(made.get_submodule(path), kind)
        assert torch.equal(got, getattr(module, kind) + 0.5 * tensors[name + factor])
    assert made.get_submodule("middle_block.1.proj_in").weight is proj.weight


def test_alpha() -> None:
    """Oracle: L44: an alpha that is no positive number is refused; missing it is the rank."""
    name = "lora_unet_conv_in"
    draw = lora_files.drawing(1)
    tensors = {f"{name}.lora_down.weight": draw(4, 4, 3, 3), f"{name}.lora_up.weight": draw(32, 4, 1, 1)}
    assert adapter(tensors).changes["unet", "input_blocks.0.0"].scale == 1.0
    for bad, message in (
        (torch.tensor(float("nan")), "not finite"),
        (torch.tensor(0.0), "alpha is 0.0; expected a positive number"),
        (torch.tensor(-1.0), "alpha is -1.0"),
        (torch.ones(3), "alpha is an array"),
    ):
        with pytest.raises(CheckpointError, match=message):
            adapter(tensors | {f"{name}.alpha": bad})
    for metadata, message in (
        ("[1]", "no object"),
        ("{", "not JSON"),
        ('{"unet.lora_alpha": "x"}', "positive"),
    ):
        peft = {
            "unet.conv_in.lora_A.weight": draw(4, 4, 3, 3),
            "unet.conv_in.lora_B.weight": draw(32, 4, 1, 1),
        }
        with pytest.raises(CheckpointError, match=message):
            adapter(peft, metadata={"lora_adapter_metadata": metadata})
    pattern = (
        '{"unet.lora_alpha": 8, "unet.r": 4, "unet.alpha_pattern": {"conv_in": 2}, "unet.use_rslora": true}'
    )
    peft = {"unet.conv_in.lora_A.weight": draw(4, 4, 3, 3), "unet.conv_in.lora_B.weight": draw(32, 4, 1, 1)}
    made = adapter(peft, metadata={"lora_adapter_metadata": pattern})
    assert made.changes["unet", "input_blocks.0.0"].scale == 1.0  # 2 / sqrt(4)


def test_a_weight_out_of_range_is_an_error() -> None:
    """Oracle: 65504, the largest float16."""
    model = tiny_model("sd1")
    half = replace(model, unet=model.unet.to(torch.float16))
    name = "lora_unet_conv_in"
    tensors = {f"{name}.diff": torch.full((32, 4, 3, 3), 60000.0)}
    with pytest.raises(NumericalError, match="unet.input_blocks.0.0 infinite in float16"):
        adapted(half, [(adapter(tensors), LoraUse("a", 5.0))])


def test_weights_that_cannot_be_changed() -> None:
    """Oracle: a layer that stores 8 bits: beside by itself, refused by name."""
    model = tiny_model("sd1")
    tensors = lora_files.only(lora_files.kohya(CONFIG, 1), ["lora_unet_mid_block_attentions_0_proj_in"])
    layer = model.unet.get_submodule("middle_block.1.proj_in")
    layer.register_parameter(
        "weight", nn.Parameter(cast(Tensor, layer.weight).to(torch.float8_e4m3fn), requires_grad=False)
    )
    with pytest.raises(PlanError, match="can only go beside it"):
        adapted(model, [(adapter(tensors), LoraUse("a"))], way="merged")


def test_files(tmp_path: Path) -> None:
    """Oracle: the tensors themselves; a .pt file gives what the safetensors file gives."""
    tensors = lora_files.kohya(CONFIG, 5)
    a = open_adapter(lora_files.write(tmp_path / "one.safetensors", tensors), spellings(CONFIG))
    torch.save(tensors, tmp_path / "one.pt")
    b = open_adapter(tmp_path / "one.pt", spellings(CONFIG))
    assert a.sha256 == b.sha256 and a.name == "one"
    for key, change in a.changes.items():
        assert all(torch.equal(v, b.changes[key].factors[k]) for k, v in change.factors.items())
    damaged = tensors | {"lora_unet_conv_in.lora_up.weight": torch.full((32, 4, 1, 1), float("inf"))}
    with pytest.raises(CheckpointError, match="not finite"):
        open_adapter(lora_files.write(tmp_path / "two.safetensors", damaged), spellings(CONFIG))


def test_bundled_embeddings() -> None:
    """Oracle: the vectors in the file."""
    vectors = torch.randn(3, 32)
    tensors = lora_files.kohya(CONFIG, 6) | {"bundle_emb.mug.string_to_param.*": vectors}
    [mug] = adapter(tensors).embeddings
    assert mug.name == "mug" and torch.equal(mug.vectors[0][1], vectors)

"""Oracle: published key lists: every module of every published adapter is found, in every spelling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minisd.config import FAMILIES, SD1, SD2, SDXL, ModelConfig
from minisd.errors import CheckpointError
from minisd.models.clip import TextEncoder
from minisd.models.unet import UNet
from minisd.weights_loader.lora_file import match
from minisd.weights_loader.lora_names import Target, spellings
from tests.weights_loader.fake import FakeSource, of_rows, of_shapes
from tests.weights_loader.manifests import manifest

SD1_TEXT_MODULES, SD1_UNET_MODULES, CONV_MODULES = 72, 192, 86
LISTS: list[tuple[str, ModelConfig, int]] = [
    ("kohya_sd15 (linear + 1x1, rank 64)", SD1, 264),
    ("kohya_sd15 LoCon / LoRA-C3Lier (rank 16, conv rank 8)", SD1, 350),
    ("lcm-lora-sdv1-5 (pytorch_lora_weights.safetensors)", SD1, 278),
    ("kohya_sdxl sgm-block naming (rank 16)", SDXL, 986),
    ("kohya_sdxl sgm-block naming + conv (rank 16/8)", SDXL, 1052),
    ("sdxl diffusers-block naming (rank 16) - same modules, other spelling", SDXL, 986),
    ("lcm-lora-sdxl family (diffusers-block naming, rank 64, UNet only)", SDXL, 788),
    ("diffusers >= 0.20 / PEFT spelling: unet.*.lora_A.weight", SD1, 128),
    ('diffusers "hf" spelling: unet.*.lora.down.weight', SD1, 128),
    ("diffusers < 0.20 attention-processor spelling", SD1, 128),
    ("PEFT DoRA (use_dora)", SD1, 32),
    ("text encoder LoRA as written with transformers 5 (no text_model.)", SD1, 48),
    ("text encoder LoRA, older transformers", SD1, 48),
]
LYCORIS = {
    "locon": "lora",
    "locon_tucker": "lora",
    "locon_dora_out": "lora",
    "locon_dora_in": "lora",
    "loha": "loha",
    "loha_tucker": "loha",
    "lokr_factor-1": "lokr",
    "lokr_decompose_both": "lokr",
    "lokr_tucker": "lokr",
    "lokr_full_matrix": "lokr",
    "ia3": "ia3",
    "ia3_on_input": "ia3",
    "full": "full",
    "norm": "norm",
    "glora": "glora",
    "diag_oft": "oft",
    "boft": "oft",
}


def listed_file(label: str) -> FakeSource:
    return FakeSource(of_rows(manifest("adapters")[label]), name="style.safetensors")


@pytest.mark.parametrize("label,config,modules", LISTS, ids=[row[0][:28] for row in LISTS])
def test_published_lists(label: str, config: ModelConfig, modules: int) -> None:
    """Oracle: the counts of the released files."""
    found = match(listed_file(label), spellings(config))
    assert len(found.names) == len(found.groups) == modules
    assert found.skipped == ()


@pytest.mark.parametrize("label,kind", LYCORIS.items())
def test_kinds_of_lycoris(label: str, kind: str) -> None:
    """Oracle: the key lists that LyCORIS' own modules save."""
    found = match(listed_file(label), spellings(SD1))
    assert {k.name for k in found.kinds.values() if k is not None} == {kind}
    assert len(found.names) == (2 if kind == "norm" else 4)


def test_both_namings_of_sdxl_are_the_same_modules() -> None:
    """Oracle: the pairs of names that diffusers' own converter gives."""
    table, prefix = spellings(SDXL), "model.diffusion_model."
    checked = 0
    for ours, diffusers, _ in manifest("sdxl-base")["pairs"]:
        if not ours.startswith(prefix) or not ours.endswith(".weight"):
            continue
        original = ours.removeprefix(prefix).removesuffix(".weight")
        theirs = diffusers.removesuffix(".weight")
        names = [f"lora_unet_{n.replace('.', '_')}" for n in (original, theirs)]
        names += [f"unet.{theirs}", theirs, f"diffusion_model.{original}"]
        assert {str(table[name]) for name in names} == {f"unet.{original}"}
        checked += 1
    assert checked > 788


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_has_the_model_s_modules(family: str) -> None:
    """Oracle: named_modules() of the networks themselves."""
    config = FAMILIES[family]
    with torch.device("meta"):
        networks: dict[str, nn.Module] = {u.part: TextEncoder(u.config) for u in config.text}
        networks["unet"] = UNet(config.unet)
    weighted = {
        Target(part, name, tuple(weight.shape), getattr(module, "bias", None) is not None)
        for part, network in networks.items()
        for name, module in network.named_modules()
        if isinstance(weight := getattr(module, "weight", None), torch.Tensor)
    }
    assert set(spellings(config).values()) == weighted


def test_a_lora_of_another_family() -> None:
    """Oracle: the names and the family are in the message."""
    source = listed_file("kohya_sdxl sgm-block naming (rank 16)")
    with pytest.raises(
        CheckpointError, match=r"'style.safetensors': \d+ of 986 modules are not in this model"
    ):
        match(source, spellings(SD1))
    with pytest.raises(CheckpointError, match="seems made for SDXL"):
        match(source, spellings(SD2))
    # SD1's linear layers are found in SD2 by name, but their context is 768 wide
    with pytest.raises(CheckpointError, match=r"make no change of .* is the adapter of this family"):
        match(listed_file("kohya_sd15 (linear + 1x1, rank 64)"), spellings(SD2))


def test_partial_counts_what_it_leaves_out() -> None:
    """Oracle: one name more than the model has."""
    shapes = {
        "lora_unet_conv_in.lora_down.weight": (4, 4, 3, 3),
        "lora_unet_conv_in.lora_up.weight": (320, 4, 1, 1),
        "lora_unet_nowhere.lora_down.weight": (4, 4),
        "lora_unet_nowhere.lora_up.weight": (4, 4),
    }
    source = FakeSource(of_shapes(shapes))
    with pytest.raises(CheckpointError, match="1 of 2 modules are not in this model: 'lora_unet_nowhere'"):
        match(source, spellings(SD1))
    assert match(source, spellings(SD1), partial=True).skipped == ("lora_unet_nowhere",)


PROJ, QUERY = (
    "lora_unet_mid_block_attentions_0_proj_in",
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
)


@pytest.mark.parametrize(
    "shapes,message",
    [
        (
            {f"{QUERY}.lora_down.weight": (16, 1280), f"{QUERY}.lora_up.weight": (1280, 8)},
            r"down is \[16, 1280\], up is \[1280, 8\]; ranks 16 and 8 differ",
        ),
        ({f"{QUERY}.lora_down.weight": (16, 1280)}, "has lora_down without lora_up"),
        ({f"{QUERY}.lora_up.weight": (1280, 16)}, "has lora_up without lora_down"),
        (
            {f"{QUERY}.lora_down.weight": (16, 320), f"{QUERY}.lora_up.weight": (320, 16)},
            r"make no change of unet.middle_block.1.transformer_blocks.0.attn1.to_q, whose weight is",
        ),
        (
            {f"{QUERY}.lora_down.weight": (16, 1280), f"{QUERY}.lora_up.weight": (16,)},
            "expected two matrices",
        ),
        (
            {
                f"{QUERY}.lora_down.weight": (4, 1280),
                f"{QUERY}.lora_up.weight": (1280, 4),
                f"{QUERY}.hada_w1_a": (1280, 4),
            },
            "mixes kinds: its factors are 'hada_w1_a', 'lora_down', 'lora_up'",
        ),
        (
            {
                f"{QUERY}.lora_down.weight": (4, 1280),
                f"{QUERY}.lora_up.weight": (1280, 4),
                "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": (4, 1280),
                "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight": (1280, 4),
            },
            "names the module unet.middle_block.1.transformer_blocks.0.attn1.to_q twice",
        ),
        ({f"{QUERY}.hada_w1_a": (1280, 4)}, "hada_w1_a"),
        ({f"{QUERY}.lokr_w1": (8, 8), f"{QUERY}.lokr_w2": (8, 8)}, "make no change of"),
        ({f"{QUERY}.lokr_w1": (8, 8)}, "make no change of"),
        ({f"{QUERY}.oft_blocks": (3, 8, 8)}, "make no change of"),
        ({f"{QUERY}.oft_blocks": (160, 8, 7)}, "make no change of"),
        ({f"{QUERY}.weight": (77,), f"{QUERY}.on_input": ()}, "make no change of"),
        ({f"{QUERY}.diff": (1280, 12)}, "make no change of"),
        ({f"{QUERY}.diff": (1280, 1280), f"{QUERY}.diff_b": (1280,)}, "which has none"),
        ({f"{PROJ}.diff": (1280, 1280, 1, 1), f"{PROJ}.diff_b": (12,)}, r"which is \[1280\]"),
        (
            {f"{QUERY}.diff": (1280, 1280), f"{QUERY}.dora_scale": (1280, 1)},
            "dora_scale does not go with full",
        ),
        (
            {
                f"{QUERY}.lora_down.weight": (4, 1280),
                f"{QUERY}.lora_up.weight": (1280, 4),
                f"{QUERY}.dora_scale": (12, 1),
            },
            r"dora_scale is \[12, 1\]; .* must be \[1280, 1\] or \[1, 1280\]",
        ),
        (
            {
                f"{QUERY}.lora_down.weight": (4, 1280),
                f"{QUERY}.lora_up.weight": (1280, 4),
                f"{QUERY}.foo": (),
            },
            "1 tensors are of no kind of adapter that minisd knows",
        ),
        ({"conv_in.weight": (320, 4, 3, 3)}, "expected a LoRA"),
    ],
)
def test_wrong_files(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    """Oracle: L44 of the fault table: one sentence for each mistake, by headers alone."""
    source = FakeSource(of_shapes(shapes))
    with pytest.raises(CheckpointError, match=message):
        match(source, spellings(SD1))
    assert source.reads == []

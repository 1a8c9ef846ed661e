"""Oracle: the vectors that were saved, by the programs' own libraries: torch.save and safetensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from minisd.errors import CheckpointError
from minisd.weights_loader.embedding_file import open_embedding

Vectors = dict[str | None, Tensor]


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def original(params: dict[str, Tensor] | nn.ParameterDict, **more: object) -> dict[str, object]:
    """As the scripts of the paper and A1111 save it; the token is a tensor in the first, an int in the
    second."""
    return {"string_to_param": params, "string_to_token": {"*": torch.tensor(265)}, **more}


W, N = 768, 3
FORMS: dict[str, tuple[str, Callable[[], object], Callable[[], Vectors]]] = {
    "the paper's .pt": (
        "pt",
        lambda: original(nn.ParameterDict({"*": nn.Parameter(drawn(N, W))})),
        lambda: {None: drawn(N, W)},
    ),
    "A1111's .pt": (
        "pt",
        lambda: original(
            {"*": drawn(N, W)}, name="cat", step=500, sd_checkpoint="abc", sd_checkpoint_name="x"
        ),
        lambda: {None: drawn(N, W)},
    ),
    "A1111's .pt with a whole number": (
        "pt",
        lambda: {"string_to_token": {"*": 265}, "string_to_param": {"*": drawn(N, W)}, "name": "cat"},
        lambda: {None: drawn(N, W)},
    ),
    "learned_embeds.bin": ("bin", lambda: {"<cat-toy>": drawn(W)}, lambda: {None: drawn(W)[None]}),
    "learned_embeds.bin, several": ("bin", lambda: {"<cat>": drawn(N, W)}, lambda: {None: drawn(N, W)}),
    "learned_embeds.bin, a parameter": (
        "bin",
        lambda: {"<cat>": nn.Parameter(drawn(N, W))},
        lambda: {None: drawn(N, W)},
    ),
    "learned_embeds.safetensors": (
        "safetensors",
        lambda: {"<a.b>": drawn(W)},
        lambda: {None: drawn(W)[None]},
    ),
    "kohya, SD1": ("safetensors", lambda: {"emb_params": drawn(N, W)}, lambda: {None: drawn(N, W)}),
    "kohya, SD2 in half": (
        "safetensors",
        lambda: {"emb_params": drawn(75, 1024).half()},
        lambda: {None: drawn(75, 1024).half()},
    ),
    "SDXL": (
        "safetensors",
        lambda: {"clip_g": drawn(N, 1280), "clip_l": drawn(N, W)},
        lambda: {"clip_l": drawn(N, W), "clip_g": drawn(N, 1280)},
    ),
    "SDXL's .pt, one vector": (
        "pt",
        lambda: {"clip_g": drawn(1280), "clip_l": drawn(W)},
        lambda: {"clip_l": drawn(W)[None], "clip_g": drawn(1280)[None]},
    ),
    "the second encoder's": (
        "safetensors",
        lambda: {"clip_g": drawn(N, 1280)},
        lambda: {"clip_g": drawn(N, 1280)},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form(form: str, tmp_path: Path) -> None:
    """Oracle: the tensors saved; the name is the file's."""
    suffix, made, expected = FORMS[form]
    path = tmp_path / f"cat toy.{suffix}"
    if suffix == "safetensors":
        save_file(made(), path)  # type: ignore[arg-type]
    else:
        torch.save(made(), path)
    read = open_embedding(path)
    assert read.name == "cat toy"
    got = dict(read.vectors)
    assert got.keys() == expected().keys()
    assert all(torch.equal(got[k], v) and got[k].dtype == v.dtype for k, v in expected().items())


@pytest.mark.parametrize(
    "tensors,message",
    [
        ({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(3, 1280)}, r"has \[2, 3\] vectors for its two"),
        ({"clip_l": torch.ones(2, 768), "x": torch.ones(1)}, "expected one, or clip_l and clip_g"),
        ({"a": torch.ones(2, 768), "b": torch.ones(2, 768)}, "expected one, or clip_l and clip_g"),
        ({"emb_params": torch.ones(76, 768)}, "76 vectors; at most 75"),
        ({"emb_params": torch.ones(2, 3, 768)}, "expected numbers"),
        ({"emb_params": torch.ones(2, 768, dtype=torch.int64)}, "expected numbers"),
        ({"emb_params": torch.full((1, 768), float("nan"))}, "not finite"),
        ({"emb_params": torch.ones(0, 768)}, "expected numbers"),
    ],
)
def test_what_is_none(tensors: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    """Oracle: one sentence for each mistake."""
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        open_embedding(tmp_path / "x.safetensors")

"""Oracle: prompts predicted apart and added by formula; the split by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minisd.errors import RequestError
from minisd.pipeline import draw
from minisd.request import Request
from minisd.text.composition import split_prompt
from tests.tiny import tiny_model

REQUEST = Request(prompt="a castle AND a sunset :0.6", steps=2, seed=1, cfg_scale=3.0)


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a castle", [("a castle", 1.0)]),
        ("a castle :0.5", [("a castle :0.5", 1.0)]),
        ("a AND b", [("a", 1.0), (" b", 1.0)]),
        ("a :1.5 AND b :-.5 AND c", [("a", 1.5), (" b", -0.5), (" c", 1.0)]),
        ("BAND AND HAND and and", [("BAND", 1.0), (" HAND and and", 1.0)]),
        ("a AND ", [("a", 1.0), ("", 1.0)]),
        ("at 12:30 AND noon", [("at 12", 30.0), (" noon", 1.0)]),  # as the community's tools read it
    ],
)
def test_split(prompt: str, parts: list[tuple[str, float]]) -> None:
    """Oracle: by hand."""
    assert split_prompt(prompt) == parts


def test_limits() -> None:
    """Oracle: the field that is wrong; time does not grow with the square of the length."""
    for prompt in (" AND ".join("x" * 20), "a AND b :1e9", "a AND b :101"):
        if "e9" in prompt:
            assert split_prompt(prompt)[1] == (" b :1e9", 1.0)  # not a weight: text
            continue
        with pytest.raises(RequestError) as caught:
            split_prompt(prompt)
        assert caught.value.field == "prompt"
    assert len(split_prompt("a AND " + "1" * 90_000)) == 2


def latents(**fields: object) -> torch.Tensor:
    model = tiny_model("sd1")
    return draw(model, replace(REQUEST, **fields).for_model(model.config, seed=0)).latents  # type: ignore[arg-type]


def test_weights_pull() -> None:
    """Oracle: weight 0 leaves the other prompt alone, to the bit; the word is a word under `literal`."""
    alone = latents(prompt="a castle")
    none = latents(prompt="a castle AND a sunset :0")
    assert torch.equal(none, alone)
    both = latents()
    assert (both - alone).norm() > 1e-2 * alone.norm()
    literal = latents(composition="literal")
    assert not torch.equal(both, literal)
    assert torch.equal(literal, latents(conventions="minisd", composition="literal"))
    swapped = latents(prompt="a sunset :0.6 AND a castle")
    assert (swapped - both).norm() < 1e-4 * both.norm()

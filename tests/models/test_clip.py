"""Oracle: transformers' CLIPTextModel and CLIPTextModelWithProjection of the same tiny config, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from minisd.config import TextUse
from minisd.models.clip import TextEncoder
from minisd.text.tokenizer import chunk, encode
from minisd.weights_loader.expected import text_shapes
from tests.oracles import transformers_text
from tests.tiny import TINY_REFINER, TINY_SD1, TINY_SD2, TINY_SDXL, random_weights, text_encoder
from tests.weights_loader.manifests import FAMILY, manifest, shapes

TOLERANCE = 1e-10
USES = {
    "sd1 CLIP-L": TINY_SD1.text[0],
    "sd2 OpenCLIP-H": TINY_SD2.text[0],
    "sdxl CLIP-L": TINY_SDXL.text[0],
    "sdxl bigG": TINY_SDXL.text[1],
    "refiner bigG": TINY_REFINER.text[0],
}


def ids(pad_id: int) -> Tensor:
    """Three prompts: short, empty, cut off at 75."""
    prompts = ["a photo of a cat", "", "one two three four five " * 20]
    return torch.tensor([chunk(encode(p), pad_id)[0] for p in prompts])


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_hidden_states_and_pooled(use: TextUse) -> None:
    """Oracle: transformers in float64: every hidden state, with and without the final norm, pooled text."""
    weights = random_weights(text_shapes(use.config), seed=1)
    ours, theirs = text_encoder(use, weights), transformers_text(use.config, weights)
    tokens = ids(use.pad_id)
    reference = theirs(tokens, output_hidden_states=True)
    final = ours.text_model.final_layer_norm
    for skip in range(use.config.layers + 1):
        state = reference.hidden_states[-1 - skip]
        assert (ours(tokens, skip=skip, final_norm=False).hidden - state).abs().max() <= TOLERANCE
        assert (ours(tokens, skip=skip, final_norm=True).hidden - final(state)).abs().max() <= TOLERANCE
    assert (ours(tokens).hidden - reference.last_hidden_state).abs().max() <= TOLERANCE
    if use.pooled:
        out = ours(tokens, skip=use.skip, final_norm=use.final_norm, pooled=True)
        assert out.pooled is not None
        assert (out.pooled - reference.text_embeds).abs().max() <= TOLERANCE
        assert (out.hidden - reference.hidden_states[-1 - use.skip]).abs().max() <= TOLERANCE


def test_the_first_end_of_text_is_pooled() -> None:
    """Oracle: transformers in float64, where a prompt holds the end of text twice and padding repeats it."""
    use = TINY_SDXL.text[1]
    weights = random_weights(text_shapes(use.config), seed=1)
    tokens = torch.tensor([chunk(encode("a cat <|endoftext|> a dog"), 49407)[0]])
    assert (tokens[0] == 49407).sum() > 2
    ours = text_encoder(use, weights)(tokens, pooled=True).pooled
    theirs = transformers_text(use.config, weights)(tokens).text_embeds
    assert ours is not None
    assert (ours - theirs).abs().max() <= TOLERANCE


def test_later_tokens_change_nothing_before_them() -> None:
    """Oracle: causality: the hidden states of a shared beginning are equal."""
    use = TINY_SD1.text[0]
    network = text_encoder(use, random_weights(text_shapes(use.config), seed=1))
    first, second = (torch.tensor([chunk(encode(p), 49407)[0]]) for p in ("a red cat", "a red dog"))
    a, b = network(first).hidden, network(second).hidden
    assert (a[:, :3] - b[:, :3]).abs().max() < 1e-14
    assert (a[:, 3] - b[:, 3]).abs().max() > 1e-3


@pytest.mark.parametrize("skip", [-1, 4, 100])
def test_layers_that_are_not_there(skip: int) -> None:
    """Oracle: the documented ValueError."""
    use = TINY_SD1.text[0]
    network = text_encoder(use, random_weights(text_shapes(use.config), seed=1))
    with pytest.raises(ValueError, match=r"outside 0\.\.3"):
        network(ids(49407), skip=skip)


def test_the_wrong_activation_or_eps_is_seen() -> None:
    """Oracle: this file's own tolerance, exceeded a thousandfold."""
    use = TINY_SD1.text[0]
    weights = random_weights(text_shapes(use.config), seed=1)
    right, wrong = text_encoder(use, weights), text_encoder(use, weights)
    gelu = text_encoder(replace(use, config=replace(use.config, activation="gelu")), weights)
    for module in wrong.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    tokens = ids(49407)
    for other in (wrong, gelu):
        assert (right(tokens).hidden - other(tokens).hidden).abs().max() > 1000 * TOLERANCE


def test_a_file_without_the_final_norm() -> None:
    """Oracle: equality with the whole encoder, where the norm is not used."""
    use = TINY_SDXL.text[0]
    weights = random_weights(text_shapes(use.config), seed=1)
    bare = replace(use, config=replace(use.config, final_layer_norm=False))
    without = {k: v for k, v in weights.items() if "final_layer_norm" not in k}
    a = text_encoder(use, weights)(ids(49407), skip=1, final_norm=False).hidden
    assert torch.equal(a, text_encoder(bare, without)(ids(49407), skip=1, final_norm=False).hidden)


@pytest.mark.parametrize("name", [n for n, family in FAMILY.items() if family.text[0].layout == "hf"])
def test_state_dict_is_that_of_the_published_file(name: str) -> None:
    """Oracle: the key list of the released file (its position_ids are a buffer of older transformers)."""
    use = FAMILY[name].text[0]
    with torch.device("meta"):
        ours = {k: tuple(v.shape) for k, v in TextEncoder(use.config).state_dict().items()}
    published = shapes(manifest(name)["tensors"], use.prefix)
    assert ours == {k: v for k, v in published.items() if not k.endswith("position_ids")}

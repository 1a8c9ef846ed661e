"""Oracle: transformers' text encoders and diffusers' added conditions, same tiny weights, float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor

from minisd.config import ModelConfig
from minisd.errors import RequestError
from minisd.models.clip import TextEncoder
from minisd.request import Request
from minisd.text.conditioning import Conditioning, encode_request, size_embedding
from minisd.text.embeddings import Embedding
from minisd.text.tokenizer import chunk, encode
from tests.oracles import diffusers_unet, transformers_text
from tests.tiny import TINY, network_weights, text_encoder, unet

TOLERANCE = 1e-10
PROMPT = "a red apple on a table"


@dataclass(frozen=True)
class Encoders:
    config: ModelConfig
    text_encoders: tuple[TextEncoder, ...]
    embeddings: Mapping[str, Embedding] = field(default_factory=dict)


@cache
def weights(name: str) -> dict[str, dict[str, Tensor]]:
    return network_weights(TINY[name])


@cache
def encoders(name: str) -> Encoders:
    config = TINY[name]
    return Encoders(config, tuple(text_encoder(u, weights(name)[u.part]) for u in config.text))


def request(name: str, **fields: object) -> Request:
    return Request.from_dict({"prompt": PROMPT, **fields}).for_model(TINY[name], seed=0)


def encode_prompts(model: Encoders, asked: Request) -> tuple[Conditioning, Conditioning]:
    """(conditional, unconditional) in the first step."""
    prompts = encode_request(model, asked, asked.steps).timeline[0][1]
    return prompts.conds[0][0], prompts.uncond


def their_states(name: str, index: int, prompt: str) -> tuple[Tensor, ...]:
    """transformers' hidden states, first the embeddings."""
    use = TINY[name].text[index]
    network = transformers_text(use.config, weights(name)[use.part])
    ids = torch.tensor(chunk(encode(prompt), use.pad_id))
    return network(ids, output_hidden_states=True).hidden_states


def their_pooled(name: str, index: int, prompt: str) -> Tensor:
    use = TINY[name].text[index]
    network = transformers_text(use.config, weights(name)[use.part])
    return network(torch.tensor(chunk(encode(prompt), use.pad_id))).text_embeds


def final_norm(name: str, state: Tensor) -> Tensor:
    return encoders(name).text_encoders[0].text_model.final_layer_norm(state)


@pytest.mark.parametrize("name,skip", [("sd1", 0), ("sd2-eps", 1)])
def test_one_encoder(name: str, skip: int) -> None:
    """Oracle: transformers: SD1 takes the last layer, SD2 the last but one, both normed; both prompts."""
    cond, uncond = encode_prompts(encoders(name), request(name, negative_prompt="blurry"))
    for prompt, ours in ((PROMPT, cond), ("blurry", uncond)):
        state = their_states(name, 0, prompt)[-1 - skip]
        assert (ours.context - final_norm(name, state)).abs().max() <= TOLERANCE
        assert ours.y is None
    assert (cond.tokens, cond.used) == (6, 6)


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_clip_skip_counts_from_the_last_layer(clip_skip: int) -> None:
    """Oracle: transformers' hidden states, normed; 1 is what SD1 does by itself."""
    cond, _ = encode_prompts(encoders("sd1"), request("sd1", clip_skip=clip_skip))
    state = their_states("sd1", 0, PROMPT)[-clip_skip]
    assert (cond.context - final_norm("sd1", state)).abs().max() <= TOLERANCE


def test_sdxl_puts_both_encoders_side_by_side() -> None:
    """Oracle: transformers: last but one hidden states without the norm, bigG's pooled text first in y."""
    cond, uncond = encode_prompts(encoders("sdxl"), request("sdxl", negative_prompt="blurry"))
    for prompt, ours in ((PROMPT, cond), ("blurry", uncond)):
        states = [their_states("sdxl", i, prompt)[-2] for i in (0, 1)]
        assert (ours.context - torch.cat(states, -1)).abs().max() <= TOLERANCE
        assert ours.y is not None
        assert (ours.y[:, :24] - their_pooled("sdxl", 1, prompt)).abs().max() <= TOLERANCE


def test_an_empty_negative_prompt_of_sdxl_is_zeros_or_encoded() -> None:
    """Oracle: zeros, as diffusers' force_zeros_for_empty_prompt; transformers where it is encoded."""
    _, zeros = encode_prompts(encoders("sdxl"), request("sdxl"))
    assert zeros.y is not None
    assert not zeros.context.any() and not zeros.y[:, :24].any() and zeros.y[:, 24:].any()
    _, encoded = encode_prompts(encoders("sdxl"), request("sdxl", empty_negative="encode"))
    states = [their_states("sdxl", i, "")[-2] for i in (0, 1)]
    assert (encoded.context - torch.cat(states, -1)).abs().max() <= TOLERANCE
    cond, _ = encode_prompts(encoders("sdxl"), request("sdxl", prompt=""))
    assert cond.context.any()  # an empty prompt is a prompt


def test_numbers_of_sdxl_and_the_refiner() -> None:
    """Oracle: diffusers' get_timestep_embedding of the six (five) numbers in the order of the paper."""
    for name, numbers in {
        "sdxl": [768.0, 1024.0, 16.0, 32.0, 64.0, 128.0],
        "refiner": [768.0, 1024.0, 16.0, 32.0, 7.5],
    }.items():
        key = "sdxl-refiner" if name == "refiner" else name
        made = request(key, original_size=[768, 1024], crop=[16, 32], target_size=[64, 128])
        theirs = get_timestep_embedding(
            torch.tensor(numbers), 8, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        assert torch.equal(size_embedding(made, TINY[key], 7.5), theirs.flatten()[None])


@pytest.mark.parametrize("name", ["sdxl", "sdxl-refiner"])
def test_y_reaches_the_unet_as_in_diffusers(name: str) -> None:
    """Oracle: diffusers' UNet fed pooled text and time_ids; default sizes are those of the picture."""
    made = request(name, width=128, height=64, negative_prompt="blurry")
    refiner = name == "sdxl-refiner"
    config = TINY[name]
    ours, theirs = (
        unet(config.unet, weights(name)["unet"]),
        diffusers_unet(config.unet, weights(name)["unet"]),
    )
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    t = torch.tensor([500.0])
    for part, prompt, score in zip(
        encode_prompts(encoders(name), made), (PROMPT, "blurry"), (6.0, 2.5), strict=True
    ):
        last = [score] if refiner else [64.0, 128.0]
        added = {
            "text_embeds": their_pooled(name, 0 if refiner else 1, prompt),
            "time_ids": torch.tensor([[64.0, 128.0, 0.0, 0.0, *last]]),
        }
        expected = theirs(x, t, part.context, added_cond_kwargs=added).sample
        assert (ours(x, t, part.context, part.y) - expected).abs().max() <= TOLERANCE


def test_long_prompts_become_contexts_side_by_side() -> None:
    """Oracle: each context encoded alone; both prompts get as many, and pooled text is the first's."""
    words = [f"word{i}" for i in range(60)]
    long = " ".join(words)
    ids = encode(long)
    assert 75 < len(ids)
    chunks = -(-len(ids) // 75)
    cond, uncond = encode_prompts(encoders("sdxl"), request("sdxl", prompt=long, negative_prompt="blurry"))
    assert cond.context.shape == uncond.context.shape == (1, 77 * chunks, 64)
    assert (cond.tokens, cond.used) == (len(ids), len(ids))
    use = TINY["sdxl"].text[1]
    network = transformers_text(use.config, weights("sdxl")[use.part])
    out = network(torch.tensor(chunk(ids, 0, chunks=chunks)), output_hidden_states=True)
    hidden = out.hidden_states[-2].reshape(1, -1, 32)
    assert (cond.context[..., 32:] - hidden).abs().max() <= TOLERANCE
    assert cond.y is not None
    assert (cond.y[:, :24] - out.text_embeds[:1]).abs().max() <= TOLERANCE
    cut, _ = encode_prompts(encoders("sdxl"), request("sdxl", prompt=long, long_prompt="truncate"))
    assert torch.equal(cut.context, cond.context[:, :77])
    assert (cut.tokens, cut.used) == (len(ids), 75)


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_ten_thousand_words_are_refused_or_cut(field: str) -> None:
    """Oracle: the documented limit of 1,500 tokens, and the convention that cuts at 75."""
    text = "word " * 10_000
    with pytest.raises(RequestError, match="10,000 tokens; at most 1,500") as caught:
        encode_prompts(encoders("sd1"), request("sd1", **{field: text}))
    assert caught.value.field == field
    parts = encode_prompts(encoders("sd1"), request("sd1", **{field: text, "conventions": "diffusers"}))
    assert all(p.context.shape == (1, 77, 32) for p in parts)

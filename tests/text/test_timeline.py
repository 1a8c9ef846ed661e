"""Oracle: each text drawn or encoded alone; transformers with the vectors put in; the same bits for the same
words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minisd.errors import RequestError
from minisd.model import Model
from minisd.models.clip import TextEncoder
from minisd.pipeline import draw
from minisd.request import Request
from minisd.text.conditioning import encode_request
from minisd.text.embeddings import Embedding
from minisd.text.written import Lists
from tests.oracles import transformers_text
from tests.tiny import TINY, network_weights, tiny_model

REQUEST = Request(prompt="a cat", steps=4, seed=1, cfg_scale=3.0)


def latents(model: Model, **fields: object) -> torch.Tensor:
    return draw(model, replace(REQUEST, **fields).for_model(model.config, seed=0)).latents  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a (cat:1.0)", "a cat"),
        ("a [cat:dog:10]", "a cat"),
        ("a [cat:dog:0]", "a dog"),
        ("a [cat|cat]", "a cat"),
        ("a cat<lora:film:0>", "a cat"),
        ("a cat BREAK", "a cat"),
        ("(a) cat AND (a) cat :0", "(a) cat"),
    ],
)
def test_the_same_said_otherwise(one: str, other: str) -> None:
    """Oracle: the latents of the plain prompt: the same bits (AND with weight 0: the same to rounding)."""
    model = tiny_model("sd1")
    a, b = latents(model, prompt=one), latents(model, prompt=other)
    if "AND" in one:
        assert (a - b).norm() < 1e-4 * b.norm()
    else:
        assert torch.equal(a, b)


def test_each_step_has_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the contexts that the network is given, against those of each text; distinct chunks encoded
    once."""
    model = tiny_model("sd1")
    made = replace(REQUEST, prompt="[a cat|a dog]", cfg_scale=1.0).for_model(model.config, seed=0)
    calls: list[int] = []
    original = TextEncoder.forward

    def counting(self: TextEncoder, *args: object, **named: object) -> object:
        calls.append(1)
        return original(self, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(TextEncoder, "forward", counting)
    with torch.inference_mode():
        encoded = encode_request(model, made, 4)
        assert len(calls) == 3  # two texts and the empty negative prompt
        plain = [
            encode_request(model, replace(made, prompt=p), 4).timeline[0][1].conds[0][0].context
            for p in ("a cat", "a dog")
        ]
    assert [end for end, _ in encoded.timeline] == [1, 2, 3, 4]
    for index, (_, prompts) in enumerate(encoded.timeline):
        assert torch.equal(prompts.conds[0][0].context, plain[index % 2])
    assert [(a.begin, a.end, a.texts.first) for a in encoded.accounts[:2]] == [
        (1, 1, "a cat"),
        (2, 2, "a dog"),
    ]
    seen = latents(model, prompt="[a cat|a dog]")
    assert not torch.equal(seen, latents(model)) and not torch.equal(seen, latents(model, prompt="a dog"))


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_blend_ends(name: str) -> None:
    """Oracle: either prompt alone, bit for bit; halfway is neither."""
    model = tiny_model(name)
    long = "a dog " * 60
    plain, other = latents(model), latents(model, prompt=long)
    for path in ("slerp", "lerp"):
        assert torch.equal(latents(model, prompt_to=long, prompt_blend=0.0, prompt_path=path), plain)
        assert torch.equal(latents(model, prompt_to=long, prompt_blend=1.0, prompt_path=path), other)
        half = latents(model, prompt_to=long, prompt_path=path)
        assert not torch.equal(half, plain) and not torch.equal(half, other)


def test_a_second_text_goes_to_the_second_encoder() -> None:
    """Oracle: the encoders' parts of the context of each text alone; SD1 has no second encoder."""
    model = tiny_model("sdxl")
    with torch.inference_mode():
        both, cat, dog = (
            encode_request(model, replace(REQUEST, **f).for_model(model.config, seed=0), 4)
            .timeline[0][1]
            .conds[0][0]  # type: ignore[arg-type]
            for f in ({"prompt_2": "a dog"}, {}, {"prompt": "a dog"})
        )
    assert torch.equal(both.context[..., :32], cat.context[..., :32])
    assert torch.equal(both.context[..., 32:], dog.context[..., 32:])
    assert both.y is not None and dog.y is not None and torch.equal(both.y, dog.y)
    with pytest.raises(RequestError, match="second text encoder"):
        replace(REQUEST, prompt_2="a dog").for_model(TINY["sd1"], seed=0)


def test_learned_words() -> None:
    """Oracle: transformers with the vectors in its table of tokens, float64."""
    model = tiny_model("sd1", dtype="float64")
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    knowing = replace(model, embeddings={"zebra": Embedding("zebra", {"text_encoder": vectors})})
    made = replace(REQUEST, prompt="a zebra cat").for_model(model.config, seed=0)
    with torch.inference_mode():
        ours = encode_request(knowing, made, 4).timeline[0][1].conds[0][0]
        use = model.config.text[0]
        weights = dict(network_weights(model.config)["text_encoder"])
        table = weights["text_model.embeddings.token_embedding.weight"].clone()
        table[:2] = vectors
        weights["text_model.embeddings.token_embedding.weight"] = table
        theirs = transformers_text(use.config, weights)
        ids = [49406, 320, 0, 1, 2368, *[49407] * 72]
        expected = theirs(torch.tensor([ids])).last_hidden_state
    assert ours.tokens == 4
    assert (ours.context - expected).abs().max() <= 1e-10
    wrong = replace(model, embeddings={"zebra": Embedding("zebra", {"text_encoder_2": vectors})})
    with pytest.raises(RequestError, match="another family"):
        encode_request(wrong, made, 4)


def test_choices_by_seed() -> None:
    """Oracle: what each seed writes alone; without choices the request itself."""
    lists = Lists({"colour": ("red", "green", "blue", "grey")})
    many = replace(REQUEST, prompt="a __colour__ {cat|dog|cow}", count=8).for_model(TINY["sd1"], seed=0)
    written = lists.written_out(many)
    assert len(written) == 8 and len({r.prompt for r in written}) > 2
    for index, one in enumerate(written):
        (alone,) = lists.written_out(replace(many, seed=1 + index, count=1))
        assert alone == one and lists.written_out(one) == [one]
    plain = REQUEST.for_model(TINY["sd1"], seed=0)
    assert lists.written_out(plain) == [plain]
    with pytest.raises(RequestError, match="did you mean 'colour'"):
        lists.written_out(replace(plain, prompt="__color__"))

"""Oracle: pictures of the tiny pipeline without shortcuts, drawn in other batches and again; counted calls of
blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from minisd.control import REFERENCE
from minisd.engine import Engine, load
from minisd.errors import RequestError
from minisd.model import Model
from minisd.models.recall import Kept
from minisd.models.unet import UNet
from minisd.request import Request
from minisd.shortcuts import Memory, Place, Shortcuts, shortcuts_of
from minisd.text.conditioning import Conditioning
from minisd.trail import Trail
from minisd.verify import verify
from tests.test_invariance import batched, drawn, threads
from tests.test_start import photo
from tests.tiny import tiny_model

NEUTRAL: list[dict[str, object]] = [
    {"token_merging": 0.0, "token_merging_levels": 3},
    {"token_merging": 0.01},  # less than a token
    {"hypertile": 64},  # of a picture of 64 pixels
    {"hypertile": None, "hypertile_levels": 2},
    {"deep_cache": 1, "deep_cache_blocks": 5},
    {"deep_cache": 8, "steps": 1},
    {"first_block_cache": 0.0},
    {"first_block_cache": 1e-9},
]
ON: dict[str, dict[str, object]] = {
    "token_merging": {"token_merging": 0.5},
    "levels": {"token_merging": 0.5, "token_merging_levels": 2},
    "hypertile": {"hypertile": 32},
    "both": {"hypertile": 32, "token_merging": 0.25},
    "deep_cache": {"deep_cache": 2},
    "blocks": {"deep_cache": 3, "deep_cache_blocks": 3},
    "first_block_cache": {"first_block_cache": 0.9},
    "merged and kept": {"token_merging": 0.5, "deep_cache": 3, "deep_cache_blocks": 2},
}


@cache
def small() -> Model:
    return tiny_model("sd1")


@pytest.mark.parametrize("fields", NEUTRAL, ids=str)
def test_neutral_is_off(fields: dict[str, object]) -> None:
    """Oracle: bits of the picture without the field."""
    plain = {n: v for n, v in fields.items() if n == "steps"}
    on, off = drawn(small(), **fields), drawn(small(), **plain)
    assert torch.equal(on.latents, off.latents) and on.images[0].tobytes() == off.images[0].tobytes()


def test_on_the_model_inside() -> None:
    """Oracle: the picture without; every neutral value gives its bits, every other one another picture that
    is near."""
    with load() as engine:
        asked = Request(prompt="a red apple", seed=7, steps=12)
        off = engine.run(asked).drawing
        for name in ("token_merging", "hypertile", "deep_cache", "first_block_cache"):
            field = {"hypertile": 128, "deep_cache": 1}.get(name, 0.0)
            assert torch.equal(engine.run(replace(asked, **{name: field})).drawing.latents, off.latents)  # type: ignore[arg-type]
            other = {"hypertile": 64, "deep_cache": 2, "token_merging": 0.5}.get(name, 0.4)
            on = engine.run(replace(asked, **{name: other})).drawing  # type: ignore[arg-type]
            apart = float((on.latents - off.latents).norm() / off.latents.norm())
            assert 1e-3 < apart < 0.6, (name, apart)


@pytest.mark.parametrize("name", list(ON))
def test_bits_do_not_depend_on_company(name: str) -> None:
    """Oracle: each image alone; prompts apart; one thread; the same engine again. Guidance begins on the way:
    the unconditional prediction has nothing kept then. Inverse: another picture than without."""
    fields = {**ON[name], "steps": 4, "guidance_start": 0.26, "sampler": "euler_ancestral"}
    with threads(1):
        apart = drawn(small(), count=2, **fields)
    again = drawn(small(), count=2, **fields)
    assert torch.equal(apart.latents, again.latents)
    assert torch.equal(apart.latents[1], drawn(small(), seed=11, **fields).latents[0])
    for images, prompts, number in ((True, True, 2), (True, False, 1), (False, True, 1)):
        with threads(number):
            together = drawn(batched(small(), images=images, prompts=prompts), count=2, **fields)
        assert torch.equal(apart.latents, together.latents), f"images {images}, prompts {prompts}"
    off = {n: v for n, v in fields.items() if n not in ON[name]}
    assert float((drawn(small(), **off).latents - apart.latents[:1]).abs().max()) > 1e-4


def test_requests_at_once() -> None:
    """Oracle: each request alone; from four threads on one engine."""
    engine = Engine(small())
    asked = [Request(prompt="a cat", seed=i, steps=4, **f) for i, f in enumerate(ON.values())]  # type: ignore[arg-type]
    wanted = [engine.run(r).image.tobytes() for r in asked]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda r: engine.run(r).image.tobytes(), asked)) == wanted


@contextmanager
def counted(unet: UNet) -> Iterator[Counter[str]]:
    """How often each block is computed inside, for one row."""
    calls, handles = Counter[str](), []
    named = {f"input_blocks.{i}": b for i, b in enumerate(unet.input_blocks)}
    named |= {f"output_blocks.{i}": b for i, b in enumerate(unet.output_blocks)}
    for name, block in (*named.items(), ("middle_block", unet.middle_block)):
        assert isinstance(block, nn.Sequential)

        def count(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            calls[name] += len(args[0])

        handles.append(block[0].register_forward_pre_hook(count))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def calls_of(**fields: object) -> tuple[int, int, Counter[str]]:
    """(of the outermost block, of the middle, of all)."""
    with counted(small().unet) as calls:
        drawn(small(), **fields)
    return calls["input_blocks.0"], calls["middle_block"], calls


# fields, network calls of outermost blocks, of inner ones
CALLS: list[tuple[dict[str, object], int, int]] = [
    ({"steps": 6}, 12, 12),
    ({"steps": 6, "deep_cache": 2}, 12, 6),
    ({"steps": 7, "deep_cache": 3}, 14, 6),
    ({"steps": 6, "deep_cache": 99}, 12, 2),
    ({"steps": 6, "deep_cache": 3, "count": 2}, 24, 8),
    ({"steps": 6, "deep_cache": 3, "cfg_scale": 1.0}, 6, 2),
    # guidance in steps 5 and 6 (from 0): its prediction begins in the middle of a block of steps
    ({"steps": 7, "deep_cache": 4, "guidance_start": 0.7}, 9, 3),
    # two calls a step, both in one level's step: of 6 steps (the last takes one call) 0, 3 are whole
    ({"steps": 6, "deep_cache": 3, "sampler": "dpm_2"}, 22, 8),
    # heun's second call lies in the next step: calls 0 1 | 1 2 | 2 3 | 3 4 | 4 5 | 5
    ({"steps": 6, "deep_cache": 3, "sampler": "heun"}, 22, 6),
    ({"steps": 6, "deep_cache": 2, "image": photo().resize((64, 64)), "strength": 0.5}, 6, 4),
    # other words from step 4 on: nothing of them is kept
    ({"steps": 6, "deep_cache": 6, "prompt": "[a cat:a dog:3]"}, 12, 3),
    ({"steps": 4, "deep_cache": 2, "hires_scale": 1.5}, 12, 6),
    ({"steps": 4, "deep_cache": 2, "width": 96, "diffusion_tile": 64}, 16, 8),
    ({"steps": 4, "deep_cache": 2, "regions": ("0,0,0.5,1: a dog",)}, 12, 6),
    ({"steps": 4, "deep_cache": 2, "pag_scale": 1.0}, 12, 6),
]


@pytest.mark.parametrize("fields,outer,inner", CALLS, ids=lambda v: str(v)[:60])
def test_what_is_computed(fields: dict[str, object], outer: int, inner: int) -> None:
    """Oracle: counted by hand."""
    assert calls_of(**fields)[:2] == (outer, inner)


def test_which_blocks_are_inner() -> None:
    """Oracle: by hand: two blocks on both sides in all steps, the others in half of them; of a first-block
    cache the first two input blocks in all, everything else as often as its threshold has it."""
    _, _, calls = calls_of(steps=4, deep_cache=2, deep_cache_blocks=2)
    always = {"input_blocks.0", "input_blocks.1", "output_blocks.10", "output_blocks.11"}
    assert len(calls) == 25 and all(n == (8 if name in always else 4) for name, n in calls.items())
    seldom = [calls_of(steps=8, first_block_cache=t) for t in (0.0, 0.2, 0.5, 1.0)]
    assert [outer for outer, *_ in seldom] == [16] * 4
    inner = [n for _, n, _ in seldom]
    assert inner[0] == 16 and sorted(inner, reverse=True) == inner and inner[0] > inner[2] >= inner[3] >= 2
    for _, n, calls in seldom:
        assert all(
            calls[name] == (16 if name in ("input_blocks.0", "input_blocks.1") else n) for name in calls
        )


def test_restart_goes_back() -> None:
    """Oracle: where the level rises, the first call after it is whole: of one block of all steps, the first
    call and that after the restart."""
    outer, inner, _ = calls_of(steps=20, sampler="restart", deep_cache=1000, cfg_scale=1.0)
    plain, _, _ = calls_of(steps=20, sampler="restart", cfg_scale=1.0)
    assert outer == plain and 2 <= inner <= 6


def tokens_of(fields: dict[str, object]) -> set[tuple[int, int]]:
    """(rows, tokens) of what self-attention at the finest level reads."""
    seen = set[tuple[int, int]]()
    layer = small().unet.get_submodule("input_blocks.1.1.transformer_blocks.0.attn1.to_q")
    handle = layer.register_forward_pre_hook(lambda m, args: seen.add(tuple(args[0].shape[:2])))
    drawn(small(), steps=1, **fields)
    handle.remove()
    return seen


def test_fewer_tokens() -> None:
    """Oracle: by hand: of 8 x 8 tokens half are left; four tiles of 16; those with a quarter merged."""
    assert tokens_of({}) == {(1, 64)}
    assert tokens_of({"token_merging": 0.5}) == {(1, 32)}
    assert tokens_of({"hypertile": 32}) == {(4, 16)}
    assert tokens_of({"hypertile": 32, "token_merging": 0.25}) == {(1, 12)}


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"deep_cache": 2, "first_block_cache": 0.1}, "deep_cache.*first_block_cache"),
    ({"deep_cache": 2, "sag_scale": 1.0}, "deep_cache.*sag_scale"),
    ({"first_block_cache": 0.1, "sag_scale": 1.0}, "first_block_cache.*sag_scale"),
    ({"deep_cache": 2, "sampler": "dpm_adaptive"}, "deep_cache.*dpm_adaptive"),
    ({"first_block_cache": 0.2, "sampler": "DPM adaptive"}, "first_block_cache.*dpm_adaptive"),
    (
        {"token_merging": 0.2, "controls": ({"model": REFERENCE, "image": photo()},)},
        "token_merging.*reference",
    ),
    ({"hypertile": 64, "controls": ({"model": REFERENCE, "image": photo()},)}, "hypertile.*reference"),
    ({"token_merging": 0.9}, r"token_merging is 0.9; it must lie in 0.0..0.75"),
    ({"hypertile": 60}, "hypertile 60 is not a multiple of 8; try 64"),
    ({"deep_cache": 0}, "deep_cache is 0"),
    ({"first_block_cache": -0.1}, "first_block_cache is -0.1"),
    ({"token_merging": float("nan")}, "token_merging must be a finite number"),
]


@pytest.mark.parametrize("fields,message", REFUSED, ids=lambda v: str(v)[:50])
def test_refused(fields: dict[str, object], message: str) -> None:
    """Oracle: a sentence that names both."""
    with pytest.raises(RequestError, match=message):
        Request(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields,most",
    [
        ({"token_merging": 0.2, "token_merging_levels": 4}, 3),
        ({"hypertile": 32, "hypertile_levels": 4}, 3),
        ({"deep_cache": 2, "deep_cache_blocks": 13}, 12),
    ],
)
def test_deeper_than_the_network(fields: dict[str, object], most: int) -> None:
    """Oracle: SD1 has attention at three levels and 12 input blocks. Inverse: as deep as it goes."""
    name = list(fields)[1]
    with pytest.raises(RequestError, match=f"{name} is {most + 1}, and this model has {most}"):
        drawn(small(), **fields)
    drawn(small(), **{**fields, name: most, "steps": 2})
    drawn(small(), **{name: most + 1, "steps": 1})  # off: it says nothing


def place(image: int = 0, role: str = "", part: Conditioning | None = None) -> Place:
    return Place(PART if part is None else part, image, role)


PART, OTHER = (Conditioning(torch.zeros(1, 1, 1), None, 1, 1) for _ in range(2))
KEPT = Kept(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))


def reused(
    memory: Memory, asked: Place, step: int, network: str = "a", acting: tuple[bool, ...] = ()
) -> bool:
    """Whether it finds something; if not, something is kept."""
    recall = memory.recall([asked], step, network, acting)
    found = recall.kept[0] is not None
    if not found:
        recall.keep(0, KEPT)
    return found


def test_rules_of_memory() -> None:
    """Oracle: a table by hand, for blocks of three steps."""
    steps = [0, 0, 1, 2, 2, 3, 4, 8, 10, 10, 11, 9, 10, 11, 6, 7]
    wanted = [0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 1, 0, 1, 1, 0, 1]
    memory = Memory(Shortcuts(interval=3))
    assert [reused(memory, place(), s) for s in steps] == [bool(w) for w in wanted]
    memory = Memory(Shortcuts(interval=10))
    assert not reused(memory, place(), 0)
    others = (place(1), place(role="pag"), place(part=OTHER))
    assert not any(reused(memory, p, 1) for p in others) and all(reused(memory, p, 2) for p in others)
    assert reused(memory, place(), 3)
    assert not reused(memory, place(), 4, "b") and not reused(memory, place(), 5, "b", (True,))
    assert reused(memory, place(), 6, "b", (True,))


def test_memory_of_changes() -> None:
    """Oracle: by hand: of any step, as long as network and company are the same."""
    memory = Memory(Shortcuts(change=0.5))
    assert [reused(memory, place(), s) for s in (3, 3, 9, 2)] == [False, True, True, True]
    assert not reused(memory, place(), 2, "b") and not reused(memory, place(), 2, "b", (True,))
    assert memory.recall([place()], 2, "b", (True,)).change == 0.5


def test_what_is_left_behind_goes() -> None:
    """Oracle: counted: of words that a run has left nothing stays."""
    memory = Memory(Shortcuts(interval=2))
    parts = [Conditioning(torch.zeros(1, 1, 1), None, 1, 1) for _ in range(9)]
    for step, part in enumerate(parts):
        reused(memory, place(part=part), step)
    assert len(memory._entries) == 1


@pytest.mark.parametrize("name", list(ON))
def test_replayed(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Oracle: verify on the picture; inverse: with the field taken from the record it is another one, which
    the record's own seal tells."""
    engine = Engine(small())
    result = engine.run(Request(prompt="a cat", seed=5, steps=4, **ON[name]), trail=Trail(listen=True))  # type: ignore[arg-type]
    path = result.save(tmp_path_factory.mktemp("made") / "x.png")[0]
    told = result.record()["request"]
    assert isinstance(told, dict) and all(told[field] == value for field, value in ON[name].items())
    assert verify(path, engine).verdict == "proven"
    finding = verify(path, engine, step=2)
    cached = "deep_cache" in ON[name] or "first_block_cache" in ON[name]
    assert (finding.verdict, "depends on earlier ones" in finding.what) == (
        ("cannot", True) if cached else ("proven", False)
    )


def test_fields_become_settings() -> None:
    """Oracle: pixels by the size of latents."""
    asked = Request(hypertile=256, token_merging=0.5, deep_cache=3, deep_cache_blocks=2)
    assert shortcuts_of(asked, 8) == Shortcuts(merging=0.5, tile=32, interval=3, blocks=2)
    assert shortcuts_of(Request(), 8) == Shortcuts() and not Shortcuts().recalls | Shortcuts().regroups

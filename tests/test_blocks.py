"""Oracle: the community's lists written out by hand; a file that holds only what should act."""

from __future__ import annotations

import pytest

from minisd.blocks import find, names_in, read_blocks
from minisd.errors import RequestError
from minisd.lora_use import LoraUse
from minisd.loras import uses_of
from minisd.request import Request

SD1 = "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11".split()
XL = "BASE IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05".split()


def named(name: str) -> str:
    if name.startswith(("IN", "OUT")):
        kind, n = name[:-2], int(name[-2:])
        return f"{'input' if kind == 'IN' else 'output'}_blocks.{n}"
    return {"M00": "middle_block", "BASE": "BASE"}[name]


@pytest.mark.parametrize("names,blocks", [(SD1, 12), (XL, 9)])
def test_lists_of_blocks_that_attend(names: list[str], blocks: int) -> None:
    """Oracle: the names at their places; every other block is 0."""
    numbers = [0.1 * (n + 1) for n in range(len(names))]
    made = dict(read_blocks(numbers))
    assert len(made) == 2 * blocks + 2
    for name, number in zip(names, numbers, strict=True):
        assert made.pop(named(name)) == number
    assert set(made.values()) == {0.0}
    assert read_blocks(",".join(f"{n}" for n in numbers)) == read_blocks(numbers)


@pytest.mark.parametrize("count,half", [(19, 9), (20, 9), (25, 12), (26, 12)])
def test_lists_of_all_blocks(count: int, half: int) -> None:
    """Oracle: the order of the blocks in the network."""
    made = read_blocks(list(range(count)))
    order = [f"input_blocks.{n}" for n in range(half)] + ["middle_block"]
    order += [f"output_blocks.{n}" for n in range(half)]
    assert made == tuple(
        (name, float(n)) for n, name in enumerate((["BASE"] if count % 2 == 0 else []) + order)
    )


def test_names_and_numbers_are_the_same_blocks() -> None:
    """Oracle: the three spellings of one choice."""
    pairs = read_blocks([["IN04", 0.5], ["OUT03", 0], ["MID", 2]])
    assert (
        pairs == read_blocks("IN04=0.5, OUT03=0, M00=2") == read_blocks({"IN04": 0.5, "OUT03": 0, "M00": 2})
    )
    assert read_blocks("") == () == read_blocks([])


def test_the_longest_name_counts() -> None:
    """Oracle: by hand."""
    blocks = read_blocks("BASE=3,output_blocks=0.5,OUT03=0.25,text_encoder_2=7")
    assert find(blocks, "unet", "output_blocks.3.0.in_layers.2") == 0.25
    assert find(blocks, "unet", "output_blocks.30.0") == 0.5
    assert find(blocks, "unet", "time_embed.0") == 3
    assert find(blocks, "text_encoder", "text_model.x") == 3
    assert find(blocks, "text_encoder_2", "text_model.x") == 7
    assert find(blocks, "unet", "input_blocks.1.0") is None
    assert names_in(blocks, {"output_blocks.3.0"}) == ["text_encoder_2"]


@pytest.mark.parametrize(
    "value,message",
    [
        ([1.0] * 18, "are 18 numbers; lists have 17"),
        ("1,x", "write numbers"),
        ("IN04=x", "write numbers"),
        ("IN04=nan", "must be a number in -100..100"),
        ([["IN04", 1], ["input_blocks.4", 1]], "'input_blocks.4' of LoRA is given twice"),
        ([["IN04", True]], "must be a number"),
        ([[1, 2]], "pairs of a name and a number"),
        (7, "at most 200 pairs"),
    ],
)
def test_what_is_refused(value: object, message: str) -> None:
    """Oracle: one sentence for each mistake."""
    with pytest.raises(RequestError, match=message):
        read_blocks(value)


def test_text_of_a_use() -> None:
    """Oracle: the fields by name; the way back through plain data."""
    use = LoraUse.of("a:b:0.8:0.5:start=0.2:end=0.7:blocks=IN04=0.5,OUT03=0")
    fields = {"te": 0.5, "start": 0.2, "end": 0.7, "blocks": [["IN04", 0.5], ["OUT03", 0]]}
    assert use == LoraUse.of({"name": "a:b", "weight": 0.8, **fields})
    assert LoraUse.of(use.to_dict()) == use
    assert LoraUse.of("film:te=0.5:te2=0.1") == LoraUse("film", te=0.5, te2=0.1)
    assert LoraUse.of(f"film:lbw={','.join('1' * 17)}").blocks == read_blocks([1] * 17)
    assert LoraUse.of("C:/loras/film.safetensors:0.5") == LoraUse("C:/loras/film.safetensors", 0.5)
    for text, message in (("a:te=1:te=2", "te twice"), ("a:1:2:te=2", "te twice"), ("a:te=x", "no numbers")):
        with pytest.raises(RequestError, match=message) as error:
            LoraUse.of(text)
        assert error.value.field == "loras"


def test_tags_with_blocks() -> None:
    """Oracle: the same blocks as a field; what a tag cannot say is refused, not dropped."""
    numbers = ",".join(["0.5"] * 12)
    [use] = uses_of(Request(prompt=f"a <lora:film:0.8:lbw={numbers}> b"))
    assert use == LoraUse("film", 0.8, 0.8, blocks=read_blocks(numbers))
    for tag in ("<lora:film:1:dyn=4>", "<lora:film:1:1:64>"):
        with pytest.raises(RequestError, match="known are te, unet, lbw"):
            uses_of(Request(prompt=tag))

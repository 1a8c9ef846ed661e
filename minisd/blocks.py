"""Numbers for single blocks of a UNet: by name, or as the lists that the community passes around.

    read_blocks("1,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1,1")      # 17 numbers: the blocks of SD1 that attend
    read_blocks("IN04=0.5,output_blocks.3.1=0,BASE=1")    # a block, or the beginning of a name

BASE is what is in no block: the text encoders, the embedding of the timestep, the last convolution. The
lists: sd-webui-lora-block-weight (12, 17, 20, 26 numbers) and sd-webui-supermerger (19, 25: without BASE).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from minisd.errors import RequestError, quoted

Blocks = tuple[tuple[str, float], ...]

BASE = "BASE"
MAX_BLOCKS = 200
MAX_FACTOR = 100.0
NAMES = {  # the community's, beside our own ("input_blocks.4")
    **{f"IN{n:02}": f"input_blocks.{n}" for n in range(12)},
    **{f"OUT{n:02}": f"output_blocks.{n}" for n in range(12)},
    **dict.fromkeys(("M00", "MID"), "middle_block"),
}


def _full(count: int) -> list[str]:
    return [*(f"IN{n:02}" for n in range(count)), "M00", *(f"OUT{n:02}" for n in range(count))]


SPARSE: dict[int, tuple[Sequence[str], list[str]]] = {  # blocks that attend to the text; the others are 0
    12: ("IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05".split(), _full(9)),
    17: (
        "IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11".split(),
        _full(12),
    ),
}
LISTS: dict[int, list[str]] = {19: _full(9), 20: [BASE, *_full(9)], 25: _full(12), 26: [BASE, *_full(12)]}


def from_list(numbers: list[object], what: str) -> list[tuple[object, object]]:
    """(name, number) of a list as the community writes them; 0 for blocks that a short list leaves out."""
    if len(numbers) in SPARSE:
        listed, every = SPARSE[len(numbers)]
        given: dict[str, object] = dict(zip((BASE, *listed), numbers, strict=True))
        return [(name, given.get(name, 0.0)) for name in (BASE, *every)]
    if len(numbers) in LISTS:
        return list(zip(LISTS[len(numbers)], numbers, strict=True))
    raise RequestError(
        f"blocks of {what} are {len(numbers)} numbers; lists have 17 (SD1, SD2) or 12 (SDXL) for the blocks "
        "that attend, 26 or 20 for all of them, 25 or 19 without BASE"
    )


def from_text(text: str, what: str) -> list[object] | list[tuple[object, object]]:
    """`1,0,0.5,...` or `NAME=0.5,NAME=0`."""
    items = [item.strip() for item in text.split(",")]
    try:
        if "=" not in text:
            return [float(item) for item in items]
        pairs = [item.partition("=") for item in items]
        return [(name.strip(), float(number)) for name, _, number in pairs]
    except ValueError:
        raise RequestError(
            f"blocks of {what} are {quoted(text)}; write numbers, 1,0,0.5,..., or names, IN04=0.5,OUT03=0"
        ) from None


def read_blocks(value: object, what: str = "LoRA") -> Blocks:
    """Pairs of block and number from pairs, a mapping, a list of numbers or text; community names made ours.

    Raises RequestError; `what` names in it what the blocks belong to.
    """
    pairs: object = list(value.items()) if isinstance(value, Mapping) else value
    if isinstance(pairs, str):
        pairs = from_text(pairs, what) if pairs.strip() else []
    if (
        isinstance(pairs, list | tuple)
        and pairs
        and not any(isinstance(p, list | tuple | str) for p in pairs)
    ):
        pairs = from_list(list(pairs), what)
    if not isinstance(pairs, list | tuple) or len(pairs) > MAX_BLOCKS:
        raise RequestError(
            f"blocks must be at most {MAX_BLOCKS} pairs of a name and a number, or a list of numbers, got "
            f"{quoted(value)}"
        )
    out: dict[str, float] = {}
    for pair in pairs:
        if (
            not isinstance(pair, list | tuple)
            or len(pair) != 2
            or not isinstance(pair[0], str)
            or not pair[0]
        ):
            raise RequestError(f"blocks must be pairs of a name and a number, got {quoted(pair)}")
        name = NAMES.get(pair[0], pair[0])
        if name in out:
            raise RequestError(f"the block {quoted(pair[0])} of {what} is given twice")
        out[name] = number_of(pair[0], pair[1], what)
    return tuple(out.items())


def number_of(name: str, value: object, what: str) -> float:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not -MAX_FACTOR <= number <= MAX_FACTOR:
        raise RequestError(
            f"block {quoted(name)} of {what} must be a number in {-MAX_FACTOR:g}..{MAX_FACTOR:g}, got "
            f"{quoted(value)}"
        )
    return float(number)


def find(blocks: Blocks, part: str, module: str) -> float | None:
    """The number for a module of a part, by the longest name that fits; None where none does."""
    best, number = -1, None
    name = module if part == "unet" else f"{part}.{module}"
    for prefix, value in blocks:
        outside = not name.startswith(("input_blocks.", "middle_block.", "output_blocks."))
        fits = outside if prefix == BASE else name == prefix or name.startswith(f"{prefix}.")
        length = 0 if prefix == BASE else len(prefix)
        if fits and length > best:
            best, number = length, value
    return number


def names_in(blocks: Blocks, known: set[str]) -> list[str]:
    """Names of `blocks` that are neither BASE nor the beginning of one of the `known` modules
    ("input_blocks.1.1.proj_in", "text_encoder.text_model..."): what would have no effect."""
    begun = {".".join(k.split(".")[: n + 1]) for k in known for n in range(k.count(".") + 1)}
    return [name for name, _ in blocks if name != BASE and name not in begun]

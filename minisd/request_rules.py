"""What one field of a Request may be: its range, the form it is brought to, and the error if it is neither.

A rule is called with the field's name and value and gives the value as the Request holds it, or raises
RequestError. It stands in the field's type, `Annotated[int, Whole(1, 1000)]`; Literal and bool are their own
rules, and `| None` lets None through.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from minisd.control import MAX_UNITS, ControlUnit
from minisd.conventions import CONVENTIONS
from minisd.errors import ImageError, RequestError, quoted
from minisd.lora_use import MAX_USES, LoraUse
from minisd.picture import MAX_PIXELS, MAX_SIDE, Picture
from minisd.picture_prompt import PicturePrompt
from minisd.region import MAX_REGIONS, Region

MAX_PROMPT_CHARACTERS = 100_000
MAX_STEPS = 1000
MAX_STYLES = 100
MAX_COUNT = 1000
SEEDS = 2**64
MASKS = ("mask", "depth")  # fields that hold a picture in shades of grey

Rule = Callable[[str, Any], object]


@dataclass(frozen=True)
class Whole:
    """A whole number in low..high."""

    low: int
    high: int

    def __call__(self, name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong(name, f"must be a whole number in {self.low}..{self.high}", value)
        if not self.low <= value <= self.high:
            raise outside(name, value, self.low, self.high)
        return value


@dataclass(frozen=True)
class Number:
    """A finite number in low..high, as a float."""

    low: float
    high: float

    def __call__(self, name: str, value: object) -> float:
        # a float first: isfinite(10**400) overflows
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or (isinstance(value, float) and not math.isfinite(value))
        ):
            raise wrong(name, f"must be a finite number in {self.low}..{self.high}", value)
        if not self.low <= value <= self.high:
            raise outside(name, value, self.low, self.high)
        return float(value)


@dataclass(frozen=True)
class Numbers:
    """A tuple of `least` to `most` finite numbers, as floats."""

    least: int
    most: int

    def __call__(self, name: str, value: object) -> tuple[float, ...]:
        if (
            not isinstance(value, tuple)
            or not all(type(v) in (int, float) and math.isfinite(v) for v in value)
            or not self.least <= len(value) <= self.most
        ):
            count = str(self.least) if self.least == self.most else f"{self.least} to {self.most}"
            raise RequestError(
                f"{name} must be {count} finite numbers, got {quoted(repr(value))}", field=name
            )
        return tuple(float(v) for v in value)


@dataclass(frozen=True)
class OneOf:
    """One of these; True is not 1."""

    options: tuple[object, ...]

    def __call__(self, name: str, value: object) -> object:
        if not any(value is o or (type(value) is type(o) and value == o) for o in self.options):
            known = ", ".join(str(o) for o in self.options)
            raise RequestError(f"{name} is {quoted(repr(value))}; it must be one of {known}", field=name)
        return value


def seed(name: str, value: object) -> int | None:
    """0 .. 2^64 - 1; -1, the community's "drawn", is None."""
    return None if type(value) is int and value == -1 else Whole(0, SEEDS - 1)(name, value)


def side(name: str, value: object) -> int:
    """Pixels that latents can have."""
    pixels = Whole(8, MAX_SIDE)(name, value)
    if pixels % 8:
        raise RequestError(f"{name} {pixels} is not a multiple of 8; try {round(pixels / 8) * 8}", field=name)
    return pixels


def pair(name: str, value: object) -> tuple[int, int]:
    """(height, width), each in 0..65536."""
    if not isinstance(value, tuple) or len(value) != 2 or not all(type(v) is int for v in value):
        raise wrong(name, "must be two whole numbers (height, width)", value)
    for v in value:
        if not 0 <= v <= 65536:
            raise RequestError(f"{name} holds {shown(v)}; both must lie in 0..65536", field=name)
    return value


def area(name: str, value: object) -> tuple[int, int]:
    """A (height, width) that latents can have: each side a multiple of 8, within the limits of a picture."""
    height, width = sides = pair(name, value)
    if any(v < 8 or v % 8 or v > MAX_SIDE for v in sides) or height * width > MAX_PIXELS:
        raise RequestError(
            f"{name} {height} x {width} must have sides in 8..{MAX_SIDE}, multiples of 8", field=name
        )
    return sides


def border(name: str, value: Any) -> tuple[int, ...]:
    """Four numbers of pixels, multiples of 8, not all 0: left, top, right, bottom."""
    ok = isinstance(value, tuple) and len(value) == 4 and all(type(v) is int for v in value)
    if not ok or any(v < 0 or v % 8 or v > MAX_SIDE for v in value) or not any(value):
        raise wrong(name, "must be four multiples of 8 (left, top, right, bottom), not all 0", value)
    return value


def text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{name} must be text, got {type(value).__name__}", field=name)
    if len(value) > MAX_PROMPT_CHARACTERS:
        raise RequestError(
            f"{name} has {len(value):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are read. Shorten it",
            field=name,
        )
    return value


def words(name: str, value: Any) -> tuple[str, ...]:
    ok = isinstance(value, tuple) and all(isinstance(v, str) and v for v in value)
    if not ok or len(value) > MAX_STYLES:
        raise wrong(name, f"must be at most {MAX_STYLES} names", value)
    return value


def picture(name: str, value: Any) -> Picture:
    """From what Picture.of takes."""
    try:
        return Picture.of(value, mask=name in MASKS)
    except ImageError as error:
        raise RequestError(f"{name}: {error}", field=name) from error


def wrong(name: str, must: str, value: object) -> RequestError:
    return RequestError(f"{name} {must}, got {quoted(repr(value))}", field=name)


def outside(name: str, value: float, low: float, high: float) -> RequestError:
    return RequestError(f"{name} is {shown(value)}; it must lie in {low}..{high}", field=name)


def shown(value: float) -> str:
    """A number as it stands in a message: a whole one of a million digits is told by its length."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length():,} bits"
    return str(value)


@dataclass(frozen=True)
class Each:
    """A tuple of at most `most` things, each from what its class reads."""

    of: Callable[[object], object]
    most: int
    words: str

    def __call__(self, name: str, value: object) -> tuple[object, ...]:
        if not isinstance(value, tuple | list) or len(value) > self.most:
            raise RequestError(
                f"{name} must be at most {self.most} {self.words}, got {quoted(value)}", field=name
            )
        return tuple(self.of(v) for v in value)


Text = Annotated[str, text]
Words = Annotated[tuple[str, ...], words]
Convention = Annotated[str, OneOf(tuple(CONVENTIONS))]
Seed = Annotated[int, seed]
Steps = Annotated[int, Whole(1, MAX_STEPS)]
Levels = Annotated[int, Whole(1, 8)]
Share = Annotated[float, Number(0.0, 1.0)]
Scale = Annotated[float, Number(0.0, 1000.0)]  # of guidance and the like; mostly 0 is off
Score = Annotated[float, Number(0.0, 10.0)]
Sigma = Annotated[float, Number(1e-4, 1e4)]
Side = Annotated[int, side]
Pair = Annotated[tuple[int, int], pair]
Area = Annotated[tuple[int, int], area]
Border = Annotated[tuple[int, ...], border]
Given = Annotated[Picture, picture]
Regions = Annotated[tuple[Region, ...], Each(Region.of, MAX_REGIONS, "regions")]
Controls = Annotated[tuple[ControlUnit, ...], Each(ControlUnit.of, MAX_UNITS, "control units")]
Loras = Annotated[tuple[LoraUse, ...], Each(LoraUse.of, MAX_USES, "names or objects with one")]
PicturePrompts = Annotated[tuple[PicturePrompt, ...], Each(PicturePrompt.of, MAX_UNITS, "picture prompts")]


def rules(owner: type) -> dict[str, tuple[Rule, bool]]:
    """For each field of a class that has one: its rule, and whether None is let through."""
    found: dict[str, tuple[Rule, bool]] = {}
    for name, hint in typing.get_type_hints(owner, include_extras=True).items():
        for part in parts(hint):
            if (rule := rule_of(part)) is not None:
                found[name] = rule, type(None) in parts(hint)
    return found


def rule_of(part: Any) -> Rule | None:
    if part is bool:
        return OneOf((True, False))
    if typing.get_origin(part) is Literal:
        return OneOf(typing.get_args(part))
    return part.__metadata__[0] if typing.get_origin(part) is Annotated else None


def parts(hint: Any) -> tuple[Any, ...]:
    """Of `A | None`: A and NoneType; of anything else: itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)

"""Axes of a grid: a name, what it stands for in a Request, and its values.

    axis("cfg_scale", (1, 5, 9))            any field of Request
    axis("prompt_sr", ("apple", "pear"))    the first text is searched for in the prompts, each replaces it
    axis("lora:film", (0, 0.5, 1))          the weight of one LoRA
    axis("size", ((512, 512), (768, 512)))  width and height together
    read_axis("cfg_scale=1-9 (+4)")         the same as text: values like a row of CSV, ranges as in A1111

Ranges are `1-5`, `1-10 (+3)` (a step) and `0-1 [5]` (a number of values, ends included), for numbers.
"""

from __future__ import annotations

import csv
import difflib
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import PurePath

from minisd.errors import RequestError, quoted
from minisd.lora_use import LoraUse
from minisd.picture import Picture
from minisd.request import Request
from minisd.request_data import PICTURES, read_picture
from minisd.request_rules import MASKS

MOST_CELLS = 400  # of a grid, so of an axis
TEXTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2", "prompt_to")  # searched by prompt_sr
N = r"[+-]?\d+(?:\.\d+)?"
RANGE = re.compile(rf"\s*({N})\s*-\s*({N})\s*(?:\(\s*({N})\s*\)|\[\s*(\d+)\s*\])?\s*")
LORA = "lora:"
ONE_EACH = ("loras", "controls", "regions", "picture_prompts")  # fields that hold several; a value is one


@dataclass(frozen=True)
class Axis:
    """values: one for each column, row or page, as a Request takes them; labels: how a person reads them."""

    name: str
    values: tuple[object, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.values)

    def put(self, values: dict[str, object], index: int) -> None:
        """Value `index` into the fields of a request."""
        value = self.values[index]
        if self.name == "size":
            values["width"], values["height"] = typing.cast(tuple[int, int], value)
        elif self.name == "prompt_sr":
            searched = str(self.values[0])
            found = [n for n in TEXTS if searched in str(values.get(n) or "")]
            if not found:
                raise RequestError(
                    f"prompt_sr searches for {quoted(searched)}, which is in no prompt; the first value must "
                    "be there",
                    field="prompt",
                )
            values |= {n: str(values[n]).replace(searched, str(value)) for n in found}
        elif self.name.startswith(LORA):
            values["loras"] = weighted(values, self.name.removeprefix(LORA), value)
        else:
            values[self.name] = value


def weighted(values: dict[str, object], name: str, weight: object) -> tuple[LoraUse, ...]:
    """The LoRAs of a request with this weight for one of them, which is added if it is not there."""
    texts = [str(values.get(n) or "") for n in TEXTS]
    if any(f"<lora:{name}{end}" in text for text in texts for end in ":>"):
        raise RequestError(
            f"the LoRA {quoted(name)} has its weight in the prompt; vary it with prompt_sr, or name it by "
            "the field loras",
            field="loras",
        )
    loras = tuple(LoraUse.of(use) for use in typing.cast(Sequence[object], values.get("loras", ())))
    if not any(use.name == name for use in loras):
        loras = (*loras, LoraUse(name))
    given = typing.cast(float, weight)  # checked by LoraUse
    return tuple(replace(use, weight=given) if use.name == name else use for use in loras)


def names() -> list[str]:
    """What an axis may vary, but `lora:NAME`."""
    return [f.name for f in fields(Request) if f.name != "count"] + ["size", "prompt_sr"]


def check_name(name: str) -> None:
    if name == "count":
        raise RequestError("a cell of a grid is one picture; vary the seed, not the count", field="count")
    if name in names() or (name.startswith(LORA) and len(name) > len(LORA)):
        return
    near = difflib.get_close_matches(name, [*names(), LORA + "NAME"], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; name a field, prompt_sr, size or lora:NAME"
    raise RequestError(f"a request has no field {quoted(name)}{hint}", field=name)


def axis(name: str, values: Sequence[object]) -> Axis:
    """An axis from values as a Request takes them. Raises RequestError for a name that is not there, with the
    nearest that is, for no values, and for one that is there twice."""
    check_name(name)
    if not values or len(values) > MOST_CELLS:
        raise RequestError(
            f"an axis has 1 to {MOST_CELLS} values, {quoted(name)} has {len(values)}; change them", field=name
        )
    own = tuple(value_of(name, v) for v in values)
    for index, value in enumerate(own):
        if value in own[:index]:
            raise RequestError(f"{quoted(name)} has {quoted(values[index])} twice; leave one out", field=name)
    return Axis(name, own, tuple(label(name, v) for v in values))


def value_of(name: str, value: object) -> object:
    """As a Request takes it; pictures are read once, here."""
    if name in PICTURES and value is not None:
        return read_picture(name, value, True, None)
    if name in ONE_EACH and not isinstance(value, list | tuple):
        return (value,)
    if name == "size" and not (isinstance(value, tuple | list) and len(value) == 2):
        raise RequestError(f"a size is (width, height), got {quoted(repr(value))}", field="width")
    return tuple(value) if isinstance(value, list) else value


def label(name: str, value: object) -> str:
    """How a value is written at its column or row."""
    if isinstance(value, Picture):
        text = value.sha256[:8]
    elif name in (*PICTURES, *MASKS) and isinstance(value, str | PurePath):
        text = PurePath(value).name
    elif isinstance(value, float):
        text = f"{value:g}" if float(f"{value:g}") == value else str(value)
    elif name == "size":
        text = "x".join(str(v) for v in typing.cast(Sequence[object], value))
    elif isinstance(value, tuple | list):
        text = " ".join(v if isinstance(v, str) else repr(v) for v in value)
    else:
        text = str(value)
    return text if name in ("prompt", "prompt_sr") else f"{name} {text}"


def read_axis(text: str) -> Axis:
    """`NAME=VALUES`. Raises RequestError."""
    name, equals, rest = text.partition("=")
    name = name.strip()
    if not equals:
        raise RequestError(f"an axis is NAME=VALUES, as in cfg_scale=1,5,9; got {quoted(text)}")
    if not name.startswith(LORA):
        name = name.replace("-", "_")
    check_name(name)
    try:
        rows = list(csv.reader([rest], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise RequestError(
            f"the values of {quoted(name)} are not a row of CSV: {error}", field=name
        ) from None
    kind = kind_of(name)
    values: list[object] = []
    for item in rows[0] if rows else []:
        found = RANGE.fullmatch(item) if kind in (int, float) else None
        values += [read_value(name, kind, item)] if found is None else ranged(name, kind, found)
    return axis(name, values)


def kind_of(name: str) -> object:
    """The type of a field's values, without None: int, float, bool, str, a Literal, or a tuple."""
    if name == "size":
        return tuple[int, int]
    if name == "prompt_sr":
        return str
    if name.startswith(LORA):
        return float
    hint = typing.get_type_hints(Request)[name]
    several = typing.get_origin(hint) not in (tuple, typing.Literal, None)
    kinds = [k for k in (typing.get_args(hint) if several else (hint,)) if k is not type(None)]
    return kinds[0]


def read_value(name: str, kind: object, text: str) -> object:
    """One value from its text; `none` for a field that may be None."""
    if name in TEXTS or name in ("prompt_sr", "hires_upscaler"):
        return text
    text = text.strip()
    optional = name in names() and any(f.name == name and f.default is None for f in fields(Request))
    if optional and text.lower() == "none":
        return None
    try:
        if kind is bool:
            return {"true": True, "yes": True, "false": False, "no": False}[text.lower()]
        if kind in (int, float):
            return int(text) if kind is int else float(text)
        inner = typing.get_args(kind)
        if typing.get_origin(kind) is tuple and inner[0] in (int, float):
            return tuple((int if inner[0] is int else float)(v) for v in re.split(r"[\sx]+", text))
        if name == "styles":
            return tuple(part for part in text.split("+") if part)
    except (ValueError, KeyError):
        wanted = getattr(kind, "__name__", "value").replace("int", "whole number").replace("float", "number")
        raise RequestError(f"{name}: {quoted(text)} is no {wanted}", field=name) from None
    return text


def ranged(name: str, kind: object, found: re.Match[str]) -> list[object]:
    """The values of a range, each the nearest number to where it lies exactly."""
    first, last = Fraction(found[1]), Fraction(found[2])
    if found[4] is not None:
        count = int(found[4]) if len(found[4]) < 6 else MOST_CELLS + 1
        step = (last - first) / (count - 1) if count > 1 else Fraction(0)
    else:
        step = Fraction(found[3]) if found[3] is not None else Fraction(1 if last >= first else -1)
        if step == 0 or (last - first) / step < 0:
            raise RequestError(
                f"{name}: the range {quoted(found[0].strip())} never reaches its end; give the step the "
                "other sign",
                field=name,
            )
        count = int((last - first) / step) + 1
    if not 1 <= count <= MOST_CELLS:
        raise RequestError(
            f"{name}: the range {quoted(found[0].strip())} has {'no' if not count else 'too many'} values; "
            f"an axis has 1 to {MOST_CELLS}",
            field=name,
        )
    exact = [first + step * i for i in range(count)]
    values = [round(v) if kind is int else float(v) for v in exact]
    return list(dict.fromkeys(values))

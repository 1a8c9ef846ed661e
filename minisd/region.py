"""Region: a part of the picture with a prompt of its own.

In a run the network predicts every region's prompt for the whole picture, and of each prediction the part in
its place is taken (MultiDiffusion, Bar-Tal et al. 2023, arXiv:2302.08113, section 4.2). What regions leave
free, or pull at with less than weight 1, follows the request's prompt.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from minisd.errors import ImageError, RequestError, quoted
from minisd.picture import Picture

MAX_REGIONS = 16  # each costs a call of the network per step
MAX_CHARACTERS = 100_000
WRITTEN = re.compile(r"\s*(?P<place>[^:@]+)(?:@(?P<weight>[0-9.]+))?\s*:(?P<prompt>.*)\Z", re.DOTALL)


@dataclass(frozen=True)
class Region:
    """prompt, in `box` (left, top, right, bottom, as shares 0..1 of the picture's width and height) or where
    `mask` is white (stretched to the picture; grey: in part). weight: 0..1, its share of the prediction
    there. Where regions overlap, their weights are made to add up to 1."""

    prompt: str
    box: tuple[float, ...] | None = None
    mask: Picture | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or len(self.prompt) > MAX_CHARACTERS:
            raise wrong(
                f"the prompt of a region must be text of at most {MAX_CHARACTERS:,} characters, got "
                f"{quoted(self.prompt)}"
            )
        if (self.box is None) == (self.mask is None):
            raise wrong(f"the region {quoted(self.prompt)} needs a box or a mask, and not both")
        if self.mask is not None:
            try:
                object.__setattr__(self, "mask", Picture.of(self.mask, mask=True))
            except ImageError as error:
                raise wrong(f"mask of the region {quoted(self.prompt)}: {error}") from error
        if self.box is not None:
            object.__setattr__(self, "box", checked_box(self.box))
        value = self.weight
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        if not 0.0 < number <= 1.0:
            raise wrong(f"weight of a region must be above 0 and at most 1, got {quoted(value)}")
        object.__setattr__(self, "weight", float(number))

    @classmethod
    def of(
        cls, value: object, *, paths: bool = True, pictures: Mapping[str, Picture] | None = None
    ) -> Region:
        """From a Region, a mapping of its fields, JSON text, or text such as `0,0,0.5,1: a tree`,
        `mask.png@0.8: a tree`. paths False: no file is named. Raises RequestError."""
        if isinstance(value, Region):
            return value
        if isinstance(value, str):
            value = from_text(value)
        if not isinstance(value, Mapping):
            raise wrong(f"a region must be an object with prompt and box or mask, got {quoted(value)}")
        known = [f.name for f in fields(cls)]
        for key in value:
            if key not in known:
                raise wrong(f"a region has no field {quoted(key)}; known are {', '.join(known)}")
        if "prompt" not in value:
            raise wrong("a region needs a prompt")
        mask = value.get("mask")
        try:
            mask = None if mask is None else Picture.from_plain(mask, mask=True, paths=paths, known=pictures)
        except ImageError as error:
            raise wrong(f"mask of a region: {error}") from error
        return cls(**{**value, "mask": mask})

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON, without what is as by default."""
        found: dict[str, object] = {"prompt": self.prompt}
        if self.box is not None:
            found["box"] = self.box
        if self.mask is not None:
            found["mask"] = self.mask.to_dict()
        return found if self.weight == 1.0 else found | {"weight": self.weight}


def checked_box(value: object) -> tuple[float, ...]:
    found: list[float] = []
    if isinstance(value, tuple | list):
        found = [float(v) for v in value if isinstance(v, int | float) and not isinstance(v, bool)]
        found = found if len(found) == len(value) == 4 else []
    inside = bool(found) and all(0.0 <= v <= 1.0 for v in found)
    if not inside or found[0] >= found[2] or found[1] >= found[3]:
        raise wrong(
            "box of a region must be left, top, right, bottom as shares of the picture, 0..1, such as "
            f"0,0,0.5,1; got {quoted(value)}"
        )
    return tuple(found)


def from_text(text: str) -> dict[str, object]:
    """Fields from JSON, or from `PLACE[@WEIGHT]: PROMPT`, where PLACE is a box or the path of a mask."""
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise wrong(f"the region {quoted(text)} is not valid JSON: {error}") from None
        assert isinstance(found, dict)
        return found
    read = WRITTEN.match(text)
    if read is None:
        raise wrong(f"a region is written LEFT,TOP,RIGHT,BOTTOM: PROMPT or MASK: PROMPT, got {quoted(text)}")
    place, out = read["place"].strip(), dict[str, object](prompt=read["prompt"].strip())
    try:
        out["box"] = tuple(float(v) for v in place.split(","))
    except ValueError:
        out["mask"] = place
    if read["weight"] is not None:
        try:
            out["weight"] = float(read["weight"])
        except ValueError:
            raise wrong(f"weight of a region must be a number, got {quoted(read['weight'])}") from None
    return out


def wrong(message: str) -> RequestError:
    return RequestError(message, field="regions")

"""A Request as plain data for JSON, and back. What is more than numbers and text says itself what it is."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from minisd.control import ControlUnit, is_path
from minisd.errors import ImageError, RequestError, quoted
from minisd.picture import Picture
from minisd.picture_prompt import PicturePrompt
from minisd.region import Region
from minisd.request_rules import MASKS

PICTURES = ("image", "mask", "depth")  # fields that hold one
LISTS = {"controls": ControlUnit, "regions": Region, "picture_prompts": PicturePrompt}  # whose items may


def plain(value: object) -> object:
    """A field's value as JSON can hold it; what is more than a number or text says it of itself."""
    if isinstance(value, tuple):
        return [plain(v) for v in value] if any(hasattr(v, "to_dict") for v in value) else value
    to_dict = getattr(value, "to_dict", None)
    return value if to_dict is None else to_dict()


def values_of(
    data: Mapping[str, object],
    names: Collection[str],
    *,
    paths: bool,
    pictures: Mapping[str, Picture] | None,
) -> dict[str, object]:
    """The fields in plain data, as Request takes them. Raises RequestError for one that is not among `names`,
    with the nearest that is; `paths` False refuses to open files. `pictures`: known ones by their digest."""
    for key in data:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RequestError(f"a request has no field {quoted(key)}{hint}", field=str(key))
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    for name in PICTURES:
        if values.get(name) is not None:
            values[name] = read_picture(name, values[name], paths, pictures)
    for name, kind in LISTS.items():
        if isinstance(given := values.get(name), tuple):
            values[name] = tuple(kind.of(v, paths=paths, pictures=pictures) for v in given)
    upscaler = values.get("hires_upscaler")
    if not paths and isinstance(upscaler, str) and is_path(upscaler):
        raise RequestError(
            "hires_upscaler: upscalers are named here, not given by path; ask which names there are",
            field="hires_upscaler",
        )
    return values


def read_picture(name: str, value: object, paths: bool, pictures: Mapping[str, Picture] | None) -> Picture:
    try:
        return Picture.from_plain(value, mask=name in MASKS, paths=paths, known=pictures)
    except ImageError as error:
        raise RequestError(f"{name}: {error}", field=name) from error

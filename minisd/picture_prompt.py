"""PicturePrompt: a picture that a request draws like, through an IP-Adapter: which files, how strongly, when.

What it does in a run is in `picture_prompt_run.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from minisd.control import MAX_WEIGHT, is_path
from minisd.errors import ImageError, RequestError, quoted
from minisd.picture import Picture

NUMBERS = ("weight", "start", "end")


@dataclass(frozen=True)
class PicturePrompt:
    """A picture as a prompt.

    model, encoder: the IP-Adapter and the image encoder it was trained with (ViT-H for all of SD1.5 and those
    called vit-h, ViT-bigG for the others of SDXL): names that the engine knows (load(controls=...)),
    or paths. image: made square and 224 pixels wide, its middle. weight: of the attention to it; 0 is off.
    start, end: the part of the run, in steps as 0..1, in which it acts.
    """

    model: str
    encoder: str
    image: Picture
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        for name in ("model", "encoder"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value or len(value) > 4096 or "\0" in value:
                raise wrong(f"the {name} of a picture prompt must be a name or a path, got {quoted(value)}")
        try:
            object.__setattr__(self, "image", Picture.of(self.image))
        except ImageError as error:
            raise wrong(f"image of a picture prompt: {error}") from error
        for name, low, high in (("weight", -MAX_WEIGHT, MAX_WEIGHT), ("start", 0.0, 1.0), ("end", 0.0, 1.0)):
            value = getattr(self, name)
            number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
            if not low <= number <= high:
                raise wrong(f"{name} of a picture prompt must be in {low:g}..{high:g}, got {quoted(value)}")
            object.__setattr__(self, name, float(number))
        if self.start >= self.end:
            raise wrong(f"a picture prompt ends at {self.end:g}, not after its start {self.start:g}")

    @property
    def is_path(self) -> bool:
        """Whether a file is named by path."""
        return is_path(self.model) or is_path(self.encoder)

    @classmethod
    def of(
        cls, value: object, *, paths: bool = True, pictures: Mapping[str, Picture] | None = None
    ) -> PicturePrompt:
        """From a PicturePrompt, a mapping of its fields, or text `model=ip,encoder=vit-h,image=cat.png`.
        paths False: no file is named. Raises RequestError."""
        if isinstance(value, PicturePrompt):
            return value
        if isinstance(value, str):
            value = from_text(value)
        if not isinstance(value, Mapping):
            raise wrong(
                f"a picture prompt must be an object with model, encoder and image, got {quoted(value)}"
            )
        known = [f.name for f in fields(cls)]
        for key in value:
            if key not in known:
                raise wrong(f"a picture prompt has no field {quoted(key)}; known are {', '.join(known)}")
        for key in ("model", "encoder", "image"):
            if key not in value:
                raise wrong(f"a picture prompt needs {key}")
        try:
            image = Picture.from_plain(value["image"], paths=paths, known=pictures)
        except ImageError as error:
            raise wrong(f"image of a picture prompt: {error}") from error
        prompt = cls(**{**value, "image": image})
        if prompt.is_path and not paths:
            raise wrong("IP-Adapters are named here, not given by path; ask which names there are")
        return prompt

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON, without what is as by default."""
        default = {f.name: f.default for f in fields(self)}
        values = {name: getattr(self, name) for name in default}
        return {k: v.to_dict() if isinstance(v, Picture) else v for k, v in values.items() if v != default[k]}


def from_text(text: str) -> dict[str, object]:
    """Fields from `name=value` joined by commas."""
    out: dict[str, object] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals:
            raise wrong(f"a picture prompt is written model=NAME,encoder=NAME,image=PATH; got {quoted(text)}")
        out[name.strip()] = value
    for name in NUMBERS:
        if name in out:
            try:
                out[name] = float(str(out[name]))
            except ValueError:
                raise wrong(f"{name} of a picture prompt must be a number, got {quoted(out[name])}") from None
    return out


def wrong(message: str) -> RequestError:
    return RequestError(message, field="picture_prompts")

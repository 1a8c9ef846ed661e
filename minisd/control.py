"""ControlUnit: one control network in a request: which file, which picture, how strongly, in which steps.

What it does in a run is in `control_run.py`; the networks are ControlNet, Control-LoRA, ControlNet-Union,
ControlNet-LLLite and T2I-Adapter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from minisd.errors import ImageError, RequestError, quoted
from minisd.picture import Picture

Mode = Literal["balanced", "prompt", "control"]
Resize = Literal["stretch", "crop", "fill"]
MAX_UNITS = 16
REFERENCE = "reference-only"  # a model that needs no file: the one at hand attends to the picture, too
MAX_WEIGHT = 10.0
MODES: tuple[Mode, ...] = ("balanced", "prompt", "control")
RESIZES: tuple[Resize, ...] = ("stretch", "crop", "fill")
PREPROCESSORS = ("none", "canny", "edge", "blur", "tile", "shuffle", "invert")
UNION_TYPES = (  # of xinsir's ControlNet-Union in the order of its table; the last two are ProMax's
    "openpose",
    "depth",
    "scribble",
    "line",
    "normal",
    "segment",
    "tile",
    "inpaint",
)
FILE_NAMES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
NUMBERS = ("weight", "start", "end")


@dataclass(frozen=True)
class ControlUnit:
    """A control network at work.

    model: a name that the engine knows (`load(controls={NAME: PATH})`), a path, or "reference-only": no
    network, but attention to the picture itself (`reference_run.py`). image: what it reads, a
    map made elsewhere or a picture for `preprocessor`; brought to the size drawn as `resize` says. weight:
    multiplies what the network adds; 0 is off. start, end: the part of the run, in steps as 0..1, in which it
    acts. mode: "balanced"; "prompt": weaker towards the fine levels; "control": the same, and the negative
    prompt is predicted without it (guess mode). kind: of the hint, for a ControlNet-Union. pooled: what it
    adds is averaged over the picture (shuffle networks say so nowhere but in their names), and not added for
    the negative prompt.
    """

    model: str
    image: Picture
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: Mode = "balanced"
    preprocessor: str = "none"
    resize: Resize = "crop"
    kind: str | None = None
    pooled: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model or len(self.model) > 4096 or "\0" in self.model:
            raise wrong(f"the model of a control unit must be a name or a path, got {quoted(self.model)}")
        try:
            object.__setattr__(self, "image", Picture.of(self.image))
        except ImageError as error:
            raise wrong(f"image of the control unit {quoted(self.model)}: {error}") from error
        for name, low, high in (("weight", -MAX_WEIGHT, MAX_WEIGHT), ("start", 0.0, 1.0), ("end", 0.0, 1.0)):
            value = getattr(self, name)
            number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
            if not low <= number <= high:
                raise wrong(f"{name} of a control unit must be in {low:g}..{high:g}, got {quoted(value)}")
            object.__setattr__(self, name, float(number))
        if self.start >= self.end:
            raise wrong(
                f"the control unit {quoted(self.model)} ends at {self.end:g}, not after its start "
                f"{self.start:g}"
            )
        if self.model == REFERENCE:
            check_reference(self)
        for name, options in (
            ("mode", MODES),
            ("preprocessor", PREPROCESSORS),
            ("resize", RESIZES),
            ("kind", (None, *UNION_TYPES)),
            ("pooled", (False, True)),
        ):
            value = getattr(self, name)
            if not any(value is o or (type(value) is str and value == o) for o in options):
                known = ", ".join(str(o) for o in options if o is not None)
                raise wrong(f"{name} of a control unit must be one of {known}; got {quoted(value)}")

    @property
    def control_type(self) -> int | None:
        """The number of `kind` in a Union's table."""
        return None if self.kind is None else UNION_TYPES.index(self.kind)

    @property
    def is_path(self) -> bool:
        """Whether `model` is spelled as a path. Names that an engine knows come first."""
        return is_path(self.model)

    @classmethod
    def of(
        cls, value: object, *, paths: bool = True, pictures: Mapping[str, Picture] | None = None
    ) -> ControlUnit:
        """From a ControlUnit, a mapping of its fields, JSON text, or text such as
        `model=edge,image=edges.png,weight=0.8`. paths False: no file is named (a server's clients send
        pictures and use the names its engine knows). Raises RequestError."""
        if isinstance(value, ControlUnit):
            return value
        if isinstance(value, str):
            value = from_text(value)
        if not isinstance(value, Mapping):
            raise wrong(f"a control unit must be an object with model and image, got {quoted(value)}")
        known = [f.name for f in fields(cls)]
        for key in value:
            if key not in known:
                raise wrong(f"a control unit has no field {quoted(key)}; known are {', '.join(known)}")
        for key in ("model", "image"):
            if key not in value:
                raise wrong(f"a control unit needs {key}")
        try:
            image = Picture.from_plain(value["image"], paths=paths, known=pictures)
        except ImageError as error:
            raise wrong(f"image of a control unit: {error}") from error
        unit = cls(**{**value, "image": image})
        if unit.is_path and not paths:
            raise wrong("control networks are named here, not given by path; ask which names there are")
        return unit

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON, without what is as by default."""
        default = {f.name: f.default for f in fields(self)}
        values = {name: getattr(self, name) for name in default}
        return {k: v.to_dict() if isinstance(v, Picture) else v for k, v in values.items() if v != default[k]}


def check_reference(unit: ControlUnit) -> None:
    """What a reference has no use for is refused."""
    if not 0.0 <= unit.weight <= 1.0:
        raise wrong(f"weight of {REFERENCE} must be in 0..1, got {unit.weight:g}")
    if unit.mode == "prompt" or unit.preprocessor != "none" or unit.kind is not None or unit.pooled:
        raise wrong(f"{REFERENCE} takes mode balanced or control, and no preprocessor, kind or pooled")


def is_path(name: str) -> bool:
    """Whether a name is spelled as the path of a file."""
    return "/" in name or "\\" in name or name.endswith(FILE_NAMES)


def from_text(text: str) -> dict[str, object]:
    """Fields from JSON, or from `name=value` joined by commas; a comma before anything else belongs to the
    value."""
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise wrong(f"the control unit {quoted(text)} is not valid JSON: {error}") from None
        assert isinstance(found, dict)
        return found
    out: dict[str, object] = {}
    last = ""
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if equals and name.strip() in {f.name for f in fields(ControlUnit)}:
            last = name.strip()
            out[last] = value
        elif last:
            out[last] = f"{out[last]},{part}"
        else:
            raise wrong(f"a control unit is written model=NAME,image=PATH,weight=0.8; got {quoted(text)}")
    for name in NUMBERS:
        if name in out:
            try:
                out[name] = float(str(out[name]))
            except ValueError:
                raise wrong(f"{name} of a control unit must be a number, got {quoted(out[name])}") from None
    if "pooled" in out:
        out["pooled"] = {"true": True, "false": False}.get(str(out["pooled"]).lower(), out["pooled"])
    return out


def wrong(message: str) -> RequestError:
    return RequestError(message, field="controls")

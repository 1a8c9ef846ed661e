"""LoraUse: one adapter in a request: which file, how strongly, where in the network, in which steps."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from minisd.blocks import find, read_blocks
from minisd.errors import RequestError, quoted

MAX_WEIGHT = 100.0
MAX_USES = 50
SHA256 = re.compile(r"[0-9a-f]{64}")
WRITTEN = {k: k for k in ("te", "te2", "start", "end", "blocks", "sha256")} | {"lbw": "blocks"}
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class LoraUse:
    """An adapter of the LoRA family at work.

    name: of a file in the engine's folder, or a path. weight: multiplies its change of the UNet; te, te2: of
    the first and second text encoder (None: te as weight, te2 as te). blocks: (name, factor) pairs that
    multiply further; the name is a module's or the beginning of one ("output_blocks.3", "text_encoder",
    "OUT03", "BASE" for what is in no block), the longest that fits counts. start, end: the part of the run,
    in steps as 0..1, in which it acts; outside of it the picture is drawn as without it. sha256: of the
    file's tensors (`minisd lora info`); another file of that name is refused.
    """

    name: str
    weight: float = 1.0
    te: float | None = None
    te2: float | None = None
    blocks: tuple[tuple[str, float], ...] = ()
    start: float = 0.0
    end: float = 1.0
    sha256: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or len(self.name) > 4096 or "\0" in self.name:
            raise wrong(f"the name of a LoRA must be text, got {quoted(self.name)}")
        for field in ("weight", "te", "te2"):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, finite(f"{field} of LoRA", value, -MAX_WEIGHT, MAX_WEIGHT))
        for field in ("start", "end"):
            object.__setattr__(self, field, finite(f"{field} of LoRA", getattr(self, field), 0.0, 1.0))
        if self.start >= self.end:
            raise wrong(
                f"the LoRA {quoted(self.name)} ends at {self.end:g}, not after its start {self.start:g}"
            )
        if self.sha256 is not None and not (isinstance(self.sha256, str) and SHA256.fullmatch(self.sha256)):
            raise wrong(f"sha256 of LoRA {quoted(self.name)} must be 64 hexadecimal digits")
        try:
            object.__setattr__(self, "blocks", read_blocks(self.blocks, f"LoRA {quoted(self.name)}"))
        except RequestError as error:
            raise wrong(str(error)) from None

    @classmethod
    def of(cls, value: object) -> LoraUse:
        """From a LoraUse, a mapping of its fields, or text `NAME[:WEIGHT[:TE]]`. Raises RequestError."""
        if isinstance(value, LoraUse):
            return value
        if isinstance(value, str):
            return cls.from_text(value)
        if not isinstance(value, Mapping):
            raise wrong(f"a LoRA must be a name or an object with one, got {quoted(value)}")
        known = [f.name for f in fields(cls)]
        for key in value:
            if key not in known:
                raise wrong(f"a LoRA has no field {quoted(key)}; known are {', '.join(known)}")
        if "name" not in value:
            raise wrong("a LoRA needs a name")
        return cls(**value)

    @classmethod
    def from_text(cls, text: str) -> LoraUse:
        """`NAME`, `NAME:0.8`, `NAME:0.8:0.5`, any of them with `:start=0.2` and other fields behind; a colon
        before anything else belongs to the name."""
        rest, named = text, dict[str, object]()
        while found := re.fullmatch(rf"(.+):({'|'.join(WRITTEN)})=([^:=]*(?:=[^:]*)?)", rest):
            rest, key, value = found.groups()
            if WRITTEN[key] in named:
                raise wrong(f"the LoRA {quoted(text)} says {key} twice")
            named[WRITTEN[key]] = value if key in ("blocks", "lbw", "sha256") else number(text, value)
        found = re.fullmatch(r"(.+?)((?::[-+]?[\d.]+){1,2})", rest)
        if found is None:
            return cls(rest, **named)  # type: ignore[arg-type]  # checked by the constructor
        numbers = [number(text, n) for n in found.group(2)[1:].split(":")]
        if len(numbers) > 1 and named.setdefault("te", numbers[1]) is not numbers[1]:
            raise wrong(f"the LoRA {quoted(text)} says te twice")
        return cls(found.group(1), numbers[0], **named)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON, without what is as by default."""
        default = {f.name: f.default for f in fields(self)}
        values = {name: getattr(self, name) for name in default}
        values["blocks"] = [list(pair) for pair in self.blocks]
        return {k: v for k, v in values.items() if k == "name" or v != default[k] and v != []}

    def multiplier(self, part: str, module: str) -> float:
        """By which the change of this module is multiplied."""
        value = self.weight
        if part in TEXT_ENCODERS:
            te = self.weight if self.te is None else self.te
            value = te if part == "text_encoder" or self.te2 is None else self.te2
        factor = find(self.blocks, part, module)
        return value if factor is None else value * factor

    @property
    def whole(self) -> bool:
        """Whether it acts in every step."""
        return self.start <= 0.0 and self.end >= 1.0


def number(text: str, written: str) -> float:
    try:
        return float(written)
    except ValueError:
        raise wrong(
            f"the weights of LoRA {quoted(text)} are no numbers; write NAME:0.8 or NAME:0.8:0.5"
        ) from None


def finite(what: str, value: object, low: float, high: float) -> float:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not low <= number <= high:
        raise wrong(f"{what} must be a number in {low:g}..{high:g}, got {quoted(value)}")
    return float(number)


def wrong(message: str) -> RequestError:
    return RequestError(message, field="loras")

"""LoraUse: one adapter in a request: which file, how strongly, where in the network, in which steps."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from minisd.errors import RequestError, quoted

MAX_WEIGHT = 100.0
MAX_BLOCKS = 200
MAX_USES = 50
SHA256 = re.compile(r"[0-9a-f]{64}")
# the community's names of blocks, beside our own ("input_blocks.4")
COMMUNITY = {
    **{f"IN{n:02}": f"input_blocks.{n}" for n in range(12)},
    **{f"OUT{n:02}": f"output_blocks.{n}" for n in range(12)},
    **dict.fromkeys(("M00", "MID"), "middle_block"),
}
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
        object.__setattr__(self, "blocks", read_blocks(self.blocks))

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
        """`NAME`, `NAME:0.8` or `NAME:0.8:0.5`; a colon before anything else belongs to the name."""
        found = re.fullmatch(r"(.+?)((?::[-+]?[\d.]+){1,2})", text)
        if found is None:
            return cls(text)
        try:
            numbers = [float(n) for n in found.group(2)[1:].split(":")]
        except ValueError:
            raise wrong(
                f"the weights of LoRA {quoted(text)} are no numbers; write NAME:0.8 or NAME:0.8:0.5"
            ) from None
        return cls(found.group(1), numbers[0], numbers[1] if len(numbers) > 1 else None)

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
        best, factor = -1, 1.0
        name = module if part == "unet" else f"{part}.{module}"
        for prefix, number in self.blocks:
            outside = not name.startswith(("input_blocks.", "middle_block.", "output_blocks."))
            fits = outside if prefix == "BASE" else name == prefix or name.startswith(f"{prefix}.")
            length = 0 if prefix == "BASE" else len(prefix)
            if fits and length > best:
                best, factor = length, number
        return value * factor

    @property
    def whole(self) -> bool:
        """Whether it acts in every step."""
        return self.start <= 0.0 and self.end >= 1.0


def lora_uses(value: object) -> tuple[LoraUse, ...]:
    """The field `loras` of a Request, checked."""
    if not isinstance(value, tuple | list) or len(value) > MAX_USES:
        raise wrong(f"loras must be at most {MAX_USES} names or objects with one, got {quoted(value)}")
    return tuple(LoraUse.of(v) for v in value)


def read_blocks(value: object) -> tuple[tuple[str, float], ...]:
    """Pairs of block and factor from pairs or a mapping, community names made ours."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, list | tuple) or len(pairs) > MAX_BLOCKS:
        raise wrong(f"blocks must be at most {MAX_BLOCKS} pairs of a name and a number, got {quoted(value)}")
    out: list[tuple[str, float]] = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise wrong(f"blocks must be pairs of a name and a number, got {quoted(pair)}")
        name = COMMUNITY.get(pair[0], pair[0])
        if name in dict(out):
            raise wrong(f"the block {quoted(pair[0])} is given twice")
        out.append((name, finite(f"block {quoted(pair[0])} of LoRA", pair[1], -MAX_WEIGHT, MAX_WEIGHT)))
    return tuple(out)


def finite(what: str, value: object, low: float, high: float) -> float:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not low <= number <= high:
        raise wrong(f"{what} must be a number in {low:g}..{high:g}, got {quoted(value)}")
    return float(number)


def wrong(message: str) -> RequestError:
    return RequestError(message, field="loras")

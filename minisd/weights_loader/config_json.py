"""`minisd.config` in a file's metadata: what tensor shapes cannot tell about a model, as JSON.

A published file does not have it: its family is recognised and the family's row of `minisd.config.FAMILIES`
says the same. Files of other widths that minisd writes carry it. It comes from a file, so nothing in it is
believed before it is checked: unknown keys, wrong types and numbers out of range are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, cast, get_args

from minisd.config import FAMILIES, ModelConfig, Prediction, TrainingSchedule
from minisd.errors import CheckpointError, listed, quoted

KEY = "minisd.config"  # in safetensors __metadata__, and the file minisd.config.json of a folder
FORMAT = 1
MAX_CHARS = 20_000

Activation = Literal["quick_gelu", "gelu"]
BetaSchedule = Literal["scaled_linear", "linear"]
Concat = Literal["none", "inpaint", "ip2p", "depth"]
SizeConditioning = Literal["none", "sdxl", "refiner"]


@dataclass(frozen=True)
class DeclaredText:
    """Of one text encoder."""

    num_heads: int
    activation: Activation
    skip: int
    final_norm: bool
    pad_id: int
    pooled: bool


@dataclass(frozen=True)
class Declared:
    """The fields of a ModelConfig that shapes cannot tell."""

    family: str
    prediction: Prediction
    zero_terminal_snr: bool
    size: int
    size_conditioning: SizeConditioning
    concat: Concat
    schedule: TrainingSchedule
    num_heads: int | None  # of the UNet: one of the two
    head_dim: int | None
    norm_groups: int  # of the UNet
    scale_factor: float  # of the VAE
    vae_norm_groups: int
    text: Mapping[str, DeclaredText] = field(default_factory=dict)  # by part


def config_to_json(config: ModelConfig) -> str:
    """The JSON text that `config_from_json` reads back. The same config gives the same text."""
    text = {
        use.part: asdict(
            DeclaredText(
                use.config.num_heads, use.config.activation, use.skip, use.final_norm, use.pad_id, use.pooled
            )
        )
        for use in config.text
    }
    declared = Declared(
        family=config.family,
        prediction=config.prediction,
        zero_terminal_snr=config.zero_terminal_snr,
        size=config.size,
        size_conditioning=config.size_conditioning,
        concat=config.concat,
        schedule=config.schedule,
        num_heads=config.unet.num_heads,
        head_dim=config.unet.head_dim,
        norm_groups=config.unet.norm_groups,
        scale_factor=config.vae.scale_factor,
        vae_norm_groups=config.vae.norm_groups,
    )
    return json.dumps(
        {"format": FORMAT, **asdict(declared), "text": text}, sort_keys=True, separators=(",", ":")
    )


def config_from_json(text: str) -> Declared:
    """Reads and checks the text. Raises CheckpointError naming the field, what came and what is allowed."""
    if len(text) > MAX_CHARS:
        raise CheckpointError(f"{KEY} has {len(text):,} characters; at most {MAX_CHARS:,} are read")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{KEY} is not JSON: {quoted(error)}; remove it or write it anew") from error
    top = _Fields(data, KEY)
    top.whole("format", FORMAT, FORMAT)
    schedule = _Fields(top.take("schedule"), f"{KEY}.schedule")
    texts = _mapping(top.take("text"), f"{KEY}.text")
    if len(texts) > 2:
        raise CheckpointError(f"{KEY}.text names {len(texts)} text encoders; at most 2 are known")
    declared = Declared(
        family=top.choice("family", tuple(FAMILIES)),
        prediction=cast(Prediction, top.choice("prediction", get_args(Prediction))),
        zero_terminal_snr=top.flag("zero_terminal_snr"),
        size=top.whole("size", 8, 16384),
        size_conditioning=cast(SizeConditioning, top.choice("size_conditioning", get_args(SizeConditioning))),
        concat=cast(Concat, top.choice("concat", get_args(Concat))),
        schedule=TrainingSchedule(
            num_train_timesteps=schedule.whole("num_train_timesteps", 1, 100_000),
            beta_start=schedule.number("beta_start", 0.0, 1.0),
            beta_end=schedule.number("beta_end", 0.0, 1.0),
            beta_schedule=cast(BetaSchedule, schedule.choice("beta_schedule", get_args(BetaSchedule))),
        ),
        num_heads=top.optional_whole("num_heads", 1, 1024),
        head_dim=top.optional_whole("head_dim", 1, 4096),
        norm_groups=top.whole("norm_groups", 1, 1024),
        scale_factor=top.number("scale_factor", 1e-6, 1e6),
        vae_norm_groups=top.whole("vae_norm_groups", 1, 1024),
        text={part: _text(value, part) for part, value in texts.items()},
    )
    top.done()
    schedule.done()
    if (declared.num_heads is None) == (declared.head_dim is None):
        raise CheckpointError(f"{KEY} must set one of num_heads and head_dim and leave the other null")
    return declared


def _text(value: object, part: str) -> DeclaredText:
    if part not in ("text_encoder", "text_encoder_2"):
        raise CheckpointError(f"{KEY}.text names {quoted(part)}; known are text_encoder and text_encoder_2")
    fields = _Fields(value, f"{KEY}.text.{part}")
    text = DeclaredText(
        num_heads=fields.whole("num_heads", 1, 1024),
        activation=cast(Activation, fields.choice("activation", get_args(Activation))),
        skip=fields.whole("skip", 0, 1000),
        final_norm=fields.flag("final_norm"),
        pad_id=fields.whole("pad_id", 0, 10_000_000),
        pooled=fields.flag("pooled"),
    )
    fields.done()
    return text


def _mapping(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is {quoted(value)}; expected a JSON object")
    return cast(dict[str, object], value)


class _Fields:
    """A JSON object whose every key must be taken once, each with its check."""

    def __init__(self, value: object, where: str) -> None:
        self._left = dict(_mapping(value, where))
        self._where = where

    def take(self, key: str) -> object:
        if key not in self._left:
            raise CheckpointError(f"{self._where} lacks {quoted(key)}")
        return self._left.pop(key)

    def flag(self, key: str) -> bool:
        value = self.take(key)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def whole(self, key: str, low: int, high: int) -> int:
        value = self.take(key)
        if type(value) is not int or not low <= value <= high:  # bool is an int to isinstance
            raise self._wrong(key, value, f"a whole number in {low}..{high}")
        return value

    def optional_whole(self, key: str, low: int, high: int) -> int | None:
        if key in self._left and self._left[key] is None:
            self.take(key)
            return None
        return self.whole(key, low, high)

    def number(self, key: str, low: float, high: float) -> float:
        value = self.take(key)
        if (
            isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high
        ):  # NaN too
            raise self._wrong(key, value, f"a number in {low}..{high}")
        return float(value)

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self.take(key)
        if not isinstance(value, str) or value not in allowed:
            raise self._wrong(key, value, "one of " + ", ".join(allowed))
        return value

    def done(self) -> None:
        if self._left:
            raise CheckpointError(f"{self._where} has keys that are not known: {listed(list(self._left))}")

    def _wrong(self, key: str, value: object, expected: str) -> CheckpointError:
        return CheckpointError(f"{self._where}.{key} is {quoted(value)}; expected {expected}")

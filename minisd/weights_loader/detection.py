"""The answer of `detect`: what a file is, how it is known, and the networks in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from minisd.config import ModelConfig, Prediction
from minisd.weights_loader.config_json import Concat
from minisd.weights_loader.part import Contents, Part


@dataclass(frozen=True)
class Detection:
    """What a file is, and the evidence in words.

    `summary` continues "this file is ..."; `refusal` is the sentence for whoever gave a file as a model that
    is none.
    """

    kind: str  # "checkpoint", "unet", "vae", "text_encoder", "taesd", an adapter's kind, "foreign"
    family: str | None = None
    summary: str = ""
    variant: Concat = "none"
    config: ModelConfig | None = None  # of a file with a UNet
    prediction: Prediction | None = None
    zero_terminal_snr: bool = False
    prediction_sure: bool = False
    parts: Mapping[str, Part] = field(default_factory=dict)  # networks that can be loaded
    present: Mapping[str, Contents] = field(default_factory=dict)  # these, and depth_model, ema
    has_ema: bool = False  # a whole second copy of the UNet
    evidence: tuple[str, ...] = ()
    refusal: str | None = None

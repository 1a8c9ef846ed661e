"""A checkpoint, opened: what it is, its configs, and the state dict of each part in our names.

    checkpoint = open_checkpoint("model.safetensors")     # or a .ckpt, or a folder in diffusers layout
    unet.load_state_dict(checkpoint.state_dict("unet", dtype=torch.float16), strict=True, assign=True)

Opening reads headers only. Loading is strict: every parameter filled exactly once, in the shape the config
says, with finite values; what the file holds beyond that is either in the table of `unread.py` or an error.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from minisd.config import ModelConfig, Prediction, TAESDConfig
from minisd.errors import CheckpointError, listed, quoted
from minisd.quantise.sensitive import Layers, why_left
from minisd.weights_loader.detect import detect
from minisd.weights_loader.detection import Detection
from minisd.weights_loader.folder import FolderSource
from minisd.weights_loader.kinds import FAMILY_NAMES
from minisd.weights_loader.networks import ema_names
from minisd.weights_loader.open import open_source
from minisd.weights_loader.part import Part, PartReader, check_part
from minisd.weights_loader.report import LoadReport, report_of
from minisd.weights_loader.source import TensorSource
from minisd.weights_loader.swap import taken
from minisd.weights_loader.unread import sort_leftovers

Pieces = Mapping[str, tuple[TensorSource, Part]]
PART_NAMES = {
    "unet": "UNet",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    variant: str | None = None,
    prediction: Prediction | None = None,
    allow_unknown: bool = False,
) -> Checkpoint:
    """Opens a checkpoint file, or a folder in diffusers layout, and says what it is.

    variant: of a folder's files, such as "fp16". prediction: overrides what the file says or what was
    guessed. allow_unknown: load although the file holds tensors that nobody knows.
    Adapters and foreign models open, too, and say what they are; only reading a part of them is refused.
    Raises CheckpointError for a file that cannot be read or contradicts itself.
    """
    if os.path.isdir(path):
        source: TensorSource = FolderSource(path, variant)
    elif variant is not None:
        raise CheckpointError(
            f"variant {quoted(variant)} was asked for; only folders in diffusers layout have variants"
        )
    else:
        source = open_source(path)
    try:
        return checkpoint_of(source, prediction=prediction, allow_unknown=allow_unknown)
    except BaseException:
        source.close()
        raise


def checkpoint_of(
    source: TensorSource, *, prediction: Prediction | None = None, allow_unknown: bool = False
) -> Checkpoint:
    """The checkpoint in an opened container; `open_checkpoint` for paths."""
    try:
        found = detect(source.tensors, source.metadata, source.read)
    except CheckpointError as error:  # what contradicts itself; detection knows no file names
        raise CheckpointError(f"{quoted(source.path.name)}: {error}") from None
    if prediction is not None:
        if found.config is None:
            raise CheckpointError(
                f"prediction {prediction} was asked for, but {quoted(source.path.name)} has no UNet"
            )
        found = replace(
            found,
            config=replace(found.config, prediction=prediction),
            prediction=prediction,
            prediction_sure=True,
            evidence=(*found.evidence, f"prediction {prediction}: asked for by the caller"),
        )
    pieces = {name: (source, part) for name, part in found.parts.items()}
    return Checkpoint(source, found, found.config, pieces, allow_unknown)


class Checkpoint:
    """An opened checkpoint, perhaps with parts taken from others (`swap`). Thread-safe to read. A context
    manager: closing gives the file back."""

    def __init__(
        self,
        source: TensorSource,
        detection: Detection,
        config: ModelConfig | None,
        pieces: Pieces,
        allow_unknown: bool,
    ) -> None:
        self.source = source
        self.detection = detection
        self.config = config
        self._pieces = dict(pieces)
        self._allow_unknown = allow_unknown

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def name(self) -> str:
        """The file's or folder's own name."""
        return self.path.name

    @property
    def parts(self) -> tuple[str, ...]:
        """What can be loaded: of "unet", "vae", "text_encoder", "text_encoder_2", "taesd"."""
        return tuple(self._pieces)

    @property
    def taesd_config(self) -> TAESDConfig:
        """Of the TAESD in the file. Raises CheckpointError if there is none."""
        config = self._piece("taesd")[1].config
        assert isinstance(config, TAESDConfig)
        return config

    def part(self, name: str) -> Part:
        """Where a part lies and what it is made of. Raises CheckpointError if the file lacks it."""
        return self._piece(name)[1]

    def source_of(self, name: str) -> TensorSource:
        """The container that a part is read from."""
        return self._piece(name)[0]

    def elements(self, part: str) -> int:
        """Number of parameters of a part."""
        return sum(math.prod(rule.shape) for rule in self.part(part).rules)

    def _piece(self, name: str) -> tuple[TensorSource, Part]:
        if name in self._pieces:
            return self._pieces[name]
        if self.detection.refusal is not None:
            raise CheckpointError(f"{quoted(self.name)}: {self.detection.refusal}")
        raise CheckpointError(
            f"{quoted(self.name)} is {self.detection.summary} and holds no {name} "
            f"(only {', '.join(self.parts)}); take the {name} from another file"
        )

    def state_dict(
        self,
        part: str,
        *,
        dtype: torch.dtype | None = None,
        ema: bool | None = None,
        allow_nonfinite: bool = False,
    ) -> dict[str, Tensor]:
        """Every parameter of a part under our names, read one tensor at a time.

        dtype: of the result; None keeps the file's. ema: take the EMA copy of the UNet; None decides by
        `ema_choice`, other parts have no copy. allow_nonfinite: accept NaN and infinity.
        Raises CheckpointError for anything missing, surplus, of wrong shape or not finite.
        """
        self.check(part)
        reader = self.reader(part, dtype=dtype, ema=ema, allow_nonfinite=allow_nonfinite)
        return {rule.ours: reader.read(rule) for rule in self.part(part).rules}

    def reader(
        self,
        part: str,
        *,
        dtype: torch.dtype | None = None,
        ema: bool | None = None,
        allow_nonfinite: bool = False,
    ) -> PartReader:
        """Reads single parameters of a part, unchecked; `state_dict` for all of them."""
        source, found = self._piece(part)
        copies = part == "unet" and self.ema_choice(ema)[0]
        renamed = ema_names(found, source.tensors) if copies else None
        return PartReader(source, found, dtype=dtype, allow_nonfinite=allow_nonfinite, renamed=renamed)

    def stored_layers(self, part: str) -> Layers:
        """(module, scheme) of the layers that the file stores in few bits and that stay so."""
        reader, rules = self.reader(part), self.part(part).rules
        left = {r.ours for r in rules if why_left(part, r.ours, r.shape) is not None}
        found = ((r.ours, reader.scheme_of(r)) for r in rules if r.ours not in left)
        return tuple((name.removesuffix(".weight"), scheme) for name, scheme in found if scheme is not None)

    def ema_choice(self, ema: bool | None = None) -> tuple[bool, str]:
        """(whether the EMA copy is the UNet, why). Raises CheckpointError if a copy is asked for and not
        there."""
        if ema is None:
            if self.detection.has_ema and self.detection.variant == "ip2p":
                return True, "EMA copy: instruct-pix2pix is meant to be used with it"
            beside = "; an EMA copy is in the file" if self.detection.has_ema else ""
            return False, f"plain weights{beside}"
        if ema and not self.detection.has_ema:
            raise CheckpointError(
                f"{quoted(self.name)} holds no EMA copy of the UNet; use the plain weights (ema=False)"
            )
        return ema, f"{'EMA copy' if ema else 'plain weights'}: asked for"

    def left_over(self) -> list[str]:
        """Names of the file's tensors that no part reads, those of an EMA copy that is read not among
        them."""
        reasons, unknown = self.leftovers
        mine = {*unknown, *(name for names in reasons.values() for name in names)}
        return [name for name in self.source.tensors if name in mine]

    @cached_property
    def leftovers(self) -> tuple[dict[str, list[str]], list[str]]:
        """What no part reads: ({why that is known: names}, names that nobody knows)."""
        used: set[str] = set()
        for part in self.detection.parts.values():
            used |= part.names(self.source.tensors)
        if self.detection.has_ema and self.ema_choice()[0]:
            copies = set(ema_names(self.detection.parts["unet"], self.source.tensors).values())
            used |= copies
        return sort_leftovers(name for name in self.source.tensors if name not in used)

    def check(self, part: str) -> None:
        """Whether a part can be loaded, by headers alone. Raises CheckpointError saying what is wrong."""
        source, found = self._piece(part)
        self._check_known()
        self._check_fits(part)
        family = f"{FAMILY_NAMES[self.detection.family]} " if self.detection.family else ""
        hint = f" (the file was taken for {self.detection.summary}: {self.detection.evidence[0]})"
        check_part(
            found,
            source.tensors,
            f"{quoted(source.path.name)}: {family}{PART_NAMES.get(part, part)}",
            hint if self.detection.evidence else "",
        )

    def _check_known(self) -> None:
        unknown = self.leftovers[1]
        if unknown and not self._allow_unknown:
            raise CheckpointError(
                f"{quoted(self.name)} was taken for {self.detection.summary}, but "
                f"{len(unknown)} tensors are not of it: {listed(unknown)}; it may be of another architecture "
                "(allow_unknown loads it anyway)"
            )

    def _check_fits(self, part: str) -> None:
        """Text encoders must be as wide as the UNet's attention to text."""
        if self.config is None or not part.startswith("text_encoder"):
            return
        widths = [use.config.width for use in self.config.text]
        if (
            all(use.part in self._pieces for use in self.config.text)
            and sum(widths) != self.config.unet.context_dim
        ):
            raise CheckpointError(
                f"{quoted(self.name)}: text encoders of width {' + '.join(map(str, widths))}, but the UNet "
                f"attends to text of width {self.config.unet.context_dim}; take the encoder of its family"
            )

    def swap(self, part: str, other: Checkpoint) -> Checkpoint:
        """This checkpoint with `part` taken from another: a VAE, a text encoder, a TAESD.

        The scale of the latents stays the UNet's, and text is used as this family uses it. Raises
        CheckpointError if the other lacks the part or it does not fit.
        """
        if self.config is None:
            raise CheckpointError(
                f"{quoted(self.name)} is {self.detection.summary}; parts are swapped into a file with a UNet"
            )
        source, piece, config = taken(part, self.config, self.name, other)
        pieces = {**self._pieces, part: (source, piece)}
        swapped = Checkpoint(self.source, self.detection, config, pieces, self._allow_unknown)
        swapped._check_fits(part)
        return swapped

    def report(self, *, ema: bool | None = None) -> LoadReport:
        """What loading finds; reads headers only and raises nothing for a file that opened."""
        return report_of(self, ema)

    def close(self) -> None:
        """Gives the files back, those of swapped parts too."""
        for source in {id(s): s for s, _ in self._pieces.values()}.values():
            source.close()
        self.source.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""Where an executor's weights come from: the file, tensor by tensor, or copies kept in the host's memory."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from minisd.errors import CheckpointError, CheckpointWarning, listed, quoted
from minisd.quantise.schemes import Form, form_of
from minisd.quantise.sensitive import Layers, names_of
from minisd.weights_loader.checkpoint import Checkpoint


class FileWeights:
    """Tensors of one part of a checkpoint, in the planned dtype, on the planned device. The first reading of
    a tensor checks that its values are finite, and warns of matrices that hold one value only."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        part: str,
        *,
        dtype: torch.dtype,
        device: torch.device,
        ema: bool | None,
        channels_last: bool,
        kept: bool,
        layers: Layers = (),
    ) -> None:
        """kept: hold a copy in the host's memory (pinned for CUDA) after the first reading. layers: those
        whose weights are stored in few bits."""
        checkpoint.check(part)
        self._checkpoint, self._part, self._ema = checkpoint, part, ema
        self._dtype, self._device, self._last = dtype, device, channels_last
        self._rules = {rule.ours: rule for rule in checkpoint.part(part).rules}
        self._schemes = names_of(layers)
        self._stored = {  # tensor of a stored weight: (the weight, which of its tensors)
            f"{weight.removesuffix('weight')}{part}": (weight, part)
            for weight, scheme in self._schemes.items()
            for part in form_of(scheme, self._rules[weight].shape)
        }
        self._seen: set[str] = set()
        self._kept: dict[str, Tensor] | None = {} if kept else None

    def check_names(self, names: set[str]) -> None:
        """Raises CheckpointError unless the file's parameters are exactly these."""
        there = (self._rules.keys() - self._schemes.keys()) | self._stored.keys()
        if names != there:
            raise CheckpointError(
                f"the {self._part} has {len(names)} parameters, its file {len(there)}; "
                "the file is of another architecture"
            )

    def fresh(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """New tensors of these names on the device."""
        kept = self._kept
        if kept is None:
            return self._read(names, self._device)
        missing = tuple(n for n in names if n not in kept)
        for name, tensor in self._read(missing, torch.device("cpu")).items():
            kept[name] = tensor.pin_memory() if self._device.type == "cuda" else tensor
        out = {n: kept[n].to(self._device, non_blocking=True) for n in names}
        if self._device.type == "cuda":  # another thread may have asked: what it gives must have arrived
            torch.cuda.current_stream(self._device).synchronize()
        return out

    def _read(self, names: tuple[str, ...], device: torch.device) -> dict[str, Tensor]:
        """Each goes to the device before the next is read. One after the other: a second reader's thread has
        an arena of its own, in which a tenth of the memory lies waste (glibc)."""
        known = self._seen.issuperset(names)
        reader = self._checkpoint.reader(self._part, dtype=self._dtype, ema=self._ema, allow_nonfinite=known)
        tensors, forms = {}, dict[str, Form]()
        for name in names:
            if name in self._stored:
                weight, part = self._stored[name]
                if weight not in forms:
                    forms[weight] = reader.quantised(self._rules[weight], self._schemes[weight])
                tensor = forms[weight][part]
            else:
                tensor = reader.read(self._rules[name])
            if self._last and tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            tensors[name] = tensor.to(device)
        self._seen.update(names)
        if reader.constant:
            warnings.warn(
                f"{quoted(self._checkpoint.source_of(self._part).path.name)}: {len(reader.constant)} of "
                f"{len(names)} tensors of the {self._part} hold one value only "
                f"({listed(reader.constant, 3)}); the file may be damaged",
                CheckpointWarning,
                stacklevel=2,
            )
        return tensors

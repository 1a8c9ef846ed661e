"""One network of a checkpoint: where its tensors lie, whether they are all there, and reading them, one at a
time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minisd.config import (
    ControlNetConfig,
    IPAdapterConfig,
    LLLiteConfig,
    T2IAdapterConfig,
    TAESDConfig,
    TextConfig,
    UNetConfig,
    UpscalerConfig,
    VAEConfig,
    VisionConfig,
)
from minisd.errors import CheckpointError, listed, quoted
from minisd.quantise.schemes import SCHEMES, Form, form_of, quantise
from minisd.weights_loader.quantised import FP8, QuantisedInfo, StoredSource
from minisd.weights_loader.rule import Rule, expected_theirs
from minisd.weights_loader.source import TensorInfo, Tensors, TensorSource

ModelPart = UNetConfig | VAEConfig | TextConfig | TAESDConfig
Control = ControlNetConfig | T2IAdapterConfig | LLLiteConfig | IPAdapterConfig | VisionConfig
Config = ModelPart | Control | UpscalerConfig


@dataclass(frozen=True)
class Contents:
    """What a group of tensors amounts to: count, bytes, and tensors per dtype ("float16": 686)."""

    tensors: int
    nbytes: int
    dtypes: Mapping[str, int]


def contents(infos: Iterable[TensorInfo]) -> Contents:
    infos = list(infos)
    dtypes = Counter(str(t.dtype).removeprefix("torch.") for t in infos)
    return Contents(len(infos), sum(t.nbytes for t in infos), dict(dtypes.most_common()))


@dataclass(frozen=True)
class Part:
    """A network in a file. `rules` read its tensors, whose names in the file start with `prefix`."""

    name: str  # "unet", "vae", "text_encoder", "text_encoder_2", "taesd"
    prefix: str
    layout: str
    config: Config
    rules: tuple[Rule, ...] = field(repr=False)
    contents: Contents

    def names(self, tensors: Tensors) -> set[str]:
        """The file's tensors that this part reads."""
        return {self.prefix + r.theirs for r in self.rules} & tensors.keys()


def make_part(
    name: str, prefix: str, layout: str, config: Config, rules: tuple[Rule, ...], tensors: Tensors
) -> Part:
    found = {r.theirs for r in rules}
    infos = [tensors[prefix + n] for n in found if prefix + n in tensors]
    return Part(name, prefix, layout, config, rules, contents(infos))


def check_part(part: Part, tensors: Tensors, what: str, hint: str = "") -> None:
    """Every parameter there, in the right shape and of a dtype that can be read. Headers only.

    `what` opens the message ("SD1.x UNet"), `hint` ends it. Raises CheckpointError naming the first ten and
    the count.
    """
    wanted = expected_theirs(part.rules)
    missing = [part.prefix + n for n in wanted if part.prefix + n not in tensors]
    if missing:
        raise CheckpointError(
            f"{what}: {len(missing)} of {len(wanted)} tensors missing: {listed(missing)}{hint}; "
            "the file is incomplete or of another architecture"
        )
    wrong, quantised = [], []
    for rule in part.rules:
        info = tensors[part.prefix + rule.theirs]
        if not rule.accepts(info.shape, wanted[rule.theirs]):
            wrong.append(f"{quoted(info.name)} is {list(info.shape)}; needs {list(wanted[rule.theirs])}")
        if not info.dtype.is_floating_point and not isinstance(info, QuantisedInfo):
            quantised.append(info.name)
        if info.name.removesuffix("weight") + "comfy_quant" in tensors:
            quantised.append(info.name)
    if wrong:
        more = f" ... ({len(wrong)} in all)" if len(wrong) > 10 else ""
        raise CheckpointError(f"{what}: wrong shapes: {'; '.join(wrong[:10])}{more}{hint}")
    if quantised:
        raise CheckpointError(
            f"{what}: quantised weights that minisd does not read: {listed(quantised)}; "
            "use a file in float32, float16, bfloat16, fp8, or one that `minisd quantize` wrote"
        )


class PartReader:
    """Reads the parameters of a part; one tensor of the file is held, so rows of a stacked one are read once.

    dtype: of the result; None keeps the file's, and float32 for quantised weights, whose values no 8-bit type
    holds.
    allow_nonfinite: accept NaN and infinity, which are a CheckpointError otherwise.
    renamed: {name in the file by the rules: name to read instead}, for EMA copies.
    constant: names of the matrices read so far that hold one value only; training leaves none such.
    """

    def __init__(
        self,
        source: TensorSource,
        part: Part,
        *,
        dtype: torch.dtype | None = None,
        allow_nonfinite: bool = False,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        self._source, self._part, self._dtype = source, part, dtype
        self._allow_nonfinite = allow_nonfinite
        self._renamed = renamed or {}
        self._held: tuple[str, Tensor] | None = None
        self._held_form: tuple[str, str, Form] | None = None
        self.constant: list[str] = []

    def _name(self, rule: Rule) -> str:
        name = self._part.prefix + rule.theirs
        return self._renamed.get(name, name)

    def dtype_of(self, rule: Rule) -> torch.dtype:
        """Of the parameter when it is read."""
        name = self._name(rule)
        info = self._source.tensors[name]
        return self._dtype or (torch.float32 if isinstance(info, QuantisedInfo) else info.dtype)

    def read(self, rule: Rule) -> Tensor:
        """The parameter, in our shape. Raises CheckpointError for a value that is not finite, unless
        allowed."""
        name = self._name(rule)
        if self._held is None or self._held[0] != name:
            self._held = None
            tensor = self._source.read(name, dtype=self._dtype)
            if not self._allow_nonfinite:
                low, high = check_finite(tensor, name, self._source.tensors[name].dtype)
                if low == high and tensor.ndim > 1 and tensor.numel() > 1:
                    self.constant.append(name)
            self._held = (name, tensor)
        return rule.ours_from(self._held[1])

    def scheme_of(self, rule: Rule) -> str | None:
        """The scheme by which the file stores this parameter; None if it is wide. fp8 without scale counts as
        scaled by 1."""
        info = self._source.tensors[self._name(rule)]
        if isinstance(info, QuantisedInfo):
            return info.scheme
        return f"{FP8[info.dtype]}_tensor" if info.dtype in FP8 else None

    def quantised(self, rule: Rule, scheme: str) -> Form:
        """The parameter in the stored form of a scheme: as it lies in the file where that has this form, else
        made from the file's values. Raises CheckpointError for a value that is not finite, unless allowed."""
        name = self._name(rule)
        if self._held_form is None or self._held_form[:2] != (name, scheme):
            self._held_form = None
            self._held_form = name, scheme, self._form(name, self.scheme_of(rule), scheme)
        form = self._held_form[2]
        if rule.op != "rows":
            shapes = form_of(scheme, rule.shape)
            return {part: tensor.reshape(shapes[part][1]) for part, tensor in form.items()}
        rows = slice(rule.start, rule.start + rule.shape[0])
        return {part: t[rows].clone() if t.ndim else t for part, t in form.items()}

    def _form(self, name: str, stored: str | None, wanted: str) -> Form:
        source, info = self._source, self._source.tensors[name]
        have = "" if stored is None else SCHEMES[stored].form
        if stored is not None and have in (SCHEMES[wanted].form, f"{SCHEMES[wanted].form}_tensor"):
            if isinstance(source, StoredSource) and isinstance(info, QuantisedInfo):
                form = source.stored(name)
            else:
                form = {"weight": source.read(name), "scale_weight": torch.ones(())}
            if not self._allow_nonfinite and info.dtype in FP8:
                check_finite(form["weight"], name, info.dtype)
            if form["scale_weight"].ndim == 0 and not SCHEMES[wanted].whole:
                form["scale_weight"] = form["scale_weight"].expand(info.shape[0]).clone()
            return form
        dense = source.read(name)
        if not self._allow_nonfinite:
            check_finite(dense, name, info.dtype)
        form = quantise(dense, wanted)
        if not all(bool(torch.isfinite(t).all()) for t in form.values() if t.dtype.itemsize > 1):
            raise CheckpointError(f"{quoted(name)} is too large for {wanted}, whose scales are float16")
        return form


def check_finite(tensor: Tensor, name: str, stored: torch.dtype) -> tuple[float, float]:
    """The smallest and the largest value. Refuses NaN and infinity, saying where the first one is and whether
    conversion made it."""
    values = tensor.to(torch.float16) if tensor.dtype in FP8 else tensor
    if values.numel() == 0:
        return 0.0, 0.0
    low, high = (v.item() for v in torch.aminmax(values))
    if math.isfinite(low) and math.isfinite(high):
        return low, high  # NaN wins in aminmax; 15 times faster than asking every value
    bad = (~torch.isfinite(values)).nonzero()
    why = "not finite in the file"
    if tensor.dtype != stored:
        why = f"not finite as {str(tensor.dtype)[6:]} (stored as {str(stored)[6:]})"
    raise CheckpointError(
        f"{len(bad):,} values in {quoted(name)} are {why}, first at {bad[0].tolist()}; "
        "the file is damaged or needs another dtype (allow_nonfinite reads it anyway)"
    )

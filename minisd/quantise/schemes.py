"""Ways to store a weight in 8 or 4 bits, and back: pure functions over [outputs, ...].

A stored weight is a few tensors: "weight" holds the codes, "scale_weight" what they are multiplied by, and
"low_weight" what is added. One scale for each output (rows of the weight), for the whole, or for each group
of 64 inputs of an output. nf4: Dettmers et al. 2023 (arXiv:2305.14314), without its quantised scales.
Everything is computed in float32, a few rows at a time, so that beside the two weights nothing large is held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 64  # inputs that share a scale in 4 bits
CHUNK = 2**20  # numbers at a time
Form = dict[str, Tensor]
Shape = tuple[int, ...]

# quantiles of the unit normal, scaled to -1 .. 1, with an exact 0 (appendix E of the paper)
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclass(frozen=True)
class Scheme:
    """form: how weights are stored; two schemes may compute differently with the same form. what: of it in a
    few words. codes: dtype of "weight"."""

    name: str
    form: str
    codes: torch.dtype
    what: str

    @property
    def packed(self) -> bool:
        """Whether two codes share a byte, in groups."""
        return self.codes == torch.uint8

    @property
    def whole(self) -> bool:
        """Whether one scale serves the whole weight."""
        return self.form.endswith("_tensor")


E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
SCHEMES: dict[str, Scheme] = {
    s.name: s
    for s in (
        Scheme("e4m3", "e4m3", E4M3, "8-bit floats, a scale for each output"),
        Scheme("e4m3_tensor", "e4m3_tensor", E4M3, "8-bit floats, one scale for each weight"),
        Scheme("e5m2", "e5m2", E5M2, "8-bit floats of wide range, a scale for each output"),
        Scheme("e5m2_tensor", "e5m2_tensor", E5M2, "8-bit floats of wide range, one scale for each weight"),
        Scheme("int8", "int8", torch.int8, "8-bit integers, a scale for each output"),
        Scheme("w8a8", "int8", torch.int8, "the same, and what they are multiplied with as well"),
        Scheme("int4", "int4", torch.uint8, "4-bit integers, scale and lowest value for each 64 inputs"),
        Scheme("nf4", "nf4", torch.uint8, "16 normal quantiles, a scale for each 64 inputs"),
    )
}


def form_of(scheme: str, shape: Shape) -> dict[str, tuple[torch.dtype, Shape]]:
    """{name of a stored tensor: its dtype and shape} of a weight of this shape."""
    s, outputs = SCHEMES[scheme], shape[0]
    if s.packed:
        groups = -(-math.prod(shape[1:]) // GROUP)
        form = {
            "weight": (s.codes, (outputs, groups * GROUP // 2)),
            "scale_weight": (torch.float16, (outputs, groups)),
        }
        return form | ({"low_weight": (torch.float16, (outputs, groups))} if s.form == "int4" else {})
    return {"weight": (s.codes, shape), "scale_weight": (torch.float32, () if s.whole else (outputs,))}


def stored_bytes(scheme: str, shape: Shape) -> int:
    """Bytes of a weight of this shape, stored."""
    return sum(math.prod(s) * dtype.itemsize for dtype, s in form_of(scheme, shape).values())


def rows_at_once(outputs: int, inputs: int) -> Iterator[slice]:
    step = max(1, CHUNK // max(1, inputs))
    return (slice(at, at + step) for at in range(0, outputs, step))


def quantise(weight: Tensor, scheme: str) -> Form:
    """The stored form of a weight [outputs, ...] of finite numbers."""
    s, shape = SCHEMES[scheme], tuple(weight.shape)
    rows = weight.reshape(shape[0], -1)
    form = {n: weight.new_empty(size, dtype=t) for n, (t, size) in form_of(scheme, shape).items()}
    most = 127.0 if s.form == "int8" else None if s.packed else torch.finfo(s.codes).max
    largest = rows.abs().amax().float() if s.whole else None
    flat = form["weight"].flatten(1)
    for part in rows_at_once(*rows.shape):
        wide = rows[part].float()
        if s.packed:
            quantise_groups(wide, form, part)
            continue
        assert most is not None
        top = wide.abs().amax(dim=1) if largest is None else largest.expand(len(wide))
        scale = torch.where(top > 0, top / most, 1.0)
        codes = (wide / scale[:, None]).clamp(-most, most)
        flat[part] = (codes.round() if s.codes == torch.int8 else codes).to(s.codes)
        if largest is None:
            form["scale_weight"][part] = scale
    if largest is not None:
        form["scale_weight"].copy_(torch.where(largest > 0, largest / (most or 1.0), 1.0))
    return form


def quantise_groups(wide: Tensor, form: Form, part: slice) -> None:
    """Rows in 4 bits into their place. Codes are chosen for the scales as they are stored, in float16."""
    padded = F.pad(wide, (0, -wide.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    if "low_weight" in form:
        low = padded.amin(-1).half()
        scale = ((padded.amax(-1) - low.float()) / 15).half()
        step = torch.where(scale > 0, scale.float(), 1.0)
        codes = ((padded - low.float()[..., None]) / step[..., None]).round().clamp(0, 15)
        form["low_weight"][part] = low
    else:
        scale = padded.abs().amax(-1).half()
        unit = padded / torch.where(scale > 0, scale.float(), 1.0)[..., None]
        table = torch.tensor(NF4, device=wide.device)
        codes = torch.bucketize(unit, (table[1:] + table[:-1]) / 2)
    form["scale_weight"][part] = scale
    first, second = codes.flatten(1).to(torch.uint8).unflatten(1, (-1, 2)).unbind(-1)
    form["weight"][part] = first | second << 4


def dequantise(form: Mapping[str, Tensor], scheme: str, shape: Shape, dtype: torch.dtype) -> Tensor:
    """The weight [outputs, ...] that the stored form stands for, in this dtype."""
    s, codes, scale = SCHEMES[scheme], form["weight"], form["scale_weight"]
    outputs, inputs = shape[0], math.prod(shape[1:])
    out = torch.empty((outputs, inputs), dtype=dtype, device=codes.device)
    flat = codes.reshape(outputs, -1)
    exact = torch.promote_types(dtype, torch.float32)
    pairs = pairs_of(s.form, codes.device) if s.packed else None
    for part in rows_at_once(outputs, inputs):
        if pairs is None:
            by = scale if s.whole else scale[part, None]
            out[part] = flat[part].to(exact) * by.to(exact)
            continue
        values = F.embedding(flat[part].int(), pairs).flatten(1).unflatten(1, (-1, GROUP)).to(exact)
        values = values * scale[part, :, None].to(exact)
        if "low_weight" in form:
            values = values + form["low_weight"][part, :, None].to(exact)
        out[part] = values.flatten(1)[:, :inputs]
    return out.view(shape)


def pairs_of(form: str, device: torch.device) -> Tensor:
    """[256, 2]: what the two codes in a byte stand for."""
    both = torch.arange(256, device=device)
    codes = torch.stack([both & 15, both >> 4], dim=1)
    return torch.tensor(NF4, device=device)[codes] if form == "nf4" else codes.float()

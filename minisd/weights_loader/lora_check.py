"""Whether the factors that a file has for one module are one kind of adapter and fit the module's weight.

Shapes alone, before a tensor is read: the change is computed on the meta device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from minisd.errors import CheckpointError, listed, quoted
from minisd.weights_loader.lora_kinds import BIASES, KINDS, Change, Kind
from minisd.weights_loader.lora_names import Target
from minisd.weights_loader.source import TensorInfo

Group = dict[str, TensorInfo]  # {factor: tensor}


def check(where: str, name: str, target: Target, group: Group) -> Kind | None:
    """The kind that these factors are, once they fit the module; None for a change of the bias alone."""
    own = {f for f in group if f not in ("alpha", "dora_scale", *BIASES)}
    here = f"{where}: {quoted(name)}"
    if not own and any(b in group for b in BIASES) and "alpha" not in group:
        check_bias(here, target, group)
        return None
    marked = [
        k for k in KINDS if any(f.startswith(k.mark) if k.mark.endswith("_") else f == k.mark for f in own)
    ]
    halves = {"lora_down": "lora_up", "lora_up": "lora_down"}
    for half, other in halves.items():
        if half in own and other not in own:
            raise CheckpointError(f"{here} has {half} without {other}; the file is incomplete")
    if len(marked) != 1 or not own <= marked[0].factors:
        mixed = (
            "mixes kinds: its factors are" if marked else "is of no kind that minisd knows: its factors are"
        )
        raise CheckpointError(f"{here} {mixed} {listed(sorted(group))}")
    [kind] = marked
    shapes = {f: group[f].shape for f in own}
    if "dora_scale" in group and kind.name not in ("lora", "loha", "lokr", "glora"):
        raise CheckpointError(f"{here}: dora_scale does not go with {kind.name}; refusing")
    if kind.name == "lora":
        check_ranks(here, shapes)
    check_dense(here, kind, target, group, shapes)
    check_bias(here, target, group)
    return kind


def check_ranks(here: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    down, up = shapes["lora_down"], shapes["lora_up"]
    if not 2 <= len(down) <= 4 or not 2 <= len(up) <= 4 or 0 in down + up:
        raise CheckpointError(f"{here}: down is {list(down)}, up is {list(up)}; expected two matrices")
    if down[0] != up[1]:
        raise CheckpointError(
            f"{here}: down is {list(down)}, up is {list(up)}; ranks {down[0]} and {up[1]} differ"
        )


def check_dense(
    here: str, kind: Kind, target: Target, group: Group, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Computes the change on the meta device, where shapes are all there is."""
    told = ", ".join(f"{f} {list(s)}" for f, s in shapes.items())
    wrong = CheckpointError(
        f"{here}: {told} make no change of {target}, whose weight is {list(target.shape)}; "
        "is the adapter of this family?"
    )
    on_input = 1 if "on_input" in shapes and math.prod(shapes["on_input"]) == 1 else 0
    if kind.name == "ia3":  # reads a value: its vector is as long as one axis
        if on_input and math.prod(shapes["weight"]) in target.shape[:2]:
            return
        raise wrong
    if kind.name in ("full", "norm"):
        wanted = target.shape
        got = shapes[kind.mark]
        if got[:2] != wanted[:2] or math.prod(got) != math.prod(wanted):
            raise wrong
        return
    blocks = shapes.get("oft_blocks")
    if blocks is not None and (
        len(blocks) not in (3, 4) or blocks[-1] != blocks[-2] or math.prod(blocks[-3:-1]) != target.shape[0]
    ):
        raise wrong
    with torch.device("meta"):
        factors = {f: torch.empty(s) for f, s in shapes.items()}
        weight = torch.empty(target.shape)
        dora = None
        if "dora_scale" in group:
            dora = torch.empty(magnitude_shape(here, group["dora_scale"].shape, target))
    try:
        made = Change(kind.name, factors, 1.0, dora).dense(weight)
    except (RuntimeError, IndexError, KeyError) as error:  # what torch says of shapes that do not fit
        raise wrong from error
    if made.shape != weight.shape:
        raise wrong


def magnitude_shape(here: str, shape: tuple[int, ...], target: Target) -> tuple[int, ...]:
    """Of DoRA's magnitudes with as many axes as the weight: one long axis, that of outputs or of inputs."""
    rank = len(target.shape)
    if len(shape) == 1:
        shape = (*shape, *[1] * (rank - 1))  # PEFT
    if len(shape) == 2 and rank == 4:
        shape = (*shape, 1, 1)
    allowed = [tuple(n if d == axis else 1 for d in range(rank)) for axis, n in enumerate(target.shape[:2])]
    if shape not in allowed:
        raise CheckpointError(
            f"{here}: dora_scale is {list(shape)}; for a weight {list(target.shape)} it must be "
            f"{list(allowed[0])} or {list(allowed[-1])}"
        )
    return shape


def check_bias(here: str, target: Target, group: Group) -> None:
    given = [b for b in BIASES if b in group]
    if not given:
        return
    if len(given) > 1 or not target.bias or group[given[0]].shape != target.shape[:1]:
        raise CheckpointError(
            f"{here}: {listed(given)} {list(group[given[0]].shape)} is no change of the bias of {target}, "
            f"which {'is ' + str([target.shape[0]]) if target.bias else 'has none'}"
        )

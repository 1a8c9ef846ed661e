"""ControlNet-LLLite files: which projections of a UNet their modules stand before, and of what sizes.

Names are `lllite_unet_` and the module's path with underscores, in sgm's or in diffusers' blocks; they are
looked up in a table made from the UNet at hand, never taken apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from minisd.config import LLLiteConfig, UNetConfig
from minisd.errors import CheckpointError, listed, quoted
from minisd.weights_loader.keymap import linear, unet_rules
from minisd.weights_loader.lora_names import flat, modules
from minisd.weights_loader.rule import Rule

Shapes = Mapping[str, tuple[int, ...]]
PREFIX = "lllite_unet_"
READERS = (
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn2.to_q",
)  # they read tokens of the picture
STRIDES = {(4, 2), (4, 4), (4, 4, 2)}  # of the convolutions, at the UNet's three levels


def derive_lllite(shapes: Shapes, unet: UNetConfig) -> LLLiteConfig:
    """Raises CheckpointError for a file that is not for this UNet, or of another build."""
    table: dict[str, tuple[str, int]] = {}
    for target, diffusers in modules(unet_rules(unet), "unet"):
        if target.module.endswith(READERS):
            for path in (target.module, diffusers):
                table[PREFIX + flat(path)] = (target.module, target.shape[1])
    names = list(dict.fromkeys(n.split(".")[0] for n in shapes))
    unknown = [n for n in names if n not in table]
    if unknown:
        raise CheckpointError(
            f"ControlNet-LLLite: {len(unknown)} of {len(names)} modules are not before projections of this "
            f"model: {listed(unknown, 3)}; take the file made for its family"
        )
    places = []
    for name in names:
        strides = tuple(strides_of(shapes, name))
        if strides not in STRIDES:
            raise CheckpointError(
                f"ControlNet-LLLite: {quoted(name)} reads the picture with strides {list(strides)}; "
                "expected 4 2, 4 4 or 4 4 2"
            )
        module, width = table[name]
        places.append((name, module, width, strides))
    first = names[0]
    down, mid = shapes.get(f"{first}.down.0.weight", ()), shapes.get(f"{first}.mid.0.weight", ())
    if len(down) != 2 or len(mid) != 2 or mid[1] <= down[0]:
        raise CheckpointError(
            f"ControlNet-LLLite: {quoted(first)} has down {list(down)} and mid {list(mid)}; "
            "expected matrices [inner, width] and [inner, inner + hint]"
        )
    return LLLiteConfig(tuple(places), hint_dim=mid[1] - down[0], inner=down[0])


def strides_of(shapes: Shapes, name: str) -> Iterator[int]:
    """Sizes of the kernels, which are the strides."""
    for n in range(0, 6, 2):
        shape = shapes.get(f"{name}.conditioning1.{n}.weight", ())
        if len(shape) == 4:
            yield shape[2]


def lllite_rules(config: LLLiteConfig) -> Iterator[Rule]:
    hint, inner = config.hint_dim, config.inner
    for name, _, width, strides in config.places:
        widths = (3, *[hint // 2] * (len(strides) - 1), hint)
        for n, (a, b, k) in enumerate(zip(widths, widths[1:], strides, strict=False)):
            path = f"{name}.conditioning1.{2 * n}"
            yield Rule(f"{path}.weight", (b, a, k, k), f"{path}.weight")
            yield Rule(f"{path}.bias", (b,), f"{path}.bias")
        for part, a, b in (("down", width, inner), ("mid", inner + hint, inner), ("up", inner, width)):
            yield from linear(f"{name}.{part}.0", f"{name}.{part}.0", a, b)

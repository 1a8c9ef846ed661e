"""Parameter names of upscalers; ours are BasicSR's. RRDBNet is spelled in three ways.

"old" is ESRGAN's of 2018, whose layers are numbered; "trunk" is BSRGAN's; "new" is Real-ESRGAN's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from minisd.config import CompactConfig, RRDBNetConfig
from minisd.errors import CheckpointError
from minisd.weights_loader.derive import Outline
from minisd.weights_loader.keymap import Rules, conv
from minisd.weights_loader.rule import Rule

Spelling = Literal["new", "trunk", "old", "compact"]
Shapes = Mapping[str, tuple[int, ...]]
MARKS: dict[Spelling, str] = {
    "new": "body.0.rdb1.conv1.weight",
    "trunk": "RRDB_trunk.0.RDB1.conv1.weight",
    "old": "model.1.sub.0.RDB1.conv1.0.weight",
    "compact": "body.1.weight",  # of PReLU
}
UNSHUFFLES = {3: (3, 1), 12: (3, 2), 48: (3, 4), 1: (1, 1), 4: (1, 2), 16: (1, 4)}
MAX_UPS = 4


def rrdbnet_rules(config: RRDBNetConfig, spelling: Spelling) -> Rules:
    return tuple(_rrdbnet(config, spelling))


def _rrdbnet(config: RRDBNetConfig, spelling: Spelling) -> Iterator[Rule]:
    w, g, names = config.width, config.growth, outer_names(config, spelling)
    yield from conv("conv_first", names["conv_first"], config.channels * config.unshuffle**2, w)
    for block in range(config.blocks):
        for dense in (1, 2, 3):
            for n in range(1, 6):
                ours = f"body.{block}.rdb{dense}.conv{n}"
                theirs = {
                    "new": ours,
                    "trunk": f"RRDB_trunk.{block}.RDB{dense}.conv{n}",
                    "old": f"model.1.sub.{block}.RDB{dense}.conv{n}.0",
                }[spelling]
                yield from conv(ours, theirs, w + (n - 1) * g, g if n < 5 else w)
    yield from conv("conv_body", names["conv_body"], w, w)
    for n in range(1, config.ups + 1):
        yield from conv(f"conv_up{n}", names[f"conv_up{n}"], w, w)
    yield from conv("conv_hr", names["conv_hr"], w, w)
    yield from conv("conv_last", names["conv_last"], w, config.channels)


def outer_names(config: RRDBNetConfig, spelling: Spelling) -> dict[str, str]:
    """{ours: theirs} of what is outside of the dense blocks."""
    ups = [f"conv_up{n}" for n in range(1, config.ups + 1)]
    ours = ["conv_first", "conv_body", *ups, "conv_hr", "conv_last"]
    if spelling == "new":
        return {n: n for n in ours}
    if spelling == "trunk":
        up = {n: n.replace("conv_up", "upconv") for n in ups}
        return {
            "conv_first": "conv_first",
            "conv_body": "trunk_conv",
            **up,
            "conv_hr": "HRconv",
            "conv_last": "conv_last",
        }
    # numbered: first, blocks, then enlarging, convolution and activation for each doubling
    up = {n: f"model.{3 * (i + 1)}" for i, n in enumerate(ups)}
    end = 3 * config.ups + 2
    body = f"model.1.sub.{config.blocks}"
    rest = {"conv_hr": f"model.{end}", "conv_last": f"model.{end + 2}"}
    return {"conv_first": "model.0", "conv_body": body, **up, **rest}


def compact_rules(config: CompactConfig) -> Rules:
    return tuple(_compact(config))


def _compact(config: CompactConfig) -> Iterator[Rule]:
    w, last = config.width, config.convs - 1
    for n in range(last):
        yield from conv(f"body.{2 * n}", f"body.{2 * n}", w if n else config.channels, w)
        yield Rule(f"body.{2 * n + 1}.weight", (w,), f"body.{2 * n + 1}.weight")
    yield from conv(f"body.{2 * last}", f"body.{2 * last}", w, config.channels * config.scale**2)


def derive_rrdbnet(shapes: Shapes, spelling: Spelling) -> RRDBNetConfig:
    """From names without prefix. Raises CheckpointError for sizes that no such network has."""
    outline = Outline(shapes, "RRDBNet")
    first = "model.0.weight" if spelling == "old" else "conv_first.weight"
    width, inputs = outline.size(first, 0), outline.size(first, 1)
    growth = outline.size(MARKS[spelling], 0)
    if spelling == "old":
        blocks = outline.count("model.1.sub") - 1  # the last is a convolution
        ups = 0
        # 3, 6, ... are convolutions after an enlarging; the two behind them are not a multiple of three apart
        while ups < MAX_UPS and f"model.{3 * (ups + 1)}.weight" in shapes:
            ups += 1
        last = f"model.{3 * ups + 4}.weight"
    else:
        blocks = outline.count("body" if spelling == "new" else "RRDB_trunk")
        up = "conv_up" if spelling == "new" else "upconv"
        ups = sum(f"{up}{n}.weight" in shapes for n in range(1, MAX_UPS + 1))
        last = "conv_last.weight"
    channels = outline.size(last, 0)
    known = UNSHUFFLES.get(inputs)
    if known is None or known[0] != channels or 2**ups < known[1] or (ups != 2 and known[1] > 1):
        raise CheckpointError(
            f"RRDBNet: {inputs} input channels, {channels} output channels and {ups} doublings; no such "
            "network is known"
        )
    return RRDBNetConfig(channels, width, blocks, growth, ups, known[1])


def derive_compact(shapes: Shapes) -> CompactConfig:
    outline = Outline(shapes, "SRVGGNetCompact")
    width, channels = outline.size("body.0.weight", 0), outline.size("body.0.weight", 1)
    layers = outline.count("body")
    out = outline.size(f"body.{layers - 1}.weight", 0)
    scale = round((out / max(channels, 1)) ** 0.5)
    if channels < 1 or scale < 1 or channels * scale**2 != out or layers % 2 == 0:
        raise CheckpointError(
            f"SRVGGNetCompact: {layers} layers from {channels} to {out} channels are no whole enlargement"
        )
    return CompactConfig(channels, width, (layers + 1) // 2, scale)

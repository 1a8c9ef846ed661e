"""TAESD in files: its config, its names in each naming, and the part that lies there.

Sources: madebyollin/taesd, diffusers 0.42 (AutoencoderTiny).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from minisd.config import TAESDConfig
from minisd.errors import CheckpointError
from minisd.weights_loader.derive import Outline, Shapes
from minisd.weights_loader.keymap import Rules, conv
from minisd.weights_loader.part import Part, make_part
from minisd.weights_loader.places import Place, below
from minisd.weights_loader.rule import Rule, same_names
from minisd.weights_loader.source import Tensors


def taesd_part(tensors: Tensors, place: Place) -> Part:
    """The TAESD at this place: both halves, or the one that the file holds."""
    shapes = below(tensors, place.prefix)
    halves = [h for h in ("encoder", "decoder") if any(n.startswith(h + ".") for n in shapes)]
    if place.layout in ("encoder-only", "decoder-only"):
        halves = [place.layout.removesuffix("-only")]
        config = derive_taesd({f"{halves[0]}.{n}": s for n, s in shapes.items()})
    elif place.layout == "diffusers":
        config = derive_taesd(_taesd_ours(shapes))
    else:
        config = derive_taesd(shapes)
    rules = taesd_rules(config, encoder="encoder" in halves, decoder="decoder" in halves)
    if place.layout != "diffusers":
        rules = same_names(rules)
    if place.layout.endswith("-only"):
        rules = tuple(replace(r, theirs=r.ours.split(".", 1)[1]) for r in rules)
    return make_part("taesd", place.prefix, place.layout, config, rules, tensors)


def _taesd_ours(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """AutoencoderTiny's names -> ours: only the place of the number differs, and the decoder counts its clamp
    here."""
    ours = {}
    for name, shape in shapes.items():
        half, layers, number, *rest = [*name.split("."), "", ""]
        if layers == "layers" and number.isdecimal():
            index = int(number) + (half == "decoder")
            ours[".".join([half, str(index), *[r for r in rest if r]])] = shape
    return ours


def derive_taesd(shapes: Shapes) -> TAESDConfig:
    """TAESDConfig from our names (`encoder.N...`, `decoder.N...`); one half is enough."""
    outline = Outline(shapes, "TAESD")
    half = "encoder" if "encoder.0.weight" in shapes else "decoder"
    first = 0 if half == "encoder" else 1
    numbers = [int(p) for p in {n.split(".")[1] for n in shapes if n.startswith(f"{half}.")} if p.isdecimal()]
    last = max(numbers, default=first)
    if last > 1000:
        raise CheckpointError(f"TAESD: {half} counts up to {last}; the original has 20 layers")
    runs, run = [], 0  # blocks between plain convolutions
    for n in range(first + 1, last + 1):
        if f"{half}.{n}.conv" in outline:
            run += 1
        elif f"{half}.{n}.weight" in shapes:
            runs.append(run)
            run = 0
    inputs, outputs = outline.size(f"{half}.{first}.weight", 1), outline.size(f"{half}.{last}.weight", 0)
    return TAESDConfig(
        in_channels=inputs if half == "encoder" else outputs,
        latent_channels=outputs if half == "encoder" else inputs,
        width=outline.size(f"{half}.{first}.weight", 0),
        num_blocks=tuple(runs if half == "encoder" else runs[::-1]),
    )


def taesd_rules(config: TAESDConfig, *, encoder: bool = True, decoder: bool = True) -> Rules:
    """TAESD: ours = indices of the original Sequentials below `encoder.` and `decoder.`, theirs = diffusers'
    AutoencoderTiny, whose decoder does not count the clamp at index 0. `encoder` and `decoder` say which
    halves a file holds."""
    halves = [half for half, wanted in (("encoder", encoder), ("decoder", decoder)) if wanted]
    return tuple(rule for half in halves for rule in _taesd(config, half))


def _taesd(config: TAESDConfig, half: str) -> Iterator[Rule]:
    w, encoding = config.width, half == "encoder"
    inputs, outputs = config.in_channels, config.latent_channels
    levels = list(enumerate(config.num_blocks))
    if not encoding:
        inputs, outputs = outputs, inputs
        levels.reverse()

    def at(index: int) -> tuple[str, str]:
        return f"{half}.{index}", f"{half}.layers.{index if encoding else index - 1}"

    n = 0 if encoding else 1  # decoder 0: clamp
    yield from conv(*at(n), inputs, w)
    n += 1 if encoding else 2  # decoder 2: ReLU
    for level, blocks in levels:
        if encoding and level > 0:
            yield from conv(*at(n), w, w, bias=False)  # stride 2
            n += 1
        for _ in range(blocks):
            for k in (0, 2, 4):
                yield from conv(f"{at(n)[0]}.conv.{k}", f"{at(n)[1]}.conv.{k}", w, w)
            n += 1
        if not encoding and level > 0:
            yield from conv(*at(n + 1), w, w, bias=False)  # after the upsampling at n
            n += 2
    yield from conv(*at(n), w, outputs)

"""Two runs compared layer by layer: where they first part, and how the difference grows.

The first run's layer outputs are kept in memory, so this is for few steps: about 100 MB for a pass of SD1.5
at 512 x 512; `steps` says which. Layers of a model that takes over on the way are not listened to. Nothing is
forced: from the second layer on a difference is what the layer makes of the differences it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from minisd.engine import Engine
from minisd.model import Model
from minisd.request import Request
from minisd.samplers.step import Step
from minisd.spot import Reached
from minisd.trail import Trail


@dataclass(frozen=True)
class Place:
    """One layer's output in one pass. call: which pass of that network, from 1. relative: norm of the
    difference over the norm. largest: absolute. step: of the run, from 1; 0 in text encoders."""

    network: str
    call: int
    layer: str
    same: bool
    relative: float
    largest: float
    step: int = 0

    def __str__(self) -> str:
        return f"{self.network} pass {self.call} {self.layer}"


@dataclass(frozen=True)
class Trace:
    """All places in the order of computation."""

    places: tuple[Place, ...]

    @property
    def first(self) -> Place | None:
        """Where the runs part; None where they agree to the bit."""
        return next((p for p in self.places if not p.same), None)

    def growth(self) -> tuple[Place, ...]:
        """The last place of every pass: how the difference grows from step to step."""
        last: dict[tuple[str, int], Place] = {(p.network, p.call): p for p in self.places}
        return tuple(last.values())

    def __str__(self) -> str:
        first = self.first
        if first is None:
            return f"the runs agree to the bit in all {len(self.places)} places"
        at = self.places.index(first)
        lines = [f"the runs part at {first}, place {at + 1} of {len(self.places)}", ""]
        lines.append(f"{'place':<64}{'relative':>10}{'largest':>10}")
        shown = dict.fromkeys([*self.places[max(0, at - 2) : at + 4], *self.growth()])
        lines += [f"{str(p)[:63]:<64}{p.relative:>10.1e}{p.largest:>10.1e}" for p in shown]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        return {"places": [asdict(p) for p in self.places]}


def networks_of(model: Model) -> dict[str, nn.Module]:
    texts = {u.part: t for u, t in zip(model.config.text, model.text_encoders, strict=True)}
    return {**texts, "unet": model.unet, "vae": model.vae}


Hear = Callable[[str, int, str, Tensor], None]  # network, pass, layer, output


@contextmanager
def heard(model: Model, hear: Hear) -> Iterator[None]:
    """Inside: `hear` is told the output of every layer without layers of its own, in order."""
    calls: dict[str, int] = {}
    hooks = []
    for network, module in networks_of(model).items():

        def entered(_: nn.Module, __: object, network: str = network) -> None:
            calls[network] = calls.get(network, 0) + 1

        first = module.decoder if network == "vae" else module
        assert isinstance(first, nn.Module)
        hooks.append(first.register_forward_pre_hook(entered))
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Identity) or any(layer.children()):
                continue

            def left(_: nn.Module, __: object, out: object, network: str = network, name: str = name) -> None:
                last = out[-1] if isinstance(out, tuple) else out
                if isinstance(last, Tensor):
                    hear(network, calls.get(network, 0), name, last)

            hooks.append(layer.register_forward_hook(left))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Until(Trail):
    """A run that ends with Reached after a step."""

    def __init__(self, last: int | None) -> None:
        super().__init__()
        self.last = last

    def step(self, step: Step) -> None:
        super().step(step)
        if self.steps == self.last:
            raise Reached


def run(engine: Engine, request: Request, trail: Trail, refiner: Engine | None) -> None:
    """A run to its end or to the trail's."""
    with suppress(Reached):
        engine.run(request, trail=trail, refiner=refiner)


def trace(
    a: Engine,
    b: Engine,
    request: Request,
    other: Request | None = None,
    *,
    steps: range | None = None,
    refiner: Engine | None = None,
) -> Trace:
    """Draw a request with both engines, whose models have the same layers; or with the second another one.
    Seeds must be set. steps: those whose layers are compared, from 1; a run ends after the last of them. 0 is
    what text encoders compute."""
    kept: dict[tuple[str, int, str], list[Tensor]] = {}
    places: list[Place] = []
    trails = [Until(None if steps is None else max(steps, default=0)) for _ in range(2)]

    def step_of(network: str, trail: Trail) -> int:
        return 0 if network.startswith("text_encoder") else trail.steps + 1

    def keep(network: str, call: int, layer: str, out: Tensor) -> None:
        if steps is None or step_of(network, trails[0]) in steps:
            key = network, call, layer
            kept.setdefault(key, []).append(out.detach().to("cpu", torch.float32, copy=True))

    def compare(network: str, call: int, layer: str, out: Tensor) -> None:
        waiting = kept.get((network, call, layer))
        if not waiting:
            return  # a layer that the first run did not pass through
        before, now = waiting.pop(0), out.detach().to("cpu", torch.float32)
        if before.shape != now.shape:
            return  # prompts together in one run and apart in the other
        away = (now - before).double()
        size, same = float(before.double().norm()) or 1.0, torch.equal(before, now)
        relative, largest = float(away.norm()) / size, float(away.abs().max())
        step = step_of(network, trails[1])
        places.append(Place(network, call, layer, same, relative, largest, step))

    with heard(a.model, keep):
        run(a, request, trails[0], refiner)
    with heard(b.model, compare):
        run(b, other or request, trails[1], refiner)
    return Trace(tuple(places))


WIDTH, HEIGHT, EDGE = 960, 360, 60
LOWEST = 1e-9  # relative differences below are drawn here; equal bits, too


def svg(found: Trace, title: str) -> str:
    """The relative difference at every place, on a logarithmic axis, as an SVG picture."""
    values = [max(p.relative, LOWEST) for p in found.places] or [LOWEST]
    logs = [torch.tensor(v).log10().item() for v in values]
    low, high = -9.0, max(0.0, max(logs))
    across = (WIDTH - 2 * EDGE) / max(1, len(values) - 1)

    def y(log: float) -> float:
        return HEIGHT - EDGE - (log - low) / (high - low) * (HEIGHT - 2 * EDGE)

    points = " ".join(f"{EDGE + i * across:.1f},{y(log):.1f}" for i, log in enumerate(logs))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{EDGE}" y="24" font-size="15">{escaped(title)}</text>',
    ]
    for log in range(int(low), int(high) + 1):
        parts.append(
            f'<path d="M{EDGE} {y(log):.1f}H{WIDTH - EDGE}" stroke="#ddd"/>'
            f'<text x="{EDGE - 8}" y="{y(log) + 4:.1f}" font-size="11" text-anchor="end">1e{log}</text>'
        )
    parts += [
        f'<path d="M{EDGE + i * across:.1f} {EDGE}V{HEIGHT - EDGE}" stroke="#bbb"/>' for i in passes(found)
    ]
    parts.append(f'<polyline points="{points}" fill="none" stroke="#1f5fa8" stroke-width="1.2"/>')
    first = found.first
    if first is not None:
        at = found.places.index(first)
        parts.append(
            f'<circle cx="{EDGE + at * across:.1f}" cy="{y(logs[at]):.1f}" r="4" fill="#c0392b"/>'
            f'<text x="{EDGE}" y="{HEIGHT - 14}" font-size="12" fill="#c0392b">'
            f"part at {escaped(str(first))}</text>"
        )
    return "\n".join([*parts, "</svg>"])


def passes(found: Trace) -> Sequence[int]:
    """Where a pass of a network begins."""
    keys = [(p.network, p.call) for p in found.places]
    return [i for i, key in enumerate(keys) if i and key != keys[i - 1]]


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

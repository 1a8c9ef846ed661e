"""What loading a checkpoint finds, as data and as text: parts, what is left unread and why, what is
unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from minisd.errors import CheckpointError, listed
from minisd.weights_loader.rule import expected_theirs

if TYPE_CHECKING:
    from minisd.weights_loader.checkpoint import Checkpoint


@dataclass(frozen=True)
class PartReport:
    """One network: how many of its tensors the file has, and what they take."""

    part: str
    source: str  # file it comes from
    layout: str
    filled: int
    expected: int
    elements: int
    nbytes: int
    dtypes: Mapping[str, int]
    problem: str | None = None  # why it cannot be loaded

    def __str__(self) -> str:
        dtypes = ", ".join(f"{count} {name}" for name, count in self.dtypes.items())
        text = (
            f"{self.part:<15} {self.filled:>5} of {self.expected:>5} tensors  "
            f"{self.elements / 1e6:>9,.1f} M parameters  {self.nbytes / 1e6:>9,.1f} MB  "
            f"({dtypes}; {self.layout} names)"
        )
        return f"{text}\n  cannot be loaded: {self.problem}" if self.problem else text


@dataclass(frozen=True)
class LoadReport:
    """Of a whole file. `str()` is for people, `to_dict()` for programs."""

    name: str
    container: str
    kind: str
    family: str | None
    variant: str
    summary: str
    prediction: str | None
    zero_terminal_snr: bool
    prediction_sure: bool
    unet_weights: str | None  # plain weights or EMA copy, and why
    evidence: tuple[str, ...]
    parts: tuple[PartReport, ...]
    absent: tuple[str, ...]  # parts the model needs and the file lacks
    refusal: str | None
    unread: Mapping[str, int] = field(default_factory=dict)  # reason: tensors
    unknown: tuple[str, ...] = ()

    @property
    def loadable(self) -> bool:
        """Whether every part in the file can be loaded."""
        return bool(self.parts) and self.refusal is None and not any(p.problem for p in self.parts)

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {**asdict(self), "loadable": self.loadable}

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.summary} ({self.container})"]
        if self.prediction is not None:
            zero = ", zero terminal SNR" if self.zero_terminal_snr else ""
            lines.append(
                f"predicts {self.prediction}{zero}{'' if self.prediction_sure else ' (not certain)'}"
            )
        lines += [f"  because {text}" for text in self.evidence]
        lines += [str(part) for part in self.parts]
        if self.unet_weights is not None:
            lines.append(f"UNet weights: {self.unet_weights}")
        lines += [f"{part:<15} not in the file; supply it from another" for part in self.absent]
        lines += [f"left unread: {count:>5}  {reason}" for reason, count in self.unread.items()]
        if self.unknown:
            lines.append(f"unknown: {listed(self.unknown)}")
        if self.refusal is not None:
            lines.append(self.refusal)
        return "\n".join(lines)


def report_of(checkpoint: Checkpoint, ema: bool | None) -> LoadReport:
    """What loading this checkpoint would find, by its headers."""
    found, config, names = checkpoint.detection, checkpoint.config, checkpoint.parts
    unread, unknown = checkpoint.leftovers
    wanted = [u.part for u in config.text] + ["unet", "vae"] if config else []
    adapter = not names  # then nothing was tried, and nothing is unknown
    return LoadReport(
        name=checkpoint.name,
        container=checkpoint.source.container,
        kind=found.kind,
        family=found.family,
        variant=found.variant,
        summary=found.summary,
        prediction=found.prediction,
        zero_terminal_snr=found.zero_terminal_snr,
        prediction_sure=found.prediction_sure,
        unet_weights=checkpoint.ema_choice(ema)[1] if "unet" in names else None,
        evidence=found.evidence,
        parts=tuple(part_report(checkpoint, name) for name in names),
        absent=tuple(p for p in wanted if p not in names),
        refusal=found.refusal,
        unread={} if adapter else {reason: len(names) for reason, names in unread.items()},
        unknown=() if adapter else tuple(unknown),
    )


def part_report(checkpoint: Checkpoint, name: str) -> PartReport:
    source, part = checkpoint.source_of(name), checkpoint.part(name)
    expected = expected_theirs(part.rules)
    try:
        checkpoint.check(name)
        problem = None
    except CheckpointError as error:
        problem = str(error)
    return PartReport(
        part=name,
        source=source.path.name,
        layout=part.layout,
        filled=sum(part.prefix + theirs in source.tensors for theirs in expected),
        expected=len(expected),
        elements=checkpoint.elements(name),
        nbytes=part.contents.nbytes,
        dtypes=part.contents.dtypes,
        problem=problem,
    )

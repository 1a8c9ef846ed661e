"""Verify: whether a picture is what its record says, by drawing it again.

In this order: the record is whole (seals), the pixels are those of the record, the model's files are those of
the record, and a run from the request passes through the same digests. The first thing that differs is named.
Equal bits are claimed only for the machine and the versions at hand (docs/receipts.md, R1).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image

from minisd.engine import Engine
from minisd.errors import ImageError, MinisdError, quoted
from minisd.hashes import file_sha256
from minisd.metadata import read_file, read_pixels
from minisd.picture import Picture, digest
from minisd.receipt import FORMAT, tampered, versions
from minisd.request import Request
from minisd.trail import Trail

Verdict = Literal["proven", "differs", "cannot"]
CODES: dict[Verdict, int] = {"proven": 0, "differs": 1, "cannot": 2}
LEVEL = "R1: this machine, these versions, this plan, drawn again in this process"


@dataclass(frozen=True)
class Finding:
    """verdict; what: one sentence. first: the first place where a run parts from the record. size: how far
    the pixels are apart, where both are there. other: versions that are not those of the record."""

    verdict: Verdict
    what: str
    level: str = ""
    first: str | None = None
    size: dict[str, float] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    other: dict[str, str] = field(default_factory=dict)

    @property
    def code(self) -> int:
        """Exit code: 0 proven, 1 differs, 2 cannot be checked."""
        return CODES[self.verdict]


def record_of(path: str | os.PathLike[str]) -> dict[str, object]:
    """The record inside a picture file. Raises ImageError where there is none, or it is no record."""
    text = read_file(path).texts.get("minisd")
    if text is None:
        raise ImageError(f"{quoted(path)} carries no record of minisd; there is nothing to check it against")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"the record in {quoted(path)} is damaged: it is not JSON") from error
    if not isinstance(record, dict) or not isinstance(record.get("request"), dict):
        raise ImageError(f"the record in {quoted(path)} holds no request; it was not written by minisd")
    return record


def integrity(path: str | os.PathLike[str], record: Mapping[str, object]) -> Finding | None:
    """What is wrong with file and record by themselves; None if nothing is."""
    own = record.get("receipt")
    if not isinstance(own, Mapping) or own.get("format") != FORMAT:
        return Finding("cannot", "the record holds no receipt of a form that this minisd reads")
    changed = tampered(record)
    if changed:
        what = f"the record was changed after it was made: {', '.join(changed)}"
        return Finding("differs", what, first="record", fields=tuple(changed))
    pixels = read_pixels(path)
    lossless = read_file(path).format == "PNG"
    if digest(pixels) != own.get("pixels") and lossless:
        return Finding(
            "differs", "the pixels are not those of the record: the picture was edited", first="pixels"
        )
    return None


def check_files(engine: Engine, record: Mapping[str, object]) -> Finding | None:
    """Whether the engine's files are those of the record."""
    own = record["receipt"]
    assert isinstance(own, Mapping)
    wanted = [(f["name"], f["sha256"]) for f in own.get("files", ())]
    found = [(p.name, file_sha256(p)) for p in engine.model.files]
    missing = [f"{name} (sha256 {sha[:12]})" for name, sha in wanted if sha not in {s for _, s in found}]
    if missing or len(wanted) != len(found):
        have = ", ".join(f"{n} (sha256 {s[:12]})" for n, s in found)
        what = (
            f"the picture was made with {', '.join(missing) or 'fewer files'}; loaded is {have or 'no file'}"
        )
        return Finding("cannot", what, first="model")
    return None


def replay(
    path: str | os.PathLike[str],
    engine: Engine,
    record: Mapping[str, object],
    pictures: Sequence[str | os.PathLike[str]] = (),
) -> Finding:
    """Draw the record's request again and compare. pictures: files that the request needs, found by
    content."""
    own = record["receipt"]
    request_data = record["request"]
    assert isinstance(own, Mapping) and isinstance(request_data, dict)
    now = versions(str(own["versions"].get("minisd")))
    other = {
        k: f"{v} here, {own['versions'].get(k)} then" for k, v in now.items() if own["versions"].get(k) != v
    }
    known = [p for name in pictures for p in (Picture.of(name), Picture.of(name, mask=True))]
    trail = Trail()
    try:
        request = Request.from_dict(request_data, paths=False, pictures={p.sha256: p for p in known})
        result = engine.run(request, trail=trail)
    except MinisdError as error:
        return Finding("cannot", f"the request cannot be drawn here: {error}", other=other)
    made = [(m.name, m.sigma, m.digest(0)) for m in trail.settle()]
    wanted = [(m[0], m[1], m[2]) for m in own["marks"]]
    first = next((w[0] for w, m in zip(wanted, made, strict=False) if w != m), None)
    if first is None and len(made) != len(wanted):
        first = "the number of steps"
    size = difference(read_pixels(path), result.image)
    if first is None and digest(result.image.convert("RGB")) != own["pixels"]:
        first = "pixels"
    if first is None:
        what = f"drawn again, every digest of {len(made)} is equal"
        if size.get("levels"):
            what += "; the file's format does not keep pixels exactly, they are near"
        return Finding("proven", what, LEVEL, size=size, other=other)
    because = f" (other versions: {', '.join(sorted(other))})" if other else ""
    return Finding(
        "differs", f"a run from the record parts from it at {first}{because}", "", first, size, (), other
    )


def difference(a: Image.Image, b: Image.Image) -> dict[str, float]:
    """Of two pictures of one size: the greatest difference of a channel in levels, the share of pixels that
    differ, and PSNR in dB."""
    if a.size != b.size:
        return {}
    x, y = (np.asarray(i.convert("RGB"), dtype=np.float64) for i in (a, b))
    error = float(((x - y) ** 2).mean())
    out = {"levels": float(np.abs(x - y).max()), "share": float((x != y).any(axis=-1).mean())}
    return out | ({"psnr_db": round(10 * np.log10(255**2 / error), 2)} if error > 0 else {})


def verify(
    path: str | os.PathLike[str], engine: Engine, pictures: Sequence[str | os.PathLike[str]] = ()
) -> Finding:
    """All checks on one picture. Raises ImageError for a file without a record."""
    record = record_of(path)
    return integrity(path, record) or check_files(engine, record) or replay(path, engine, record, pictures)

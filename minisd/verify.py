"""Verify: whether a picture is what its record says, by drawing it again.

In this order: the record is whole (seals, signature), the pixels are those of the record, the model's files
are those of the record, and a run from the request passes through the same digests. The first thing that
differs is named. Equal bits prove; where machine, precision or versions are not those of the record, what
can be said is how near the pictures are (docs/receipts.md).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from minisd import __version__
from minisd.control import REFERENCE
from minisd.engine import Engine
from minisd.errors import ImageError, MinisdError, PlanError, quoted
from minisd.hashes import file_sha256
from minisd.levels import differing, level_of
from minisd.metadata import read_file, read_pixels
from minisd.model import Model
from minisd.picture import Picture, digest
from minisd.receipt import FORMAT, tampered
from minisd.request import Request
from minisd.result import Result
from minisd.sidecar import whole
from minisd.signing import SignatureError, signer_of
from minisd.spot import Parted, Reached, Retaken, read_answers
from minisd.trail import Trail

Verdict = Literal["proven", "near", "differs", "cannot", "malformed"]
CODES: dict[Verdict, int] = {"proven": 0, "near": 1, "differs": 1, "cannot": 2, "malformed": 3}
SourcePath = str | os.PathLike[str]
MARK = 3  # name, sigma, digest


@dataclass(frozen=True)
class Finding:
    """verdict; what: one sentence. level: which guarantee applies, and nothing above it. first: the first
    place where a run parts from the record. size: how far the pixels are apart, where both are there. fields:
    those that were changed. other: what of machine, versions and plan is not as in the record. signed: by
    which key."""

    verdict: Verdict
    what: str
    level: str = ""
    first: str | None = None
    size: dict[str, float] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    other: dict[str, str] = field(default_factory=dict)
    signed: str = ""

    @property
    def code(self) -> int:
        """Exit code: 0 proven, 1 differs (if only in bits), 2 cannot be checked here, 3 no record to
        check."""
        return CODES[self.verdict]


def record_of(path: SourcePath) -> dict[str, object]:
    """The record of a picture, inside it or beside it. Raises ImageError where there is none, or it is no
    record."""
    text = read_file(path).texts.get("minisd")
    if text is None:
        raise ImageError(f"{quoted(path)} carries no record of minisd; there is nothing to check it against")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"the record in {quoted(path)} is damaged: it is not JSON") from error
    if isinstance(record, dict) and "sheet" in record:
        raise ImageError(
            f"{quoted(path)} carries no record of one picture: it is a contact sheet, whose cells have theirs"
        )
    if not isinstance(record, dict) or not isinstance(record.get("request"), dict):
        raise ImageError(f"the record in {quoted(path)} holds no request; it was not written by minisd")
    return dict(whole(record, path))


def parts_of(record: Mapping[str, object]) -> str | None:
    """What is wrong with the form of a record; None if nothing."""
    own = record["receipt"]
    assert isinstance(own, Mapping)
    kinds = {"files": list, "plan": dict, "versions": dict, "machine": dict, "marks": list, "pixels": str}
    wrong = [name for name, kind in kinds.items() if not isinstance(own.get(name), kind)]
    wrong += ["request"] if not isinstance(record.get("request"), dict) else []
    if not wrong and not all(isinstance(m, list) and len(m) == MARK for m in own["marks"]):
        wrong = ["marks"]
    files = [*_list(own, "files"), *_list(own, "refiner"), *_list(record, "beside")]
    if not wrong and not all(isinstance(f, Mapping) and "name" in f and "sha256" in f for f in files):
        wrong = ["files"]
    return f"the receipt is damaged: {', '.join(wrong)} is not what it should be" if wrong else None


def _list(record: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    value = record.get(name)
    return value if isinstance(value, list) else []


def integrity(path: SourcePath, record: Mapping[str, object], key: bytes | None = None) -> Finding | None:
    """What is wrong with file and record by themselves; None if nothing is. key: the raw public key that must
    have signed."""
    form = record.get("receipt")
    if not isinstance(form, Mapping) or form.get("format") != FORMAT:
        return Finding("cannot", "the record holds no receipt of a form that this minisd reads")
    wrong = parts_of(record)
    if wrong is not None:
        return Finding("malformed", wrong)
    changed = tampered(record)
    if changed:
        what = f"the record was changed after it was made: {', '.join(changed)}"
        return Finding("differs", what, first="record", fields=tuple(changed))
    own = record["receipt"]
    assert isinstance(own, Mapping)
    try:
        signer = signer_of(record)
    except SignatureError as error:
        return Finding("differs", str(error), first="signature")
    except PlanError as error:  # a package that is missing says nothing about the picture
        return Finding("cannot", str(error), first="signature")
    if key is not None and signer != key:
        what = "not signed" if signer is None else f"signed by another key, {key_name(signer)}"
        return Finding("differs", f"the record is {what}; expected was {key_name(key)}", first="signature")
    pixels, lossless = read_pixels(path), read_file(path).format == "PNG"
    if digest(pixels) != own["pixels"] and lossless:
        return Finding(
            "differs", "the pixels are not those of the record: the picture was edited", first="pixels"
        )
    return None


def key_name(key: bytes) -> str:
    """A public key as people compare it."""
    return f"ed25519:{key.hex()}"


def signed_by(record: Mapping[str, object], key: bytes | None) -> str:
    """What a good signature says, and what it does not."""
    if record.get("signature") is None:
        return "not signed: this proves how the picture is made, not by whom"
    signer = signer_of(record)
    assert signer is not None
    known = "the key that was given" if key == signer else "a key of which nothing is known here"
    return f"signed by {known}: {key_name(signer)}"


def check_files(model: Model, files: object, what: str) -> Finding | None:
    """Whether a model's files are those that the record has for it."""
    wanted = [(str(f["name"]), f["sha256"]) for f in (files if isinstance(files, list) else [])]
    found = [(f.path.name, f.sha256()) for f in model.files]
    if any(sha is None for _, sha in wanted):
        return Finding(
            "cannot", f"the file of the {what} was replaced while the picture was made", first="model"
        )
    if sorted(str(sha) for _, sha in wanted) == sorted(str(sha) for _, sha in found):
        return None
    missing = [(n, s) for n, s in wanted if s not in {sha for _, sha in found}]
    made = ", ".join(f"{n} (sha256 {str(s)[:12]})" for n, s in missing) or "fewer files"
    have = ", ".join(f"{n} (sha256 {str(s)[:12]})" for n, s in found) or "no file"
    return Finding("cannot", f"the picture was made with the {what} {made}; loaded is {have}", first="model")


@dataclass(frozen=True)
class Given:
    """What a person gives beside picture and model: files that the request used, found by content, and the
    model that took over."""

    files: Sequence[SourcePath] = ()
    refiner: Engine | None = None

    def pictures(self) -> dict[str, Picture]:
        """Those that are pictures, by digest, as colours and as masks."""
        out: dict[str, Picture] = {}
        for name in self.files:
            try:
                found = (Picture.of(name), Picture.of(name, mask=True))
            except ImageError:
                continue  # a network
            out |= {p.sha256: p for p in found}
        return out


def request_of(record: Mapping[str, object], engine: Engine, given: Given) -> Request:
    """The record's request with its pictures and networks found among what was given. No path that the record
    names is opened. Raises MinisdError saying what is missing."""
    data = json.loads(json.dumps(record["request"]))
    weights = {file_sha256(p): Path(p) for p in given.files if Path(p).exists()}
    wanted = {(str(b.get("kind")), str(b.get("name"))): str(b.get("sha256")) for b in _list(record, "beside")}

    def alias(kind: str, name: str) -> str:
        sha = wanted.get((kind, name), "")
        known = engine.upscalers if kind == "upscaler" else engine.controls
        held = known.path(name) if name in known.names else None
        if sha not in weights and held is not None and file_sha256(held) == sha:
            return name
        if sha not in weights:
            raise ImageError(f"{quoted(Path(name).name)} (sha256 {sha[:12]}) is needed; give its file")
        known.add(sha[:16], weights[sha])
        return sha[:16]

    for units in ("controls", "picture_prompts"):  # those at weight 0 drew nothing
        data[units] = [unit for unit in data.get(units) or () if unit.get("weight") != 0]
    for unit in data["controls"]:
        if unit["model"] != REFERENCE:  # which has no file
            unit["model"] = alias("control", unit["model"])
    for unit in data["picture_prompts"]:
        for name in ("model", "encoder"):
            unit[name] = alias("picture_prompt", unit[name])
    if ("upscaler", data.get("hires_upscaler")) in wanted:
        data["hires_upscaler"] = alias("upscaler", data["hires_upscaler"])
    for use in data.get("loras") or ():
        name = str(use["name"])
        if name not in engine.loras.names:
            found = next((p for p in map(Path, given.files) if p.name == Path(name).name), None)
            if found is None:
                raise ImageError(f"the LoRA {quoted(Path(name).name)} is needed; give its file or folder")
            engine.loras.add(name, found)
    return Request.from_dict(data, paths=False, pictures=given.pictures())


def drawn_again(
    record: Mapping[str, object], engine: Engine, given: Given, trail: Trail
) -> Result | Finding | None:
    """A run from the record; None if the trail ended it."""
    own = record["receipt"]
    assert isinstance(own, Mapping)
    wrong = check_files(engine.model, own["files"], "model")
    if wrong is None and own.get("refiner"):
        if given.refiner is None:
            name = own["refiner"][0]["name"]
            return Finding("cannot", f"a refiner took over, {name}; give it with --refiner", first="model")
        wrong = check_files(given.refiner.model, own["refiner"], "refiner")
    if wrong is not None:
        return wrong
    try:
        request = request_of(record, engine, given)
        return engine.run(request, trail=trail, refiner=given.refiner if own.get("refiner") else None)
    except Reached:
        return None
    except Parted as error:
        return Finding("differs", str(error), first=f"step {trail.steps + 1}")
    except (MinisdError, TypeError, KeyError, AttributeError) as error:
        # a record is foreign data: fields of the wrong kind are its fault
        return Finding("cannot", f"the request cannot be drawn here: {error}")


def first_apart(record: Mapping[str, object], trail: Trail, *, ended: bool) -> tuple[str | None, int]:
    """(the first mark of a run that is not the record's, how many were compared). ended: the run stopped on
    the way, so that marks behind it are not missing."""
    own = record["receipt"]
    assert isinstance(own, Mapping)
    made = [(m.name, m.sigma, m.digest(0)) for m in trail.settle()]
    wanted = [tuple(m) for m in own["marks"]]
    first = next((str(w[0]) for w, m in zip(wanted, made, strict=False) if w != m), None)
    if first is None and (len(made) > len(wanted) or (len(made) < len(wanted) and not ended)):
        first = "the number of steps"
    return first, len(made)


def other_adapters(record: Mapping[str, object], result: Result) -> Finding | None:
    """Adapters and learned words that are other files than those of the record."""
    then = {(str(a.get("name")), str(a.get("sha256"))) for a in _list(record, "adapters")}
    then |= {
        (str(b.get("name")), str(b.get("sha256")))
        for b in _list(record, "beside")
        if b.get("kind") == "embedding"
    }
    now = {(a.name, a.sha256) for a in result.drawing.applied} | set(result.words())
    if then == now:
        return None
    names = sorted({name for name, _ in then ^ now})
    what = f"adapters or learned words are not those of the record: {', '.join(names)}"
    return Finding("cannot", what, first="adapters")


def replay(path: SourcePath, engine: Engine, record: Mapping[str, object], given: Given) -> Finding:
    """Draw the record's request again and compare."""
    own = record["receipt"]
    assert isinstance(own, Mapping)
    other = differing(own, engine.plan, __version__)
    level = level_of(other)
    trail = Trail()
    result = drawn_again(record, engine, given, trail)
    if isinstance(result, Finding):
        return replace(result, other=other)
    assert result is not None
    strange = other_adapters(record, result)
    if strange is not None:
        return replace(strange, other=other)
    first, count = first_apart(record, trail, ended=False)
    size = difference(read_pixels(path), result.image)
    if first is None and digest(result.image.convert("RGB")) != own["pixels"]:
        first = "pixels"
    if first is None:
        what = f"drawn again, every digest of {count} is equal"
        if size.get("levels"):
            what += "; the file's format does not keep pixels exactly, they are near"
        return Finding("proven", what, level.equal, size=size, other=other)
    because = f" (not as in the record: {', '.join(sorted(other))})" if other else ""
    what = f"a run from the record parts from it at {first}{because}"
    lossless = read_file(path).format == "PNG"
    if lossless and level.holds(size):
        what += f"; the pictures are near: {nearness(size)}, within {level.band_text}"
        return Finding("near", what, level.near, first, size, (), other)
    return Finding("differs", what, "", first, size, (), other)


def nearness(size: Mapping[str, float]) -> str:
    return f"PSNR {size['psnr_db']:g} dB" if "psnr_db" in size else "equal pixels"


def spot(path: SourcePath, engine: Engine, record: Mapping[str, object], at: int, given: Given) -> Finding:
    """Take step `at` again, on what the network answered before it."""
    own, request = record["receipt"], record["request"]
    assert isinstance(own, Mapping) and isinstance(request, Mapping)
    steps = sum(str(m[0]).startswith("step ") for m in own["marks"])
    if not 1 <= at <= steps:
        return Finding("cannot", f"the run has steps 1..{steps}; there is no step {at}")
    if request.get("apg_momentum"):
        return Finding("cannot", "with apg_momentum a step depends on all before it; draw the whole again")
    if name := next((n for n in ("deep_cache", "first_block_cache") if acts(n, request)), None):
        return Finding("cannot", f"with {name} a step depends on earlier ones; draw the whole again")
    try:
        answers = read_answers(path)
    except ImageError as error:
        return Finding("cannot", str(error))
    last = max((a.step for a in answers), default=0)
    if at > last:
        return Finding("cannot", f"the steps beside the picture end with step {last} of {steps}")
    other = differing(own, engine.plan, __version__)
    trail = Retaken(answers, at)
    result = drawn_again(record, engine, given, trail)
    if isinstance(result, Finding):
        return replace(result, other=other)
    first, count = first_apart(record, trail, ended=True)
    size = {"network": trail.apart}
    if first is None and trail.apart == 0.0:
        what = f"step {at} taken again is equal, and the {count} digests up to it are those of the record"
        level = f"step {at} alone ({level_of(other).equal}); nothing is said of the network in other steps"
        return Finding("proven", what, level, size=size, other=other)
    what = f"a run on the stored steps parts from the record at {first or f'step {at}'}"
    return Finding("differs", what, "", first or f"step {at}", size, (), other)


def acts(name: str, request: Mapping[str, object]) -> bool:
    """Whether a field is given in a record's request and not at its default."""
    default = next(f.default for f in fields(Request) if f.name == name)
    return request.get(name, default) != default


def difference(a: Image.Image, b: Image.Image) -> dict[str, float]:
    """Of two pictures of one size: the greatest difference of a channel in levels, the share of pixels that
    differ, and PSNR in dB."""
    if a.size != b.size:
        return {}
    x, y = (np.asarray(i.convert("RGB"), dtype=np.float64) for i in (a, b))
    error = float(((x - y) ** 2).mean())
    out = {"levels": float(np.abs(x - y).max()), "share": float((x != y).any(axis=-1).mean())}
    return out | ({"psnr_db": round(10 * math.log10(255**2 / error), 2)} if error > 0 else {})


def verify(
    path: SourcePath,
    engine: Engine,
    files: Sequence[SourcePath] = (),
    *,
    refiner: Engine | None = None,
    step: int | None = None,
    key: bytes | None = None,
) -> Finding:
    """All checks on one picture. files: pictures and networks that the request used, found by content. step:
    take this one again alone. key: the raw public key that must have signed. Raises ImageError for a file
    without a record."""
    record = record_of(path)
    found = integrity(path, record, key)
    if found is None:
        given = Given(files, refiner)
        found = (
            replay(path, engine, record, given) if step is None else spot(path, engine, record, step, given)
        )
        found = replace(found, signed=signed_by(record, key))
    return found

"""Batches: many requests from a file of lines, each drawn once, whatever happens on the way.

    with open("jobs.jsonl", "rb") as file:
        done = draw_batch(engine, file, "out", resume=True)
    done.failed  # numbers of the lines that could not be drawn; out/results.jsonl says why

Pictures are kept under keys of what decides them (`kept.py`), so that equal lines are drawn once, and after a
kill `resume` draws what is missing and nothing else. Answers are written line by line to results.jsonl.part,
in the order of the jobs, which becomes results.jsonl when all are there.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from minisd.engine import Engine
from minisd.errors import Cancelled, ImageError, MinisdError, RequestError, quoted
from minisd.events import CancelToken, Course, Listener
from minisd.jobs import Job, Line, custom_id, is_openai, job_of, lines_of, object_at
from minisd.kept import Keeper, Kept
from minisd.openai_body import error_body
from minisd.receipt import json_text

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Planned:
    """A line that was read, and what is to become of it: a drawing under a key, or an error."""

    line: Line
    custom_id: str | None
    openai: bool
    key: str = ""
    count: int = 1
    steps: int = 0
    error: MinisdError | None = None


@dataclass
class Done:
    """How many pictures were drawn, were there, or are the same as another line's; the numbers of lines that
    failed; and where the answers are."""

    results: Path
    drawn: int = 0
    kept: int = 0
    same: int = 0
    failed: list[int] = field(default_factory=list)


def read_jobs(file: BinaryIO, keeper: Keeper) -> Iterator[Planned]:
    """Every line, checked against the model; one that cannot be drawn has its error."""
    model = keeper.engine.model.name
    seen: dict[str, int] = {}
    names: dict[str, int] = {}
    for line in list(lines_of(file)):
        name, openai = None, False
        try:
            said = object_at(file, line)
            openai, name = is_openai(said), custom_id(said)
            if name is not None and names.setdefault(name, line.number) != line.number:
                raise RequestError(
                    f"the custom_id {quoted(name)} is that of line {names[name]} too", field="custom_id"
                )
            request = job_of(said, model).request
            key = keeper.key(request)
            if request.seed is None:  # drawn at random: equal lines are drawings of their own
                nth = seen[key] = seen.get(key, -1) + 1
                key = key if not nth else keeper.key(request, nth)
            yield Planned(line, name, openai, key, request.count, request.steps * request.count)
        except MinisdError as error:
            yield Planned(line, name, openai, error=error)


def draw_batch(
    engine: Engine,
    file: BinaryIO,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    refiner: Engine | None = None,
    on_event: Listener | None = None,
    cancel: CancelToken | None = None,
) -> Done:
    """Draw every line of a file that can be sought in, into a folder that is there. resume: pictures that lie
    there already, whole, are not drawn again. on_event hears the steps of all lines as of one run.

    A line that cannot be drawn is told of by its number, and the others are drawn. Raises Cancelled,
    RequestError for a file without jobs, and ImageError where nothing can be written.
    """
    keeper = Keeper(engine, folder, refiner=refiner)
    plan = list(read_jobs(file, keeper))
    if not plan:
        raise RequestError("there is no job in the file; each line is one")
    ready: dict[str, Kept] = {}
    if resume:
        wanted = {p.key: p.count for p in plan if p.error is None}
        there = ((key, keeper.find(key, count)) for key, count in wanted.items())
        ready = {key: bare(kept) for key, kept in there if kept is not None}
    found = set(ready)
    todo = dict.fromkeys(p.key for p in plan if p.error is None and p.key not in ready)
    steps = {p.key: p.steps for p in plan}
    course = Course(on_event, [steps[key] for key in todo])
    turn = {key: index for index, key in enumerate(todo)}
    done = Done(Path(folder) / RESULTS)
    part = done.results.with_name(RESULTS + ".part")
    told: dict[str, int] = {}
    with opened(part) as answers:
        for p in plan:
            error, job = p.error, None
            if error is None:
                try:
                    job = job_of(object_at(file, p.line), engine.model.name)
                    if p.key not in ready:
                        listener = course.listener(turn[p.key])
                        made = keeper.draw(job.request, p.key, on_event=listener, cancel=cancel)
                        ready[p.key] = bare(made)
                except Cancelled:
                    raise
                except MinisdError as failure:
                    if isinstance(failure, ImageError) and isinstance(failure.__cause__, OSError):
                        raise  # the folder takes no more pictures: no line would fare better
                    error = failure
            if error is not None or job is None:
                assert error is not None
                done.failed.append(p.line.number)
                answer = failed(p, error)
            else:
                kind = "same" if p.key in told else "kept" if p.key in found else "drawn"
                told[p.key] = p.line.number
                setattr(done, kind, getattr(done, kind) + 1)
                answer = succeeded(p, job, ready[p.key], kind)
            try:
                answers.write(json_text(answer).encode() + b"\n")
                answers.flush()
            except OSError as problem:
                raise unwritable(part, problem) from problem
    try:
        os.replace(part, done.results)
    except OSError as problem:
        raise unwritable(done.results, problem) from problem
    return done


def opened(part: Path) -> BinaryIO:
    try:
        return open(part, "wb")
    except OSError as error:
        raise unwritable(part, error) from error


def unwritable(path: Path, error: OSError) -> ImageError:
    return ImageError(f"cannot write {quoted(path)}: {error.strerror or error}")


def bare(kept: Kept) -> Kept:
    """Without the pictures, which lie in their files."""
    return replace(kept, images=())


def succeeded(p: Planned, job: Job, kept: Kept, kind: str) -> dict[str, object]:
    """The answer to a line. kind: "drawn", "kept" (was there) or "same" (as an earlier line)."""
    if not job.openai:
        pictures = [
            {"file": path.name, "seed": r["seed"], "pixels": pixels}
            for path, r, pixels in zip(kept.paths, kept.requests, kept.pixels, strict=True)
        ]
        return {
            "line": p.line.number,
            "custom_id": p.custom_id,
            "key": p.key,
            "status": kind,
            "pictures": pictures,
            "seconds": round(kept.seconds, 3) if kind == "drawn" else 0.0,
            "error": None,
        }
    data: list[dict[str, object]] = []
    for path, r in zip(kept.paths, kept.requests, strict=True):
        told: dict[str, object] = {"url": path.name}
        if job.inside:
            told = {"b64_json": base64.b64encode(path.read_bytes()).decode()}
        data.append(told | {"seed": r["seed"]})
    body = {"created": int(time.time()), "data": data}
    return openai_answer(p, 200, body)


def failed(p: Planned, error: MinisdError) -> dict[str, object]:
    field_ = getattr(error, "field", None)
    if p.openai:
        return openai_answer(p, 400 if isinstance(error, ValueError) else 500, error_body(error))
    told = {"message": str(error), "kind": type(error).__name__, "field": field_}
    return {"line": p.line.number, "custom_id": p.custom_id, "status": "failed", "error": told}


def openai_answer(p: Planned, status: int, body: dict[str, object]) -> dict[str, object]:
    response = {"status_code": status, "request_id": p.key or f"line-{p.line.number}", "body": body}
    return {
        "id": f"batch_req_{p.line.number}",
        "custom_id": p.custom_id,
        "line": p.line.number,
        "response": response,
        "error": None,
    }

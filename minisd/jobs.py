"""Lines of a batch file as jobs: Request fields as JSON, or the form of OpenAI's batches.

    {"prompt": "a red apple", "seed": 7, "custom_id": "apple"}
    {"custom_id": "apple", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": ...}}

A file is read twice, so that no more than one line of it is in memory: once to check all lines and count
them, and each again when its turn has come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from minisd.errors import MinisdError, RequestError, quoted
from minisd.openai_body import EDITS, GENERATIONS, answer_format, request_of
from minisd.request import Request
from minisd.strict_json import MAX_BYTES, read_object

MAX_LINES = 100_000
OPENAI = {"custom_id", "method", "url", "body"}
MAX_ID = 512  # characters


@dataclass(frozen=True)
class Line:
    """Where line `number` (from 1) lies in a file, and its digest. error: it is too long to be read."""

    number: int
    place: int
    length: int
    sha256: str
    error: MinisdError | None = None


@dataclass(frozen=True)
class Job:
    """What a line asks for. openai: in that form, and so the answer; inside: with its pictures in it."""

    request: Request
    custom_id: str | None
    openai: bool
    inside: bool = False


def lines_of(file: BinaryIO) -> Iterator[Line]:
    """The lines that are not empty. Raises RequestError beyond MAX_LINES of them."""
    number = found = 0
    while True:
        place = file.tell()
        data = file.readline(MAX_BYTES + 2)
        if not data:
            return
        number += 1
        error, length = None, len(data)
        if length > MAX_BYTES + 1 or (length > MAX_BYTES and not data.endswith(b"\n")):
            while not data.endswith(b"\n") and (data := file.readline(2**20)):
                length += len(data)
            error = RequestError(f"the line has {length:,} bytes; at most {MAX_BYTES:,} are read")
        elif not data.strip(b" \t\r\n\xef\xbb\xbf"):
            continue
        found += 1
        if found > MAX_LINES:
            raise RequestError(f"there are more than {MAX_LINES:,} jobs; divide the file")
        yield Line(number, place, length, hashlib.sha256(data).hexdigest(), error)


def object_at(file: BinaryIO, line: Line) -> dict[str, object]:
    """What a line says. Raises RequestError for one that is no object, or was changed meanwhile."""
    if line.error is not None:
        raise line.error
    file.seek(line.place)
    data = file.read(line.length)
    if hashlib.sha256(data).hexdigest() != line.sha256:
        raise RequestError("the file was changed while it was read; start again with --resume")
    return read_object(data.removeprefix(b"\xef\xbb\xbf") if line.number == 1 else data)


def custom_id(said: dict[str, object]) -> str | None:
    """Of a line; None where it has none. Raises RequestError for one that is no text."""
    name = said.get("custom_id")
    if name is not None and not (isinstance(name, str) and 0 < len(name) <= MAX_ID):
        raise RequestError(f"custom_id must be text of 1..{MAX_ID} characters", field="custom_id")
    return name


def is_openai(said: dict[str, object]) -> bool:
    return "body" in said or "url" in said


def job_of(said: dict[str, object], model: str) -> Job:
    """The job of a line. Raises RequestError, and ImageError for a picture that cannot be read."""
    name = custom_id(said)
    if not is_openai(said):
        return Job(Request.from_dict({k: v for k, v in said.items() if k != "custom_id"}), name, False)
    if unknown := sorted(set(said) - OPENAI):
        raise RequestError(
            f"a line of a batch has no {quoted(unknown[0])}; it has {', '.join(sorted(OPENAI))}"
        )
    if name is None:
        raise RequestError("a line of a batch needs a custom_id", field="custom_id")
    if said.get("method", "POST") != "POST":
        raise RequestError(f"the method is {quoted(said['method'])}; it must be POST", field="method")
    url, body = said.get("url"), said.get("body")
    if url not in (GENERATIONS, EDITS):
        raise RequestError(
            f"the url is {quoted(url)}; {GENERATIONS} and {EDITS} are answered here", field="url"
        )
    if not isinstance(body, dict):
        raise RequestError("the body must be an object", field="body")
    return Job(request_of(body, model, edit=url == EDITS), name, True, answer_format(body) == "b64_json")

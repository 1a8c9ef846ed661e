"""JSON from strangers, strictly: one object, each name once, numbers that are numbers, bounded in size and
depth (RFC 8259, with the choices of RFC 7493, I-JSON)."""

from __future__ import annotations

import json
import math
import re

from minisd.errors import RequestError, quoted

MAX_BYTES = 32 * 2**20  # a picture of 20 MB as base64, and its request
MAX_DEPTH = 32
TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


def read_object(data: bytes) -> dict[str, object]:
    """The object that `data` holds as UTF-8. Raises RequestError for everything else."""
    if len(data) > MAX_BYTES:
        raise RequestError(f"{len(data):,} bytes of JSON are more than the {MAX_BYTES:,} that are read")
    if depth(data) > MAX_DEPTH:
        raise RequestError(f"the JSON is nested deeper than {MAX_DEPTH}")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_number, parse_float=finite
        )
    except UnicodeDecodeError as error:
        raise RequestError(f"the JSON is not UTF-8: byte {error.start} is wrong") from None
    except RequestError:
        raise
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not JSON: {quoted(error)[1:-1]}") from None
    if not isinstance(value, dict):
        raise RequestError(f"a JSON object was expected, got {type(value).__name__}")
    return value


def depth(data: bytes) -> int:
    """How deep brackets are nested outside of texts; stops counting where it is too deep."""
    deepest = now = 0
    for found in TOKEN.finditer(data):
        kind = found[0][:1]
        now += 1 if kind in b"[{" else -1 if kind in b"]}" else 0
        deepest = max(deepest, now)
        if deepest > MAX_DEPTH:
            break
    return deepest


def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made: dict[str, object] = {}
    for name, value in pairs:
        if name in made:
            raise RequestError(f"{quoted(name)} stands twice in one JSON object", field=name)
        made[name] = value
    return made


def no_number(name: str) -> object:
    raise RequestError(f"{name} is no number in JSON")


def finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RequestError(f"{text[:40]} is larger than a number can be")
    return value

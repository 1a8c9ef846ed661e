"""Records too large for the inside of a picture lie beside it, as NAME.png.json; the picture then holds the
request and the digest of that file.

Readers of PNG may refuse texts above 64 KiB, and a JPEG cannot hold more in all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from minisd.errors import ImageError, quoted
from minisd.receipt import json_text

INSIDE = 64 * 2**10  # bytes of a record inside a picture
MAX_BESIDE = 64 * 2**20  # of one beside it, as read
KEY = "beside_picture"


def sidecar_path(picture: str | os.PathLike[str]) -> Path:
    """Where the record of a picture lies if it is not inside."""
    target = Path(picture)
    return target.with_name(target.name + ".json")


def placed(record: Mapping[str, object], room: int = INSIDE) -> tuple[str, bytes | None]:
    """(what the picture holds, what lies beside it): the record, or its request and where the rest is."""
    text = json_text(record)
    data = text.encode()
    if len(data) <= min(room, INSIDE):
        return text, None
    place = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    stub = {"minisd": record["minisd"], "request": record["request"], KEY: place}
    return json_text(stub), data


def whole(found: Mapping[str, object], picture: str | os.PathLike[str]) -> Mapping[str, object]:
    """The record that a picture holds, or that lies beside it. Raises ImageError where it is not there, or
    not the one that belongs to the picture."""
    place = found.get(KEY)
    if not isinstance(place, Mapping):
        return found
    path = sidecar_path(picture)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BESIDE + 1)
    except OSError as error:
        raise ImageError(
            f"the record of this picture is in a file of its own, {quoted(path.name)}, which cannot be read "
            f"beside it: {error.strerror or error}"
        ) from error
    if len(data) > MAX_BESIDE or hashlib.sha256(data).hexdigest() != place.get("sha256"):
        raise ImageError(
            f"{quoted(path.name)} is not the record that belongs to this picture: it was changed"
        )
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"the record in {quoted(path.name)} is damaged: it is not JSON") from error
    if not isinstance(record, dict):
        raise ImageError(f"the record in {quoted(path.name)} is not an object")
    return record

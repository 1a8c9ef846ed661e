"""Bodies of OpenAI's image endpoints as Requests, and answers in their form.

`POST /v1/images/generations` and `/v1/images/edits` (OpenAI API reference, Images). Beside their own fields a
body may have any field of Request (seed, steps, ...). What would be asked for by name and not happen is
refused: another model, transparency, streams.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from minisd.errors import RequestError, quoted
from minisd.request import Request

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
AS_IT_IS: dict[str, tuple[object, ...]] = {  # fields and the values that say what happens anyway
    "quality": (None, "auto", "standard"),
    "background": (None, "auto", "opaque"),
    "output_format": (None, "png"),
    "output_compression": (None, 100),
    "moderation": (None, "auto", "low"),
    "stream": (None, False),
    "partial_images": (None, 0),
}
FORMATS = ("b64_json", "url")


def request_of(body: Mapping[str, object], model: str, *, edit: bool = False, paths: bool = True) -> Request:
    """The Request of a body, for a loaded model of this name. edit: of /v1/images/edits, whose mask is drawn
    anew where it is transparent. Raises RequestError."""
    left = dict(body)
    left.pop("user", None)  # who asks changes nothing
    answer_format(body)
    left.pop("response_format", None)
    named = left.pop("model", None)
    if named not in (None, model):
        raise RequestError(
            f"the model {quoted(named)} is not loaded; {model!r} is. Say so, or leave it out", field="model"
        )
    for name, values in AS_IT_IS.items():
        value = left.pop(name, None)
        if not any(value is v or (type(value) is type(v) and value == v) for v in values):
            known = ", ".join(str(v) for v in values[1:])
            raise RequestError(f"{name} {quoted(value)} is not done here; it can be {known}", field=name)
    if left.get("n") is not None:
        left["count"] = left.pop("n")
    left.pop("n", None)
    size = left.pop("size", None)
    if size not in (None, "auto"):
        found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size) if isinstance(size, str) else None
        if found is None:
            raise RequestError(f"size is {quoted(size)}; it must be like 512x512, or auto", field="size")
        left["width"], left["height"] = int(found[1]), int(found[2])
    if edit:
        left |= pictures_of(left)
        left.pop("images", None)
    if not isinstance(left.get("prompt"), str):
        raise RequestError("a body needs a prompt, which is text", field="prompt")
    return Request.from_dict(left, paths=paths)


def pictures_of(left: Mapping[str, object]) -> dict[str, object]:
    """The picture of an edit, and its mask."""
    given = left.get("images", left.get("image"))
    one = given[0] if isinstance(given, list) and len(given) == 1 else given
    if one is None or isinstance(one, list):
        raise RequestError("an edit takes one image", field="image")
    out: dict[str, object] = {"image": data_of("image", one)}
    if left.get("mask") is not None:
        out |= {"mask": data_of("mask", left["mask"])}
        if "mask_invert" not in left:
            out["mask_invert"] = True
    return out


def data_of(name: str, value: object) -> dict[str, object]:
    """A picture as a Request takes it, from base64, a data URL, or an object with one as image_url."""
    found = value.get("image_url") if isinstance(value, Mapping) else value
    if not isinstance(found, str):
        raise RequestError(f"{name} must be base64 or a data URL, or have one as image_url", field=name)
    return {"data": found}


def answer_format(body: Mapping[str, object]) -> str:
    """Whether pictures are told by file or inside the answer."""
    wanted = body.get("response_format")
    if wanted not in (None, *FORMATS):
        raise RequestError(
            f"response_format is {quoted(wanted)}; it can be b64_json or url", field="response_format"
        )
    return "url" if wanted is None else str(wanted)


def error_body(error: Exception) -> dict[str, object]:
    """How OpenAI tells of a wrong request."""
    field = getattr(error, "field", None)
    kind = "invalid_request_error" if isinstance(error, ValueError) else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": field, "code": None}}

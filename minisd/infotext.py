"""The `parameters` text that the community's tools write and read.

    a red apple
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 1, Size: 128x128, Model: emoji

The grammar is A1111's: settings are the last line if it holds at least three; a value that holds a comma,
colon or line end is a JSON string. A prompt that ends in a line like settings cannot be told from them: what
is exact travels in our own record beside this text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from minisd.errors import RequestError
from minisd.request import Request
from minisd.samplers.names import SCHEDULES, find_sampler, find_schedule, split_name

KEY = re.compile(r"[\w \-/\s]")  # a character of a key, or white space before one
VALUE = re.compile(r'\s*+("(?:\\.|[^\\"])++"(?=,|$)|[^,]*)(?:,|$)')
NEGATIVE = "Negative prompt:"
MAX_TEXT = 1_000_000  # characters that are read
RNGS = {"philox": "NV", "torch": "CPU", "cuda": "GPU"}


@dataclass(frozen=True)
class Infotext:
    """A `parameters` text, taken apart. settings in their order, as text."""

    prompt: str
    negative_prompt: str
    settings: dict[str, str]


def quote(value: str) -> str:
    """A value that holds a comma, colon or line end is written as a JSON string, as A1111 does."""
    return json.dumps(value, ensure_ascii=False) if any(c in value for c in ",:\n") else value


def unquote(value: str) -> str:
    """The value that `quote` wrote; as it is where it is no JSON string."""
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        read = json.loads(value)
    except ValueError:
        return value
    return read if isinstance(read, str) else value


def written(text: Infotext) -> str:
    """The text of its parts."""
    lines = [text.prompt]
    if text.negative_prompt:
        lines.append(f"{NEGATIVE} {text.negative_prompt}")
    lines.append(", ".join(f"{k}: {quote(v)}" for k, v in text.settings.items()))
    return "\n".join(lines)


def parsed(text: str) -> Infotext:
    """The parts of a text, as A1111 reads it. Never fails: what is no setting belongs to a prompt."""
    *lines, last = text[:MAX_TEXT].strip().split("\n")
    pairs = pairs_of(last)
    if len(pairs) < 3:
        lines, pairs = [*lines, last], []
    parts: dict[bool, list[str]] = {False: [], True: []}
    negative = False
    for line in lines:
        stripped = line.strip()
        if stripped.startswith(NEGATIVE):
            negative, stripped = True, stripped[len(NEGATIVE) :].strip()
            parts[True].append(stripped)
        else:
            parts[negative].append(stripped if negative else line.strip())
    settings = {key: unquote(value.strip()) for key, value in pairs}
    return Infotext("\n".join(parts[False]).strip(), "\n".join(parts[True]).strip(), settings)


def pairs_of(line: str) -> list[tuple[str, str]]:
    """(key, value) pairs of a line of settings, in linear time: what A1111 finds with a regular expression
    that takes quadratic time for some lines (tests/test_infotext.py has it)."""
    pairs: list[tuple[str, str]] = []
    place = 0
    while (colon := line.find(":", place)) >= 0:
        begin = colon
        while begin > place and KEY.match(line[begin - 1]):
            begin -= 1
        # behind tabs and other white space that no key holds, from its first letter or digit
        key = re.sub(r"^\W+", "", re.split(r"[^\w \-/]", line[begin:colon])[-1])
        found = VALUE.match(line, colon + 1) if len(key) > 1 else None
        if found is not None:
            pairs.append((key, found[1]))
            place = found.end()
        else:
            place = colon + 1
    return pairs


def settings_of(request: Request, schedule: str, seed: int) -> dict[str, str]:
    """The settings of one picture of a request made whole by `Request.for_model`, in A1111's order."""
    sampler = find_sampler(request.sampler)
    out: dict[str, str | None] = {
        "Steps": str(request.steps),
        "Sampler": sampler.label,
        "Schedule type": SCHEDULES[schedule].label if schedule in SCHEDULES else schedule,
        "CFG scale": f"{request.cfg_scale:g}",
        "Image CFG scale": f"{request.image_cfg_scale:g}" if request.image_cfg_scale != 1.5 else None,
        "Seed": str(seed),
        "Size": f"{request.width}x{request.height}",
        "Variation seed": str(request.variation_seed) if request.variation_strength else None,
        "Variation seed strength": f"{request.variation_strength:g}" if request.variation_strength else None,
        "Denoising strength": f"{request.strength:g}" if request.image is not None else None,
        "Clip skip": str(request.clip_skip) if (request.clip_skip or 1) > 1 else None,
        "ENSD": str(request.eta_seed_delta) if request.eta_seed_delta else None,
        "Eta": f"{request.eta:g}" if request.eta is not None else None,
        "Mask blur": f"{request.mask_blur:g}" if request.mask is not None else None,
        "RNG": RNGS[request.forks.rng],
    }
    if request.seed_size is not None:
        height, width = request.seed_size
        out["Seed resize from"] = f"{width}x{height}"
    if request.s_churn:
        out["Sigma churn"] = f"{request.s_churn:g}"
    return {key: value for key, value in out.items() if value is not None}


def parameters(
    request: Request,
    schedule: str,
    seed: int,
    model: str,
    version: str,
    model_hash: str | None = None,
    loras: tuple[tuple[str, str], ...] = (),
) -> str:
    """The text for one picture of a request made whole by `Request.for_model`; `seed` is that picture's own.
    loras: (name, hash) of adapters."""
    settings = settings_of(request, schedule, seed)
    own = {"Model hash": model_hash, "Model": model} if model_hash else {"Model": model}
    settings |= {k: v for k, v in own.items() if v is not None}
    if loras:
        settings["Lora hashes"] = ", ".join(f"{re.sub('[:,]', '', name)}: {sha[:12]}" for name, sha in loras)
    settings["Version"] = f"minisd {version}"
    return written(Infotext(request.prompt, request.negative_prompt, settings))


def request_of(text: str) -> tuple[dict[str, object], tuple[str, ...]]:
    """(fields of a Request under the conventions of A1111, settings that were not carried over).

    Raises RequestError for a text without settings, or a setting that no Request can hold.
    """
    read = parsed(text)
    if not read.settings:
        raise RequestError("the text holds no settings, only a prompt; there is nothing to recreate it from")
    fields: dict[str, object] = {
        "prompt": read.prompt,
        "negative_prompt": read.negative_prompt,
        "conventions": "a1111",
        "rng": "cuda",  # what A1111 means where the text says nothing
    }
    left = dict(read.settings)

    def take(key: str, field: str, kind: type[int] | type[float]) -> None:
        if key in left:
            value = left.pop(key)
            try:
                fields[field] = kind(value)
            except ValueError as error:
                raise RequestError(f"{key} is {value[:40]!r}, no number", field=field) from error

    take("Steps", "steps", int)
    take("Seed", "seed", int)
    take("CFG scale", "cfg_scale", float)
    take("Image CFG scale", "image_cfg_scale", float)
    take("Clip skip", "clip_skip", int)
    take("Eta", "eta", float)
    take("ENSD", "eta_seed_delta", int)
    take("Variation seed", "variation_seed", int)
    take("Variation seed strength", "variation_strength", float)
    take("Sigma churn", "s_churn", float)
    if size := re.fullmatch(r"(\d+)x(\d+)", left.get("Size", "")):
        left.pop("Size")
        fields |= {"width": int(size[1]), "height": int(size[2])}
    if "Sampler" in left:
        name, schedule = split_name(left.pop("Sampler"))
        fields["sampler"] = find_sampler(name).name
        if schedule is not None:
            fields["schedule"] = schedule
    kind = left.pop("Schedule type", "Automatic")
    if kind != "Automatic":
        fields["schedule"] = find_schedule(kind)
    if (source := left.pop("RNG", None)) is not None:
        fields["rng"] = {v: k for k, v in RNGS.items()}.get(source, "cuda")
    return fields, tuple(f"{k}: {v}" for k, v in left.items() if k not in ("Version", "Model", "Model hash"))

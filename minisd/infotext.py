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
from pathlib import Path

from minisd.errors import RequestError, quoted
from minisd.request import Request
from minisd.samplers.names import SCHEDULES, find_sampler, find_schedule, split_name

KEY = re.compile(r"[\w \-/\s]")  # a character of a key, or white space before one
VALUE = re.compile(r'\s*+("(?:\\.|[^\\"])++"(?=,|$)|[^,]*)(?:,|$)')
NEGATIVE = "Negative prompt:"
MAX_TEXT = 1_000_000  # characters that are read
RNGS = {"philox": "NV", "torch": "CPU", "cuda": "GPU"}
UPSCALERS = {  # of a second pass, as A1111 calls them
    "latent": "Latent",
    "latent_bicubic": "Latent (bicubic)",
    "latent_nearest": "Latent (nearest)",
    "lanczos": "Lanczos",
    "bicubic": "Bicubic",
}
NUMBERS: dict[str, tuple[str, type[int] | type[float]]] = {  # settings that are a field as they stand
    "Steps": ("steps", int),
    "Seed": ("seed", int),
    "CFG scale": ("cfg_scale", float),
    "Image CFG scale": ("image_cfg_scale", float),
    "Clip skip": ("clip_skip", int),
    "Eta": ("eta", float),
    "ENSD": ("eta_seed_delta", int),
    "Variation seed": ("variation_seed", int),
    "Variation seed strength": ("variation_strength", float),
    "Sigma churn": ("s_churn", float),
    "Sigma tmin": ("s_tmin", float),
    "Sigma tmax": ("s_tmax", float),
    "Sigma noise": ("s_noise", float),
    "Schedule min sigma": ("sigma_min", float),
    "Schedule max sigma": ("sigma_max", float),
    "Token merging ratio": ("token_merging", float),
}
OWN = "minisd"  # how Version begins in a text of ours


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
        "Sigma churn": f"{request.s_churn:g}" if request.s_churn else None,
        "Sigma tmin": f"{request.s_tmin:g}" if request.s_tmin else None,
        "Sigma tmax": f"{request.s_tmax:g}" if request.s_tmax is not None else None,
        "Sigma noise": f"{request.s_noise:g}" if request.s_noise != 1.0 else None,
        "Schedule min sigma": f"{request.sigma_min:g}" if request.sigma_min is not None else None,
        "Schedule max sigma": f"{request.sigma_max:g}" if request.sigma_max is not None else None,
        "Token merging ratio": f"{request.token_merging:g}" if request.token_merging else None,
        "Discard penultimate sigma": "True" if request.forks.discard == "always" else None,
        "RNG": RNGS[request.forks.rng],
    }
    if request.seed_size is not None:
        height, width = request.seed_size
        out["Seed resize from"] = f"{width}x{height}"
    if request.hires_scale != 1.0:
        out |= {
            "Denoising strength": f"{request.hires_strength:g}",
            "Hires upscale": f"{request.hires_scale:g}",
            "Hires steps": str(request.hires_steps) if request.hires_steps is not None else None,
            "Hires upscaler": UPSCALERS.get(request.hires_upscaler, Path(request.hires_upscaler).stem),
        }
    return {key: value for key, value in out.items() if value is not None}


def parameters(
    request: Request,
    schedule: str,
    seed: int,
    model: str,
    version: str,
    model_hash: str | None = None,
    loras: tuple[tuple[str, str], ...] = (),
    words: tuple[tuple[str, str], ...] = (),
    refiner: str | None = None,
) -> str:
    """The text for one picture of a request made whole by `Request.for_model`; `seed` is that picture's own.
    loras, words: (name, hash) of adapters and learned words. refiner: name of the model that took over."""
    settings = settings_of(request, schedule, seed)
    own = {"Model hash": model_hash, "Model": model} if model_hash else {"Model": model}
    settings |= {k: v for k, v in own.items() if v is not None}
    if refiner is not None:
        settings |= {"Refiner": refiner, "Refiner switch at": f"{request.refiner_at:g}"}
    for title, hashes in (("Lora hashes", loras), ("TI hashes", words)):
        if hashes:
            settings[title] = ", ".join(f"{re.sub('[:,]', '', name)}: {sha[:12]}" for name, sha in hashes)
    if request.conventions != OWN:
        settings["Conventions"] = request.conventions
    settings["Version"] = f"{OWN} {version}"
    return written(Infotext(request.prompt, request.negative_prompt, settings))


def request_of(text: str) -> tuple[dict[str, object], tuple[str, ...]]:
    """(fields of a Request under the conventions of A1111, settings that were not carried over).

    Raises RequestError for a text without settings, or a setting that no Request can hold.
    """
    read = parsed(text)
    if not read.settings:
        raise RequestError("the text holds no settings, only a prompt; there is nothing to recreate it from")
    left = dict(read.settings)
    ours = left.get("Version", "").startswith(OWN)
    fields: dict[str, object] = {
        "prompt": read.prompt,
        "negative_prompt": read.negative_prompt,
        "conventions": left.pop("Conventions", OWN) if ours else "a1111",
        "rng": "cuda",  # what A1111 means where the text says nothing
    }

    def take(key: str, field: str, kind: type[int] | type[float]) -> None:
        if key in left:
            value = left.pop(key)
            try:
                fields[field] = kind(value)
            except ValueError as error:
                raise RequestError(f"{key} is {quoted(value[:40])}, no number", field=field) from error

    for key, (field, kind) in NUMBERS.items():
        take(key, field, kind)
    for key, names in (("Size", ("width", "height")), ("Seed resize from", ())):
        if size := re.fullmatch(r"(\d{1,6})x(\d{1,6})", left.get(key, "")):
            left.pop(key)
            sides = int(size[1]), int(size[2])
            if names:
                fields |= dict(zip(names, sides, strict=True))
            elif all(sides):
                fields["seed_size"] = sides[::-1]
    try:
        if "Sampler" in left:
            name, schedule = split_name(left.pop("Sampler"))
            fields["sampler"] = find_sampler(name).name
            if schedule is not None:
                fields["schedule"] = schedule
        automatic = left.pop("Schedule type", "Automatic")
        if automatic != "Automatic":
            fields["schedule"] = find_schedule(automatic)
    except ValueError as error:
        raise RequestError(str(error), field="sampler") from error
    if (source := left.pop("RNG", None)) is not None:
        fields["rng"] = {v: k for k, v in RNGS.items()}.get(source, "cuda")
    if left.get("Discard penultimate sigma") == "True":
        fields["discard"] = "always"
        left.pop("Discard penultimate sigma")
    upscaler = {v: k for k, v in UPSCALERS.items()}.get(left.get("Hires upscaler", ""))
    if "Hires upscale" in left and upscaler is not None:
        fields["hires_upscaler"] = upscaler
        left.pop("Hires upscaler")
        take("Hires upscale", "hires_scale", float)
        take("Hires steps", "hires_steps", int)
        take("Denoising strength", "hires_strength", float)
    known = ("Version", "Model", "Model hash")  # said of the file that is loaded, not of a request
    return fields, tuple(f"{k}: {v}" for k, v in left.items() if k not in known)

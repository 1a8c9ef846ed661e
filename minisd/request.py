"""Request: everything that determines a picture, and nothing else.

The command line's flags, the JSON in a PNG and a line of a batch file are derived from these fields; there is
one place to add a parameter. Wrong values are refused when the Request is made, by name, with what would be
right.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from minisd.config import ModelConfig
from minisd.control import ControlUnit, is_path, units
from minisd.conventions import CONVENTIONS, Forks
from minisd.errors import ImageError, RequestError, quoted
from minisd.lora_use import LoraUse, lora_uses
from minisd.picture import Picture
from minisd.picture_prompt import PicturePrompt, picture_prompts
from minisd.region import Region, regions
from minisd.samplers.names import find_sampler, find_schedule, split_name

MAX_SIDE = 8192
MAX_PIXELS = 4096 * 4096
MAX_PROMPT_CHARACTERS = 100_000
MAX_STEPS = 1000
MAX_STYLES = 100
MAX_COUNT = 1000
SEEDS = 2**64


@dataclass(frozen=True, kw_only=True)
class Request:
    """A picture to be. `None` means: as the model, the sampler or the convention says.

    width, height: pixels, multiples of 8. seed: 0 .. 2^64 - 1, or -1 as None; image i of `count` is the
    picture of seed + i alone. cfg_scale: classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598);
    1 is off.
    cfg_rescale: share of the rescaling of Lin et al. 2023 (arXiv:2305.08891, section 3.4). eta: noise of
    stochastic samplers. prompt_2, negative_prompt_2: what SDXL's second text encoder reads (None: the same).
    prompt_to, prompt_blend, prompt_path: a second prompt, how far towards it, and along an arc or a line.
    styles: names of rows in the engine's table of styles. clip_skip: hidden layer counted from the last, 1
    is the last. original_size, crop, target_size (height, width), aesthetic: SDXL's conditioning.
    """

    prompt: str = ""
    negative_prompt: str = ""
    prompt_2: str | None = None
    negative_prompt_2: str | None = None
    prompt_to: str | None = None
    prompt_blend: float = 0.5
    prompt_path: Literal["slerp", "lerp"] = "slerp"
    styles: tuple[str, ...] = ()
    image: Picture | None = None
    mask: Picture | None = None
    strength: float | None = None
    resize: Literal["pad", "stretch", "crop", "fill"] | None = None
    outpaint: tuple[int, ...] | None = None
    mask_blur: float = 4.0
    mask_invert: bool = False
    mask_fill: Literal["original", "fill", "noise", "nothing"] = "original"
    mask_area: Literal["whole", "masked"] = "whole"
    mask_padding: int = 32
    mask_soft: bool = False
    image_cfg_scale: float = 1.5
    depth: Picture | None = None
    inversion: Literal["no", "ddim", "dpmpp_2m"] = "no"
    inversion_prompt: str = ""
    hires_scale: float = 1.0
    hires_upscaler: str = "lanczos"
    hires_strength: float = 0.5
    hires_steps: int | None = None
    refiner_at: float | None = None
    diffusion_tile: int | None = None
    seamless: Literal["no", "x", "y", "xy"] = "no"
    regions: tuple[Region, ...] = ()
    controls: tuple[ControlUnit, ...] = ()
    loras: tuple[LoraUse, ...] = ()
    picture_prompts: tuple[PicturePrompt, ...] = ()
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    count: int = 1
    steps: int = 20
    sampler: str = "dpmpp_2m"
    schedule: str = "auto"
    cfg_scale: float = 5.0
    cfg_rescale: float = 0.0
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    apg_eta: float = 1.0
    apg_norm: float = 0.0
    apg_momentum: float = 0.0
    mimic_scale: float = 0.0
    mimic_percentile: float = 1.0
    pag_scale: float = 0.0
    sag_scale: float = 0.0
    slg_scale: float = 0.0
    slg_start: float = 0.0
    slg_end: float = 1.0
    freeu: tuple[float, ...] | None = None
    eta: float | None = None
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float | None = None
    s_noise: float = 1.0
    sigmas: tuple[float, ...] | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    variation_seed: int | None = None
    variation_strength: float = 0.0
    seed_size: tuple[int, int] | None = None
    eta_seed_delta: int = 0
    clip_skip: int | None = None
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5
    conventions: str = "minisd"
    initial_noise: Literal["sigma", "variance"] | None = None
    spacing: Literal["linspace", "leading", "trailing", "sgm"] | None = None
    steps_offset: int | None = None
    interpolation: Literal["log", "linear"] | None = None
    quantised: bool | None = None
    ddim_end: Literal["zero", "first"] | None = None
    discard: Literal["never", "always", "sampler"] | None = None
    rng: Literal["philox", "torch", "cuda"] | None = None
    empty_negative: Literal["zeros", "encode"] | None = None
    long_prompt: Literal["commas", "chunks", "truncate"] | None = None
    chunk_padding: Literal["all", "own"] | None = None
    composition: Literal["and", "literal"] | None = None
    prompt_language: Literal["minisd", "a1111", "a1111_old", "compel", "literal"] | None = None
    emphasis: Literal["auto", "mean", "plain", "compel", "ignore"] | None = None
    choices: Literal["expand", "literal"] | None = None
    strength_rule: Literal["share", "a1111", "a1111_exact", "diffusers", "sdnext", "sgm"] | None = None
    vae_latent: Literal["mean", "sample"] | None = None
    mask_cells: Literal["cover", "nearest", "round"] | None = None
    mask_edge: Literal["inside", "across"] | None = None
    paste: bool | None = None
    refiner_rule: Literal["steps", "times", "a1111"] | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt", "inversion_prompt", "hires_upscaler"):
            text(self, name)
        for name in ("prompt_2", "negative_prompt_2", "prompt_to"):
            text(self, name, optional=True)
        words(self, "styles")
        number(self, "prompt_blend", 0.0, 1.0)
        for name in PICTURES:
            picture(self, name)
        number(self, "strength", 0.0, 1.0, optional=True)
        number(self, "mask_blur", 0.0, 256.0)
        number(self, "image_cfg_scale", 0.0, 1000.0)
        whole(self, "mask_padding", 0, MAX_SIDE)
        for name in ("mask_invert", "mask_soft"):
            choice(self, name, (True, False))
        for name, options in CHOICES.items():
            choice(self, name, options)
        border(self, "outpaint")
        number(self, "hires_scale", 1.0, 8.0)
        number(self, "hires_strength", 0.0, 1.0)
        whole(self, "hires_steps", 1, MAX_STEPS, optional=True)
        number(self, "refiner_at", 0.0, 1.0, optional=True)
        side(self, "diffusion_tile")
        self._check_hires()
        object.__setattr__(self, "regions", regions(self.regions))
        object.__setattr__(self, "controls", units(self.controls))
        object.__setattr__(self, "loras", lora_uses(self.loras))
        object.__setattr__(self, "picture_prompts", picture_prompts(self.picture_prompts))
        self._check_picture()
        for name in ("width", "height"):
            side(self, name)
        if self.width and self.height and self.width * self.height > MAX_PIXELS:
            raise RequestError(
                f"{self.width} x {self.height} is more than {MAX_PIXELS:,} pixels; ask for fewer",
                field="width",
            )
        for name in ("seed", "variation_seed"):
            if type(value := getattr(self, name)) is int and value == -1:  # the community's "drawn"
                object.__setattr__(self, name, None)
        whole(self, "seed", 0, SEEDS - 1, optional=True)
        whole(self, "count", 1, MAX_COUNT)
        whole(self, "steps", 1, MAX_STEPS)
        whole(self, "clip_skip", 1, 64, optional=True)
        whole(self, "steps_offset", 0, 1000, optional=True)
        number(self, "cfg_scale", 0.0, 1000.0)
        number(self, "cfg_rescale", 0.0, 1.0)
        for name in ("guidance_start", "guidance_end", "slg_start", "slg_end", "variation_strength"):
            number(self, name, 0.0, 1.0)
        for name in ("apg_norm", "mimic_scale", "pag_scale", "sag_scale", "slg_scale", "s_churn", "s_tmin"):
            number(self, name, 0.0, 1000.0)
        number(self, "apg_eta", -10.0, 10.0)
        number(self, "apg_momentum", -1.0, 1.0)
        number(self, "mimic_percentile", 0.5, 1.0)
        number(self, "s_noise", 0.0, 10.0)
        number(self, "s_tmax", 0.0, 1e6, optional=True)
        number(self, "sigma_min", 1e-4, 1e4, optional=True)
        number(self, "sigma_max", 1e-4, 1e4, optional=True)
        number(self, "eta", 0.0, 1.0, optional=True)
        numbers(self, "freeu", 4, 4)
        numbers(self, "sigmas", 2, MAX_STEPS + 1)
        whole(self, "variation_seed", 0, SEEDS - 1, optional=True)
        whole(self, "eta_seed_delta", 0, SEEDS - 1)
        number(self, "aesthetic_score", 0.0, 10.0)
        number(self, "negative_aesthetic_score", 0.0, 10.0)
        for name in ("original_size", "target_size", "seed_size"):
            pair(self, name, optional=True)
        pair(self, "crop")
        area(self, "seed_size")
        self._name_sampler()
        self._check_taken()
        choice(self, "conventions", tuple(CONVENTIONS))
        for name, options in FORK_CHOICES.items():
            choice(self, name, (None, *options))

    def _name_sampler(self) -> None:
        """Our own names for sampler and schedule, from any program's."""
        try:
            name, schedule = (
                split_name(self.sampler) if isinstance(self.sampler, str) else (self.sampler, None)
            )
            object.__setattr__(self, "sampler", find_sampler(name).name)
        except ValueError as error:
            raise RequestError(f"sampler: {error}", field="sampler") from error
        try:
            own = find_schedule(self.schedule)
            wanted = schedule if schedule is not None and own == "auto" else own
            if schedule is not None and wanted != schedule:
                raise ValueError(f"the sampler's name says {schedule}, the schedule {own}; say one")
            object.__setattr__(self, "schedule", find_schedule(wanted))
        except ValueError as error:
            raise RequestError(f"schedule: {error}", field="schedule") from error

    def _check_taken(self) -> None:
        """A number for the sampler that the sampler does not take is a mistake, not a wish."""
        sampler = find_sampler(self.sampler)
        given = {
            "eta": self.eta is not None and sampler.eta is None,
            "s_churn": self.s_churn != 0.0 and "s_churn" not in sampler.takes,
            "s_noise": self.s_noise != 1.0 and "s_noise" not in sampler.takes,
        }
        for name, wrong in given.items():
            if wrong:
                raise RequestError(f"the sampler {self.sampler} takes no {name}; leave it out", field=name)

    def _check_picture(self) -> None:
        """What says how a picture or a mask is used is a mistake without one."""
        defaults = {f.name: f.default for f in fields(self)}
        for name, needed in NEEDS.items():
            if getattr(self, name) != defaults[name] and all(getattr(self, n) is None for n in needed):
                raise RequestError(
                    f"{name} needs {' or '.join(needed)}; give one or leave it out", field=name
                )
        self._check_inversion()
        if self.regions and self.mask_area == "masked":
            raise RequestError(
                "regions lie in the whole picture, and mask_area masked draws a part of it; leave one out",
                field="regions",
            )
        if self.image is not None and self.mask is not None and self.image.size != self.mask.size:
            raise RequestError(
                f"mask is {self.mask.width} x {self.mask.height} pixels, the image {self.image.width} x "
                f"{self.image.height}; make them the same",
                field="mask",
            )

    def _check_inversion(self) -> None:
        """The noise that a picture is turned to leaves no place for other noise."""
        if self.inversion == "no":
            if self.inversion_prompt:
                raise RequestError(
                    "inversion_prompt needs an inversion, ddim or dpmpp_2m; give one",
                    field="inversion_prompt",
                )
            return
        other = {
            "variation_strength": self.variation_strength > 0,
            "seed_size": self.seed_size is not None,
            "mask_fill": self.mask_fill in ("noise", "nothing"),
        }
        for name, given in other.items():
            if given:
                raise RequestError(
                    f"{name} chooses the first noise, and so does inversion, from the picture; leave one of "
                    "them out",
                    field="inversion",
                )

    def _check_hires(self) -> None:
        defaults = {f.name: f.default for f in fields(self)}
        if self.hires_scale == 1.0:
            for name in ("hires_upscaler", "hires_strength", "hires_steps"):
                if getattr(self, name) != defaults[name]:
                    raise RequestError(f"{name} needs a hires_scale above 1; give one", field=name)
            return
        for name in ("mask", "outpaint"):
            if getattr(self, name) is not None:
                raise RequestError(
                    f"hires_scale draws a larger picture, and {name} keeps parts of one at its size; leave "
                    "one of them out",
                    field="hires_scale",
                )

    @property
    def wrap(self) -> tuple[bool, bool]:
        """Whether the picture goes on at its opposite edge: down, across."""
        return "y" in self.seamless, "x" in self.seamless

    @property
    def forks(self) -> Forks:
        """The convention's forks, with those that this request sets alone."""
        own = {f.name: getattr(self, f.name) for f in fields(Forks) if getattr(self, f.name) is not None}
        return replace(CONVENTIONS[self.conventions], **own)

    def for_model(self, config: ModelConfig, seed: int) -> Request:
        """This request with every `None` decided that the model or a drawn `seed` decides, checked against
        the model."""
        width, height, resize = drawn_size(self, config)
        for name, value in (("width", width), ("height", height)):
            if value % config.vae.factor:
                below = value // config.vae.factor * config.vae.factor
                raise RequestError(
                    f"{name} {value} is not a multiple of {config.vae.factor}; "
                    f"try {below or config.vae.factor}",
                    field=name,
                )
        if self.clip_skip is not None:
            layers = min(t.config.layers for t in config.text) if config.text else 0
            if self.clip_skip > layers:
                raise RequestError(
                    f"clip_skip {self.clip_skip} is outside 1..{layers} of this model", field="clip_skip"
                )
        parts = [use.part for use in config.text]
        for name in ("prompt_2", "negative_prompt_2"):
            if getattr(self, name) is not None and "text_encoder_2" not in parts:
                raise RequestError(
                    f"{name} is for a second text encoder, which this model does not have; leave it out",
                    field=name,
                )
        strength = self.strength
        if self.image is not None and strength is None:
            strength = 1.0 if config.concat == "ip2p" else DEFAULT_STRENGTH
        for name in ("pag_scale", "sag_scale", "slg_scale"):
            if getattr(self, name) > 0 and not config.unet.depth_mid:
                raise RequestError(
                    f"this model has no attention in its middle, where {name} acts; leave it out", field=name
                )
        variation = self.variation_seed
        if variation is None and self.variation_strength > 0:
            variation = seed
        return replace(
            self,
            width=width,
            height=height,
            resize=resize,
            strength=strength,
            seed=seed if self.seed is None else self.seed,
            variation_seed=variation,
            original_size=self.original_size or (height, width),
            target_size=self.target_size or (height, width),
        )

    def seeds(self) -> list[int]:
        """The seed of every image of the batch."""
        assert self.seed is not None, "the seed is drawn by for_model"
        return [(self.seed + i) % SEEDS for i in range(self.count)]

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON, without the fields that are None. Pictures are named by digest and size."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: plain(v) for k, v in values.items() if v is not None}

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, object],
        *,
        paths: bool = True,
        pictures: Mapping[str, Picture] | None = None,
    ) -> Request:
        """From plain data. A picture is {"path": ...}, {"data": base64}, or {"sha256": ...} of one that
        `pictures` holds by its digest; paths False refuses to open files. Raises RequestError naming a field
        that does not exist, with the nearest that does."""
        names = [f.name for f in fields(cls)]
        for key in data:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise RequestError(f"a request has no field {quoted(key)}{hint}", field=str(key))
        pairs = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        for name in PICTURES:
            if pairs.get(name) is not None:
                pairs[name] = read_picture(name, pairs[name], paths, pictures)
        if isinstance(given := pairs.get("controls"), tuple):
            pairs["controls"] = tuple(ControlUnit.of(v, paths=paths, pictures=pictures) for v in given)
        if isinstance(given := pairs.get("regions"), tuple):
            pairs["regions"] = tuple(Region.of(v, paths=paths, pictures=pictures) for v in given)
        if isinstance(given := pairs.get("picture_prompts"), tuple):
            made = (PicturePrompt.of(v, paths=paths, pictures=pictures) for v in given)
            pairs["picture_prompts"] = tuple(made)
        upscaler = pairs.get("hires_upscaler")
        if not paths and isinstance(upscaler, str) and is_path(upscaler):
            raise RequestError(
                "hires_upscaler: upscalers are named here, not given by path; ask which names there are",
                field="hires_upscaler",
            )
        return cls(**pairs)  # type: ignore[arg-type]  # __post_init__ checks every field


DEFAULT_STRENGTH = 0.75
NEEDS: dict[str, tuple[str, ...]] = {  # field: those of which one must be given with it
    "prompt_blend": ("prompt_to",),
    "prompt_path": ("prompt_to",),
    "mask": ("image",),
    "strength": ("image",),
    "resize": ("image",),
    "outpaint": ("image",),
    "mask_blur": ("mask", "outpaint"),
    "mask_invert": ("mask",),
    "mask_fill": ("mask", "outpaint"),
    "mask_area": ("mask", "outpaint"),
    "mask_padding": ("mask", "outpaint"),
    "mask_soft": ("mask",),
    "inversion": ("image",),
}
CHOICES: dict[str, tuple[object, ...]] = {
    "prompt_path": ("slerp", "lerp"),
    "resize": (None, "pad", "stretch", "crop", "fill"),
    "mask_fill": ("original", "fill", "noise", "nothing"),
    "mask_area": ("whole", "masked"),
    "seamless": ("no", "x", "y", "xy"),
    "inversion": ("no", "ddim", "dpmpp_2m"),
}
PICTURES = ("image", "mask", "depth")  # fields that hold one; those named in MASKS in shades of grey
MASKS = ("mask", "depth")
FORK_CHOICES: dict[str, tuple[object, ...]] = {
    "initial_noise": ("sigma", "variance"),
    "spacing": ("linspace", "leading", "trailing", "sgm"),
    "interpolation": ("log", "linear"),
    "quantised": (True, False),
    "ddim_end": ("zero", "first"),
    "discard": ("never", "always", "sampler"),
    "rng": ("philox", "torch", "cuda"),
    "empty_negative": ("zeros", "encode"),
    "long_prompt": ("commas", "chunks", "truncate"),
    "chunk_padding": ("all", "own"),
    "composition": ("and", "literal"),
    "prompt_language": ("minisd", "a1111", "a1111_old", "compel", "literal"),
    "emphasis": ("auto", "mean", "plain", "compel", "ignore"),
    "choices": ("expand", "literal"),
    "strength_rule": ("share", "a1111", "a1111_exact", "diffusers", "sdnext", "sgm"),
    "vae_latent": ("mean", "sample"),
    "mask_cells": ("cover", "nearest", "round"),
    "mask_edge": ("inside", "across"),
    "paste": (True, False),
    "refiner_rule": ("steps", "times", "a1111"),
}


def plain(value: object) -> object:
    """A field's value as JSON can hold it; what is more than a number or text says it of itself."""
    if isinstance(value, tuple):
        return [plain(v) for v in value] if any(hasattr(v, "to_dict") for v in value) else value
    to_dict = getattr(value, "to_dict", None)
    return value if to_dict is None else to_dict()


def read_picture(name: str, value: object, paths: bool, pictures: Mapping[str, Picture] | None) -> Picture:
    try:
        return Picture.from_plain(value, mask=name in MASKS, paths=paths, known=pictures)
    except ImageError as error:
        raise RequestError(f"{name}: {error}", field=name) from error


def picture(request: Request, name: str) -> None:
    """A Picture from what Picture.of takes, or None."""
    value = getattr(request, name)
    if value is None:
        return
    try:
        object.__setattr__(request, name, Picture.of(value, mask=name in MASKS))
    except ImageError as error:
        raise RequestError(f"{name}: {error}", field=name) from error


def text(request: Request, name: str, *, optional: bool = False) -> None:
    value = getattr(request, name)
    if value is None and optional:
        return
    if not isinstance(value, str):
        raise RequestError(f"{name} must be text, got {type(value).__name__}", field=name)
    if len(value) > MAX_PROMPT_CHARACTERS:
        raise RequestError(
            f"{name} has {len(value):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are read. Shorten it",
            field=name,
        )


def words(request: Request, name: str) -> None:
    """A tuple of names."""
    value = getattr(request, name)
    ok = isinstance(value, tuple) and all(isinstance(v, str) and v for v in value)
    if not ok or len(value) > MAX_STYLES:
        raise RequestError(
            f"{name} must be at most {MAX_STYLES} names, got {quoted(repr(value))}", field=name
        )


def shown(value: float) -> str:
    """A number as it stands in a message: a whole one of a million digits is told by its length."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length():,} bits"
    return str(value)


def whole(request: Request, name: str, low: int, high: int, *, optional: bool = False) -> None:
    value = getattr(request, name)
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(
            f"{name} must be a whole number in {low}..{high}, got {quoted(repr(value))}", field=name
        )
    if not low <= value <= high:
        raise RequestError(f"{name} is {shown(value)}; it must lie in {low}..{high}", field=name)


def number(request: Request, name: str, low: float, high: float, *, optional: bool = False) -> None:
    value = getattr(request, name)
    if value is None and optional:
        return
    # a float first: isfinite(10**400) overflows
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or (isinstance(value, float) and not math.isfinite(value))
    ):
        raise RequestError(
            f"{name} must be a finite number in {low}..{high}, got {quoted(repr(value))}", field=name
        )
    if not low <= value <= high:
        raise RequestError(f"{name} is {shown(value)}; it must lie in {low}..{high}", field=name)
    object.__setattr__(request, name, float(value))


def numbers(request: Request, name: str, least: int, most: int) -> None:
    """A tuple of finite numbers, or None."""
    value = getattr(request, name)
    if value is None:
        return
    ok = isinstance(value, tuple) and all(type(v) in (int, float) and math.isfinite(v) for v in value)
    if not ok or not least <= len(value) <= most:
        count = str(least) if least == most else f"{least} to {most}"
        raise RequestError(f"{name} must be {count} finite numbers, got {quoted(repr(value))}", field=name)
    object.__setattr__(request, name, tuple(float(v) for v in value))


def border(request: Request, name: str) -> None:
    """Four numbers of pixels, multiples of 8, not all 0: left, top, right, bottom."""
    value = getattr(request, name)
    if value is None:
        return
    ok = isinstance(value, tuple) and len(value) == 4 and all(type(v) is int for v in value)
    if not ok or any(v < 0 or v % 8 or v > MAX_SIDE for v in value) or not any(value):
        raise RequestError(
            f"{name} must be four multiples of 8 (left, top, right, bottom), not all 0, got "
            f"{quoted(repr(value))}",
            field=name,
        )


def drawn_size(
    request: Request, config: ModelConfig
) -> tuple[int, int, Literal["pad", "stretch", "crop", "fill"] | None]:
    """(width, height, resize) of the picture that is drawn: as asked; else the given picture's, padded to
    what latents need; else what the model was trained at. One side alone keeps the picture's proportions."""
    width, height, factor = request.width, request.height, config.vae.factor
    if request.image is None or (request.mask_area == "masked" and width is height is None):
        return width or config.size, height or config.size, request.resize
    left, top, right, bottom = request.outpaint or (0, 0, 0, 0)
    w, h = request.image.width + left + right, request.image.height + top + bottom
    if width is None and height is None:
        width, height = (-(-n // factor) * factor for n in (w, h))
        if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
            raise RequestError(
                f"the picture would be drawn at {width} x {height}, more than {MAX_PIXELS:,} pixels; say a "
                "width and height",
                field="width",
            )
        return width, height, request.resize or "pad"
    if width is None:
        width = max(factor, round((height or 0) * w / h / factor) * factor)
    if height is None:
        height = max(factor, round(width * h / w / factor) * factor)
    return width, height, request.resize or "stretch"


def side(request: Request, name: str) -> None:
    whole(request, name, 8, MAX_SIDE, optional=True)
    value = getattr(request, name)
    if value is not None and value % 8:
        raise RequestError(f"{name} {value} is not a multiple of 8; try {round(value / 8) * 8}", field=name)


def pair(request: Request, name: str, *, optional: bool = False) -> None:
    value = getattr(request, name)
    if value is None and optional:
        return
    if not isinstance(value, tuple) or len(value) != 2 or not all(type(v) is int for v in value):
        raise RequestError(
            f"{name} must be two whole numbers (height, width), got {quoted(repr(value))}", field=name
        )
    for v in value:
        if not 0 <= v <= 65536:
            raise RequestError(f"{name} holds {shown(v)}; both must lie in 0..65536", field=name)


def area(request: Request, name: str) -> None:
    """A (height, width) that latents can have: each side a multiple of 8, within the limits of a picture."""
    value = getattr(request, name)
    if value is None:
        return
    if any(v < 8 or v % 8 or v > MAX_SIDE for v in value) or value[0] * value[1] > MAX_PIXELS:
        raise RequestError(
            f"{name} {value[0]} x {value[1]} must have sides in 8..{MAX_SIDE}, multiples of 8", field=name
        )


def choice(request: Request, name: str, options: tuple[object, ...]) -> None:
    value = getattr(request, name)
    if not any(value is o or (type(value) is type(o) and value == o) for o in options):
        known = ", ".join(str(o) for o in options if o is not None)
        raise RequestError(f"{name} is {quoted(repr(value))}; it must be one of {known}", field=name)

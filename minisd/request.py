"""Request: everything that determines a picture, and nothing else.

The command line's flags, the JSON in a PNG and a line of a batch file are derived from these fields; there is
one place to add a parameter. A field's type says what it may be (ranges and errors: `request_rules.py`),
`request_checks.py` what fields must be to each other. Wrong values are refused when the Request is made, by
name, with what would be right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal

from minisd import request_model
from minisd.config import ModelConfig
from minisd.conventions import CONVENTIONS, Forks
from minisd.picture import MAX_SIDE, Picture
from minisd.request_checks import check_together, own_names
from minisd.request_data import plain, values_of
from minisd.request_rules import (
    MAX_COUNT,
    MAX_STEPS,
    SEEDS,
    Area,
    Border,
    Controls,
    Convention,
    Given,
    Levels,
    Loras,
    Number,
    Numbers,
    OneOf,
    Pair,
    PicturePrompts,
    Regions,
    Scale,
    Score,
    Seed,
    Share,
    Side,
    Sigma,
    Steps,
    Text,
    Whole,
    Words,
    rules,
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A picture to be. `None` means: as the model, the sampler or the convention says."""

    prompt: Text = ""
    negative_prompt: Text = ""
    prompt_2: Text | None = None  # what SDXL's second text encoder reads; None: the same
    negative_prompt_2: Text | None = None
    prompt_to: Text | None = None  # a second prompt,
    prompt_blend: Share = 0.5  # how far towards it,
    prompt_path: Literal["slerp", "lerp"] = "slerp"  # along an arc or a line
    styles: Words = ()  # names of rows in the engine's table of styles

    # a picture to start from, and where it is drawn anew: start.py, areas.py
    image: Given | None = None
    mask: Given | None = None  # white where it is drawn
    strength: Share | None = None
    resize: Literal["pad", "stretch", "crop", "fill"] | None = None
    outpaint: Border | None = None  # pixels to draw around it: left, top, right, bottom
    mask_blur: Annotated[float, Number(0.0, 256.0)] = 4.0  # pixels
    mask_invert: bool = False
    mask_fill: Literal["original", "fill", "noise", "nothing"] = "original"
    mask_area: Literal["whole", "masked"] = "whole"
    mask_padding: Annotated[int, Whole(0, MAX_SIDE)] = 32  # pixels
    mask_soft: bool = False  # grey says how far a place is changed
    image_cfg_scale: Scale = 1.5  # instruct-pix2pix
    depth: Given | None = None  # SD2 depth: white is near
    inversion: Literal["no", "ddim", "dpmpp_2m"] = "no"
    inversion_prompt: Text = ""

    # what stands around the one loop: hires.py, refiner.py, relay.py, and what stands beside the UNet
    hires_scale: Annotated[float, Number(1.0, 8.0)] = 1.0
    hires_upscaler: Text = "lanczos"
    hires_strength: Share = 0.5
    hires_steps: Steps | None = None
    refiner_at: Share | None = None
    diffusion_tile: Side | None = None
    seamless: Literal["no", "x", "y", "xy"] = "no"
    regions: Regions = ()
    controls: Controls = ()
    loras: Loras = ()
    picture_prompts: PicturePrompts = ()

    width: Side | None = None
    height: Side | None = None
    seed: Seed | None = None  # image i of `count` is the picture of seed + i alone
    count: Annotated[int, Whole(1, MAX_COUNT)] = 1

    steps: Steps = 20
    sampler: str = "dpmpp_2m"  # any program's name, brought to ours, as is that of the schedule
    schedule: str = "auto"

    # guidance.py; cfg_scale: classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598), 1 is off;
    # cfg_rescale: share of the rescaling of Lin et al. 2023 (arXiv:2305.08891, section 3.4)
    cfg_scale: Scale = 5.0
    cfg_rescale: Share = 0.0
    guidance_start: Share = 0.0
    guidance_end: Share = 1.0
    apg_eta: Annotated[float, Number(-10.0, 10.0)] = 1.0
    apg_norm: Scale = 0.0
    apg_momentum: Annotated[float, Number(-1.0, 1.0)] = 0.0
    mimic_scale: Scale = 0.0
    mimic_percentile: Annotated[float, Number(0.5, 1.0)] = 1.0
    pag_scale: Scale = 0.0
    sag_scale: Scale = 0.0
    slg_scale: Scale = 0.0
    slg_start: Share = 0.0
    slg_end: Share = 1.0
    freeu: Annotated[tuple[float, ...], Numbers(4, 4)] | None = None  # b1, b2, s1, s2

    # less computing for nearly the same picture: shortcuts.py
    token_merging: Annotated[float, Number(0.0, 0.75)] = 0.0  # share of tokens; one in each 2 x 2 stays
    token_merging_levels: Levels = 1  # resolutions with attention, from the finest
    hypertile: Side | None = None  # pixels
    hypertile_levels: Levels = 1
    deep_cache: Steps = 1  # steps of which one is computed whole
    deep_cache_blocks: Annotated[int, Whole(1, 64)] = 1  # outermost ones, computed in every step
    first_block_cache: Share = 0.0  # relative change of the first block below which the rest is reused

    # noise of the steps, for samplers that take it, and their levels: sampling.py
    eta: Share | None = None
    s_churn: Scale = 0.0
    s_tmin: Scale = 0.0
    s_tmax: Annotated[float, Number(0.0, 1e6)] | None = None
    s_noise: Annotated[float, Number(0.0, 10.0)] = 1.0
    sigmas: Annotated[tuple[float, ...], Numbers(2, MAX_STEPS + 1)] | None = None
    sigma_min: Sigma | None = None
    sigma_max: Sigma | None = None
    variation_seed: Seed | None = None
    variation_strength: Share = 0.0
    seed_size: Area | None = None
    eta_seed_delta: Annotated[int, Whole(0, SEEDS - 1)] = 0

    clip_skip: Annotated[int, Whole(1, 64)] | None = None  # hidden layer counted from the last, 1 is the last
    # SDXL's conditioning: (height, width) and (top, left)
    original_size: Pair | None = None
    crop: Pair = (0, 0)
    target_size: Pair | None = None
    aesthetic_score: Score = 6.0
    negative_aesthetic_score: Score = 2.5

    # where programs differ; conventions.py says what each of the forks is
    conventions: Convention = "minisd"
    initial_noise: Literal["sigma", "variance"] | None = None
    spacing: Literal["linspace", "leading", "trailing", "sgm"] | None = None
    steps_offset: Annotated[int, Whole(0, 1000)] | None = None
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
        for name, (rule, optional) in RULES.items():
            value = getattr(self, name)
            if value is not None or not optional:
                object.__setattr__(self, name, rule(name, value))
        sampler, schedule = own_names(self.sampler, self.schedule)
        object.__setattr__(self, "sampler", sampler)
        object.__setattr__(self, "schedule", schedule)
        check_together(self)

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
        return request_model.for_model(self, config, seed)

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
        values = values_of(data, [f.name for f in fields(cls)], paths=paths, pictures=pictures)
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks every field


RULES = rules(Request)
FORK_CHOICES = {f.name: rule.options for f in fields(Forks) if isinstance(rule := RULES[f.name][0], OneOf)}

"""What fields of a Request must be to each other: what does nothing without another, or contradicts it.

A number that would do nothing is a mistake, not a wish. Each function raises RequestError naming the field.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from minisd.control import REFERENCE
from minisd.errors import RequestError
from minisd.picture import MAX_PIXELS
from minisd.samplers.names import find_sampler, find_schedule, split_name

if TYPE_CHECKING:
    from minisd.request import Request

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


def own_names(sampler: str, schedule: str) -> tuple[str, str]:
    """Our own names for sampler and schedule, from any program's, which may say both in one."""
    try:
        name, said = split_name(sampler) if isinstance(sampler, str) else (sampler, None)
        own_sampler = find_sampler(name).name
    except ValueError as error:
        raise RequestError(f"sampler: {error}", field="sampler") from error
    try:
        own = find_schedule(schedule)
        wanted = said if said is not None and own == "auto" else own
        if said is not None and wanted != said:
            raise ValueError(f"the sampler's name says {said}, the schedule {own}; say one")
        return own_sampler, find_schedule(wanted)
    except ValueError as error:
        raise RequestError(f"schedule: {error}", field="schedule") from error


def check_together(request: Request) -> None:
    """Everything below."""
    check_hires(request)
    check_pictures(request)
    check_inversion(request)
    check_size(request)
    check_sampler(request)
    check_shortcuts(request)


def check_size(request: Request) -> None:
    if request.width and request.height and request.width * request.height > MAX_PIXELS:
        raise RequestError(
            f"{request.width} x {request.height} is more than {MAX_PIXELS:,} pixels; ask for fewer",
            field="width",
        )


def check_sampler(request: Request) -> None:
    """A number for the sampler is one that it takes."""
    sampler = find_sampler(request.sampler)
    given = {
        "eta": request.eta is not None and sampler.eta is None,
        "s_churn": request.s_churn != 0.0 and "s_churn" not in sampler.takes,
        "s_noise": request.s_noise != 1.0 and "s_noise" not in sampler.takes,
    }
    for name, wrong in given.items():
        if wrong:
            raise RequestError(f"the sampler {request.sampler} takes no {name}; leave it out", field=name)


def check_shortcuts(request: Request) -> None:
    """What reuses the network's answers leaves alone what looks inside each of them or judges by them, and
    what regroups tokens what else looks at tokens."""
    name = "deep_cache" if request.deep_cache > 1 else "first_block_cache"
    if request.deep_cache > 1 or request.first_block_cache > 0:
        clashes = {
            "first_block_cache decides in which steps the network is computed": name == "deep_cache"
            and request.first_block_cache > 0,
            "sag_scale looks into the middle of the network in every step": request.sag_scale > 0,
            "the sampler dpm_adaptive judges its steps by the network's answers": request.sampler
            == "dpm_adaptive",
        }
        for why in (why for why, clash in clashes.items() if clash):
            raise RequestError(
                f"{name} reuses what the network computed in earlier steps, and {why}; leave one out",
                field=name,
            )
    name = "token_merging" if request.token_merging > 0 else "hypertile"
    if request.token_merging > 0 or request.hypertile is not None:
        if any(unit.model == REFERENCE and unit.weight != 0 for unit in request.controls):
            raise RequestError(
                f"{name} lets tokens attend to some of the picture only, and {REFERENCE} to all of another; "
                "leave one out",
                field=name,
            )


def check_pictures(request: Request) -> None:
    """What says how a picture or a mask is used has one."""
    defaults = {f.name: f.default for f in fields(request)}
    for name, needed in NEEDS.items():
        if getattr(request, name) != defaults[name] and all(getattr(request, n) is None for n in needed):
            raise RequestError(f"{name} needs {' or '.join(needed)}; give one or leave it out", field=name)
    if request.regions and request.mask_area == "masked":
        raise RequestError(
            "regions lie in the whole picture, and mask_area masked draws a part of it; leave one out",
            field="regions",
        )
    image, mask = request.image, request.mask
    if image is not None and mask is not None and image.size != mask.size:
        raise RequestError(
            f"mask is {mask.width} x {mask.height} pixels, the image {image.width} x {image.height}; make "
            "them the same",
            field="mask",
        )


def check_inversion(request: Request) -> None:
    """The noise that a picture is turned to leaves no place for other noise."""
    if request.inversion == "no":
        if request.inversion_prompt:
            raise RequestError(
                "inversion_prompt needs an inversion, ddim or dpmpp_2m; give one", field="inversion_prompt"
            )
        return
    other = {
        "variation_strength": request.variation_strength > 0,
        "seed_size": request.seed_size is not None,
        "mask_fill": request.mask_fill in ("noise", "nothing"),
    }
    for name, given in other.items():
        if given:
            raise RequestError(
                f"{name} chooses the first noise, and so does inversion, from the picture; leave one of them "
                "out",
                field="inversion",
            )


def check_hires(request: Request) -> None:
    """A second pass has a size of its own, and nothing that holds at the first one's."""
    if request.hires_scale == 1.0:
        defaults = {f.name: f.default for f in fields(request)}
        for name in ("hires_upscaler", "hires_strength", "hires_steps"):
            if getattr(request, name) != defaults[name]:
                raise RequestError(f"{name} needs a hires_scale above 1; give one", field=name)
        return
    for name in ("mask", "outpaint"):
        if getattr(request, name) is not None:
            raise RequestError(
                f"hires_scale draws a larger picture, and {name} keeps parts of one at its size; leave one "
                "of them out",
                field="hires_scale",
            )

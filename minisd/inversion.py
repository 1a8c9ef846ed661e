"""From a picture to the noise that leads back to it (DDIM inversion: Song et al. 2021, arXiv:2010.02502,
section 4.3; Dhariwal and Nichol 2021, arXiv:2105.05233, appendix F).

A deterministic solver (`samplers/inverse.py`) follows the probability-flow ODE upwards, over the levels of
the run that is to come, without guidance and under a prompt that says what the picture shows. The run that
begins with that noise gives the picture back under the same prompt, up to the solver's error; under another,
an edited one of the same layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from minisd.errors import RequestError
from minisd.model import Model
from minisd.request import Request
from minisd.samplers.inverse import sample_ddim_inverse, sample_dpmpp_2m_inverse
from minisd.samplers.step import OnStep
from minisd.start import Start

SOLVERS = {"ddim": sample_ddim_inverse, "dpmpp_2m": sample_dpmpp_2m_inverse}


def described(request: Request) -> Request:
    """What is told of the picture on the way to the noise: its own prompt, no guidance, no regions."""
    return replace(
        request,
        prompt=request.inversion_prompt,
        negative_prompt="",
        prompt_2=None,
        negative_prompt_2=None,
        prompt_to=None,
        prompt_blend=0.5,
        prompt_path="slerp",
        regions=(),
        cfg_scale=1.0,
        image_cfg_scale=1.0,
        pag_scale=0.0,
        sag_scale=0.0,
        slg_scale=0.0,
    )


def check_inversion(model: Model, request: Request, start: Start) -> None:
    """Raises RequestError where no picture is left in the first noise."""
    if start.latents is None or start.pure:
        raise RequestError(
            f"inversion goes from the picture's latents to noise, and {model.name} at strength 1 begins with "
            "noise alone; ask for a strength below 1",
            field="inversion",
        )


def inverted(
    denoise: Callable[[Tensor, float], Tensor],
    request: Request,
    latents: Tensor,
    sigmas: Tensor,
    told: OnStep,
) -> Tensor:
    """Noisy latents at the first of the levels of a run, from latents b c h w; their dtype."""
    return SOLVERS[request.inversion](denoise, latents, sigmas.flip(0), on_step=told)

"""What a checkpoint holds and minisd leaves unread on purpose, each with its reason. The only such table.

A tensor that is neither a parameter of a part nor listed here is unknown, and a file with unknown tensors is
not loaded unless that is asked for: it may be of an architecture that only looks like ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from minisd.weights_loader.prediction import MARKERS

SCHEDULE_BUFFERS = (
    "betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod "
    "log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance "
    "posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 denoiser.sigmas"
).split()

EMA_REASON = "EMA copy of the UNet, not chosen"
DEPTH_REASON = "depth estimator (MiDaS); give the depth map instead"

_TABLE: tuple[tuple[str, str], ...] = (  # regular expression of the whole name, reason
    ("|".join(map(re.escape, SCHEDULE_BUFFERS)), "noise table of training; computed from the config"),
    ("|".join(map(re.escape, MARKERS)), "marker; read by detection"),
    (r"(.*[./])?position_ids", "positions 0..76, known; merges store them rounded"),
    (r"(.*[./])?logit_scale", "scale of CLIP's contrastive loss; not used to draw"),
    (r"model_ema\.(decay|num_updates)", "state of the EMA of training"),
    (r"model_ema\..+", EMA_REASON),
    (r"(first_stage_model\.)?loss\..+", "loss and discriminator of VAE training"),
    (r"logvar|scale_factor", "state of the training loss"),
    (r"(.*\.)?scaled_fp8", "marker of scaled fp8 weights; the scales are read"),
    (r".+\.scale_input", "scale of fp8 activations; minisd computes in a wider type"),
    (r"depth_model\..+", DEPTH_REASON),
    (r"safety_checker[./].+", "safety checker; another network"),
    (r"cond_stage_model\.transformer\.text_projection\.weight", "stray of ComfyUI; SD1 pools nothing"),
    (
        r"(cond_stage_model|conditioner\.embedders\.[01])\.model\.text_projection(\.weight)?",
        "not pooled by this family",
    ),
    (r"text_encoder/text_projection\.weight|text_projection(\.weight)?", "not pooled by this family"),
)
_PATTERNS = [(re.compile(pattern), reason) for pattern, reason in _TABLE]


def unread_reason(name: str) -> str | None:
    """Why a tensor of this name is left unread, or None: then it is unknown."""
    return next((reason for pattern, reason in _PATTERNS if pattern.fullmatch(name)), None)


def sort_leftovers(names: Iterable[str]) -> tuple[dict[str, list[str]], list[str]]:
    """({reason: names}, unknown names) of what no part reads."""
    reasons: dict[str, list[str]] = {}
    unknown: list[str] = []
    for name in names:
        reason = unread_reason(name)
        if reason is None:
            unknown.append(name)
        else:
            reasons.setdefault(reason, []).append(name)
    return reasons, unknown

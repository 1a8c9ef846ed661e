"""What the UNet was trained to predict: the one fact about a model that its keys and shapes do not show.

Order, most reliable first: the file's own `minisd.config`, a diffusers scheduler config, marker tensors,
ModelSpec metadata, the training step of the released SD2 pickles, the statistic that tells SD2's v and eps
weights apart, else eps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from minisd.config import Prediction, TrainingSchedule
from minisd.errors import CheckpointError, quoted
from minisd.weights_loader.config_json import Declared
from minisd.weights_loader.source import TensorInfo

SCHEDULER = "scheduler/scheduler_config.json"
MARKERS = ("v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
SD2_STEPS: dict[str, Prediction] = {
    "875000": "eps",
    "220000": "eps",
    "110000": "v",
}  # 2.0-base, 2.1-base, 2.1
NORM1 = (
    "output_blocks.11.1.transformer_blocks.0.norm1.bias"  # of the UNet; spread over 0.09 in SD2's v weights
)


@dataclass(frozen=True)
class Training:
    """How the UNet was trained, and how we know. `sure` is False where only a guess was left."""

    prediction: Prediction
    zero_terminal_snr: bool
    schedule: TrainingSchedule
    sure: bool
    evidence: str


def training_of(
    tensors: Mapping[str, TensorInfo],
    metadata: Mapping[str, str],
    family: str,
    *,
    plain: bool,
    declared: Declared | None,
    read_norm1: Callable[[], Tensor] | None = None,
) -> Training:
    """How this UNet was trained. `plain`: it takes nothing beside the latent (inpainting and depth models are
    eps always).

    `read_norm1` gives the tensor NORM1 of the UNet; without it the SD2 statistic is left out.
    """
    schedule = TrainingSchedule()
    if declared is not None:
        said = "minisd.config in the metadata says so"
        return Training(declared.prediction, declared.zero_terminal_snr, declared.schedule, True, said)
    if SCHEDULER in metadata:
        return _from_scheduler(metadata[SCHEDULER])
    zero = "ztsnr" in tensors
    if "edm_mean" in tensors and "edm_std" in tensors:
        return Training(
            "edm_eps", zero, schedule, True, "markers edm_mean and edm_std: EDM as Playground v2.5"
        )
    if "edm_vpred.sigma_max" in tensors or "edm_vpred.sigma_min" in tensors:
        return Training("edm_v", zero, schedule, True, "marker edm_vpred.sigma_max: continuous v as CosXL")
    if "v_pred" in tensors:
        shown = "v_pred and ztsnr" if zero else "v_pred"
        return Training("v", zero, schedule, True, f"marker {shown}: v-prediction")
    if known := _from_modelspec(metadata):
        prediction, evidence = known
        return Training(prediction, zero, schedule, True, evidence)
    if family == "sd2" and plain:
        return _sd2(metadata, zero, schedule, read_norm1)
    sure = family in ("sd1", "sdxl-refiner") or not plain
    return Training(
        "eps", zero, schedule, sure, "no marker and no metadata: eps, as nearly all of its family"
    )


def _from_modelspec(metadata: Mapping[str, str]) -> tuple[Prediction, str] | None:
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        value = metadata.get(key, "").lower()
        if value in ("v", "v_prediction", "v-prediction"):
            return "v", f"metadata {key} = {value}"
        if value in ("epsilon", "eps"):
            return "eps", f"metadata {key} = {value}"
    if metadata.get("modelspec.architecture") == "stable-diffusion-v2-768-v":
        return "v", "metadata modelspec.architecture = stable-diffusion-v2-768-v"
    return None


def _sd2(
    metadata: Mapping[str, str], zero: bool, schedule: TrainingSchedule, read: Callable[[], Tensor] | None
) -> Training:
    step = metadata.get("global_step", "")
    if step in SD2_STEPS:
        return Training(
            SD2_STEPS[step], zero, schedule, True, f"global_step {step}, as the released SD2 file"
        )
    if read is None:
        guess = "SD2 without marker or metadata: nothing tells eps from v; eps is a guess"
        return Training("eps", zero, schedule, False, guess)
    spread = float(read().double().std(unbiased=False))
    prediction: Prediction = "v" if spread > 0.09 else "eps"
    side = "over" if prediction == "v" else "not over"
    evidence = f"std of {NORM1} is {spread:.4f}, {side} 0.09: likely {prediction}"
    return Training(prediction, zero, schedule, False, evidence)


def read_json(text: str, where: str) -> dict[str, object]:
    """A JSON object from a file of a model folder. Raises CheckpointError naming `where`."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not JSON: {quoted(error)}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{where} holds {quoted(data)}; expected a JSON object")
    return cast(dict[str, object], data)


def _from_scheduler(text: str) -> Training:
    data = read_json(text, SCHEDULER)
    names: dict[object, Prediction] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
    said = data.get("prediction_type", "epsilon")
    prediction = names.get(said) if isinstance(said, str) else None
    if prediction is None:
        raise CheckpointError(
            f"{SCHEDULER}: prediction_type is {quoted(said)}; known are {', '.join(map(str, names))}"
        )
    if str(data.get("_class_name", "")).startswith("EDM"):
        prediction = "edm_v" if prediction == "v" else "edm_eps"
    if data.get("trained_betas") is not None:
        raise CheckpointError(
            f"{SCHEDULER} gives its own trained_betas; minisd knows scaled_linear and linear schedules"
        )
    beta_schedule = data.get("beta_schedule", "scaled_linear")
    if beta_schedule not in ("scaled_linear", "linear"):
        raise CheckpointError(
            f"{SCHEDULER}: beta_schedule is {quoted(beta_schedule)}; known are scaled_linear and linear"
        )
    standard = TrainingSchedule()
    steps = data.get("num_train_timesteps", standard.num_train_timesteps)
    if type(steps) is not int or not 1 <= steps <= 100_000:
        raise CheckpointError(f"{SCHEDULER}: num_train_timesteps is {quoted(steps)}; expected 1..100000")
    schedule = TrainingSchedule(
        steps,
        _beta(data, "beta_start", standard.beta_start),
        _beta(data, "beta_end", standard.beta_end),
        "linear" if beta_schedule == "linear" else "scaled_linear",
    )
    zero = data.get("rescale_betas_zero_snr", False) is True
    return Training(prediction, zero, schedule, True, f"{SCHEDULER}: prediction_type {said}")


def _beta(data: Mapping[str, object], key: str, standard: float) -> float:
    value = data.get(key, standard)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise CheckpointError(f"{SCHEDULER}: {key} is {quoted(value)}; expected a number between 0 and 1")
    return float(value)

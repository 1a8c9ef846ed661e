"""What a person may ask for by name when a model is planned or loaded. Plain data, no torch: the command
line's flags are made from it.

What is asked for happens, or PlanError says why not; what is left at "auto" the plan decides.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, TypedDict

OFFLOADS = ("auto", "none", "staged", "streamed", "disk")
QUANTS = ("auto", "none", "e4m3", "e4m3_tensor", "e5m2", "e5m2_tensor", "int8", "w8a8", "int4", "nf4")
CALLS = ("auto", "together", "apart")
UNCOND = "unet_uncond"  # the part of a plan that is the UNet once more, on `cfg_device`
Residency = Literal["resident", "staged", "streamed", "disk"]


@dataclass(frozen=True)
class Wishes:
    """device: of everything; unet_device, text_device, vae_device: of one kind of part. dtype and its kin:
    what is computed in. quant and its kin: how weights are stored in fewer bits than that
    (`quantise.schemes`), none (not at all), or auto (as the file does). offload: none (all weights stay),
    staged (each network comes for its stage and goes), streamed (block by block, the next one on its way),
    disk (block by block, nothing kept). memory: the most that may be taken on the UNet's device, "6GiB" or
    bytes. cfg: both predictions of guidance in one call, or apart. cfg_device: make the unconditional one
    there, at the same time as the other (`halves.py`). attention: name of an implementation. vae_tile:
    pixels.
    """

    device: str = "auto"
    unet_device: str = "auto"
    text_device: str = "auto"
    vae_device: str = "auto"
    dtype: str = "auto"
    unet_dtype: str = "auto"
    text_dtype: str = "auto"
    vae_dtype: str = "auto"
    quant: str = "auto"
    unet_quant: str = "auto"
    text_quant: str = "auto"
    vae_quant: str = "auto"
    offload: str = "auto"
    memory: str | int | None = None
    cfg: str = "auto"
    cfg_device: str = "auto"
    attention: str = "auto"
    vae_tile: int | None = None

    def of(self, kind: str, part: str) -> str:
        """The wish of this kind ("device", "dtype", "quant") for a part: its own, or that for all."""
        own: str = getattr(self, f"{group_of(part)}_{kind}")
        return own if own != "auto" else getattr(self, kind)


class Named(TypedDict, total=False):
    """The same as keyword arguments."""

    device: str
    unet_device: str
    text_device: str
    vae_device: str
    dtype: str
    unet_dtype: str
    text_dtype: str
    vae_dtype: str
    quant: str
    unet_quant: str
    text_quant: str
    vae_quant: str
    offload: str
    memory: str | int | None
    cfg: str
    cfg_device: str
    attention: str
    vae_tile: int | None


def named_of(wishes: Wishes) -> Named:
    """Wishes as keyword arguments."""
    return Named(**asdict(wishes))


def file_part(part: str) -> str:
    """The part of a file that a part of a plan is made from."""
    return "unet" if part == UNCOND else part


def group_of(part: str) -> str:
    """Parts that are needed at the same time: "text", "unet", "vae"."""
    if part.startswith("text"):
        return "text"
    return "vae" if part in ("vae", "taesd") else "unet"

"""The two predictions of guidance on two devices at the same time (`cfg_device`): the UNet's weights are on
both, the conditional prediction is made on the first, the unconditional one on the second.

The second is called by a thread of its own; latents go there and its prediction comes back in each step, its
text once in a run. Each half is what it would be alone, so on devices of one kind the picture's bits are
those of both predictions made one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minisd.errors import RequestError
from minisd.models.once import Once
from minisd.models.unet import UNet
from minisd.text.conditioning import Conditioning

if TYPE_CHECKING:
    from minisd.denoiser import Denoiser, Edits
    from minisd.loras import Stages


@dataclass(frozen=True)
class Half:
    """Where the unconditional prediction of one run is made. twins: (network of the first device, the same on
    this one), for every network of the run. once: what is computed once there."""

    device: torch.device
    twins: tuple[tuple[UNet, UNet], ...]
    pool: ThreadPoolExecutor
    once: Once | None = None
    brought: dict[int, tuple[Conditioning, Conditioning]] = field(default_factory=dict, compare=False)

    def both(
        self, denoiser: Denoiser, x: Tensor, sigma: float, extra: Tensor | None, edits: Edits
    ) -> tuple[Tensor, Tensor]:
        """What the network gives for x with the prompt, and without it: on x's device. edits: of the second
        alone."""
        other = self.other(denoiser)
        # moved by this thread: what made x has been launched by it
        there, beside = x.to(self.device), None if extra is None else extra.to(self.device)

        def uncond() -> Tensor:
            with torch.inference_mode(), computing_on(self.device):
                return other.call(there, sigma, beside, [other.uncond], edits)

        coming = self.pool.submit(uncond)
        try:
            out_c = denoiser.call(x, sigma, extra, [denoiser.cond])
        finally:
            wait([coming])  # nothing of a run goes on when it has failed
        return out_c, coming.result().to(x.device)

    def other(self, denoiser: Denoiser) -> Denoiser:
        """The same rules over the network of this device."""
        network = next(twin for one, twin in self.twins if one is denoiser.network)
        own = denoiser.uncond
        if id(own) not in self.brought:  # what the key names is kept, so that no other takes its place
            y = None if own.y is None else own.y.to(self.device)
            self.brought[id(own)] = own, replace(own, context=own.context.to(self.device), y=y)
        uncond = self.brought[id(own)][1]
        return replace(denoiser, network=network, uncond=uncond, once=self.once, half=None)


def half_of(
    staged: Stages, once: Once | None, pool: ThreadPoolExecutor | None, *beside: tuple[object, ...]
) -> Half | None:
    """Where the unconditional predictions of a run are made, if the plan has a device for them. beside: what
    adds to the UNet's passes. Raises RequestError for such on two devices."""
    model = staged.models[0][1]
    if model.second is None or pool is None:
        return None
    device = torch.device(model.plan.cfg_device.value or model.unet_device)
    if model.second is not model.unet and any(beside):
        raise RequestError(
            "controls and picture prompts are on one device, and cfg_device makes predictions on two; leave "
            "one of them out",
            field="controls" if any(beside[::2]) else "picture_prompts",
        )
    twins = tuple((one.unet, one.second) for _, one in staged.models if one.second is not None)
    return Half(device, twins, pool, once)


@contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """Kernels that are launched by name go to the current device of their thread."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield

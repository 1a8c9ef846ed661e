"""One UNet step of SD1.5 at 512 x 512 beside diffusers' in one process: same random weights, same input,
taking turns.

python -m scripts.bench.unet [float32|bfloat16] [rounds]
"""

from __future__ import annotations

import sys

import torch

from minisd.config import SD1
from minisd.models.unet import UNet
from minisd.weights_loader.keymap import unet_rules
from minisd.weights_loader.rule import theirs_from
from scripts.bench.common import interleaved, median, record


def main(dtype_name: str = "float32", rounds: int = 5) -> None:
    from diffusers import UNet2DConditionModel

    torch.set_num_threads(2)
    dtype = getattr(torch, dtype_name)
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        ours = UNet(SD1.unet)
        theirs = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=768,
            attention_head_dim=8,
            sample_size=64,
        )
    weights = {
        k: (torch.randn(v.shape, generator=generator) * max(v[0].numel(), 1) ** -0.5).to(dtype)
        for k, v in ours.state_dict().items()
    }
    ours.load_state_dict(weights, strict=True, assign=True)
    theirs.load_state_dict(
        dict(theirs_from(unet_rules(SD1.unet), weights.__getitem__)), strict=True, assign=True
    )
    del weights
    ours = ours.requires_grad_(False)  # as the plan has it on a CPU
    plain = theirs.requires_grad_(False)
    x = torch.randn(1, 4, 64, 64, generator=generator).to(dtype)
    context = torch.randn(1, 77, 768, generator=generator).to(dtype)
    t = torch.tensor([500.0])
    with torch.inference_mode():
        a, b = ours(x, t, context), plain(x, t, context).sample
        error = float((a - b).norm() / b.norm())
        # diffusers once as it loads (NCHW), then in its best layout; ours twice: an A/A pair shows the spread
        cases = {
            "minisd": lambda: ours(x, t, context),
            "diffusers": lambda: plain(x, t, context).sample,
            "minisd again": lambda: ours(x, t, context),
        }
        first = interleaved(cases, rounds)
        best = plain.to(memory_format=torch.channels_last)
        cases = {"minisd": cases["minisd"], "diffusers channels-last": lambda: best(x, t, context).sample}
        second = interleaved(cases, rounds)
    figures: dict[str, object] = {
        "dtype": dtype_name,
        "threads": torch.get_num_threads(),
        "relative difference of the outputs": error,
        "rounds": {"as loaded": first, "channels-last": second},
        "minisd, s": median(first["minisd"]),
        "diffusers, s": median(first["diffusers"]),
        "diffusers over minisd": median(first["diffusers"]) / median(first["minisd"]),
        "minisd again over minisd": median(first["minisd again"]) / median(first["minisd"]),
        "diffusers channels-last over minisd": median(second["diffusers channels-last"])
        / median(second["minisd"]),
    }
    for name, value in figures.items():
        if name != "rounds":
            print(f"{name:<40}{value if isinstance(value, str) else f'{value:.4g}'}")
    print(record(f"unet-sd15-{dtype_name}", figures))


if __name__ == "__main__":
    main(*sys.argv[1:2], *(int(a) for a in sys.argv[2:3]))

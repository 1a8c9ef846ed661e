"""SD1.5 at 512 x 512 on a CPU beside diffusers, in one process with the same random weights: a guided step of
the UNet, a decode of the VAE.

    python -m scripts.bench.cpu [float32|bfloat16] [rounds] [compiled] [openvino]

A guided step of ours is two calls of one image, as the engine takes it on a CPU; of diffusers one call of
two, as its pipeline takes it, in the layout that serves it best (channels last). `compiled`: torch.compile of
theirs (two minutes), `openvino` OpenVINO's conversion of theirs where it is installed. Rounds take turns;
the same case twice shows the spread. Outputs are compared before anything is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from minisd.config import SD1
from minisd.kernels import Kernels
from minisd.models.fused import use
from minisd.models.packing import pack
from minisd.models.unet import UNet
from minisd.models.vae import AutoencoderKL
from minisd.weights_loader.keymap import unet_rules, vae_rules
from minisd.weights_loader.rule import theirs_from
from scripts.bench.common import interleaved, median, record

Weights = dict[str, Tensor]
OURS = {
    "minisd": "auto",
    "minisd packed": "packed",
    "minisd avx512": "avx512",
    "minisd avx512,packed": "avx512,packed",
    "minisd folded": "avx512,packed,upsample_conv=transposed",  # exact in float64, with fewer products
}
LAST = torch.channels_last


def random_weights(network: nn.Module, dtype: torch.dtype) -> Weights:
    """Of a spread that keeps activations near 1."""
    generator = torch.Generator().manual_seed(0)
    shapes = {k: v.shape for k, v in network.state_dict().items()}
    return {
        k: (torch.randn(s, generator=generator) * max(s[1:].numel(), 1) ** -0.5).to(dtype)
        for k, s in shapes.items()
    }


def ours(kind: Callable[[], nn.Module], weights: Weights, names: str) -> nn.Module:
    """As `minisd.load(kernels=names)` has it."""
    with torch.device("meta"):
        network = kind()
    kernels = Kernels.parse(names)
    last = kernels.group_norm_silu == "avx512"
    own = {k: v.contiguous(memory_format=LAST) if last and v.ndim == 4 else v for k, v in weights.items()}
    network.load_state_dict(own, strict=True, assign=True)
    network.requires_grad_(False).eval()
    use(network, kernels)
    if kernels.packed:
        pack(network)
    return network


def theirs(network: nn.Module, rules: object, weights: Weights) -> nn.Module:
    named = dict(theirs_from(rules, weights.__getitem__))  # type: ignore[arg-type]
    network.load_state_dict(named, strict=True, assign=True)
    return network.requires_grad_(False).eval().to(memory_format=LAST)  # type: ignore[call-overload]


def openvino_of(network: nn.Module, example: tuple[Tensor, ...]) -> Callable[..., object]:
    """OpenVINO's compiled form, in the precision that it takes by itself on this CPU."""
    import openvino

    with torch.inference_mode(False), torch.no_grad():  # torch.jit.trace takes no inference tensors
        wide = deepcopy(network).float()
        model = openvino.convert_model(wide, example_input=tuple(t.float().clone() for t in example))
    del wide
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    return lambda *given: compiled([t.float().numpy() for t in given])


def unet_cases(dtype: torch.dtype, more: set[str]) -> dict[str, Callable[[], Tensor]]:
    """{name: a guided step, which gives both predictions}."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        plain = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=768,
            attention_head_dim=8,
            sample_size=64,
        )
        shape = UNet(SD1.unet)
    weights = random_weights(shape, dtype)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, 64, 64, generator=generator).to(dtype)
    texts = [torch.randn(1, 77, 768, generator=generator).to(dtype) for _ in range(2)]
    t = torch.tensor([500.0])
    cases: dict[str, Callable[[], Tensor]] = {}
    for name, kernels in OURS.items():
        network = ours(lambda: UNet(SD1.unet), weights, kernels)
        cases[name] = lambda network=network: torch.cat([network(x, t, text) for text in texts])
    rival = theirs(plain, unet_rules(SD1.unet), weights)
    both, text = torch.cat([x, x]).contiguous(memory_format=LAST), torch.cat(texts)
    cases["diffusers"] = lambda: rival(both, t, text).sample
    if "compiled" in more:
        compiled = torch.compile(rival)
        cases["diffusers compiled"] = lambda: compiled(both, t, text).sample
    if "openvino" in more:
        found = openvino_of(rival, (both, t.expand(2), text))
        cases["openvino"] = lambda: torch.from_numpy(found(both, t.expand(2), text)[0])  # type: ignore[index]
    return cases


def vae_cases(dtype: torch.dtype, more: set[str]) -> dict[str, Callable[[], Tensor]]:
    """{name: a decode of 64 x 64 latents}."""
    from diffusers import AutoencoderKL as Theirs

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        plain = Theirs(
            block_out_channels=(128, 256, 512, 512), latent_channels=4, layers_per_block=2, **blocks
        )
        shape = AutoencoderKL(SD1.vae)
    weights = random_weights(shape, dtype)
    z = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    cases: dict[str, Callable[[], Tensor]] = {}
    for name, kernels in OURS.items():
        network = ours(lambda: AutoencoderKL(SD1.vae), weights, kernels)
        cases[name] = lambda network=network: network.decode(z)
    rival = theirs(plain, vae_rules(SD1.vae), weights)
    cases["diffusers"] = lambda: rival.decode(z.contiguous(memory_format=LAST)).sample
    return cases


def peak(dtype: torch.dtype) -> float:
    """GFLOP/s of a large product, the best of five."""
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    seconds = min(interleaved({"product": lambda: a @ b}, 5)["product"])
    return 2 * 2048**3 / seconds / 1e9


def measure(cases: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, dict[str, Any]]:
    """Differences of outputs, seconds of every round, medians, and how much longer diffusers takes."""
    right = cases["diffusers"]().double()
    apart = {name: float((case().double() - right).norm() / right.norm()) for name, case in cases.items()}
    times = interleaved({**cases, "minisd again": cases["minisd"]}, rounds)
    medians = {name: median(values) for name, values in times.items()}
    return {
        "relative difference to diffusers": apart,
        "rounds": times,
        "median, s": medians,
        "diffusers over it": {name: medians["diffusers"] / value for name, value in medians.items()},
    }


def main(dtype_name: str = "bfloat16", rounds: int = 5, more: tuple[str, ...] = ()) -> None:
    dtype = getattr(torch, dtype_name)
    figures: dict[str, object] = {"dtype": dtype_name, "threads": torch.get_num_threads()}
    with torch.inference_mode():
        figures["product of 2048 x 2048, GFLOP/s"] = peak(dtype)
        for part, made in (("unet", unet_cases), ("vae", vae_cases)):
            figures[part] = found = measure(made(dtype, set(more)), rounds)
            for name, seconds in found["median, s"].items():
                ratio = found["diffusers over it"][name]
                print(f"{part:<6}{name:<24}{seconds:8.3f} s   diffusers takes {ratio:5.2f}x", flush=True)
    print(record(f"cpu-sd15-{dtype_name}", figures))


if __name__ == "__main__":
    words = sys.argv[1:]
    numbers = [int(w) for w in words if w.isdecimal()]
    kinds = [w for w in words if w in ("float32", "bfloat16")]
    main(
        *(kinds or ["bfloat16"]), *(numbers or [5]), tuple(w for w in words if w in ("compiled", "openvino"))
    )

"""Oracle: the picture of torch's own layers: the same within the precision's band with every implementation,
and to the bit where nothing is computed in another order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minisd.config import SD2
from minisd.engine import Engine
from minisd.errors import PlanError
from minisd.kernels import Kernels
from minisd.model import Model
from minisd.models.fused import Upsample, use
from minisd.models.once import Projections, beside_each_other
from minisd.placement import Choice, choose_kernels
from minisd.request import Request
from tests.kernels.interpreting import right_products
from tests.tiny import TINY, tiny, tiny_model

REQUEST = Request(prompt="a cat", negative_prompt="blurry", steps=2, seed=3, cfg_scale=4.0)


def with_kernels(names: str, model: Model) -> Model:
    kernels = Kernels.parse(names)
    for network in (model.unet, model.vae, *model.text_encoders):
        use(network, kernels)
    return replace(model, plan=replace(model.plan, kernels=Choice(kernels, "for this test")))


def latents(name: str, kernels: str, dtype: str = "float32", request: Request = REQUEST) -> torch.Tensor:
    return Engine(with_kernels(kernels, tiny_model(name, dtype=dtype))).run(request).drawing.latents


def away(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@pytest.mark.parametrize("kernels", ["text_once", "times_once", "text_once,times_once"])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_what_is_computed_once_gives_the_same_bits(name: str, kernels: str, sampler: str) -> None:
    """Oracle: equality with everything computed at every step, for several images, too."""
    request = replace(REQUEST, count=2, sampler=sampler)
    assert torch.equal(latents(name, kernels, request=request), latents(name, "auto", request=request))


def test_text_once_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: counted products of keys: one for each layer and prompt, whatever the steps."""
    calls: list[int] = []
    of_text = Projections.of_text
    monkeypatch.setattr(Projections, "of_text", lambda self, c: calls.append(1) or of_text(self, c))
    request = replace(REQUEST, steps=4)
    latents("sd1", "text_once", request=request)
    once = len(calls)
    calls.clear()
    latents("sd1", "auto", request=request)
    assert len(calls) == 4 * once > 0


@pytest.mark.parametrize("kernels", ["fused_qkv", "upsample_conv=transposed", "upsample_conv=sub_pixel"])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_restructurings_in_float64(name: str, kernels: str) -> None:
    """Oracle: the network as written, float64 weights: one UNet call and one decoded picture."""
    outs = []
    for names in ("auto", kernels):
        model = with_kernels(names, tiny_model(name, dtype="float64"))
        generator = torch.Generator().manual_seed(0)
        x, context, y = (
            torch.randn(*size, generator=generator, dtype=torch.float64)
            for size in (
                (1, 4, 8, 8),
                (1, 77, model.config.unet.context_dim),
                (1, model.config.unet.y_dim or 1),
            )
        )
        with torch.inference_mode():
            out = model.unet(x, torch.tensor([500.0]), context, y)
            outs.append((out, model.vae.decode(out)))
    for a, b in zip(*outs, strict=True):
        assert (a - b).abs().max() < 1e-10


def test_fused_weights_lie_together_and_keep_their_names() -> None:
    """Oracle: the state dict before; replaced weights are seen at once."""
    model = tiny_model("sd1")
    before = {k: v.clone() for k, v in model.unet.state_dict().items()}
    use(model.unet, Kernels(fused_qkv=True))
    after = model.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    layers = [m for m in model.unet.modules() if isinstance(m, Projections) and m.of_itself]
    assert all(beside_each_other(m.to_q, m.to_k, m.to_v) is not None for m in layers)
    one = layers[0]
    one.to_k.weight = torch.nn.Parameter(one.to_k.weight.clone(), requires_grad=False)
    assert beside_each_other(one.to_q, one.to_k, one.to_v) is None


def test_weights_are_folded_once() -> None:
    """Oracle: the fold itself is not called while drawing."""
    model = with_kernels("upsample_conv=transposed", tiny_model("sd1"))
    layers = [m for n in (model.unet, model.vae) for m in n.modules() if isinstance(m, Upsample)]
    assert layers and all(m.folded is not None and m.folded.shape[-1] == 4 for m in layers)


def exact(name: str, request: Request) -> torch.Tensor:
    """Latents of the weights rounded to bfloat16, computed in float32."""
    model, plan = tiny_model(name, dtype="bfloat16"), tiny_model(name).plan
    for network in (model.unet, model.vae, *model.text_encoders):
        network.float()
    return Engine(replace(model, plan=plan)).run(request).drawing.latents


HERE = ["sliced", "sdpa_math", "sdpa_flash", "reference", "transposed", "fused_qkv"]


@pytest.mark.parametrize("kernels", HERE)
def test_every_implementation_draws_the_picture(kernels: str) -> None:
    """Oracle: torch's own layers: in float32 to rounding, in bfloat16 as far from exact latents as they."""
    assert away(latents("sd1", kernels), latents("sd1", "auto")) < 1e-4
    truth = exact("sd1", REQUEST)
    torch_own = away(latents("sd1", "auto", "bfloat16"), truth)
    assert 0 < away(latents("sd1", kernels, "bfloat16"), truth) < 1.5 * torch_own < 0.2


# the interpreter takes a millisecond for each operation of each tile: few layers
SMALL = tiny(
    SD2,
    channel_mult=(1, 2),
    num_res_blocks=(1, 1),
    depth_in=(1, 0),
    depth_mid=1,
    depth_out=(0, 0, 1, 0),
)


@pytest.mark.parametrize(
    "dtype,kernels", [("float32", "triton"), ("bfloat16", "triton,group_norm_silu=torch")]
)
def test_triton_draws_the_picture(dtype: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: as above; all of ours at once: attention, norms, products and guidance."""
    monkeypatch.setitem(TINY, "small", replace(SMALL, vae=replace(SMALL.vae, ch_mult=(1, 2))))
    request = replace(REQUEST, steps=1, width=16, height=16)
    with right_products():
        ours = latents("small", kernels, dtype, request)
    torch_own = latents("small", "auto", dtype, request)
    if dtype == "float32":
        assert 0 < away(ours, torch_own) < 1e-4
    else:
        truth = exact("small", request)
        assert 0 < away(ours, truth) < 2 * away(torch_own, truth)


@pytest.mark.parametrize(
    "names,said",
    [
        ("flash9", "no operation has an implementation 'flash9'"),
        ("geglu=flash9", "there is no geglu 'flash9'"),
        ("gelu=triton", "there is no operation 'gelu'"),
        ("graph,text_once", "leave text_once"),
        ("graph", "records CUDA's kernels, and this is cpu"),
        ("compiled", "it is for CUDA"),
    ],
)
def test_what_cannot_be_had_is_refused(names: str, said: str) -> None:
    """Oracle: the documented PlanError."""
    with pytest.raises(PlanError, match=said):
        choose_kernels(names, "auto", "cpu")


def test_names_and_text() -> None:
    """Oracle: written here; the text of a choice reads back as the same choice."""
    chosen = Kernels.parse("triton,self_attention=sdpa,fused_qkv")
    assert chosen.geglu == "triton" and chosen.self_attention == "sdpa" and chosen.upsample_conv == "nearest"
    assert Kernels.parse(str(chosen)) == chosen
    assert Kernels.parse("auto") == Kernels() and str(Kernels()) == "torch's own"

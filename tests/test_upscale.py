"""Oracle: the networks as plain formulas over their files; spandrel where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from minisd.cli import main
from minisd.config import CompactConfig, RRDBNetConfig, UpscalerConfig
from minisd.errors import CheckpointError, ImageError, PlanError
from minisd.upscale import Upscaler, load_upscaler, network_of
from minisd.weights_loader.rule import expected_theirs
from minisd.weights_loader.upscaler_file import upscaler_of
from minisd.weights_loader.upscaler_keymap import Spelling, compact_rules, rrdbnet_rules
from tests import tiny
from tests.control_files import map_of
from tests.weights_loader.fake import FakeSource, of_rows
from tests.weights_loader.manifests import manifest

PUBLISHED: dict[str, UpscalerConfig] = {
    "RealESRGAN_x4plus (params_ema)": RRDBNetConfig(),
    "RealESRGAN_x2plus (params_ema, conv_first in=12)": RRDBNetConfig(unshuffle=2),
    "RealESRGAN_x4plus_anime_6B (params_ema)": RRDBNetConfig(blocks=6),
    'ESRGAN/BSRGAN "RRDB_trunk" layout': RRDBNetConfig(),
    'ESRGAN old "model." layout (x4)': RRDBNetConfig(),
    "realesr-general-x4v3 (SRVGGNetCompact, params)": CompactConfig(),
    "realesr-animevideov3 (SRVGGNetCompact, params)": CompactConfig(convs=18),
}
SMALL = RRDBNetConfig(width=8, blocks=1)
CASES: dict[str, tuple[UpscalerConfig, Spelling]] = {
    "new": (SMALL, "new"),
    "new x2": (RRDBNetConfig(width=8, blocks=2, unshuffle=2), "new"),
    "new x1": (RRDBNetConfig(width=8, blocks=1, unshuffle=4), "new"),
    "trunk": (SMALL, "trunk"),
    "old": (SMALL, "old"),
    "old x2": (RRDBNetConfig(width=8, blocks=2, ups=1), "old"),
    "old x8": (RRDBNetConfig(width=8, blocks=1, ups=3), "old"),
    "old x1": (RRDBNetConfig(width=8, blocks=1, ups=0), "old"),
    "compact": (CompactConfig(width=8, convs=5, scale=2), "compact"),
    "compact grey": (CompactConfig(channels=1, width=8, convs=4, scale=3), "compact"),
}


def rules_of(config: UpscalerConfig, spelling: Spelling) -> tuple:
    return compact_rules(config) if isinstance(config, CompactConfig) else rrdbnet_rules(config, spelling)


def their_weights(config: UpscalerConfig, spelling: Spelling) -> dict[str, Tensor]:
    """As the file has them; float32, as spandrel reads them."""
    weights = tiny.random_weights(expected_theirs(rules_of(config, spelling)), 3)
    return {k: v.float().double() for k, v in weights.items()}


def upscaler(config: UpscalerConfig, spelling: Spelling) -> Upscaler:
    weights = their_weights(config, spelling)
    infos = {n: ["F64", *t.shape] for n, t in weights.items()}
    file = upscaler_of(FakeSource(of_rows(infos), weights))
    assert file.config == config
    with torch.device("meta"):
        network = network_of(file.config)
    network.load_state_dict(file.state_dict(), strict=True, assign=True)
    return Upscaler("tiny", network.requires_grad_(False), config, "cpu", torch.float64)


def plain_rrdb(w: dict[str, Tensor], x: Tensor, config: RRDBNetConfig, spelling: Spelling) -> Tensor:
    """ESRGAN, section 3.1, over the file's own names in the order in which it holds them."""
    names = [n.removesuffix(".weight") for n in w if n.endswith(".weight")]
    order = iter(names)

    def conv(x: Tensor) -> Tensor:
        name = next(order)
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)

    def lrelu(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    k = config.unshuffle
    b, c, h, width = x.shape
    x = x.reshape(b, c, h // k, k, width // k, k).permute(0, 1, 3, 5, 2, 4).reshape(b, -1, h // k, width // k)
    first = h0 = conv(x)
    for _ in range(config.blocks):
        block = h0
        for _ in range(3):
            parts = [h0]
            for _ in range(4):
                parts.append(lrelu(conv(torch.cat(parts, 1))))
            h0 = h0 + 0.2 * conv(torch.cat(parts, 1))
        h0 = block + 0.2 * h0
    h0 = first + conv(h0)
    for _ in range(config.ups):
        h0 = lrelu(conv(h0.repeat_interleave(2, -1).repeat_interleave(2, -2)))
    h0 = lrelu(conv(h0))
    return conv(h0)


def plain_compact(w: dict[str, Tensor], x: Tensor, config: CompactConfig) -> Tensor:
    h = x
    for n in range(config.convs):
        h = F.conv2d(h, w[f"body.{2 * n}.weight"], w[f"body.{2 * n}.bias"], padding=1)
        if n < config.convs - 1:
            slope = w[f"body.{2 * n + 1}.weight"][:, None, None]
            h = h.clamp(min=0) + slope * h.clamp(max=0)
    s, (b, _, height, width) = config.scale, h.shape
    h = h.reshape(b, -1, s, s, height, width).permute(0, 1, 4, 2, 5, 3)
    return h.reshape(b, -1, height * s, width * s) + x.repeat_interleave(s, -1).repeat_interleave(s, -2)


def picture(config: UpscalerConfig, h: int = 12, w: int = 16) -> Tensor:
    g = torch.Generator().manual_seed(5)
    return torch.rand(1, config.channels, h, w, dtype=torch.float64, generator=g)


@pytest.mark.parametrize("label", PUBLISHED)
def test_published_lists_load_strictly(label: str) -> None:
    file = upscaler_of(FakeSource(of_rows(manifest("adapters")[label])))
    assert file.config == PUBLISHED[label]
    with torch.device("meta"):
        network = network_of(file.config)
    network.load_state_dict(file.state_dict(), strict=True, assign=True)
    assert len(file.part.rules) == len(manifest("adapters")[label])


@pytest.mark.parametrize("case", CASES)
def test_as_the_formula(case: str) -> None:
    config, spelling = CASES[case]
    x, made = picture(config), upscaler(config, spelling)
    with torch.inference_mode():
        ours = made.enlarged(x, tile=None)
        weights = their_weights(config, spelling)
        if isinstance(config, CompactConfig):
            wanted = plain_compact(weights, x, config)
        else:
            wanted = plain_rrdb(weights, x, config, spelling)
    assert ours.shape[-1] == x.shape[-1] * config.scale
    assert (ours - wanted).abs().max() <= 1e-10 and ours.abs().max() > 0.1


@pytest.mark.parametrize("case", CASES)
def test_as_spandrel(case: str) -> None:
    spandrel = pytest.importorskip("spandrel", exc_type=ImportError)
    config, spelling = CASES[case]
    x, weights = picture(config), their_weights(config, spelling)
    theirs = spandrel.ModelLoader().load_from_state_dict(dict(weights)).model.double()
    with torch.inference_mode():
        ours, wanted = upscaler(config, spelling).enlarged(x, tile=None), theirs(x)
    assert (ours - wanted).abs().max() <= 1e-10


@pytest.mark.parametrize("case", ["new", "new x2", "old x2", "compact"])
def test_tiles_are_the_whole(case: str) -> None:
    """Oracle: the whole picture at once; a narrower margin than the network's reach shows."""
    config, spelling = CASES[case]
    made, x = upscaler(config, spelling), picture(config, 70, 90)
    with torch.inference_mode():
        whole = made.enlarged(x, tile=None)
        tiled = made.enlarged(x, tile=24, margin=config.reach)
        near = made.enlarged(x, tile=24, margin=2)
    assert (tiled - whole).abs().max() <= 1e-12
    assert (near - whole).abs().max() > 1e-6


@pytest.mark.parametrize("case", ["new", "new x2", "old x8", "compact"])
def test_reach_is_what_the_network_sees(case: str) -> None:
    """Oracle: gradients of one made pixel: none further than `reach`, and some near it."""
    config, spelling = CASES[case]
    size = 2 * config.reach + 9 + (-(2 * config.reach + 9)) % 4
    x = picture(config, 4, size).requires_grad_()
    at = size // 2
    upscaler(config, spelling).enlarged(x, tile=None)[..., 0, at * config.scale].sum().backward()
    assert x.grad is not None
    seen = x.grad.abs().sum(dim=(0, 1, 2)).nonzero().flatten()
    reach = max(at - int(seen.min()), int(seen.max()) - at)
    assert reach <= config.reach <= reach + 4


def test_a_picture_of_odd_size() -> None:
    config, spelling = CASES["new x2"]
    made = upscaler(config, spelling)(map_of(13, 9), tile=None)
    assert made.size == (26, 18)
    assert upscaler(*CASES["compact grey"])(map_of(13, 9)).size == (39, 27)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, spelling = CASES["compact"]
    weights = {f"params.{k}": v.float() for k, v in their_weights(config, spelling).items()}
    save_file(weights, tmp_path / "net.safetensors")
    map_of(20, 16).save(tmp_path / "small.png")
    small, large = str(tmp_path / "small.png"), str(tmp_path / "large.png")
    arguments = ["upscale", small, large, "-u", str(tmp_path / "net.safetensors")]
    assert main(arguments) == 0
    assert "40 x 32" in capsys.readouterr().out
    whole = np.asarray(Image.open(large)).astype(int)
    assert main([*arguments, "--tile", "8", "--margin", "9"]) == 0
    assert abs(np.asarray(Image.open(large)).astype(int) - whole).max() <= 1
    assert main([*arguments[:2], str(tmp_path / "no" / "x.png"), *arguments[3:]]) == 1


def test_what_is_refused(tmp_path: Path) -> None:
    rows = manifest("adapters")["RealESRGAN_x4plus (params_ema)"]
    with pytest.raises(CheckpointError, match="missing"):
        upscaler_of(FakeSource(of_rows({k: v for k, v in rows.items() if "rdb2.conv3" not in k})))
    with pytest.raises(CheckpointError, match="mystery"):
        upscaler_of(FakeSource(of_rows({**rows, "mystery": ["F32", 1]})))
    with pytest.raises(CheckpointError, match="no such network"):
        upscaler_of(FakeSource(of_rows({**rows, "conv_first.weight": ["F32", 64, 5, 3, 3]})))
    swin = manifest("adapters")[
        "SwinIR_4x real-world L (003_realSR_BSRGAN_DFOWMFC_s64w8_SwinIR-L_x4_GAN, params_ema)"
    ]
    with pytest.raises(CheckpointError, match="no upscaler that minisd knows"):
        upscaler_of(FakeSource(of_rows(swin)))
    made = upscaler(*CASES["compact"])
    with pytest.raises(PlanError, match="margin"):
        made(map_of(8, 8), tile=4, margin=-1)
    with pytest.raises(ImageError, match="at most"):
        made(Image.new("RGB", (16384, 8192)))
    with pytest.raises(CheckpointError):
        load_upscaler(tmp_path / "none.pth")

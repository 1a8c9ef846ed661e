"""Oracle: what the benchmarks say where they cannot measure; tables made of figures written down."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from minisd.request import Request
from minisd.samplers.names import SAMPLERS
from minisd.shortcuts import Shortcuts
from scripts.bench import gpu, samplers, shortcuts
from scripts.bench.common import RESULTS
from tests.tiny import TINY, network_weights, unet


@pytest.mark.skipif(torch.cuda.is_available(), reason="says it where no GPU is")
def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: exit code 1, one line, no results; an unknown part is refused before anything is looked at."""
    before = sorted(gpu.RESULTS.iterdir())
    assert gpu.main(["--only", "attention", "step"]) == 1
    out = capsys.readouterr()
    assert out.out == "" and "no CUDA device" in out.err and sorted(gpu.RESULTS.iterdir()) == before
    with pytest.raises(SystemExit) as caught:
        gpu.main(["--only", "everything"])
    assert caught.value.code == 2


def test_table_of_the_gpu() -> None:
    """Oracle: rows by hand: microseconds, share of the floor, what was refused and why."""
    timed = {"median": 100e-6, "least": 90e-6, "p20": 95e-6, "p80": 120e-6}
    site = {"site": "self_attention b2 h8 n4096 m4096 d40 bfloat16 on sm_90"}
    shown = gpu.table(
        {
            "attention": [
                {**site, "name": "triton", **timed, "floor": 72e-6, "bound": "exponentials", "error": 2e-3}
                | {"repeats": True, "alone": True},
                {**site, "name": "sdpa_cudnn", "refused": "needs cuDNN"},
            ],
            "step": [{"model": "sd1", "size": 512, "name": "minisd graph", **timed}],
        }
    )
    assert "100.0 (95.0 .. 120.0)   72% exponentials 2.0e-03 same" in shown
    assert "n/a  needs cuDNN" in shown and "sd1 512" in shown


def test_overhead_of_samplers_is_counted_outside_the_calls(capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: a network that works: its time is not counted, that of everything else is; the Denoiser calls
    it twice a step."""
    names = ["euler", "dpmpp_2m_sde", "euler_cfgpp"]
    few = ["--rounds", "1", "--path-rounds", "1", "--call-ms", "1", "--no-record"]
    assert samplers.main(["--only", *names, *few]) == 0
    *lines, worst = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["sampler", *names]
    runs = {line.split()[0]: float(line.split()[2]) for line in lines[1:]}
    assert f"run {max(runs.values()):.0f} us ({max(runs, key=runs.__getitem__)})" in worst
    over = [name for name, us in runs.items() if us >= samplers.LIMIT]
    assert worst.split("limit: ")[1] == (", ".join(over) or "none")
    request = samplers.made("euler")
    network = samplers.Waiting(0.0, both=False, request=request)
    network.spans = [(1.0, 2.0), (2.5, 3.5)]
    assert network.beside(4.0, 2) == pytest.approx(0.5e6)
    network.spans.clear()
    denoise = network.under(torch.tensor([2.0, 1.0, 0.0])).denoise()
    x = torch.ones(1, 4, 2, 2)
    assert torch.allclose(denoise(x, 2.0), x - 2.0 * 0.5 * x / 5**0.5) and len(network.spans) == 2
    assert set(samplers.SAMPLERS) == set(SAMPLERS)


def test_time_outside_the_calls_is_counted() -> None:
    """Inverse: a pause of the solver, and of an event, are in its figure."""
    quick = samplers.alone("euler")
    patch = pytest.MonkeyPatch()
    with patch.context() as inside:
        slow = lambda *args: time.sleep(2e-3)  # noqa: E731
        inside.setattr(samplers.Trail, "step", slow)
        assert samplers.whole("euler", 0.0, denoiser=False)[0] > 2000 > quick


def test_table_of_shortcuts(tmp_path: Path) -> None:
    """Oracle: rows by hand, between the marks of the page; the page itself has them, in order."""
    own = {"off over it": 1.504, "psnr, dB": 33.24, "worst psnr, dB": 20.0, "inner passes": 0.35}
    text = shortcuts.table(
        {"deep_cache 3": {**own, "recognised": 0.75}, "x": own}, {"x": {"off over it": 2.0}}
    )
    assert "| `deep_cache 3` | 1.50x | 33.2 (20.0) | 75% | 35% | - |\n" in text
    assert "| `x` | 1.50x | 33.2 (20.0) | - | 35% | 2.00x |\n" in text
    page = tmp_path / "page.md"
    page.write_text(f"a\n{shortcuts.BEGIN}old\n{shortcuts.END}b\n")
    for _ in range(2):
        shortcuts.write_table(text, page)
    assert page.read_text() == f"a\n{shortcuts.BEGIN}\n{text}\n{shortcuts.END}b\n"
    real = shortcuts.DOCS.read_text("utf-8")
    assert real.index(shortcuts.BEGIN) < real.index(shortcuts.END)
    recorded = RESULTS / f"{shortcuts.RESULT}.json"
    if recorded.exists():
        found = json.loads(recorded.read_text())
        assert shortcuts.table(found["model inside"], found["SD1.5 UNet, bfloat16"]) in real


def test_settings_of_shortcuts() -> None:
    """Oracle: requests that can be made; PSNR by hand; a reused pass is one that computes less."""
    for fields in (f for pair in shortcuts.CASES.values() for f in pair):
        made = Request.from_dict(fields).to_dict()
        assert made | fields == made
    black = Image.new("RGB", (4, 4))
    assert shortcuts.psnr(black, black) == 60.0
    assert shortcuts.psnr(black, Image.new("RGB", (4, 4), (51, 51, 51))) == pytest.approx(20 * math.log10(5))
    config = TINY["sd1"]
    network = unet(config.unet, network_weights(config, dtype=torch.float32)["unet"])
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 9, 32)
    for setting in (Shortcuts(interval=3), Shortcuts(interval=3, blocks=4), Shortcuts(change=0.1)):
        again = shortcuts.reused_pass(network, setting, x, t, text)
        calls = list[int]()
        handle = network.middle_block[0].register_forward_pre_hook(lambda *_, c=calls: c.append(1))
        out = again()
        handle.remove()
        assert not calls and (out - network(x, t, text)).abs().max() < 1e-4

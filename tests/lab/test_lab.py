"""Oracle: written beside each test; tiny models and a person's own file made here."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from minisd.cli import main
from minisd.config import SD1, SDXL
from minisd.engine import Engine
from minisd.errors import MinisdError
from minisd.kernels import Kernels
from minisd.kernels.registry import Site
from minisd.lab.effect import effect, psnr
from minisd.lab.own import load_own
from minisd.lab.shapes import KINDS, QUICK, make_case, sites_of_model
from minisd.lab.timing import Limits, work_of
from minisd.lab.trace import svg, trace
from minisd.lab.work import resource_table
from minisd.models.fused import GroupNorm, use
from minisd.request import Request
from tests.tiny import tiny_model

REQUEST = Request(prompt="a cat", steps=2, seed=3, cfg_scale=4.0)
OWN = '''
from minisd.kernels import reference
from minisd.lab.own import register

@register("layer_norm")
def mine(x, weight, bias, eps, *, residual=None):
    """In float64."""
    total, out = reference.layer_norm(x, weight, bias, eps, residual=residual)
    return total, out * FACTOR
'''


def own(folder: Path, factor: float) -> Path:
    file = folder / "own.py"
    file.write_text(OWN.replace("FACTOR", str(factor)))
    return file


def sites(config: object, size: int, op: str, where: str = "unet") -> dict[tuple[int, ...], int]:
    called = sites_of_model(config, size)  # type: ignore[arg-type]
    mine = [c for c in called if c.site.op == op and c.where == where]
    return {(c.site.b, c.site.h, c.site.n, c.site.m, c.site.d): c.count for c in mine}


def test_sites_of_stable_diffusion() -> None:
    """Oracle: the published architectures, counted by hand: calls of one evaluation for two predictions."""
    levels = {(2, 8, 4096, 4096, 40): 5, (2, 8, 1024, 1024, 80): 5, (2, 8, 256, 256, 160): 5}
    assert sites(SD1, 512, "self_attention") == {**levels, (2, 8, 64, 64, 160): 1}
    assert sites(SD1, 512, "cross_attention")[(2, 8, 4096, 77, 40)] == 5
    assert sites(SD1, 512, "wide_attention", "vae") == {(1, 1, 4096, 4096, 512): 1}
    assert sites(SD1, 512, "causal_attention", "text") == {(1, 12, 77, 77, 64): 12}
    assert sum(sites(SD1, 512, "group_norm_silu").values()) == 61  # 22 blocks twice, 16 transformers, out
    assert sum(sites(SD1, 512, "layer_norm").values()) == 48
    assert sum(sites(SD1, 512, "upsample_conv").values()) == 3


def test_sites_of_sdxl() -> None:
    """Oracle: the published architecture: 10 and 60 calls of self-attention."""
    assert sites(SDXL, 1024, "self_attention") == {
        (2, 10, 4096, 4096, 64): 10,
        (2, 20, 1024, 1024, 64): 60,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_cases_are_what_their_kind_says(kind: str) -> None:
    """Oracle: strides, spread and rows of the inputs; an image alone is a slice of them."""
    q = make_case(QUICK["self_attention"][0], kind).arguments[0]
    assert isinstance(q, torch.Tensor)
    assert q.is_contiguous() == (kind != "strided")
    assert (float(q.std()) > 4) == (kind == "large")
    assert torch.equal(q[:, 0], q[:, -1]) == (kind == "equal")
    alone = make_case(QUICK["self_attention"][0], kind).of_image(1).arguments[0]
    assert isinstance(alone, torch.Tensor) and torch.equal(alone, q[1:2])


def test_floor_of_an_attention() -> None:
    """Oracle: the arithmetic by hand: SD1.5's 4096 tokens at d 40 are bound by exponentials on an H200."""
    site = Site("self_attention", torch.bfloat16, b=2, h=8, n=4096, m=4096, d=40)
    seconds, bound = work_of(site).floor(Limits(790e12, 4.3e12, 3.7e12))
    assert bound == "exponentials" and math.isclose(seconds, 72.5e-6, rel_tol=0.01)
    assert math.isclose(work_of(site).flops, 42.95e9, rel_tol=1e-3)


def test_a_trace_finds_the_layer_that_was_changed() -> None:
    """Oracle: the layer changed here; all before it agree to the bit, and an equal run in every place."""
    a, b = Engine(tiny_model("sd1")), Engine(tiny_model("sd1"))
    assert trace(a, b, REQUEST).first is None
    changed = b.model.unet.output_blocks[3][0].in_layers[0]  # type: ignore[index]
    assert isinstance(changed, GroupNorm)
    changed.eps = 1e-3
    found = trace(a, b, REQUEST)
    assert found.first is not None
    assert (found.first.network, found.first.call) == ("unet", 1)
    assert found.first.layer == "output_blocks.3.0.in_layers.0"
    assert found.growth()[-1].relative > 0 and "part at unet pass 1 output_blocks.3" in str(found)
    picture = ElementTree.fromstring(svg(found, "a < b"))
    assert any("output_blocks.3.0" in (e.text or "") for e in picture.iter())
    assert len(next(e for e in picture.iter() if e.tag.endswith("polyline")).attrib["points"].split()) == len(
        found.places
    )


def test_an_effect_is_that_of_the_pictures() -> None:
    """Oracle: latents and pictures of two runs compared here; equal runs have no difference."""
    a, b = Engine(tiny_model("sd1")), Engine(tiny_model("sd1"))
    same, both = effect(a, b, REQUEST)
    assert same.same and same.relative == (0.0, 0.0) and math.isinf(same.psnr)
    size = a.run(REQUEST).drawing.images[0].width
    assert both.size == (2 * size + 8, size)
    use(b.model.unet, Kernels.parse("sliced"))
    other, _ = effect(a, b, REQUEST)
    x, y = (e.run(REQUEST).drawing.latents.double() for e in (a, b))
    assert not other.same and math.isclose(other.relative[-1], float((y - x).norm() / x.norm()), rel_tol=1e-3)


def test_psnr() -> None:
    """Oracle: a picture one grey value brighter: 20 log10(255)."""
    a, b = Image.new("RGB", (4, 4), (10, 10, 10)), Image.new("RGB", (4, 4), (11, 11, 11))
    assert math.isclose(psnr(a, b), 20 * math.log10(255))


def test_a_persons_own_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: one that is right passes and is recorded; one that is 1 % off fails by name and exit code."""
    record = tmp_path / "rows.jsonl"
    command = ["kernels", "check", str(own(tmp_path, 1.0)), "--record", str(record)]
    assert main(command) == 0
    assert "mine" in capsys.readouterr().out
    row = json.loads(record.read_text())
    assert row["ok"] and row["what"] == "check" and len(row["sources"]["own.py"]) == 64
    own(tmp_path, 1.01)
    assert main(command) == 1
    assert "FAILED mine layer_norm" in capsys.readouterr().out
    assert len(record.read_text().splitlines()) == 2


def test_files_that_register_nothing(tmp_path: Path) -> None:
    """Oracle: the documented MinisdError."""
    (tmp_path / "empty.py").write_text("x = 1\n")
    for name, said in (("empty.py", "registers nothing"), ("absent.py", "is not a Python file")):
        with pytest.raises(MinisdError, match=said):
            load_own(tmp_path / name)


def test_the_list_says_what_runs_where(capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the registry; every site of a family has its implementation."""
    assert main(["kernels", "list", "--family", "sd1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"op": "geglu", "name": "torch"}.items() <= next(
        i for i in told["implementations"] if i["op"] == "geglu" and i["name"] == "torch"
    ).items()
    assert sum(s["calls"] for s in told["sites"] if s["site"].startswith("self_attention b2 h8 n4096")) == 5
    assert main(["kernels", "check", "--op", "gelu"]) == 1
    assert "no operation 'gelu'" in capsys.readouterr().err


def test_a_table_of_resources_keeps_its_columns() -> None:
    """Oracle: by eye: a long case, what did not compile, and AMD's programs, which nobody has counted."""
    facts = {"kernel": "k", "registers": 9, "spills": 0, "shared": 0, "programs": 0, "fits": True}
    row = {"case": "my_attention b2 h2 n70 m70 d40", "target": "sm_90", **facts, "matrix": {"HGMMA": 8}}
    rows = [row, {**row, "target": "gfx942"}, {"case": "c", "target": "sm_80", "error": "no"}]
    head, *lines = resource_table(rows).splitlines()
    at = head.index("target")
    assert [line[at:].split()[0] for line in lines] == ["sm_90", "gfx942", "sm_80"]
    assert [line[head.index("programs")] for line in lines[:2]] == ["0", "?"]
    assert lines[0].startswith("my_attention b2 h2 n70 m70 d40  sm_90")


def test_bench_on_a_cpu_times_what_runs_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: rows have times and the floor that binds; the interpreter's kernels are not timed."""
    site = replace(QUICK["layer_norm"][0], dtype=torch.float32)
    from minisd.lab import work
    from minisd.lab.shapes import Called

    monkeypatch.setattr(work, "sites_of_model", lambda *a, **k: (Called(site, 3, "unet"),))
    assert main(["kernels", "bench", "--op", "layer_norm", "--dtype", "float32", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    names = [r["name"] for r in rows]
    assert names in (["torch"], ["torch", "avx512"]) or torch.cuda.is_available()
    assert rows[0]["bound"] == "memory" and 0 < rows[0]["least"] <= rows[0]["median"]

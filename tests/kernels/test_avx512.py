"""Oracle: minisd/kernels/reference.py in float64, beside torch's own error; for what must not change bits,
equality."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minisd import load
from minisd.errors import PlanError
from minisd.kernels import OPERATIONS, REGISTRY, Kernels, attention
from minisd.kernels.avx512 import build, calls
from minisd.kernels.registry import Implementation
from minisd.lab.check import check_one
from minisd.lab.shapes import QUICK, make_case
from minisd.placement import choose_kernels
from minisd.request import Request
from tests.kernels.test_pipeline import away, latents

OURS = [op for op in OPERATIONS if "avx512" in REGISTRY.names(op)]
here = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))
DTYPES = [torch.float32, *([torch.bfloat16] if build.bfloat16_products() else [])]


def ours(op: str) -> Implementation:
    return REGISTRY.find(op, "avx512")


@pytest.fixture
def threads() -> Iterator[None]:
    """Whatever a test sets, the others have what they had."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@here
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["strided", "large", "equal"])
@pytest.mark.parametrize("op", OURS)
def test_every_kernel_is_as_exact_as_torch(op: str, kind: str, dtype: torch.dtype) -> None:
    """Oracle: the reference; memory full of NaN, the same bits again and alone."""
    base = REGISTRY.find(op, "sdpa" if op.endswith("attention") else "torch")
    for site in QUICK[op]:
        site = replace(site, dtype=dtype)
        if ours(op).why_not(site) is None:
            row = check_one(ours(op), base, site, kind, "cpu")
            assert row.ok, (site, row.failures)
            assert row.alone is not False and row.repeats


@here
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 2, 8), (2, 49, 259, 3, 24), (1, 600, 600, 2, 64), (1, 90, 513, 1, 520)]
)
@pytest.mark.parametrize("causal", [False, True])
def test_ragged_attention(shape: tuple[int, int, int, int, int], causal: bool, dtype: torch.dtype) -> None:
    """Oracle: the reference. Blocks of 48 queries, 256 keys and 16 channels that are not full, on fused
    projections; a causal call where whole blocks lie after a query."""
    b, n, m, heads, dim = shape
    generator = torch.Generator().manual_seed(5)
    if causal:
        m = n
    together = torch.randn(b, max(n, m), 3 * heads * dim, generator=generator).to(dtype)
    q, k, v = together.chunk(3, dim=-1)
    q, k, v = q[:, :n], k[:, :m], v[:, :m]
    right = attention(*(t.double() for t in (q, k, v)), heads, causal=causal, implementation="reference")

    def error(name: str) -> float:
        return away(attention(q, k, v, heads, causal=causal, implementation=name).double(), right)

    assert error("avx512") <= 2 * error("sdpa") + 1e-6


@here
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OURS)
def test_bits_do_not_depend_on_threads(op: str, dtype: torch.dtype, threads: None) -> None:
    """Oracle: one thread."""
    found = []
    for site in QUICK[op]:
        case = make_case(replace(site, dtype=dtype), seed=1)
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out = ours(op).run(*case.arguments, **case.named)
            found.append(out if isinstance(out, tuple) else (out,))
        assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
        found.clear()


@here
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_the_whole_pipeline(name: str) -> None:
    """Oracle: torch's own layers, float32."""
    mine = latents(name, "avx512")
    assert 0 < away(mine, latents(name, "auto")) < 1e-4
    assert torch.equal(mine, latents(name, "avx512"))


@here
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_picture_in_company_is_the_picture_alone(dtype: torch.dtype, threads: None) -> None:
    """Oracle: equality over batch and threads, channels last, as the plan has it for these kernels."""
    name = str(dtype).removeprefix("torch.")
    with load(kernels="avx512", dtype=name) as engine:
        assert set(engine.plan.channels_last.value) >= {"unet", "vae"}

        def drawn(seed: int, count: int = 1) -> list[bytes]:
            request = Request(prompt="a red apple", seed=seed, count=count, steps=2)
            return [image.tobytes() for image in engine.run(request).images]

        torch.set_num_threads(1)
        alone = [*drawn(4), *drawn(5)]
        assert drawn(4, 2) == alone
        torch.set_num_threads(2)
        assert drawn(4, 2) == alone


def test_why_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is asked for by name and cannot be had is refused with the reason, at the time of the plan."""
    assert "for CPUs" in str(Kernels.parse("avx512").why_not("cuda"))
    monkeypatch.setattr(build, "cached", lambda: tmp_path / "none.so")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    with pytest.raises(PlanError, match="no C[+][+] compiler"):
        choose_kernels("avx512", "auto", "cpu")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(PlanError, match="no AVX-512"):
        choose_kernels("geglu=avx512", "auto", "cpu")


@here
def test_the_library_is_kept_where_nobody_else_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Oracle: where it is compiled to, and how often."""
    compile_to, made = build.compile_to, list[Path]()
    monkeypatch.setattr(build, "compile_to", lambda target: made.append(target) or compile_to(target))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_again = build.library.__wrapped__
    load_again()
    load_again()
    assert made == [build.cached()] and [*build.cached().parent.iterdir()] == made
    build.cached().parent.chmod(0o777)  # others could put a library there: it is built elsewhere
    load_again()
    assert len(made) == 2 and made[1].parent != build.cached().parent and not made[1].exists()


@here
def test_what_the_compiler_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.cpp").write_text("this is no C++\n")
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(build, "SOURCES", ("broken.cpp",))
    with pytest.raises(ValueError, match="does not build it .*error"):
        build.compile_to(tmp_path / "x.so")
    assert not (tmp_path / "x.so").exists()


@pytest.mark.parametrize(
    ("structure", "name", "source"),
    [
        (calls.AttentionCall, "Call", "attention.cpp"),
        (calls.NormCall, "NormCall", "rows.cpp"),
        (calls.RowCall, "RowCall", "rows.cpp"),
    ],
)
def test_structures_mirror_the_sources(structure: type[ctypes.Structure], name: str, source: str) -> None:
    """Oracle: the names of the fields in C++, in their order."""
    body = (build.HERE / source).read_text().split(f"struct {name} {{")[1].split("};")[0]
    declared = [line.split("//")[0].strip().rstrip(";") for line in body.splitlines()]
    names = [
        w.strip(" *") for d in declared if d for w in d.replace("const ", "").split(" ", 1)[1].split(",")
    ]
    assert [n for n, *_ in structure._fields_] == names

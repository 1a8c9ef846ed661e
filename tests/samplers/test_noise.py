"""Oracle: the published vectors of Random123's Philox4x32-10, and of the community's "NV" noise."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch

from minisd.samplers.noise import (
    COUNTERS,
    Normals,
    batch_normal,
    philox4x32,
    philox_normal,
    philox_normals,
    torch_normal,
)

ALL = 0xFFFFFFFF
VECTORS = [  # (counter, key, output) of Random123's kat_vectors
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((ALL, ALL, ALL, ALL), (ALL, ALL), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
DIGESTS = [  # of plain draws, of a variation, of Brownian increments
    "c34032a813dfe21a70dad0733641cc8d2608013478649eaf3412b3ce145c1b92",
    "65daba3ec6d5b551026173eab03865f9ced0588399fbe33b25bf97cc71cdb7fd",
    "279d44af993cc1bd2865f2f791592a3d1348cf0f36cfded8e0be6e075576f31e",
]
HEX = {  # (seed, draw): the first four numbers, as the bytes of float32, little-endian
    (0, 0): "b0b66cbf b5c6d9be c53429c0 15ab143e",
    (7, 3): "719baf3f decd8b3e 5896343f 615139bf",
    (2**64 - 1, 1): "298e0340 a632ffbf faf8c6bf 56941ac0",
}
PROGRAM = """
import hashlib, torch
from minisd.samplers.brownian import brownian_noise
from minisd.samplers.noise import philox_normal
from minisd.first_noise import slerp
whole = hashlib.sha256()
for seed in (0, 1, 2**40 + 7, 2**64 - 1):
    for draw in (0, 3):
        whole.update(philox_normal(seed, draw, (4, 64, 65)).numpy().tobytes())
print(whole.hexdigest())
a, b = philox_normal(1, 0, (4, 63, 65)), philox_normal(2, 0, (4, 63, 65))
print(hashlib.sha256(slerp(a, b, 0.3).numpy().tobytes()).hexdigest())
path = brownian_noise([3, 4], (4, 31, 33), 0.03, 14.6, torch.zeros(1))
drawn = torch.stack([path(14.6, 9.0), path(9.0, 0.5), path(0.5, 0.03)])
print(hashlib.sha256(drawn.numpy().tobytes()).hexdigest())
for seed, draw in ((0, 0), (7, 3), (2**64 - 1, 1)):
    print(philox_normal(seed, draw, (4,)).numpy().astype("<f4").tobytes().hex(" ", 4))
"""
TORCH_DRAWS = """
import hashlib, torch
drawn = torch.randn(16384, generator=torch.Generator().manual_seed(0))
print(hashlib.sha256(drawn.numpy().tobytes()).hexdigest())
"""


def printed(program: str, **variables: str) -> str:
    """What a program prints in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **variables}
    command = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("counter,key,output", VECTORS)
def test_philox(counter: tuple[int, ...], key: tuple[int, int], output: str) -> None:
    """Oracle: Random123's known answers."""
    words = philox4x32(np.array(counter, dtype=np.uint32)[:, None], key)
    assert " ".join(f"{int(w):08x}" for w in words[:, 0]) == output


def test_normals_of_seed_zero() -> None:
    """Oracle: the first numbers that CUDA's generator and A1111's "NV" source give for seed 0."""
    wanted = [-0.92466259, -0.42534415, -2.6438457, 0.14518388]
    assert philox_normal(0, 0, (4,)).tolist() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("source", [philox_normal, philox_normals])
def test_normals_are_normal(source: Callable[..., torch.Tensor]) -> None:
    """Oracle: mean 0, standard deviation 1, skewness 0, kurtosis 3, to five standard errors."""
    x = source(1234, 0, (1000, 1000)).double()
    n = x.numel()
    moments = [float((x**k).mean()) for k in (1, 2, 3, 4)]
    for moment, wanted, variance in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(moment - wanted) < 5 * (variance / n) ** 0.5
    assert torch.isfinite(x).all()


def test_the_four_parts_of_a_draw_are_independent() -> None:
    """Oracle: no correlation between what comes of one counter's words, nor with the other kind of draw, nor
    of squares, to five standard errors; the shape only folds the numbers."""
    parts = [*philox_normals(5, 3, (4, 100_000)).double(), *philox_normal(5, 3, (1, 100_000)).double()]
    for i, a in enumerate(parts):
        for b in parts[:i]:
            assert abs(float((a * b).mean())) < 5 / 100_000**0.5
            assert abs(float(((a**2 - 1) * (b**2 - 1)).mean())) < 5 * 2 / 100_000**0.5
    assert philox_normals(5, 3, (3, 7)).shape == (3, 7) and philox_normals(5, 3, (1,)).shape == (1,)
    assert torch.equal(philox_normals(5, 3, (8,)), philox_normals(5, 3, (2, 4)).flatten())


def test_many_draws_at_once_are_those_made_alone() -> None:
    """Oracle: equality, where they fill several blocks and the last one not to its end, and where one draw is
    more than a block."""
    for n in (7, 4 * (COUNTERS // 3), 4 * COUNTERS + 5):
        draws = Normals(n).drawn(9, [2**31 + 1, 0, 5, 6, 2**32 - 1, 3, 3])
        for row, number in zip(draws, (2**31 + 1, 0, 5, 6, 2**32 - 1, 3, 3), strict=True):
            assert torch.equal(torch.from_numpy(row), philox_normals(9, number, (n,)))


def test_a_draw_is_a_function_of_seed_draw_and_place() -> None:
    """Oracle: equality and inequality of draws."""
    a = philox_normal(7, 0, (4, 8, 8))
    assert a.dtype == torch.float32
    assert torch.equal(a, philox_normal(7, 0, (4, 8, 8)))
    assert torch.equal(a.flatten()[:100], philox_normal(7, 0, (100,)))
    for seed, draw in ((8, 0), (7, 1), (7 + 2**32, 0)):
        assert not torch.equal(a, philox_normal(seed, draw, (4, 8, 8)))


@pytest.mark.parametrize("source", ["philox", "torch"])
def test_image_i_of_a_batch_is_its_own_seed(source: str) -> None:
    """Oracle: equality with the draw of that seed alone."""
    shape, seeds = (4, 9, 7), [41, 42, 2**64 - 1]
    for draw in (0, 1, 3):
        batch = batch_normal(source, seeds, draw, shape)
        assert batch.shape == (3, *shape)
        for row, seed in zip(batch, seeds, strict=True):
            assert torch.equal(row, batch_normal(source, [seed], draw, shape)[0])


def test_torch_source_is_a_seeded_generator() -> None:
    """Oracle: torch.randn of one CPU generator, draw after draw."""
    generator = torch.Generator().manual_seed(5)
    for draw in range(3):
        assert torch.equal(torch_normal(5, draw, (4, 8, 8)), torch.randn(4, 8, 8, generator=generator))


def test_the_global_generator_is_left_alone() -> None:
    """Oracle: torch's and numpy's global states before and after."""
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1]
    philox_normal(1, 0, (10,))
    torch_normal(1, 2, (10,))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_the_bits_do_not_depend_on_the_machine(capability: str) -> None:
    """Oracle: sha256 and hex vectors written down once, here and in a process kept to old instructions and
    one thread."""
    here = io.StringIO()
    with redirect_stdout(here):
        exec(PROGRAM, {})
    there = printed(
        PROGRAM,
        ATEN_CPU_CAPABILITY=capability,
        NPY_DISABLE_CPU_FEATURES="AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_ICL AVX512_SPR",
        OMP_NUM_THREADS="1",
    )
    assert here.getvalue().strip() == there == "\n".join([*DIGESTS, *HEX.values()])


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="this CPU has old kernels alone"
)
def test_torchs_normals_depend_on_the_machine() -> None:
    """Inverse: torch's CPU generator gives other bits without vector instructions."""
    assert printed(TORCH_DRAWS, ATEN_CPU_CAPABILITY="default") != printed(TORCH_DRAWS)


def test_one_draw_has_the_bytes_written_down() -> None:
    """Oracle: hex vectors; sha256 of seed 0, draw 0."""
    for (seed, draw), wanted in HEX.items():
        assert philox_normal(seed, draw, (4,)).numpy().astype("<f4").tobytes().hex(" ", 4) == wanted
    digest = hashlib.sha256(philox_normal(0, 0, (4, 8, 8)).numpy().tobytes()).hexdigest()
    assert digest == "75946fc0e16baebf9044dd860baac488848cf367c4312c9680433b774c8c039c"

"""Oracle: each kind's formula written again in NumPy, element by element where that is bearable; float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from minisd.weights_loader.lora_kinds import BY_NAME, Change, scale_of

Array = np.ndarray
OUT, IN, K, R = 12, 8, 3, 2
LINEAR, CONV = (OUT, IN), (OUT, IN, K, K)


def draw(*shape: int) -> Array:
    return np.random.default_rng(sum(shape) + 7 * len(shape)).standard_normal(shape)


def drawn(**shapes: tuple[int, ...]) -> dict[str, Array]:
    return {name: np.random.default_rng(i).standard_normal(s) for i, (name, s) in enumerate(shapes.items())}


def dense(kind: str, factors: dict[str, Array], weight: Array, alpha: float | None = None) -> Array:
    shapes = {k: tuple(v.shape) for k, v in factors.items()}
    tensors: dict[str, Tensor] = {k: torch.from_numpy(np.asarray(v)) for k, v in factors.items()}
    scale = scale_of(BY_NAME[kind], shapes, alpha)
    before = torch.from_numpy(weight.copy())
    made = Change(kind, tensors, scale).dense(before).numpy()
    assert np.array_equal(before.numpy(), weight)  # an argument is not written to
    return made


def close(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(np.abs(a - b).max() <= 1e-12 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("alpha", [None, 1.0, 5.0])
@pytest.mark.parametrize("shape", [LINEAR, CONV, (OUT, IN, 1, 1)])
def test_lora(shape: tuple[int, ...], alpha: float | None) -> None:
    """Oracle: alpha / r * sum over r of up * down."""
    up = (OUT, R) if len(shape) == 2 else (OUT, R, 1, 1)
    f = drawn(lora_up=up, lora_down=(R, *shape[1:]))
    s = 1.0 if alpha is None else alpha / R
    expected = s * np.einsum("or,ri->oi", f["lora_up"].reshape(OUT, R), f["lora_down"].reshape(R, -1))
    assert close(dense("lora", f, draw(*shape), alpha), expected.reshape(shape))


def tucker(core: Array, up: Array, down: Array) -> Array:
    """up [o, m], down [n, i]"""
    out = np.zeros((up.shape[0], down.shape[1], *core.shape[2:]))
    for m in range(core.shape[0]):
        for n in range(core.shape[1]):
            for a in range(core.shape[2]):
                for b in range(core.shape[3]):
                    out[:, :, a, b] += core[m, n, a, b] * np.outer(up[:, m], down[n])
    return out


def test_locon_tucker() -> None:
    """Oracle: sum over both ranks and all taps. The core is not symmetric."""
    f = drawn(lora_up=(OUT, R, 1, 1), lora_down=(R, IN, 1, 1), lora_mid=(R, R, K, K))
    expected = tucker(f["lora_mid"], f["lora_up"].reshape(OUT, R), f["lora_down"].reshape(R, IN)) * 3 / R
    assert close(dense("lora", f, draw(*CONV), 3.0), expected)


@pytest.mark.parametrize("shape", [LINEAR, CONV])
def test_loha(shape: tuple[int, ...]) -> None:
    """Oracle: product of two low-rank matrices, element by element."""
    n = int(np.prod(shape[1:]))
    f = drawn(hada_w1_a=(OUT, R), hada_w1_b=(R, n), hada_w2_a=(OUT, R), hada_w2_b=(R, n))
    product = (f["hada_w1_a"] @ f["hada_w1_b"]) * (f["hada_w2_a"] @ f["hada_w2_b"])
    assert close(dense("loha", f, draw(*shape), 1.0), product.reshape(shape) / R)


def test_loha_tucker() -> None:
    """Oracle: the same with each half in Tucker form; factors [r, o] and [r, i]."""
    shapes = {f"hada_w{n}_a": (R, OUT) for n in (1, 2)} | {f"hada_w{n}_b": (R, IN) for n in (1, 2)}
    f = drawn(**shapes, hada_t1=(R, R, K, K), hada_t2=(R, R, K, K))
    halves = [tucker(f[f"hada_t{n}"], f[f"hada_w{n}_a"].T, f[f"hada_w{n}_b"]) for n in (1, 2)]
    assert close(dense("loha", f, draw(*CONV), 1.0), halves[0] * halves[1] / R)


def kron(w1: Array, w2: Array) -> Array:
    """Blocks of w2, one for each element of w1, over the first two axes."""
    out = np.zeros((w1.shape[0] * w2.shape[0], w1.shape[1] * w2.shape[1], *w2.shape[2:]))
    for a in range(w1.shape[0]):
        for b in range(w1.shape[1]):
            rows = slice(a * w2.shape[0], (a + 1) * w2.shape[0])
            out[rows, b * w2.shape[1] : (b + 1) * w2.shape[1]] = w1[a, b] * w2
    return out


@pytest.mark.parametrize(
    "form,conv",
    [*((form, conv) for form in ("whole", "w2", "both", "w1") for conv in (False, True)), ("tucker", True)],
)
def test_lokr(form: str, conv: bool) -> None:
    """Oracle: blocks of w2; alpha scales only where a factor is decomposed."""
    taps = (K, K) if conv else ()
    o1, i1, o2, i2 = 3, 2, 4, 4
    shapes: dict[str, tuple[int, ...]] = {}
    if form in ("both", "w1"):
        shapes |= {"lokr_w1_a": (o1, R), "lokr_w1_b": (R, i1)}
    else:
        shapes |= {"lokr_w1": (o1, i1)}
    if form in ("whole", "w1"):
        shapes |= {"lokr_w2": (o2, i2, *taps)}
    elif form == "tucker":
        shapes |= {"lokr_w2_a": (R, o2), "lokr_w2_b": (R, i2), "lokr_t2": (R, R, K, K)}
    else:
        shapes |= {"lokr_w2_a": (o2, R), "lokr_w2_b": (R, i2 * (K * K if conv else 1))}
    f = drawn(**shapes)
    w1 = f["lokr_w1"] if "lokr_w1" in f else f["lokr_w1_a"] @ f["lokr_w1_b"]
    if form == "tucker":
        w2 = tucker(f["lokr_t2"], f["lokr_w2_a"].T, f["lokr_w2_b"])
    else:
        w2 = f["lokr_w2"] if "lokr_w2" in f else f["lokr_w2_a"] @ f["lokr_w2_b"]
    expected = kron(w1, w2.reshape(o2, i2, *taps)) * (1.0 if form == "whole" else 5.0 / R)
    assert close(dense("lokr", f, draw(o1 * o2, i1 * i2, *taps), 5.0), expected)


@pytest.mark.parametrize("shape", [LINEAR, CONV])
@pytest.mark.parametrize("on_input", [0, 1])
def test_ia3(on_input: int, shape: tuple[int, ...]) -> None:
    """Oracle: W[o, i] * w[o] or w[i]."""
    weight, vector = draw(*shape), draw(shape[on_input])
    stored = vector.reshape(1, -1, 1, 1) if len(shape) == 4 else vector
    f = {"weight": stored, "on_input": np.array(on_input)}
    expected = weight.copy()
    for n in range(len(vector)):
        expected[(slice(None), n) if on_input else n] *= vector[n]
    assert close(dense("ia3", f, weight), expected)


def test_full_and_norm() -> None:
    """Oracle: the tensor itself."""
    assert close(dense("full", {"diff": draw(*CONV)}, draw(*CONV)), draw(*CONV))
    assert close(dense("norm", {"w_norm": draw(OUT)}, draw(OUT)), draw(OUT))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("shape", [LINEAR, CONV])
def test_glora(shape: tuple[int, ...], old: bool) -> None:
    """Oracle: (W a1 a2 + b1 b2) alpha / r; a convolution has a on its input channels."""
    weight, n = draw(*shape), int(np.prod(shape[1:]))
    f = drawn(a1=(IN, R), a2=(R, IN), b1=(OUT, R), b2=(R, n))
    through = np.einsum("oi...,ir,rj->oj...", weight, f["a1"], f["a2"])
    expected = (through + (f["b1"] @ f["b2"]).reshape(shape)) * 6.0 / R
    if old:
        f = {"a1": f["a2"], "a2": f["a1"], "b1": f["b2"], "b2": f["b1"]}
    if not old and len(shape) == 4:
        f = {k: v.reshape(*v.shape, 1, 1) if k != "b2" else v.reshape(R, IN, K, K) for k, v in f.items()}
    assert close(dense("glora", f, weight, 6.0), expected)


def rotation(block: Array, shrink: float = 1.0) -> Array:
    q = (block - block.T) * shrink
    one = np.eye(len(q))
    return (one + q) @ np.linalg.inv(one - q)


@pytest.mark.parametrize("shape", [LINEAR, CONV])
@pytest.mark.parametrize("alpha", [0.0, 0.01])
@pytest.mark.parametrize("rescale", [False, True])
def test_oft(shape: tuple[int, ...], alpha: float, rescale: bool) -> None:
    """Oracle: Cayley's rotation of every block of rows; the norm over all blocks kept to alpha * outputs."""
    weight, blocks = draw(*shape), draw(3, 4, 4)
    q = blocks - blocks.transpose(0, 2, 1)
    size = np.sqrt((q**2).sum()) + 1e-8
    shrink = min(1.0, alpha * OUT / size) if alpha else 1.0
    turned = [rotation(b, shrink).T @ weight[4 * n : 4 * n + 4].reshape(4, -1) for n, b in enumerate(blocks)]
    expected = np.concatenate(turned).reshape(shape)
    f: dict[str, Array] = {"oft_blocks": blocks}
    if rescale:
        f["rescale"] = draw(OUT, *[1] * (len(shape) - 1)) + 2
        expected = expected * f["rescale"]
    assert close(dense("oft", f, weight, alpha), expected - weight)


def test_oft_keeps_the_angles_between_columns() -> None:
    """Oracle: what a rotation is: within a block of rows, products of columns stay."""
    weight = draw(8, 5)
    turned = weight + dense("oft", {"oft_blocks": draw(1, 8, 8)}, weight, 0.0)
    assert np.abs(turned.T @ turned - weight.T @ weight).max() < 1e-12
    assert np.abs(turned - weight).max() > 0.1


@pytest.mark.parametrize("shape", [(16, 5), (16, 3, 2, 2)])
def test_boft(shape: tuple[int, ...]) -> None:
    """Oracle: the butterfly as one permuted block-diagonal matrix for each stage."""
    weight, b = draw(*shape), 4
    blocks = draw(3, 4, b, b)
    turned = weight.reshape(16, -1)
    for stage in range(3):
        stride = 2**stage * b // 2
        # element g of group c at place k: row (c * 2 + g) * stride + k goes to (c * stride + k) * 2 + g
        order = np.array(
            [
                (c * 2 + g) * stride + k
                for c in range(16 // (2 * stride))
                for k in range(stride)
                for g in (0, 1)
            ]
        )
        mixing = np.zeros((16, 16))
        for n in range(4):
            mixing[n * b : n * b + b, n * b : n * b + b] = rotation(blocks[stage, n])
        permuted = mixing @ turned[order]
        turned = np.empty_like(turned)
        turned[order] = permuted
    assert close(dense("oft", {"oft_blocks": blocks}, weight, 0.0), turned.reshape(shape) - weight)


@pytest.mark.parametrize("shape", [LINEAR, CONV])
@pytest.mark.parametrize("axis", [0, 1])
def test_dora(axis: int, shape: tuple[int, ...]) -> None:
    """Oracle: each row (or input column) of W + delta scaled to its magnitude."""
    weight = draw(*shape)
    f = drawn(lora_up=(OUT, R), lora_down=(R, *shape[1:]))
    total = weight + np.einsum("or,ri->oi", f["lora_up"], f["lora_down"].reshape(R, -1)).reshape(shape)
    magnitude = np.abs(draw(shape[axis])) + 1
    expected = np.moveaxis(total.copy(), axis, 0)
    for n in range(len(expected)):
        expected[n] *= magnitude[n] / np.sqrt((expected[n] ** 2).sum())
    stored = magnitude.reshape([-1 if d == axis else 1 for d in range(len(shape))])
    tensors = {k: torch.from_numpy(v) for k, v in f.items()}
    made = Change("lora", tensors, 1.0, torch.from_numpy(stored)).dense(torch.from_numpy(weight)).numpy()
    assert close(made, np.moveaxis(expected, 0, axis) - weight)


def test_rank_stabilised() -> None:
    """Oracle: Kalajdzievski 2023 (arXiv:2312.03732): alpha / sqrt(r)."""
    shapes = {"lora_up": (OUT, 16), "lora_down": (16, IN)}
    assert scale_of(BY_NAME["lora"], shapes, 8.0, True) == 2.0
    assert scale_of(BY_NAME["lora"], shapes, 8.0, False) == 0.5
    assert scale_of(BY_NAME["lora"], shapes, None, True) == 1.0

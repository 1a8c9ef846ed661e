"""The kinds of adapter as formulas: from the factors in a file to a dense change of one weight.

    W' = W + sum over adapters of multiplier * delta(W)          for every kind, with delta at multiplier 1

Kinds and papers: LoRA (Hu et al. 2021, arXiv:2106.09685), DoRA (Liu et al. 2024, arXiv:2402.09353), LoHa,
LoKr, LoCon (Yeh et al. 2023, arXiv:2309.14859), IA3 (Liu et al. 2022, arXiv:2205.05638), OFT (Qiu et al.
2023, arXiv:2306.07280), BOFT (Liu et al. 2023, arXiv:2311.06243), GLoRA (Chavan et al. 2023,
arXiv:2306.07967).
Conventions are those of LyCORIS, which writes the files. A multiplier other than 1 is linear here for every
kind; other programs scale DoRA inside its norm and BOFT stage by stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Factors = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Kind:
    """How one kind of adapter is told and computed.

    mark: the factor that only this kind has. rank: of the factors' shapes, by which alpha is divided; None
    where alpha does not scale. dense: (weight, factors, alpha or scale) -> change of the weight.
    """

    name: str
    mark: str
    factors: frozenset[str]  # all that may come, the mark among them
    rank: Callable[[Shapes], int] | None
    dense: Callable[[Tensor, Factors, float], Tensor]


def flat(x: Tensor) -> Tensor:
    return x.flatten(1)


def tucker(core: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """core m n k k, up m o, down n i -> o i k k: sum over both ranks."""
    return torch.einsum("ijkl,jr,ip->prkl", core, down, up)


def lora(weight: Tensor, f: Factors, scale: float) -> Tensor:
    """up [o, r] @ down [r, i k k]; with mid [r, r, k, k] the Tucker form."""
    up, down = f["lora_up"], f["lora_down"]
    if "lora_mid" in f:
        return tucker(f["lora_mid"], flat(up).t(), flat(down)).reshape(weight.shape) * scale
    return (flat(up) @ flat(down)).reshape(weight.shape) * scale


def loha(weight: Tensor, f: Factors, scale: float) -> Tensor:
    """Two low-rank matrices, multiplied element by element."""
    halves = []
    for n in ("1", "2"):
        a, b = f[f"hada_w{n}_a"], f[f"hada_w{n}_b"]
        halves.append(tucker(f[f"hada_t{n}"], a, b) if f"hada_t{n}" in f else flat(a) @ flat(b))
    return (halves[0] * halves[1]).reshape(weight.shape) * scale


def lokr(weight: Tensor, f: Factors, scale: float) -> Tensor:
    """Kronecker product of w1 and w2, each whole or a low-rank product, w2 also in Tucker form."""
    w1 = f["lokr_w1"] if "lokr_w1" in f else f["lokr_w1_a"] @ f["lokr_w1_b"]
    if "lokr_w2" in f:
        w2 = f["lokr_w2"]
    elif "lokr_t2" in f:
        w2 = tucker(f["lokr_t2"], f["lokr_w2_a"], f["lokr_w2_b"])
    else:
        w2 = f["lokr_w2_a"] @ flat(f["lokr_w2_b"])
    return torch.kron(w1, flat(w2).contiguous()).reshape(weight.shape) * scale


def lokr_rank(shapes: Shapes) -> int:
    """Rank of the factor that is decomposed; 0 if none is: then alpha does not scale."""
    if "lokr_w2_b" in shapes:
        return shapes["lokr_w2_b"][0]
    return shapes["lokr_w1_b"][0] if "lokr_w1_b" in shapes else 0


def ia3(weight: Tensor, f: Factors, scale: float) -> Tensor:
    """Rows (or, trained on the input, columns) of the weight times a vector."""
    vector = f["weight"].flatten()
    along = 1 if bool(f["on_input"]) else 0
    return weight * vector.reshape([-1 if d == along else 1 for d in range(weight.ndim)])


def full(weight: Tensor, f: Factors, scale: float) -> Tensor:
    return f["diff"].reshape(weight.shape)


def norm(weight: Tensor, f: Factors, scale: float) -> Tensor:
    return f["w_norm"].reshape(weight.shape)


def glora(weight: Tensor, f: Factors, scale: float) -> Tensor:
    """W a1 a2 + b1 b2. Files before LyCORIS 2 have the factors of each product the other way round."""
    a1, a2, b1, b2 = (flat(f[n]) for n in ("a1", "a2", "b1", "b2"))
    inputs = weight.shape[1]
    if a1.shape[0] != inputs or b1.shape[0] != weight.shape[0]:
        a1, a2, b1, b2 = a2, a1, b2, b1
    if "bm" in f:
        plain = tucker(f["bm"], b1.t(), b2)
    else:
        plain = (b1 @ b2).reshape(weight.shape)
    through = torch.einsum("oi...,ij->oj...", torch.einsum("oi...,ij->oj...", weight, a1), a2)
    return (plain + through) * scale


def glora_rank(shapes: Shapes) -> int:
    return min(shapes["a2"][:2])


def cayley(blocks: Tensor, constraint: float) -> Tensor:
    """Rotations (1 + Q)(1 - Q)^-1 of Q = blocks - blocks^T, Q's norm over all blocks kept to `constraint`
    (0: free)."""
    q = blocks - blocks.transpose(-1, -2)
    if constraint > 0:
        q = q * torch.clamp(constraint / (torch.linalg.vector_norm(q) + 1e-8), max=1.0)
    one = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device).expand_as(q)
    # (1 + Q) and (1 - Q)^-1 commute
    return torch.linalg.solve(one - q, one + q)


def oft(weight: Tensor, f: Factors, alpha: float) -> Tensor:
    """Blocks of rows rotated: [n, b, b] each on its own rows; butterfly stages [m, n, b, b] over growing
    strides."""
    blocks = f["oft_blocks"]
    rotations = cayley(blocks, alpha * weight.shape[0])
    rows = flat(weight)
    if blocks.ndim == 3:
        # transposed: the files' rotations act on the outputs as row vectors
        turned = torch.einsum("nab,nac->nbc", rotations, rows.reshape(*blocks.shape[:2], -1)).flatten(0, 1)
    else:
        turned = rows
        half = blocks.shape[-1] // 2
        for stage, rotation in enumerate(rotations):
            stride = 2**stage * half
            mixed = turned.unflatten(0, (-1, 2, stride)).transpose(1, 2).flatten(0, 2)
            mixed = (rotation @ mixed.unflatten(0, (-1, 2 * half))).flatten(0, 1)
            turned = mixed.unflatten(0, (-1, stride, 2)).transpose(1, 2).flatten(0, 2)
    turned = turned.reshape(weight.shape)
    if "rescale" in f:
        turned = turned * f["rescale"].reshape(-1, *[1] * (weight.ndim - 1))
    return turned - weight


def first(name: str) -> Callable[[Shapes], int]:
    return lambda shapes: shapes[name][0]


KINDS = (
    Kind("lora", "lora_up", frozenset(("lora_up", "lora_down", "lora_mid")), first("lora_down"), lora),
    Kind(
        "loha",
        "hada_w1_a",
        frozenset(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")),
        first("hada_w1_b"),
        loha,
    ),
    Kind(
        "lokr",
        "lokr_",
        frozenset("lokr_w1 lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t2".split()),
        lokr_rank,
        lokr,
    ),
    Kind("ia3", "on_input", frozenset(("weight", "on_input")), None, ia3),
    Kind("full", "diff", frozenset(("diff",)), None, full),
    Kind("norm", "w_norm", frozenset(("w_norm",)), None, norm),
    Kind("glora", "a1", frozenset(("a1", "a2", "b1", "b2", "bm")), glora_rank, glora),
    Kind("oft", "oft_blocks", frozenset(("oft_blocks", "rescale")), None, oft),
)
BY_NAME = {kind.name: kind for kind in KINDS}
BIASES = ("diff_b", "b_norm", "lora_up_bias")  # factors that change the bias, of any kind


@dataclass(frozen=True)
class Change:
    """What an adapter does to one module: the factors as the file has them, and the number beside them.

    scale: alpha / rank; for OFT the constraint per output, which the files call alpha.
    """

    kind: str
    factors: Factors
    scale: float
    dora: Tensor | None = None  # magnitudes, of as many axes as the weight
    bias: Tensor | None = None  # added to the bias

    def dense(self, weight: Tensor) -> Tensor:
        """delta(W) at multiplier 1, in the shape, dtype and device of `weight`, which is not changed."""

        def cast(x: Tensor) -> Tensor:
            return x.to(weight.device, weight.dtype)

        delta = BY_NAME[self.kind].dense(weight, {k: cast(v) for k, v in self.factors.items()}, self.scale)
        if self.dora is None:
            return delta
        return decomposed(weight + delta, cast(self.dora)) - weight


def decomposed(weight: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA: the weight with the norm of each row (or column) replaced by a trained magnitude."""
    kept = next((d for d in range(weight.ndim) if magnitude.shape[d] > 1), 0)
    others = [d for d in range(weight.ndim) if d != kept]
    norm = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    return weight * (magnitude / norm.clamp_min(torch.finfo(norm.dtype).tiny))


def scale_of(kind: Kind, shapes: Shapes, alpha: float | None, rank_stabilised: bool = False) -> float:
    """alpha / rank, alpha / sqrt(rank) for rsLoRA; 1 without alpha; alpha itself for OFT."""
    if kind.name == "oft":
        return alpha or 0.0
    rank = kind.rank(shapes) if kind.rank is not None else 0
    if alpha is None or rank == 0:
        return 1.0
    return alpha / (math.sqrt(rank) if rank_stabilised else rank)

"""Which implementation each operation of a model runs: one frozen record, chosen before weights are read."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from minisd.kernels.attention import ATTENTIONS
from minisd.kernels.conditions import avx512_missing, triton_missing
from minisd.kernels.packed import packed_missing
from minisd.kernels.registry import OPERATIONS
from minisd.kernels.table import REGISTRY

MISSING = {"triton": triton_missing, "avx512": avx512_missing}  # why a kind of kernel runs nowhere here
SWITCHES = ("packed", "fused_qkv", "text_once", "times_once", "graph", "compiled")


@dataclass(frozen=True)
class Kernels:
    """A name for each operation, and the exact restructurings that need no kernel.

    packed: weights laid once as oneDNN multiplies them (CPU). fused_qkv: one product for query, key and value
    (and one for a text's key and value). text_once: keys and values of the text once in a run. times_once:
    embeddings of all timesteps once, together. graph: the UNet's kernels recorded and replayed (CUDA).
    compiled: torch.compile for each transformer and residual block. The defaults are what networks compute
    unless something else is asked for.
    """

    self_attention: str = "sdpa"
    cross_attention: str = "sdpa"
    causal_attention: str = "sdpa"
    wide_attention: str = "sdpa"
    group_norm_silu: str = "torch"
    layer_norm: str = "torch"
    geglu: str = "torch"
    guidance: str = "torch"
    upsample_conv: str = "nearest"
    quantised_linear: str = "torch"
    packed: bool = False
    fused_qkv: bool = False
    text_once: bool = False
    times_once: bool = False
    graph: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        for op in OPERATIONS:
            REGISTRY.find(op, getattr(self, op))
        if self.graph and (self.text_once or self.times_once):
            raise ValueError(
                "a graph is recorded with all of a call in it; leave text_once and times_once out"
            )

        if self.packed and self.fused_qkv:
            raise ValueError("packed weights lie each for itself; leave fused_qkv or packed out")

    def why_not(self, device: str) -> str | None:
        """The reason why these cannot be had on this kind of device, or None."""
        if self.graph and device != "cuda":
            return f"graph records CUDA's kernels, and this is {device}; leave it out"
        if self.compiled and device != "cuda":
            return f"compiled costs minutes and gains 5 % on {device}; it is for CUDA"
        if self.packed and (reason := packed_missing(device)) is not None:
            return f"packed: {reason}"
        for op in OPERATIONS:
            one = REGISTRY.find(op, getattr(self, op))
            missing = MISSING.get(one.name)
            reason = None if missing is None else missing(device)
            if reason is not None:
                return f"{op}={one.name}: {reason}"
        return None

    @classmethod
    def parse(cls, text: str) -> Kernels:
        """From "auto", one name for every operation that has it ("triton"), or "geglu=triton,fused_qkv".

        Several are read from left to right: "triton,self_attention=sdpa". Raises ValueError for names that
        are not there.
        """
        chosen = cls()
        for item in filter(None, (part.strip() for part in text.split(","))):
            op, equals, name = (part.strip() for part in item.partition("="))
            if equals:
                if op not in OPERATIONS:
                    raise ValueError(f"there is no operation {op!r}; known are {', '.join(OPERATIONS)}")
                REGISTRY.find(op, name)
                chosen = replace(chosen, **{op: name})
            elif op in SWITCHES:
                chosen = replace(chosen, **{op: True})
            elif op != "auto":
                having = [one for one in OPERATIONS if op in REGISTRY.names(one)]
                if not having:
                    names = sorted({n for one in OPERATIONS for n in REGISTRY.names(one)})
                    raise ValueError(
                        f"no operation has an implementation {op!r}; known are {', '.join(names)}"
                    )
                chosen = replace(chosen, **dict.fromkeys(having, op))
        return chosen

    @property
    def approximate(self) -> tuple[str, ...]:
        """What was chosen that is not as exact as its precision: "self_attention=chunked"."""
        chosen = ((op, getattr(self, op)) for op in OPERATIONS)
        found = [(op, name) for op, name in chosen if REGISTRY.find(op, name).approximate is not None]
        return tuple(f"{op}={name}" for op, name in found)

    def with_attention(self, name: str) -> Kernels:
        """The same name for every attention. Raises ValueError for one that is not for all of them."""
        having = [op for op in ATTENTIONS if name in REGISTRY.names(op)]
        if 0 < len(having) < len(ATTENTIONS):
            raise ValueError(f"{name} is for {' and '.join(having)} alone; ask for it by kernels {name}")
        return replace(self, **dict.fromkeys(ATTENTIONS, name))

    def __str__(self) -> str:
        """What differs from the defaults."""
        plain = Kernels()
        differing = [f for f in fields(self) if getattr(self, f.name) != getattr(plain, f.name)]
        shown = [f.name if f.name in SWITCHES else f"{f.name}={getattr(self, f.name)}" for f in differing]
        return ",".join(shown) or "torch's own"

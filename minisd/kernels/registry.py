"""Operations, their implementations, and why one of them cannot be used somewhere.

An operation is a formula (`reference.py`); an implementation is a function that computes it, with the
conditions under which it may be called. `Registry.choose` takes one by name, which runs or raises, or the
first that fits, with the reason. A registry is a value: adding to it gives another (a person's own file in
the laboratory), and nothing in torch is patched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

OPERATIONS: dict[str, str] = {
    "self_attention": "b images, h heads, n tokens to themselves (m = n), head dim d",
    "cross_attention": "b images, h heads, n tokens to m keys of text, head dim d",
    "causal_attention": "b texts, h heads, n tokens to themselves and those before (m = n), head dim d",
    "wide_attention": "b images, one head of all d channels, n = m pixels: the VAE's",
    "group_norm_silu": "b images of n pixels and d channels in h groups, SiLU after it or not",
    "layer_norm": "n rows of width d, a residual added before or not",
    "geglu": "n rows of width m to width d: (x Wv + bv) * gelu(x Wg + bg)",
    "guidance": "n elements: classifier-free guidance, then the denoised picture, then an Euler step",
    "upsample_conv": "b images of n pixels, m channels doubled in height and width, then 3x3 to d channels",
    "quantised_linear": "n rows of width m to width d; int8 weights with a scale for each output",
}


@dataclass(frozen=True)
class Site:
    """One call: what a condition may depend on. `OPERATIONS` says what the letters mean.

    device: torch's type ("cpu", "cuda"). arch: "sm_90", "gfx942", or "" where there is none.
    """

    op: str
    dtype: torch.dtype
    device: str = "cpu"
    arch: str = ""
    b: int = 1
    h: int = 1
    n: int = 1
    m: int = 1
    d: int = 1

    def __str__(self) -> str:
        sizes = " ".join(f"{letter}{getattr(self, letter)}" for letter in "bhnmd")
        return f"{self.op} {sizes} {str(self.dtype).removeprefix('torch.')} on {self.arch or self.device}"


Condition = Callable[[Site], str | None]
Function = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Implementation:
    """A function for an operation. `how` says in a few words what it does; each condition gives the reason
    why it cannot be called at a site, or None. The first ones of an operation are preferred. approximate:
    None where it is as exact as the precision it computes in; else the relative RMS error that it may have
    on ordinary inputs. Such a one runs only where it is asked for by name."""

    op: str
    name: str
    run: Function
    how: str
    conditions: tuple[Condition, ...] = ()
    approximate: float | None = None

    def why_not(self, site: Site) -> str | None:
        """The first reason against calling this at the site, or None."""
        if site.op != self.op:
            return f"{self.name} computes {self.op}, not {site.op}"
        reasons = (condition(site) for condition in self.conditions)
        return next((f"{self.name}: {reason}" for reason in reasons if reason is not None), None)


@dataclass(frozen=True)
class Selection:
    """What was chosen for a site, and why."""

    site: Site
    implementation: Implementation
    reason: str


@dataclass(frozen=True)
class Registry:
    """Implementations by operation and name, in order of preference."""

    table: Mapping[str, Mapping[str, Implementation]]

    @classmethod
    def of(cls, implementations: Iterable[Implementation]) -> Registry:
        """Raises ValueError for an unknown operation or a name given twice."""
        table: dict[str, dict[str, Implementation]] = {op: {} for op in OPERATIONS}
        for one in implementations:
            if one.op not in table:
                raise ValueError(f"there is no operation {one.op!r}; known are {', '.join(OPERATIONS)}")
            if one.name in table[one.op]:
                raise ValueError(f"{one.op} has an implementation {one.name!r} already; choose another name")
            table[one.op][one.name] = one
        return cls(table)

    def __iter__(self) -> Iterator[Implementation]:
        return (one for named in self.table.values() for one in named.values())

    def plus(self, *more: Implementation) -> Registry:
        """A registry with further implementations."""
        return Registry.of([*self, *more])

    def names(self, op: str) -> tuple[str, ...]:
        return tuple(self.table[op])

    def find(self, op: str, name: str) -> Implementation:
        """Raises ValueError for names that are not there, saying which are."""
        if op not in self.table:
            raise ValueError(f"there is no operation {op!r}; known are {', '.join(OPERATIONS)}")
        if name not in self.table[op]:
            known = ", ".join(sorted(self.table[op]))
            raise ValueError(f"there is no {op} {name!r}; known are {known}")
        return self.table[op][name]

    def choose(self, site: Site, name: str = "auto") -> Selection:
        """The implementation of this name, or with "auto" the first that fits.

        Raises ValueError with the reason where what was named cannot run.
        """
        if name != "auto":
            one = self.find(site.op, name)
            reason = one.why_not(site)
            if reason is not None:
                raise ValueError(f"{site}: {reason}")
            return Selection(site, one, "asked for by name")
        passed: list[str] = []
        for one in (named for named in self.table[site.op].values() if named.approximate is None):
            reason = one.why_not(site)
            if reason is None:
                return Selection(site, one, "; ".join(passed) if passed else one.how)
            passed.append(reason)
        raise ValueError(f"{site}: nothing fits ({'; '.join(passed)})")

"""Operations on tensors, each with a small float64 reference and one or more fast implementations.

Knows tensors, nothing of diffusion. `OPERATIONS` lists them, `REGISTRY` holds what computes them, and
`Kernels` says which of it a model runs. `docs/kernels.md` shows how to add one.
"""

from minisd.kernels.attention import ATTENTIONS, attention, why_not
from minisd.kernels.choice import Kernels
from minisd.kernels.registry import OPERATIONS, Implementation, Registry, Selection, Site
from minisd.kernels.table import REGISTRY

__all__ = [
    "ATTENTIONS",
    "OPERATIONS",
    "REGISTRY",
    "Implementation",
    "Kernels",
    "Registry",
    "Selection",
    "Site",
    "attention",
    "why_not",
]

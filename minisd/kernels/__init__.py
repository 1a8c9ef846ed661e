"""Operations on tensors, each with a small float64 reference and one or more fast implementations.

Knows tensors, nothing of diffusion. `attention` is the one operation the networks call by name today.
"""

from minisd.kernels.attention import IMPLEMENTATIONS, attention, why_not

__all__ = ["IMPLEMENTATIONS", "attention", "why_not"]

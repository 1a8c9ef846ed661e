"""Pack a network: the layers of its transformers and its convolutions exchanged for packed ones."""

from __future__ import annotations

from torch import nn

from minisd.models.conv import Conv2d, PointwiseConv
from minisd.models.fused import Upsample
from minisd.models.packed import PackedConv, PackedLinear, PackedPointwise
from minisd.models.transformer import SpatialTransformer


def pack(network: nn.Module) -> None:
    """In place, when the weights are there, layer by layer: no second copy of more than one weight.

    Products with few rows (embeddings of times) stay as they are, and so do convolutions that were folded
    with the upsampling before them.
    """
    for module in list(network.modules()):
        if isinstance(module, SpatialTransformer):
            exchange(module, PackedLinear, (nn.Linear, nn.Conv2d))
    for module in list(network.modules()):
        for name, layer in list(module.named_children()):
            folded = isinstance(module, Upsample) and module.folded is not None
            if isinstance(layer, PointwiseConv):
                module.register_module(name, PackedPointwise(layer))
            elif isinstance(layer, Conv2d) and not folded:
                module.register_module(name, PackedConv(layer))


def exchange(module: nn.Module, by: type[PackedLinear], kinds: tuple[type[nn.Module], ...]) -> None:
    for name, layer in list(module.named_children()):
        if type(layer) in kinds:
            module.register_module(name, by(layer))  # type: ignore[arg-type]  # one of the kinds that it takes
        else:
            exchange(layer, by, kinds)

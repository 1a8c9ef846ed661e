"""The pieces of a network whose weights come and go together when they do not stay: its blocks.

A block is what reads its weights itself while it runs (a residual block, a transformer block); what is in no
block is a piece of its own. A transformer block inside a SpatialTransformer is its own piece, and the
transformer's own norm and projections are another, needed all the while.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from minisd.models.clip import Embeddings, EncoderLayer
from minisd.models.transformer import BasicTransformerBlock, SpatialTransformer
from minisd.models.unet import ResBlock
from minisd.models.vae import AttnBlock, ResnetBlock

BLOCKS = (
    ResBlock,
    SpatialTransformer,
    BasicTransformerBlock,
    EncoderLayer,
    Embeddings,
    ResnetBlock,
    AttnBlock,
)


@dataclass(frozen=True)
class Piece:
    """A module by its name in the network, and the names of the parameters and buffers it stands for."""

    module: str
    tensors: tuple[str, ...]


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module itself, not of its children."""
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def all_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def pieces(network: nn.Module) -> tuple[Piece, ...]:
    """The pieces of a network in the order in which its modules are registered. Every tensor is in one."""
    held: dict[str, list[str]] = {}

    def visit(module: nn.Module, name: str, owner: str | None) -> None:
        mine = name if owner is None or isinstance(module, BLOCKS) else owner
        dot = f"{name}." if name else ""
        if own := own_tensors(module):
            held.setdefault(mine, []).extend(dot + key for key in own)
        inside = mine if owner is not None or isinstance(module, BLOCKS) else None
        for key, child in module.named_children():
            visit(child, dot + key, inside)

    visit(network, "", None)
    return tuple(Piece(name, tuple(tensors)) for name, tensors in held.items())

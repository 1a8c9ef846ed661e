"""What a run needs to compute only once, and in one product what is multiplied with the same tokens.

The text does not change between steps: the keys and values that each layer makes of it are kept (`Text`).
Timesteps are known before the run: all their embeddings, and what each residual block makes of them, are made
together (`Times`). Both give the bits they gave before. q, k and v of the same tokens are one product where
their weights lie together (`Projections`); there a product of another width may round otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.models.conv import each_alone
from minisd.models.packed import PackedLinear


def beside_each_other(*layers: nn.Module) -> Tensor | None:
    """The weights [o, i] of linear layers without bias as one matrix, if they lie in memory one behind the
    other (`lay_together`); None if they do not, or another kind of layer is among them."""
    weights = [layer.weight for layer in layers if type(layer) is nn.Linear and layer.bias is None]
    if len(weights) < len(layers):
        return None
    first, end = weights[0], weights[0].data_ptr()
    memory = first.untyped_storage().data_ptr()
    for weight in weights:
        if weight.data_ptr() != end or weight.untyped_storage().data_ptr() != memory:
            return None
        if not weight.is_contiguous():
            return None
        end += weight.numel() * weight.element_size()
    width = first.shape[1]
    return first.as_strided((sum(len(w) for w in weights), width), (width, 1))


def lay_together(*layers: nn.Module) -> None:
    """Move the weights of linear layers into one piece of memory. Values and names stay."""
    plain = [layer for layer in layers if type(layer) is nn.Linear]
    if len(plain) < len(layers) or beside_each_other(*plain) is not None:
        return
    whole = torch.cat([layer.weight.detach() for layer in plain])
    for layer, part in zip(plain, whole.split([len(p.weight) for p in plain]), strict=True):
        layer.weight = nn.Parameter(part, requires_grad=False)


class Projections(nn.Module):
    """q, k and v of tokens; with `fused` in one product where their weights lie together."""

    fused: bool = False

    def __init__(self, dim: int, context_dim: int, *, of_itself: bool) -> None:
        super().__init__()
        self.of_itself = of_itself
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)

    def lay(self) -> None:
        """Lay the weights together that are multiplied with the same tokens."""
        lay_together(*([self.to_q] if self.of_itself else []), self.to_k, self.to_v)

    def project(self, x: Tensor, context: Tensor | Text | None) -> tuple[Tensor, Tensor, Tensor]:
        """q of x [b n c], k and v of context [b m d] or of x: b n c, b m c, b m c."""
        if isinstance(context, Text):
            return self.to_q(x), *context.keys_and_values(self)
        if context is not None:
            return self.to_q(x), *self.of_text(context)
        whole = beside_each_other(self.to_q, self.to_k, self.to_v) if self.fused else None
        if whole is None:
            return self.to_q(x), self.to_k(x), self.to_v(x)
        q, k, v = F.linear(x, whole).chunk(3, dim=-1)
        return q, k, v

    def of_text(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """k and v of context b m d."""
        whole = beside_each_other(self.to_k, self.to_v) if self.fused else None
        if whole is None:
            return self.to_k(context), self.to_v(context)
        k, v = F.linear(context, whole).chunk(2, dim=-1)
        return k, v


class Text:
    """A text [b m d], and the keys and values that layers make of it, each made once."""

    def __init__(self, context: Tensor) -> None:
        self.context = context
        self._made: dict[Projections, tuple[Tensor, Tensor]] = {}

    def keys_and_values(self, layer: Projections) -> tuple[Tensor, Tensor]:
        if any(type(part) not in (nn.Linear, PackedLinear) for part in (layer.to_k, layer.to_v)):
            return layer.of_text(self.context)
        if layer not in self._made:
            self._made[layer] = layer.of_text(self.context)
        return self._made[layer]


def tensor_of(context: Tensor | Text) -> Tensor:
    return context.context if isinstance(context, Text) else context


class Times:
    """The embedding of one timestep [r e], and what layers make of it: `made` holds theirs for all timesteps
    of the run, of which this is the `row`-th."""

    def __init__(self, all_rows: Tensor, row: int, rows: int, made: dict[nn.Module, Tensor]) -> None:
        self._all, self._at, self._made = all_rows, slice(row * rows, (row + 1) * rows), made

    def of(self, layer: nn.Module) -> Tensor:
        """layer(embedding): r c."""
        if any(type(part) not in (nn.SiLU, nn.Linear) for part in layer.children()):
            return each_alone(layer, self._all[self._at])
        if layer not in self._made:
            self._made[layer] = each_alone(layer, self._all)
        return self._made[layer][self._at]


Embed = Callable[[Tensor, Tensor | None, torch.dtype], Tensor]  # timesteps [b], y [b, y_dim], dtype -> b e


class Once:
    """What one run has computed already: of its texts, of its times. timesteps: those it is going to visit;
    others are made one by one.

    The state of one run. A layer that is no plain product any more (adapters beside it, which may come and
    go with the steps) is computed every time.
    """

    def __init__(self, timesteps: Sequence[float], *, texts: bool = True, times: bool = True) -> None:
        self.texts, self.times = texts, times
        self._timesteps = list(dict.fromkeys(timesteps))
        self._texts: dict[tuple[int, ...], tuple[Sequence[Tensor], Text]] = {}
        self._made: dict[tuple[int, ...], tuple[Sequence[Tensor], dict[float, Times]]] = {}

    def text(self, contexts: Sequence[Tensor], images: int) -> Text:
        """Those contexts [1 or images, m, d] below each other, each for all images."""
        key = (images, *(id(c) for c in contexts))
        if key not in self._texts:  # what the key names is kept beside it, so that no other takes its place
            whole = torch.cat([c.expand(images, -1, -1) for c in contexts])
            self._texts[key] = contexts, Text(whole)
        return self._texts[key][1]

    def time(
        self,
        embed: Embed,
        timestep: float,
        ys: Sequence[Tensor],
        images: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Times:
        """Of this timestep with the vectors ys [1 or images, y_dim], in the order of `text`."""
        key = (images, *(id(y) for y in ys))
        if key not in self._made:
            self._made[key] = ys, {}
            self._embed(key, self._timesteps, embed, images, dtype, device)
        if timestep not in self._made[key][1]:
            self._embed(key, [timestep], embed, images, dtype, device)
        return self._made[key][1][timestep]

    def _embed(
        self,
        key: tuple[int, ...],
        timesteps: list[float],
        embed: Embed,
        images: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        ys, made = self._made[key]
        y = torch.cat([y.expand(images, -1) for y in ys]) if ys else None
        rows = 1 if y is None else len(y)
        told = torch.tensor(timesteps, dtype=torch.float32, device=device).repeat_interleave(rows)
        every = embed(told, None if y is None else y.repeat(len(timesteps), 1), dtype)
        projected: dict[nn.Module, Tensor] = {}
        for row, timestep in enumerate(timesteps):
            made[timestep] = Times(every, row, rows, projected)

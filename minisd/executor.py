"""Executor: brings weights to where they compute and gives them back, as the plan says and not otherwise.

A network whose weights do not stay is built with placeholders on the meta device. A group of weights (a whole
part, or one piece of it) is taken in when a module that needs it is called, and let go when the plan says so:
a staged part when another kind of part is needed or the drawing ends, a streamed piece when its module is
done. While a streamed piece computes, the next one is on its way: read by a thread, or copied to the device
on a stream of its own. The order is learnt from the first call. Moving weights changes no bit of a picture.

Parameters keep their identity (their contents are swapped), so networks that share them see them come, too.
Any number of threads may draw; a group is held while any of them uses it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from minisd.freed_memory import give_back
from minisd.residency import all_tensors, pieces
from minisd.wishes import Residency, group_of

Make = Callable[[tuple[str, ...]], dict[str, Tensor]]  # names of a part's tensors -> fresh ones on its device


class Group:
    """Weights that come and go together. `users` counts calls under way that need them."""

    def __init__(self, part: str, places: Mapping[str, Tensor], make: Make) -> None:
        self.part = part
        self.users = 0
        self.loaded = False
        self._places = dict(places)
        self._make = make
        self._away: dict[str, Tensor] = {}  # placeholders, while the weights are in

    def fetch(self) -> dict[str, Tensor]:
        """The weights, on their device; nothing of the network changes."""
        return self._make(tuple(self._places))

    def put(self, fresh: dict[str, Tensor]) -> None:
        for name, place in self._places.items():
            value = fresh.pop(name)
            if isinstance(place, nn.Parameter):
                value = nn.Parameter(value, requires_grad=False)
            torch.utils.swap_tensors(place, value)
            self._away[name] = value
        self.loaded = True

    def drop(self) -> None:
        for name, place in self._places.items():
            torch.utils.swap_tensors(place, self._away.pop(name))
        self.loaded = False


class Executor:
    """Weights of the networks of one model that do not stay. `busy` is held around a drawing; `close` gives
    everything back once no drawing is under way.
    """

    def __init__(self) -> None:
        self._on_close: list[Callable[[], None]] = []
        self._lock = threading.RLock()
        self._groups: list[Group] = []
        self._ahead: dict[str, bool] = {}
        self._staged: set[str] = set()
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._next: dict[Group, Group] = {}
        self._coming: tuple[Group, Future[dict[str, Tensor]]] | None = None
        self._last = threading.local()
        self._reader: ThreadPoolExecutor | None = None
        self._stage: str | None = None  # the kind of part that came last
        self._drawings = 0
        self._closing = False

    def closes(self, what: Callable[[], None]) -> None:
        """Call this at the end, too: the files that weights are read from."""
        self._on_close.append(what)

    def manage(self, part: str, network: nn.Module, residency: Residency, make: Make) -> None:
        """From now on this network's weights come and go. They must be placeholders on the meta device."""
        places = all_tensors(network)
        if residency == "staged":
            group = Group(part, places, make)
            self._staged.add(part)
            for module in (network, *network.children()):  # a VAE is called by its halves
                self._hook(module, group)
            self._groups.append(group)
            return
        self._ahead[part] = residency == "streamed"
        for piece in pieces(network):
            group = Group(part, {name: places[name] for name in piece.tensors}, make)
            self._hook(network.get_submodule(piece.module), group)
            self._groups.append(group)

    def _hook(self, module: nn.Module, group: Group) -> None:
        # functions and not methods: a copy of the network keeps them as they are
        def enter(_module: nn.Module, _args: object) -> None:
            self.take(group)

        def leave(_module: nn.Module, _args: object, _out: object) -> None:
            self.leave(group)

        self._hooks.append(module.register_forward_pre_hook(enter))
        self._hooks.append(module.register_forward_hook(leave, always_call=True))

    def take(self, group: Group) -> None:
        """Have the group's weights in place until `leave`."""
        with self._lock:
            group.users += 1  # before anything can fail: `leave` is called then, too
            if not group.loaded:
                self._make_room(group)
                self._enter(group_of(group.part))
                group.put(self._arrived(group))
            if self._ahead.get(group.part):
                self._send_for_next(group)

    def leave(self, group: Group) -> None:
        with self._lock:
            group.users -= 1
            if group.loaded and group.users == 0 and group.part not in self._staged:
                group.drop()

    def _make_room(self, group: Group) -> None:
        """Staged parts of another kind go, unless a call is using them."""
        for other in self._groups:
            idle = other.loaded and other.users == 0
            if idle and other.part in self._staged and group_of(other.part) != group_of(group.part):
                other.drop()

    def _enter(self, stage: str) -> None:
        if stage != self._stage:  # what the last one freed
            self._stage = stage
            give_back()

    def _arrived(self, group: Group) -> dict[str, Tensor]:
        """The group's weights: those on their way, or fetched now. Others on their way are let go."""
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] is group:
            return coming[1].result()
        if coming is not None:
            coming[1].exception()  # waits; what went wrong concerns those who need it
        del coming
        return group.fetch()

    def _send_for_next(self, group: Group) -> None:
        last: Group | None = getattr(self._last, "group", None)
        if last is not None and last is not group:
            self._next[last] = group
        self._last.group = group
        follower = self._next.get(group)
        if follower is None or follower.loaded or self._coming is not None or self._closing:
            return
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, "minisd-weights")
        self._coming = follower, self._reader.submit(follower.fetch)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """A drawing is under way; what was staged for it goes when the last one ends."""
        with self._lock:
            self._drawings += 1
        try:
            yield
        finally:
            with self._lock:
                self._drawings -= 1
                if self._drawings == 0:
                    self.rest()
                    if self._closing:
                        self._finish()

    def rest(self) -> None:
        """Let go of everything that no call is using."""
        with self._lock:
            coming, self._coming = self._coming, None
            if coming is not None:
                coming[1].exception()
            del coming
            for group in self._groups:
                if group.loaded and group.users == 0:
                    group.drop()
            if self._groups:
                self._stage = None
                give_back()

    def close(self) -> None:
        """Give everything back, now or when the last drawing ends. Closing twice is harmless."""
        with self._lock:
            if not self._closing:
                self._closing = True
                if self._drawings == 0:
                    self._finish()

    def _finish(self) -> None:
        self.rest()
        for handle in self._hooks:
            handle.remove()
        self._hooks.clear()
        self._groups.clear()
        self._next.clear()
        if self._reader is not None:
            self._reader.shutdown()
        for close in self._on_close:
            close()

"""A drawing as events that one takes as they happen, in place of a function that hears of them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from minisd.events import CancelToken, Listener, Preview, Progress
from minisd.result import Result


@dataclass(frozen=True)
class Final:
    """The last event of a stream."""

    result: Result
    job: str = ""


def streamed(
    run: Callable[[Listener, CancelToken], Result], cancel: CancelToken | None, job: str
) -> Iterator[Progress | Preview | Final]:
    """The events of `run` as they happen, the result last. It runs in a thread of its own, which waits while
    nobody takes its events; leaving the loop early cancels it."""
    events: queue.Queue[Progress | Preview | Final | BaseException] = queue.Queue(maxsize=1)
    left = threading.Event()

    def put(event: Progress | Preview | Final | BaseException) -> None:
        while not left.is_set():
            try:
                return events.put(event, timeout=0.1)
            except queue.Full:
                continue

    class Either:
        def is_set(self) -> bool:
            return left.is_set() or (cancel is not None and cancel.is_set())

    def work() -> None:
        try:
            put(Final(run(put, Either()), job))
        except BaseException as error:  # handed over to the caller's thread, where it is raised
            put(error)

    worker = threading.Thread(target=work, name="minisd-stream", daemon=True)
    worker.start()
    try:
        while True:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            yield event
            if isinstance(event, Final):
                return
    finally:
        left.set()
        worker.join()

"""Counting what a function does: lines of Python executed in the files of minisd, whatever the clock says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def lines_run(work: Callable[[], object]) -> int:
    """Lines of files below minisd that run during `work`."""
    count = 0

    def local(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        count += event == "line"
        return local

    def start(frame: FrameType, event: str, arg: object) -> Any:
        return local if "/minisd/" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(start)
    try:
        work()
    finally:
        sys.settrace(before)
    return count

"""Malicious pickles of a folder: each is opened as a checkpoint, and none may run or import anything.

    python -m scripts.refuse_pickles FOLDER ...         # picklescan's tests/data, fickling's test folder

The folders are those of scanners (mmaitre314/picklescan, trailofbits/fickling); their files are not ours to
distribute. Every file is opened in one process under an audit hook: a file opened for writing, a process, a
socket, an import or a compilation is reported, and fails the run. What is refused is counted with its
reason; what is accepted is listed, and is tensors alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path

from minisd.errors import CheckpointError
from minisd.weights_loader.open import open_source
from minisd.weights_loader.pickle_file import PickleFile
from scripts.bench.common import record

FORBIDDEN = ("import", "exec", "compile", "os.system", "subprocess.Popen", "socket.", "pickle.find_class")
REASONS = ("asks for", "is not allowed", "pickle protocol 4", "plain pickle", "ends unexpectedly")


class Watch:
    """An audit hook that records what must not happen while it is on. Hooks cannot be removed."""

    def __init__(self) -> None:
        self.on, self.seen = False, list[str]()
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.on:
            return
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes or event.startswith(FORBIDDEN):
            self.seen.append(f"{event} {arguments!r:.80}")


def tried(path: Path) -> str:
    """What became of a file by its content, and of its content read as a pickle whatever its name."""
    for opener in (open_source, PickleFile):
        try:
            source = opener(path)
            for name in source.tensors:
                source.read(name)
        except CheckpointError as error:
            said = str(error)
        else:
            return f"accepted: {len(source.tensors)} tensors"
    return next((reason for reason in REASONS if reason in said), "another reason")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folders", nargs="+", type=Path)
    p.add_argument("--record", metavar="NAME", help="write scripts/bench/results/NAME.json")
    args = p.parse_args()
    watch, figures = Watch(), dict[str, object]()
    for folder in args.folders:
        files = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.suffix != ".py"]
        for path in files[:1]:
            tried(path)  # what is imported once by us
        modules, counts, accepted = set(sys.modules), Counter[str](), list[str]()
        for path in files:
            watch.on = True
            found = tried(path)
            watch.on = False
            counts[found.split(":")[0]] += 1
            if found.startswith("accepted"):
                accepted.append(f"{path.name} ({found})")
        imported = sorted(set(sys.modules) - modules)
        figures[folder.name] = {
            "files": len(files),
            "refused": len(files) - len(accepted),
            "reasons": dict(counts.most_common()),
            "accepted": accepted,
            "imported": imported,
            "forbidden_events": watch.seen,
        }
        sys.stdout.write(json.dumps({folder.name: figures[folder.name]}, indent=1) + "\n")
    if args.record:
        record(args.record, figures)
    if watch.seen or any(f["imported"] for f in figures.values()):  # type: ignore[index]
        sys.exit("something ran or was imported")


if __name__ == "__main__":
    main()

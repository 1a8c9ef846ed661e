"""Fuzzing of the two file readers: any bytes give tensors or CheckpointError, quickly and in little memory.

    python -m scripts.fuzz_readers --runs 100000            # both readers, seeded mutation
    python -m scripts.fuzz_readers --engine atheris         # guided by coverage, where atheris is installed

The corpus is every file of the tests' generators and a few that torch and safetensors write. Of the mutants
a fifth are sound files with one bit flipped; half of the others are bent anywhere, half keep the outer form
(header length, checksums of the zip) so that what lies within is reached. What we accept is compared:
safetensors must accept it, too, with equal tensors; torch.load(weights_only=True) must give equal tensors
where it accepts. Any other exception ends the run and leaves its input. Figures go to
scripts/bench/results/.
"""

from __future__ import annotations

import argparse
import atexit
import io
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from minisd.errors import CheckpointError
from minisd.weights_loader.pickle_file import PickleFile
from minisd.weights_loader.safetensors_file import SafetensorsFile
from scripts.bench.common import record
from tests.weights_loader.malformed import GOOD, SAFETENSORS_CASES
from tests.weights_loader.malformed import safetensors as build
from tests.weights_loader.malformed_pickle import GOOD_PICKLE, LEGACY_CASES, PICKLE_CASES, legacy
from tests.weights_loader.malformed_zip import ZIP_CASES, checkpoint

READERS = {"safetensors": SafetensorsFile, "ckpt": PickleFile}
MOST = 50_000_000  # bytes of memory that all inputs together may add
LARGE = 30_000  # bytes; larger files of the corpus have their own tests and would only slow this down
WORDS = (
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff" * 8,
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"-1",
    b"1e9",
    b"0",
)
PICKLED = (
    b"(",
    b"}",
    b"]",
    b")",
    b"N",
    b"t",
    b"s",
    b"u",
    b"a",
    b"R",
    b"b",
    b"Q",
    b"q\0",
    b"h\0",
    b"\x85",
    b"\x93",
)


def memory(key: str) -> int:
    """Of this process, in bytes: VmRSS now, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def written_by_torch() -> bytes:
    """As a zip; a legacy file of torch has addresses in it, and would be another each time."""
    base, buffer = torch.arange(6.0), io.BytesIO()
    torch.save({"state_dict": {"a": base.view(2, 3).t(), "b": base[1:3].half()}, "step": 3}, buffer)
    return buffer.getvalue()


def corpus(reader: str) -> list[bytes]:
    if reader == "safetensors":
        tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5).bfloat16(), "c": torch.zeros(0, 2)}
        found = [
            GOOD,
            safetensors.torch.save(tensors, {"format": "pt"}),
            *(raw for _, raw, _ in SAFETENSORS_CASES),
        ]
    else:
        programs = [checkpoint(raw) for _, raw, _ in PICKLE_CASES]
        files = [raw for _, raw, _ in (*ZIP_CASES, *LEGACY_CASES)]
        found = [written_by_torch(), checkpoint(), legacy(), *programs, *files]
    return [raw for raw in found if len(raw) <= LARGE]


def programs() -> list[bytes]:
    return [raw for raw in (GOOD_PICKLE, *(raw for _, raw, _ in PICKLE_CASES)) if len(raw) <= LARGE]


def headers() -> list[bytes]:
    """Of the safetensors files whose length is told truly."""
    raws = corpus("safetensors")
    return [raw[8 : 8 + int.from_bytes(raw[:8], "little")] for raw in raws if len(raw) > 16]


class Mutator:
    """Inputs of one reader, a pure function of the seed."""

    def __init__(self, reader: str, seed: int) -> None:
        self.reader, self.random = reader, random.Random(f"{reader} {seed}")
        self.files = corpus(reader)
        self.sound = self.files[: 2 if reader == "safetensors" else 3]
        self.inner = headers() if reader == "safetensors" else programs()
        self.words = WORDS + (PICKLED if reader == "ckpt" else ())

    def __call__(self) -> bytes:
        draw = self.random
        if draw.random() < 0.2:  # a sound file with one bit flipped: often accepted, so that values compare
            out = bytearray(draw.choice(self.sound))
            out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
            return bytes(out)
        if draw.random() < 0.5:
            return self.bent(draw.choice(self.files))
        raw = self.bent(draw.choice(self.inner))
        if self.reader == "safetensors":
            return build(raw, bytes(draw.choice((0, 16, 22, 64))))
        return checkpoint(raw) if draw.random() < 0.7 else legacy(raw)

    def bent(self, raw: bytes) -> bytes:
        draw, out = self.random, bytearray(raw)
        for _ in range(1 + int(draw.expovariate(0.7))):
            at = draw.randrange(len(out) + 1)
            match draw.randrange(6):
                case 0 if out:
                    out[at % len(out)] ^= 1 << draw.randrange(8)
                case 1:
                    out[at : at + draw.randrange(1, 9)] = draw.choice(self.words)
                case 2:
                    out[at:at] = draw.choice(self.words)
                case 3:
                    del out[at : at + draw.randrange(1, 17)]
                case 4:
                    other = draw.choice(self.files)
                    begin = draw.randrange(len(other) + 1)
                    out[at : at + draw.randrange(32)] = other[begin : begin + draw.randrange(64)]
                case _:
                    out[at:at] = out[at : at + draw.randrange(32)]
        return bytes(out)


def same(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = a.detach().contiguous().reshape(-1), b.detach().contiguous().reshape(-1)
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


class Trial:
    """One input after the other through a reader; counts what came of them."""

    def __init__(self, reader: str, folder: Path) -> None:
        self.reader, self.path = reader, folder / f"fuzz.{reader}"
        self.counts: Counter[str] = Counter()
        self.slowest = 0.0
        self.modules = set(sys.modules)
        self.before = memory("VmHWM")

    def __call__(self, raw: bytes) -> None:
        self.path.write_bytes(raw)
        begun = time.perf_counter()
        try:
            file = READERS[self.reader](self.path)
            try:
                ours = {name: file.read(name) for name in file.tensors}
            finally:
                file.close()
        except CheckpointError as error:
            assert str(error).isprintable(), f"a control character in {error}"
            self.counts["refused"] += 1
            return
        finally:
            self.slowest = max(self.slowest, time.perf_counter() - begun)
            self.counts["inputs"] += 1
        self.counts["accepted"] += 1
        self.compare(raw, ours)

    def compare(self, raw: bytes, ours: dict[str, Tensor]) -> None:
        if self.reader == "safetensors":
            theirs = safetensors.torch.load(raw)
            assert ours.keys() == theirs.keys(), "other names than safetensors reads"
        else:
            try:
                theirs = torch.load(self.path, weights_only=True, map_location="cpu")
            except Exception:  # it needs records that we do not read, and raises anything
                self.counts["refused by torch"] += 1
                return
            theirs = theirs.get("state_dict", theirs)
            theirs = {n: t for n, t in theirs.items() if isinstance(t, Tensor) and n in ours}
        self.counts["compared"] += 1
        assert all(same(ours[n], t) for n, t in theirs.items()), "other values than the oracle reads"

    def figures(self) -> dict[str, object]:
        grown = memory("VmHWM") - self.before
        assert grown < MOST, f"{grown:,} bytes more memory"
        imported = sorted(
            m for m in set(sys.modules) - self.modules if not m.startswith(("torch", "safetensors"))
        )
        return {
            **self.counts,
            "slowest_s": round(self.slowest, 3),
            "grown_mb": round(grown / 1e6, 1),
            "imported": imported,
        }


def mutated(reader: str, runs: int, seed: int, folder: Path) -> dict[str, object]:
    make, trial = Mutator(reader, seed), Trial(reader, folder)
    for raw in make.files:  # warms up, and the corpus itself counts
        trial(raw)
    trial.before = memory("VmHWM")
    begun = time.perf_counter()
    for index in range(runs - len(make.files)):
        raw = make()
        try:
            trial(raw)
        except BaseException:
            Path(f"fuzz-{reader}-{seed}-{index}").write_bytes(raw)
            raise
    return {
        "engine": "mutation",
        "seed": seed,
        **trial.figures(),
        "seconds": round(time.perf_counter() - begun),
    }


def guided(
    reader: str, runs: int, seed: int, folder: Path, told: Callable[[dict[str, object]], None]
) -> None:
    """By atheris, which ends the process; `told` hears the figures before."""
    import atheris  # pyright: ignore[reportMissingImports]

    seeds = folder / "corpus"
    seeds.mkdir()
    for index, raw in enumerate(corpus(reader)):
        (seeds / str(index)).write_bytes(raw)
    atheris.instrument_all()
    trial = Trial(reader, folder)
    atexit.register(
        lambda: told({"engine": f"atheris {atheris.__version__}", "seed": seed, **trial.figures()})
    )
    flags = [f"-runs={runs}", f"-seed={seed}", f"-max_len={LARGE}", "-rss_limit_mb=2048", str(seeds)]
    atheris.Setup([sys.argv[0], *flags], trial)
    atheris.Fuzz()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", type=int, default=100_000, help="inputs of each reader")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--reader", choices=[*READERS, "both"], default="both")
    p.add_argument("--engine", choices=("mutation", "atheris"), default="mutation")
    p.add_argument("--record", metavar="NAME", help="write scripts/bench/results/NAME.json")
    args = p.parse_args()
    torch.set_num_threads(1)
    readers = list(READERS) if args.reader == "both" else [args.reader]
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        for reader in readers:
            if args.engine == "atheris":

                def told(figures: dict[str, object], reader: str = reader) -> None:
                    sys.stdout.write(json.dumps({reader: figures}) + "\n")
                    if args.record:
                        record(args.record, {reader: figures})

                return guided(readers[0], args.runs, args.seed, Path(name), told)
            results[reader] = mutated(reader, args.runs, args.seed, Path(name))
            sys.stdout.write(json.dumps({reader: results[reader]}) + "\n")
    if args.record:
        record(args.record, results)


if __name__ == "__main__":
    main()

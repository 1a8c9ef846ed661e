"""Oracle: the scripts' own counts over a small run, and that they notice what they must: a reader that lets
another exception out, and a pickle that runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import fuzz_readers
from scripts.bench.common import ROOT
from tests.weights_loader.malformed_pickle import PICKLE_CASES


@pytest.mark.parametrize("reader", fuzz_readers.READERS)
def test_a_short_run_of_the_fuzzer(reader: str, tmp_path: Path) -> None:
    seen = fuzz_readers.mutated(reader, 1500, 7, tmp_path)
    assert seen["inputs"] == 1500 and seen["imported"] == []
    assert int(str(seen["compared"])) > 20  # the differential has something to compare


def test_inputs_are_a_function_of_the_seed() -> None:
    one, two, other = (fuzz_readers.Mutator("ckpt", seed) for seed in (1, 1, 2))
    first = [one() for _ in range(50)]
    assert first == [two() for _ in range(50)] and first != [other() for _ in range(50)]


def test_another_exception_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise IndexError("pop from empty list")

    monkeypatch.setitem(fuzz_readers.READERS, "ckpt", broken)
    with pytest.raises(IndexError):
        fuzz_readers.mutated("ckpt", 10, 0, tmp_path)


def test_malicious_pickles_of_a_folder(tmp_path: Path) -> None:
    for name, raw, _ in PICKLE_CASES:
        if name.startswith(("L34", "L37")):
            (tmp_path / f"{name}.pkl").write_bytes(raw)
    command = [sys.executable, "-m", "scripts.refuse_pickles", str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    [seen] = json.loads(done.stdout).values()
    assert seen["files"] == seen["refused"] > 20
    assert seen["imported"] == seen["forbidden_events"] == [] and not (ROOT / "CANARY").exists()


def test_the_watch_sees_a_pickle_that_runs(tmp_path: Path) -> None:
    """The inverse: Python's own unpickler under the same watch."""
    code = (
        "import pickle; from scripts.refuse_pickles import Watch; w = Watch(); w.on = True;"
        "pickle.loads(b'cposix\\nsystem\\n(X\\x04\\0\\0\\0truetR.'); w.on = False; print(w.seen)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert "os.system" in done.stdout and "pickle.find_class" in done.stdout

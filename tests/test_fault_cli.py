"""Oracle: the fault table's row F63: exit codes 2, 3, 130; no traceback; no temporary file left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minisd.cli import main
from tests.tiny import TINY, write_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("cli") / "model.safetensors", TINY["sd1"])


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(
    "command", [["txt2img", "a"], ["grid", "a", "--x", "steps=1,2"], ["demo"], ["batch", "JOBS"]]
)
def test_a_model_that_is_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """Oracle: 3 for a missing file, an empty folder and a file of words; one line."""
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text('{"prompt": "a"}\n')
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.safetensors").write_text("not a model")
    command = [str(jobs) if word == "JOBS" else word for word in command]
    output = tmp_path / ("out" if command[0] == "batch" else "out.png")
    for name in ("missing.safetensors", "empty", "words.safetensors"):
        assert main([*command, "-m", str(tmp_path / name), "-o", str(output)]) == 3
        seen = capsys.readouterr()
        assert seen.err.count("\n") == 1 and "Traceback" not in seen.err and not seen.out
    assert not output.is_file()


def test_flags_and_targets_that_are_none(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: 2 for a flag that is not there; a target that is a folder, or in none, is an error before
    drawing."""
    for words in (["txt2img", "a", "--stpes", "3"], ["nothing"], ["txt2img", "a", "--steps", "many"], []):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
    capsys.readouterr()
    (tmp_path / "folder.png").mkdir()
    args = ["txt2img", "a", "-m", str(model), "--steps", "1", "-o"]
    assert main([*args, str(tmp_path / "folder.png")]) == 1
    assert main([*args, str(tmp_path / "no" / "a.png")]) == 1
    assert capsys.readouterr().err.count("\n") == 2
    assert left(tmp_path) == ["folder.png"]


@pytest.mark.parametrize(
    "place",
    [
        "minisd.engine.load",
        "minisd.engine.draw_each",
        "minisd.pipeline.decode",
        "minisd.result.encoded",
        "minisd.atomic.os.fsync",
        "minisd.atomic.os.replace",
    ],
)
def test_stopped_anywhere(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    """Oracle: Ctrl-C while loading, drawing, decoding, encoding, writing, renaming: 130, and nothing left."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, stop)
    args = ["txt2img", "a", "-m", str(model), "--steps", "1", "-o", str(tmp_path / "a.png")]
    assert main(args) == 130
    assert capsys.readouterr().err == "\nminisd: stopped\n" and left(tmp_path) == []


def hear() -> None:
    """A shell's job in the background is started deaf to SIGINT, and so would be its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_signal_in_the_middle_of_a_batch(model: Path, tmp_path: Path) -> None:
    """Oracle: SIGINT to a process without a terminal: 130, no traceback, whole pictures only."""
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text("".join(f'{{"prompt": "a", "seed": {n}, "steps": 2}}\n' for n in range(200)))
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "minisd", "batch", str(jobs), "-m", str(model), "-o", str(out)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        text=True,
        preexec_fn=hear,
    )
    until = time.monotonic() + 120
    while (not out.is_dir() or len(left(out)) < 3) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told, error = process.communicate(timeout=60)
    assert (process.returncode, told, error) == (130, "", "\nminisd: stopped\n")
    assert not [name for name in left(out) if name.startswith(".")], "no temporary file"


@pytest.mark.parametrize("words", [["samplers"], ["samplers", "--json"]])
def test_a_reader_that_left(words: list[str]) -> None:
    """Oracle: EPIPE is no traceback, and no success."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "minisd", *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")

"""Oracle: the single runs, bit for bit; the fault table's row F64; OpenAI's form of batches, written out."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from minisd import Cancelled, Engine, ImageError, Request, RequestError, load
from minisd.batch import Done, draw_batch
from minisd.cli import main
from minisd.jobs import MAX_LINES, lines_of
from minisd.openai_body import request_of
from minisd.picture import digest
from minisd.strict_json import MAX_BYTES, MAX_DEPTH, read_object
from tests.tiny import TINY, write_checkpoint

A = {"prompt": "a", "seed": 1, "steps": 1}
B = {"prompt": "b", "seed": 2, "steps": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("batch") / "model.safetensors", TINY["sd1"])


@pytest.fixture(scope="module")
def engine(model: Path) -> Engine:
    return load(model)


def jsonl(*lines: object) -> io.BytesIO:
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    return io.BytesIO(b"\n".join(texts) + b"\n")


def results(done: Done) -> list[dict]:
    return [json.loads(line) for line in done.results.read_text("utf-8").splitlines()]


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("*.png"))


def test_lines_are_the_single_runs_and_equal_ones_are_drawn_once(engine: Engine, tmp_path: Path) -> None:
    """Oracle: `Engine.run`; lines that say the same in other words."""
    same = {"steps": 1, "seed": 1, "prompt": "a", "cfg_scale": 5, "sampler": "DPM++ 2M"}
    heard: list[tuple[int, int]] = []
    done = draw_batch(
        engine,
        jsonl(A, b"", B | {"count": 2}, A, same),
        tmp_path,
        on_event=lambda e: heard.append((e.step, e.steps)),
    )
    assert (done.drawn, done.kept, done.same, done.failed) == (2, 0, 2, [])
    told = results(done)
    assert [t["line"] for t in told] == [1, 3, 4, 5]
    assert [t["status"] for t in told] == ["drawn", "drawn", "same", "same"]
    assert told[0]["pictures"] == told[2]["pictures"] == told[3]["pictures"]
    assert [p["seed"] for p in told[1]["pictures"]] == [2, 3]
    for line, fields in ((told[0], A), (told[1], B)):
        for picture in line["pictures"]:
            alone = engine.run(Request.from_dict(fields | {"seed": picture["seed"]})).image
            assert picture["pixels"] == digest(alone) == digest(Image.open(tmp_path / picture["file"]))
    assert len(files(tmp_path)) == 3 and heard[-1][0] == heard[-1][1]
    assert not list(tmp_path.glob("*.part"))


def test_row_500_is_bad(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F64. Oracle: the numbers of the lines; every other one is answered."""
    lines: list[object] = [A if n % 2 else B for n in range(1, 601)]
    lines[499] = {"prompt": "a", "stpes": 1}
    lines[510] = b'{"prompt": "a", "cfg_scale": NaN}'
    done = draw_batch(engine, jsonl(*lines), tmp_path)
    assert done.failed == [500, 511] and (done.drawn, done.same) == (2, 596)
    told = results(done)
    assert len(told) == 600 and [t["line"] for t in told] == list(range(1, 601))
    assert told[499]["error"]["message"] == "a request has no field 'stpes'; did you mean 'steps'?"
    assert (told[499]["error"]["kind"], told[499]["error"]["field"]) == ("RequestError", "stpes")
    assert told[510]["error"]["message"] == "NaN is no number in JSON"


def test_resume_after_a_stop_draws_what_is_missing(engine: Engine, tmp_path: Path) -> None:
    """F64. Oracle: the batch in one go: the same pictures; a torn one is drawn again; seeds that were drawn
    stay."""
    lines = [A, B, {"prompt": "c", "steps": 1}, {"prompt": "c", "steps": 1}, A | {"seed": 9}]
    stop = threading.Event()
    with pytest.raises(Cancelled):
        draw_batch(
            engine, jsonl(*lines), tmp_path, cancel=stop, on_event=lambda e: e.step == 3 and stop.set()
        )
    assert len(files(tmp_path)) == 2 and not (tmp_path / "results.jsonl").exists()
    before = [json.loads(line) for line in (tmp_path / "results.jsonl.part").read_text().splitlines()]
    assert [t["line"] for t in before] == [1, 2], "the rows before are kept"
    done = draw_batch(engine, jsonl(*lines), tmp_path, resume=True)
    assert (done.drawn, done.kept) == (3, 2) and len(files(tmp_path)) == 5
    told = results(done)
    assert told[0]["pictures"] == before[0]["pictures"]
    assert told[2]["pictures"][0]["seed"] != told[3]["pictures"][0]["seed"], "no seed: a picture each"
    torn = tmp_path / told[2]["pictures"][0]["file"]
    torn.write_bytes(torn.read_bytes()[:-100])
    again = draw_batch(engine, jsonl(*lines), tmp_path, resume=True)
    assert (again.drawn, again.kept) == (1, 4)
    assert results(again)[3]["pictures"] == told[3]["pictures"]
    fresh = draw_batch(engine, jsonl(*lines), tmp_path)
    assert fresh.drawn == 5 and results(fresh)[4]["pictures"] == told[4]["pictures"]


def test_a_killed_process_leaves_only_whole_pictures(model: Path, tmp_path: Path) -> None:
    """F64. Oracle: SIGKILL in the middle of a run; the one that goes on draws the rest."""
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_bytes(jsonl(*({"prompt": "a", "seed": n, "steps": 2} for n in range(60))).getvalue())
    out = tmp_path / "out"
    command = [sys.executable, "-m", "minisd", "batch", str(jobs), "-m", str(model), "-o", str(out)]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
    until = time.monotonic() + 120
    while (not out.is_dir() or len(files(out)) < 3) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = files(out)
    assert 3 <= len(there) < 60
    jobs.write_bytes(b"\n".join(jobs.read_bytes().splitlines()[: len(there) + 2]))
    assert main([*command[3:], "--resume", "-q"]) == 0
    told = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [t["status"] for t in told] == ["kept"] * len(there) + ["drawn"] * 2
    for name in files(out):
        Image.open(out / name).load()


def test_a_full_disk_ends_the_batch(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: no line would fare better: one error, no torn file."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minisd.atomic.os.fsync", full)
    with pytest.raises(ImageError, match="No space left"):
        draw_batch(engine, jsonl(A, B), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["results.jsonl.part"]


WRONG: list[tuple[bytes, str]] = [
    (b"{", "not JSON"),
    (b"[]", "object was expected, got list"),
    (b"3", "object was expected, got int"),
    (b'{"prompt": "a", "prompt": "b"}', "'prompt' stands twice"),
    (b'{"prompt": "a", "cfg_scale": Infinity}', "Infinity is no number"),
    (b'{"prompt": "a", "cfg_scale": 1e999}', "larger than a number can be"),
    (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "not JSON"),
    (b'{"prompt": "\xff"}', "not UTF-8: byte 12"),
    (b'{"a":' * 50 + b"1" + b"}" * 50, f"nested deeper than {MAX_DEPTH}"),
    (b"[" * 10**6, f"nested deeper than {MAX_DEPTH}"),
    (b'{"prompt": "a"} {}', "not JSON"),
    (b'{"prompt": "a", "steps": "20"}', "steps must be a whole number"),
    (b'{"prompt": "a", "steps": true}', "steps must be a whole number"),
    (b'{"prompt": "a", "sampler": "eulr"}', "did you mean 'euler'"),
    (b'{"prompt": "a", "custom_id": 3}', "custom_id must be text"),
    (b'{"prompt": "a", "count": 1000000}', "count is 1000000; it must lie in 1..1000"),
    (b'{"prompt": "a", "clip_skip": 9}', "outside 1..3 of this model"),
    (b'{"prompt": "a", "image": {"path": "/nowhere.png"}}', "there is no picture"),
    (b'{"prompt": "a", "image": {"path": "http://169.254.169.254/"}}', "minisd fetches nothing"),
    (b'{"prompt": "a", "loras": ["film"]}', "there is no LoRA 'film'"),
    (b'{"custom_id": "x", "url": "/v1/chat/completions", "body": {}}', "the url is '/v1/chat/completions'"),
    (b'{"custom_id": "x1", "url": "/v1/images/generations"}', "the body must be an object"),
    (b'{"url": "/v1/images/generations", "body": {"prompt": "a"}}', "needs a custom_id"),
    (b'{"custom_id": "x2", "method": "GET", "url": "/v1/images/generations", "body": {}}', "must be POST"),
    (b'{"custom_id": "x3", "body": {}, "bdy": {}}', "has no 'bdy'"),
]


def test_wrong_lines(engine: Engine, tmp_path: Path) -> None:
    """Oracle: the table above, a line for each; the one good line is drawn."""
    done = draw_batch(engine, jsonl(*(data for data, _ in WRONG), A), tmp_path)
    assert done.failed == list(range(1, len(WRONG) + 1)) and done.drawn == 1
    for told, (data, words) in zip(results(done), WRONG, strict=False):
        error = told.get("error") or told["response"]["body"]["error"]
        assert words in error["message"], data[:80]
        assert "\n" not in error["message"] and len(error["message"]) < 400


def test_files_that_hold_no_batch(engine: Engine, tmp_path: Path) -> None:
    """Oracle: an empty file; more lines than are read; a line longer than is read, in one piece of it."""
    with pytest.raises(RequestError, match="there is no job"):
        draw_batch(engine, io.BytesIO(b"\n \r\n"), tmp_path)
    with pytest.raises(RequestError, match=f"more than {MAX_LINES:,}"):
        list(lines_of(io.BytesIO(b"{}\n" * (MAX_LINES + 1))))
    long = io.BytesIO(b"{}\n" + b" " * (MAX_BYTES + 2**21) + b"{}\n{}\n" + b"x" * (MAX_BYTES + 1))
    found = list(lines_of(long))
    assert [(line.number, line.error is None) for line in found] == [
        (1, True),
        (2, False),
        (3, True),
        (4, False),
    ]
    assert f"{MAX_BYTES + 2**21 + 3:,} bytes" in str(found[1].error)


def test_json_in_linear_time() -> None:
    """Oracle: a megabyte of quotes without an end, which a reader that looks back takes hours for."""
    begun = time.process_time()
    for data in (b'"\\' * 500_000, b'{"a": "' + b'\\"' * 500_000, b'[""' * 300_000):
        with pytest.raises(RequestError):
            read_object(data)
    assert time.process_time() - begun < 5
    assert read_object(b'{"a": "[[[{{{' + b"[" * 100 + b'"}') == {"a": "[[[{{{" + "[" * 100}
    assert read_object('{"a": "é\\ud800"}'.encode()) == {"a": "é\ud800"}


def test_openais_form(engine: Engine, tmp_path: Path) -> None:
    """Oracle: requests in our own words; fields of an answer as OpenAI's reference has them."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "PNG")
    mask = io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(mask, "PNG")
    data, hole = (base64.b64encode(f.getvalue()).decode() for f in (picture, mask))
    body = {"prompt": "a", "n": 2, "size": "64x64", "seed": 1, "steps": 1, "quality": "auto", "user": "me"}
    edit = {"prompt": "b", "images": [{"image_url": f"data:image/png;base64,{data}"}], "steps": 2, "seed": 4}
    url = "/v1/images/generations"
    done = draw_batch(
        engine,
        jsonl(
            {"custom_id": "x", "method": "POST", "url": url, "body": body | {"response_format": "b64_json"}},
            {"custom_id": "y", "method": "POST", "url": "/v1/images/edits", "body": edit | {"mask": hole}},
            {"custom_id": "z", "method": "POST", "url": url, "body": {"prompt": "a", "model": "dall-e-3"}},
            {"custom_id": "x", "method": "POST", "url": url, "body": body},
        ),
        tmp_path,
    )
    x, y, z, twice = results(done)
    assert (x["custom_id"], x["error"], x["response"]["status_code"]) == ("x", None, 200)
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(d["b64_json"]))) for d in x["response"]["body"]["data"]
    ]
    alone = engine.run(Request(prompt="a", width=64, height=64, steps=1, seed=1, count=2))
    assert [digest(p) for p in pictures] == [digest(p) for p in alone.images]
    (told,) = y["response"]["body"]["data"]
    image, black = Image.new("RGB", (64, 64), "red"), Image.new("L", (64, 64), 255)
    wanted = Request.from_dict({"prompt": "b", "image": image, "mask": black, "steps": 2, "seed": 4})
    assert digest(Image.open(tmp_path / told["url"])) == digest(engine.run(wanted).image)
    assert z["response"]["status_code"] == 400 and z["error"] is None
    assert z["response"]["body"]["error"]["param"] == "model"
    assert "'dall-e-3' is not loaded; 'model' is" in z["response"]["body"]["error"]["message"]
    assert "is that of line 1 too" in twice["response"]["body"]["error"]["message"]


@pytest.mark.parametrize(
    "body,words",
    [
        ({}, "needs a prompt"),
        ({"prompt": 3}, "needs a prompt"),
        ({"prompt": "a", "size": "big"}, "like 512x512"),
        ({"prompt": "a", "size": "513x512"}, "width 513 is not a multiple of 8; try 512"),
        ({"prompt": "a", "background": "transparent"}, "it can be auto, opaque"),
        ({"prompt": "a", "stream": True}, "stream 'True' is not done here"),
        ({"prompt": "a", "output_format": "webp"}, "it can be png"),
        ({"prompt": "a", "response_format": "jpg"}, "b64_json or url"),
        ({"prompt": "a", "n": 0}, "count is 0"),
        ({"prompt": "a", "style": "vivid"}, "did you mean 'styles'"),
    ],
)
def test_bodies_that_are_refused(body: dict, words: str) -> None:
    """Oracle: the table above."""
    with pytest.raises(RequestError, match=words):
        request_of(body, "model")


def test_command(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: files, exit codes, what is told; standard input."""

    class Standard:
        buffer = jsonl(A, {"prompt": "a", "steps": 0}, A)

    monkeypatch.setattr(sys, "stdin", Standard)
    out = tmp_path / "new" / "out"
    assert main(["batch", "-", "-m", str(model), "-o", str(out)]) == 1
    seen = capsys.readouterr()
    assert seen.err == "minisd: line 2 failed\n"
    assert seen.out == f"{out / 'results.jsonl'}  lines: 1 drawn, 1 the same as others, 1 failed\n"
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_bytes(b"\xef\xbb\xbf" + json.dumps(A).encode())
    assert main(["batch", str(jobs), "-m", str(model), "-o", str(out), "--resume", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kept"], told["drawn"], told["failed"], told["exit_code"]) == (1, 0, [], 0)
    assert main(["batch", str(tmp_path / "none.jsonl"), "-m", str(model)]) == 2
    assert "there is no file" in capsys.readouterr().err

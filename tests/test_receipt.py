"""Oracle: pictures drawn again; records, pixels and runs that were changed on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from minisd.cli import main
from minisd.engine import Engine, load
from minisd.errors import ImageError
from minisd.kernels import OPERATIONS, Kernels
from minisd.metadata import encoded, read_file
from minisd.receipt import kernel_facts, seals, tampered, triton_sources
from minisd.request import Request
from minisd.verify import integrity, record_of, verify
from tests.tiny import TINY, tiny_model, write_checkpoint

REQUESTS: list[dict[str, object]] = [
    {"sampler": "euler_ancestral"},
    {"sampler": "dpmpp_sde", "schedule": "karras"},
    {"sampler": "unipc", "cfg_scale": 1.0},
    {"sampler": "dpmpp_2m", "count": 2},
    {"sampler": "heun", "schedule": "exponential", "cfg_rescale": 0.5},
    {"sampler": "lcm", "steps": 2},
    {"sampler": "ddim", "eta": 0.7, "conventions": "diffusers"},
    {"sampler": "restart", "conventions": "a1111"},
    {"sampler": "dpm_adaptive"},
    {"sampler": "euler", "s_churn": 3.0},
    {"prompt": "a (red:1.3) cat AND a dog :0.5"},
    {"prompt": "[a cat:a dog:0.5] in {spring|autumn}, café №5"},
    {"negative_prompt": 'blurry, "dark", a:b'},
    {"width": 64, "height": 96, "variation_strength": 0.3, "variation_seed": 9},
    {"pag_scale": 2.0},
    {"freeu": (1.2, 1.3, 0.9, 0.8)},
    {"clip_skip": 2, "rng": "torch"},
    {"sampler": "euler_cfgpp", "cfg_scale": 1.5},
    {"sigmas": (10.0, 4.0, 1.0, 0.0)},
    {"guidance_start": 0.3, "guidance_end": 0.8, "apg_norm": 5.0},
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    write_checkpoint(path, TINY["sd1"])
    return load(path)


def request(**fields: object) -> Request:
    plain = {"prompt": "a cat", "seed": 5, "steps": 4, "width": 64, "height": 64}
    return Request.from_dict(plain | fields)


@pytest.fixture(scope="module")
def picture(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine.run(request()).save(tmp_path_factory.mktemp("made") / "cat.png")[0]


@pytest.mark.parametrize("fields", REQUESTS, ids=lambda f: ",".join(f))
def test_varied_requests_are_proven(engine: Engine, fields: dict[str, object], tmp_path: Path) -> None:
    """Oracle: the replay of each."""
    for path in engine.run(request(**fields)).save(tmp_path / "x.png"):
        finding = verify(path, engine)
        assert finding.verdict == "proven" and finding.code == 0, finding
        assert finding.level.startswith("R1")


def rewritten(path: Path, out: Path, change: Callable[[dict], object]) -> Path:
    """The picture with its record changed."""
    texts = dict(read_file(path).texts)
    record = json.loads(texts["minisd"])
    change(record)
    info = PngInfo()
    info.add_text("minisd", json.dumps(record, ensure_ascii=False))
    with Image.open(path) as image:
        image.save(out, pnginfo=info)
    return out


def test_each_field_that_was_changed_is_named(picture: Path, tmp_path: Path) -> None:
    """Oracle: the field that was changed, for every field of the request and every part of the record."""
    record = record_of(picture)
    names = [n for n in seals(record) if n != "request"]
    assert "request.seed" in names and "marks" in names and len(names) > 30
    for name in names:
        changed = json.loads(json.dumps(record))
        if name.startswith("request."):
            changed["request"][name.removeprefix("request.")] = "changed"
        elif name in changed:
            changed[name] = "changed"
        else:
            changed["receipt"][name] = "changed"
        assert tampered(changed) == [name]
    out = rewritten(picture, tmp_path / "t.png", lambda r: r["request"].update(seed=6))
    finding = integrity(out, record_of(out))
    assert finding is not None and finding.fields == ("request.seed",) and finding.code == 1
    out = rewritten(picture, tmp_path / "u.png", lambda r: r["request"].update(extra=1))
    assert tampered(record_of(out)) == ["request", "request.extra"]


def test_edited_pixels_and_saved_again(picture: Path, engine: Engine, tmp_path: Path) -> None:
    """Oracle: one pixel by one level; the same pixels packed otherwise."""
    with Image.open(picture) as image:
        image.load()
        texts = dict(read_file(picture).texts)
        (tmp_path / "same.png").write_bytes(encoded(image, "PNG", texts))
        with Image.open(tmp_path / "same.png") as again:
            again.save(tmp_path / "packed.png", compress_level=1, pnginfo=info_of(texts))
        r, g, b = image.getpixel((3, 4))  # type: ignore[misc]
        image.putpixel((3, 4), (r ^ 1, g, b))
        image.save(tmp_path / "edited.png", pnginfo=info_of(texts))
    assert verify(tmp_path / "packed.png", engine).verdict == "proven"
    finding = verify(tmp_path / "edited.png", engine)
    assert finding.verdict == "differs" and finding.first == "pixels"


def info_of(texts: dict[str, str]) -> PngInfo:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    return info


@pytest.mark.parametrize("at", [1, 3])
def test_an_error_at_a_step_is_named(picture: Path, engine: Engine, at: int) -> None:
    """Oracle: the step at which the network's weights were changed by one unit in the last place."""
    unet = engine.model.unet
    calls = 0

    def hook(module: torch.nn.Module, args: object, out: Tensor) -> Tensor | None:
        nonlocal calls
        calls += 1
        return out + 1e-3 if calls > 2 * (at - 1) else None  # two calls a step

    handle = unet.register_forward_hook(hook)
    try:
        finding = verify(picture, engine)
    finally:
        handle.remove()
    assert finding.verdict == "differs" and finding.first == f"step {at}"
    assert finding.size["levels"] >= 1 and finding.size["share"] > 0
    assert verify(picture, engine).verdict == "proven"


def test_another_model_cannot_check(picture: Path, tmp_path: Path) -> None:
    """Oracle: exit code 2, both files named by digest."""
    path = tmp_path / "other.safetensors"
    write_checkpoint(path, TINY["sd2-v"])
    finding = verify(picture, load(path))
    assert finding.verdict == "cannot" and finding.code == 2 and finding.first == "model"
    assert "tiny.safetensors" in finding.what and "other.safetensors" in finding.what
    finding = verify(picture, Engine(tiny_model("sd1")))
    assert finding.code == 2


def test_a_picture_in_the_request(engine: Engine, picture: Path, tmp_path: Path) -> None:
    """Oracle: proven with the picture at hand; without it, what is missing is said."""
    made = engine.run(request(image=str(picture), strength=0.5)).save(tmp_path / "i.png")[0]
    finding = verify(made, engine)
    assert finding.code == 2 and "image" in finding.what
    assert verify(made, engine, [picture]).verdict == "proven"


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif"])
def test_other_formats(engine: Engine, tmp_path: Path, suffix: str) -> None:
    """Oracle: replay from the record in EXIF; the parameters text in UTF-16 of type UNDEFINED."""
    path = engine.run(request(prompt="café №5, a:b")).save(tmp_path / f"x{suffix}")[0]
    finding = verify(path, engine)
    assert finding.verdict == "proven" and "does not keep pixels" in finding.what
    assert read_file(path).texts["parameters"].startswith("café №5, a:b\nSteps: 4, Sampler: DPM++ 2M")


def test_what_is_no_record(tmp_path: Path) -> None:
    """Oracle: ImageError saying so."""
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(ImageError, match="carries no record"):
        record_of(tmp_path / "plain.png")
    for text, message in (
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no request"),
        ("{}", "no request"),
    ):
        Image.new("RGB", (8, 8)).save(tmp_path / "bad.png", pnginfo=info_of({"minisd": text}))
        with pytest.raises(ImageError, match=message):
            record_of(tmp_path / "bad.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "old.png", pnginfo=info_of({"minisd": '{"request": {}}'}))
    finding = integrity(tmp_path / "old.png", record_of(tmp_path / "old.png"))
    assert finding is not None and finding.code == 2


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: exit codes, the embedded model's picture made again from its own file."""
    first, again = tmp_path / "a.png", tmp_path / "b.png"
    assert main(["txt2img", "a red apple", "-o", str(first), "--seed", "7", "--steps", "2", "-q"]) == 0
    assert main(["txt2img", "--from", str(first), "-o", str(again), "-q"]) == 0
    with Image.open(first) as a, Image.open(again) as b:
        assert a.tobytes() == b.tobytes()
    assert main(["txt2img", "--from", str(first), "-o", str(again), "--seed", "8", "-q"]) == 0
    with Image.open(first) as a, Image.open(again) as b:
        assert a.tobytes() != b.tobytes()
    assert main(["verify", str(first)]) == 0
    assert "proven" in capsys.readouterr().out
    out = rewritten(first, tmp_path / "t.png", lambda r: r["request"].update(steps=3))
    assert main(["verify", str(out), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["fields"] == ["request.steps"]
    assert main(["info", str(first), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["record"]["request"]["seed"] == 7 and told["settings"]["settings"]["Model"] == "emoji"
    assert main(["txt2img", "-o", str(again)]) == 2


def test_the_receipt_does_not_look_at_time(engine: Engine) -> None:
    """Oracle: two runs, equal but for their seconds."""
    a, b = (engine.run(request()).record() for _ in range(2))
    assert {**a, "seconds": 0} == {**b, "seconds": 0} and a["seals"] == b["seals"]
    assert replace(request(), seed=6) != request()


def test_what_computed_is_in_the_receipt(tmp_path: Path) -> None:
    """Oracle: the choice by name: every operation, the restructurings; Triton's sources where they run."""
    path = write_checkpoint(tmp_path / "tiny.safetensors", TINY["sd1"])
    with load(path, kernels="self_attention=sliced,upsample_conv=transposed,fused_qkv,text_once") as engine:
        engine.run(request(steps=1)).save(tmp_path / "a.png")
    found = record_of(tmp_path / "a.png")["receipt"]["plan"]["kernels"]  # type: ignore[index]
    assert found["operations"]["self_attention"] == "sliced" and found["operations"]["geglu"] == "torch"
    assert found["operations"]["upsample_conv"] == "transposed" and set(found["operations"]) == set(
        OPERATIONS
    )
    assert found["restructured"] == ["fused_qkv", "text_once"] and "triton" not in found


def test_sources_of_tritons_kernels_are_in_the_receipt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the names; another digest when a file or a configuration differs by one byte."""
    facts = kernel_facts(Kernels.parse("triton"), "cpu")["triton"]
    assert isinstance(facts, dict) and set(facts) == {"version", "arch", "interpreted", "sources"}
    assert facts["version"] == metadata.version("triton") and facts["arch"] == ""
    assert facts["sources"] == triton_sources() and len(triton_sources()) == 64
    read = Path.read_bytes
    for changed in ("configs.py", "triton_norm.py"):
        triton_sources.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", lambda p, c=changed: read(p) + b" " * (p.name == c))
            assert triton_sources() != facts["sources"]
        triton_sources.cache_clear()

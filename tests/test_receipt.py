"""Oracle: pictures drawn again; records, pixels and runs that were changed on purpose.

Rows of the fault table: F08 (receipt of the bytes used), F60 (tampering), F61 (elsewhere), F62 (bisection).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from torch import Tensor

from minisd.cli import main
from minisd.config import CompactConfig
from minisd.engine import Engine, load
from minisd.errors import ImageError
from minisd.hashes import file_sha256
from minisd.kernels import OPERATIONS, Kernels
from minisd.metadata import encoded, read_file
from minisd.receipt import kernel_facts, seals, tampered, triton_sources
from minisd.request import Request
from minisd.sidecar import placed, sidecar_path
from minisd.spot import steps_path
from minisd.trail import Trail
from minisd.verify import integrity, record_of, verify
from tests import control_files, lora_files
from tests.test_upscale import their_weights
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
    {"token_merging": 0.5, "hypertile": 32, "deep_cache": 2, "sampler": "heun"},
    {"first_block_cache": 0.5, "prompt": "a [cat:dog:0.5] AND a stone", "token_merging": 0.25},
    {"clip_skip": 2, "rng": "torch"},
    {"sampler": "euler_cfgpp", "cfg_scale": 1.5},
    {"sigmas": (10.0, 4.0, 1.0, 0.0)},
    {"guidance_start": 0.3, "guidance_end": 0.8, "apg_norm": 5.0},
    {"seamless": "xy", "sampler": "dpmpp_2m_sde"},
    {"regions": ("0,0,0.5,1: a red apple", "0.5,0,1,1@0.7: a [leaf:stone:0.5]")},
    {"width": 96, "diffusion_tile": 64, "sampler": "euler"},
    {"hires_scale": 1.5, "hires_upscaler": "bicubic", "conventions": "a1111", "hires_strength": 0.7},
    {"prompt_to": "a dog", "prompt_blend": 0.3, "sag_scale": 0.5},
    {"conventions": "sgm", "sampler": "euler", "seed_size": (32, 32)},
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
        assert finding.level.startswith("R1") and finding.other == {}
        assert "not signed" in finding.signed


@contextmanager
def changed_network(engine: Engine) -> Iterator[None]:
    """Inside, the UNet's answers are off by a thousandth."""
    handle = engine.model.unet.register_forward_hook(lambda module, args, out: out + 1e-3)
    try:
        yield
    finally:
        handle.remove()


def half_mask() -> Image.Image:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    return mask


FROM_PICTURES: list[dict[str, object]] = [
    {"strength": 0.6, "sampler": "dpmpp_sde"},
    {"strength": 1.0, "conventions": "diffusers", "sampler": "ddim"},
    {"mask": half_mask(), "mask_fill": "noise"},
    {"mask": half_mask(), "mask_area": "masked", "mask_padding": 8, "mask_soft": True},
    {"outpaint": (8, 0, 16, 0), "mask_fill": "fill"},
    {"hires_scale": 1.5, "hires_upscaler": "latent", "hires_steps": 2, "strength": 0.5},
    {
        "inversion": "ddim",
        "sampler": "ddim",
        "strength": 1.0,
        "inversion_prompt": "a photo",
        "cfg_scale": 1.0,
    },
    {"mask": half_mask(), "conventions": "a1111", "strength": 0.7},
]


@pytest.mark.parametrize("fields", FROM_PICTURES, ids=lambda f: ",".join(f))
def test_pictures_from_pictures_are_proven(
    engine: Engine, picture: Path, fields: dict[str, object], tmp_path: Path
) -> None:
    """Oracle: the replay, the given picture and mask found by their content."""
    made = engine.run(request(image=str(picture), **fields)).save(tmp_path / "i.png")[0]
    files = [picture]
    if "mask" in fields:
        half_mask().save(tmp_path / "mask.png")
        files.append(tmp_path / "mask.png")
    assert verify(made, engine, files).verdict == "proven"
    finding = verify(made, engine, files[1:])
    assert finding.code == 2 and "image" in finding.what


def test_units_without_a_file_need_none(engine: Engine, picture: Path, tmp_path: Path) -> None:
    """Oracle: the replay with the unit's picture alone: one attends to it, one is off."""
    units = ({"model": "reference-only"}, {"model": "gone.safetensors", "weight": 0})
    made = engine.run(request(controls=tuple({**u, "image": str(picture)} for u in units)))
    saved = made.save(tmp_path / "r.png")[0]
    assert record_of(saved).get("beside", []) == []
    finding = verify(saved, engine, [picture])
    assert finding.verdict == "proven", finding


def test_what_draws_beside_the_model(tmp_path: Path) -> None:
    """Oracle: the replay with LoRA, control network and refiner; each of them another file: cannot."""
    base = write_checkpoint(tmp_path / "base.safetensors", TINY["sd1"])
    other = write_checkpoint(tmp_path / "other.safetensors", TINY["sd1"], seed=3)
    folder = tmp_path / "loras"
    folder.mkdir()
    lora_files.write(folder / "film.safetensors", lora_files.kohya(TINY["sd1"], 1))
    config = control_files.control_config(TINY["sd1"].unet)
    control = control_files.write_control(tmp_path / "control.safetensors", config)
    hint = tmp_path / "hint.png"
    half_mask().convert("RGB").save(hint)
    with load(base, loras=folder) as engine, load(other) as refiner:
        fields: dict[str, object] = {
            "prompt": "a cat <lora:film:0.7>",
            "controls": ({"model": str(control), "image": str(hint), "weight": 0.5},),
        }
        made = engine.run(request(**fields), refiner=refiner).save(tmp_path / "m.png")[0]
        record = record_of(made)
        assert [a["name"] for a in record["adapters"]] == ["film"]  # type: ignore[attr-defined]
        assert record["beside"][0]["sha256"] == file_sha256(control)  # type: ignore[index]
        assert record["receipt"]["refiner"][0]["sha256"] == file_sha256(other)  # type: ignore[index]
        assert "Lora hashes: " in read_file(made).texts["parameters"]
        files = [control, hint]
        assert verify(made, engine, files, refiner=refiner).verdict == "proven"
        for finding, word in (
            (verify(made, engine, files), "refiner"),
            (verify(made, engine, files, refiner=engine), "refiner"),
            (verify(made, engine, [hint], refiner=refiner), "control.safetensors"),
        ):
            assert finding.code == 2 and word in finding.what
        lora_files.write(folder / "film.safetensors", lora_files.kohya(TINY["sd1"], 8))
        finding = verify(made, engine, files, refiner=refiner)
        assert finding.code == 2 and "film" in finding.what and finding.first == "adapters"


def test_an_upscaler_between_two_passes(tmp_path: Path) -> None:
    """Oracle: the replay with its file, found by content or by its name in the engine; without: cannot."""
    base = write_checkpoint(tmp_path / "base.safetensors", TINY["sd1"])
    files = [tmp_path / f"Compact_x{seed}.safetensors" for seed in (2, 4)]
    for scale, file in zip((2, 4), files, strict=True):
        weights = their_weights(CompactConfig(width=8, convs=5, scale=scale), "compact")
        save_file({name: w.float() for name, w in weights.items()}, file)
    fields: dict[str, object] = {"hires_scale": 2.0, "hires_strength": 0.5, "steps": 2}
    with load(base, upscalers={"sharp": files[0]}) as engine, load(base) as plain:
        for name in ("sharp", str(files[0])):
            made = engine.run(request(hires_upscaler=name, **fields)).save(tmp_path / "u.png")[0]
            assert record_of(made)["beside"][0]["sha256"] == file_sha256(files[0])  # type: ignore[index]
            told = "sharp" if name == "sharp" else "Compact_x2"
            assert f"Hires upscaler: {told}" in read_file(made).texts["parameters"]
            assert verify(made, plain, [files[0]]).verdict == "proven"
            finding = verify(made, plain, [files[1]])
            assert finding.code == 2 and f"'{Path(name).name}' (sha256" in finding.what
        made = engine.run(request(hires_upscaler="sharp", **fields)).save(tmp_path / "u.png")[0]
        assert verify(made, engine).verdict == "proven"


def test_a_control_at_weight_zero_is_not_asked_for(engine: Engine, tmp_path: Path) -> None:
    """Oracle: the replay without its file and picture, which drew nothing."""
    half_mask().save(tmp_path / "hint.png")
    unit = {"model": "nowhere/x.safetensors", "image": str(tmp_path / "hint.png"), "weight": 0.0}
    made = engine.run(request(controls=(unit,), steps=2)).save(tmp_path / "c.png")[0]
    assert record_of(made)["beside"] == []
    assert verify(made, engine).verdict == "proven"


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_sde", "unipc", "heun", "euler_cfgpp"])
def test_one_step_taken_again(engine: Engine, sampler: str, tmp_path: Path) -> None:
    """Oracle: each step alone; inverse: a network that was changed is found in that step, stored answers that
    were changed before it."""
    trail = Trail(listen=True)
    path = engine.run(request(sampler=sampler), trail=trail).save(tmp_path / "s.png")[0]
    steps = sum(m.name.startswith("step") for m in trail.settle())
    at = min(2, steps)
    for step in {1, at, steps}:
        finding = verify(path, engine, step=step)
        assert finding.verdict == "proven" and finding.size == {"network": 0.0}, finding
        assert f"step {step} alone" in finding.level and "nothing is said" in finding.level
    assert verify(path, engine, step=steps + 1).code == 2
    with changed_network(engine):
        finding = verify(path, engine, step=at)
        assert finding.verdict == "differs" and finding.first == f"step {at}"
        assert finding.size["network"] > 0
    beside = steps_path(path)
    data = bytearray(beside.read_bytes())
    for answer in (0, 1):  # a value of each answer that a step may consist of, by more than rounding hides
        data[int.from_bytes(data[:8], "little") + 8 + 1024 * answer + 2] ^= 0x40
    beside.write_bytes(data)
    finding = verify(path, engine, step=at)
    assert finding.verdict == "differs" and finding.first == "step 1"
    beside.unlink()
    assert verify(path, engine, step=at).code == 2
    assert verify(path, engine).verdict == "proven"


def test_a_step_costs_one_step(engine: Engine, tmp_path: Path) -> None:
    """Oracle: calls of the network counted; the whole takes four times as many."""
    path = engine.run(request(), trail=Trail(listen=True)).save(tmp_path / "s.png")[0]
    counted = []
    handle = engine.model.unet.register_forward_pre_hook(lambda *_: counted.append(1))
    try:
        verify(path, engine, step=3)
        one, whole = len(counted), len(counted)
        verify(path, engine)
        whole = len(counted) - one
    finally:
        handle.remove()
    assert (one, whole) == (2, 8)  # prompt and negative prompt


def test_steps_of_a_batch_and_of_no_step(engine: Engine, tmp_path: Path) -> None:
    """Oracle: image 2 of 2 by its own side file; momentum and files that hold nothing are said."""
    paths = engine.run(request(count=2), trail=Trail(listen=True)).save(tmp_path / "b.png")
    assert verify(paths[1], engine, step=3).verdict == "proven"
    path = engine.run(request(apg_momentum=-0.5), trail=Trail(listen=True)).save(tmp_path / "m.png")[0]
    assert verify(path, engine, step=2).code == 2 and "apg_momentum" in verify(path, engine, step=2).what
    for data in (b"", b"x" * 100, steps_path(paths[0]).read_bytes()[:-5]):
        steps_path(paths[1]).write_bytes(data)
        assert verify(paths[1], engine, step=3).code == 2


def test_what_is_kept_is_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Oracle: with room for two answers, steps 1 and 2 are kept and said to be the last."""
    monkeypatch.setattr("minisd.trail.MAX_ANSWERS", 2 * 4 * 8 * 8 * 4)
    trail = Trail(listen=True)
    path = engine.run(request(), trail=trail).save(tmp_path / "s.png")[0]
    assert len(trail.answers) == 2
    assert verify(path, engine, step=2).verdict == "proven"
    finding = verify(path, engine, step=3)
    assert finding.code == 2 and "end with step 2 of 4" in finding.what


def test_large_records_lie_beside_the_picture(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: what is in each file; inverse: a record that was changed, or is gone."""
    made = {"minisd": "1", "request": {}, "marks": "x" * 2**16}
    assert placed(made)[1] is not None and placed({**made, "marks": ""})[1] is None
    monkeypatch.setattr("minisd.sidecar.INSIDE", 4096)
    long = request(prompt=", ".join(f"thing {i}" for i in range(90)))
    for suffix in (".png", ".jpg"):
        path = engine.run(long).save(tmp_path / f"l{suffix}")[0]
        beside = sidecar_path(path)
        inside = json.loads(read_file(path).texts["minisd"])
        assert beside.name == f"l{suffix}.json" and set(inside) == {"minisd", "request", "beside_picture"}
        assert record_of(path)["request"] == inside["request"]
    assert verify(path, engine).verdict == "proven"
    text = beside.read_text()
    beside.write_text(text.replace("thing 1,", "thing 2,"))
    with pytest.raises(ImageError, match="was changed"):
        record_of(path)
    assert main(["verify", str(path)]) == 3
    beside.unlink()
    with pytest.raises(ImageError, match=r"l.jpg.json.*cannot be read"):
        record_of(path)
    monkeypatch.undo()
    small = engine.run(request()).save(tmp_path / "s.png")[0]
    assert not sidecar_path(small).exists()


def test_the_receipt_is_of_the_bytes_that_drew(tmp_path: Path) -> None:
    """Oracle (F08): a model replaced on disk after it was loaded has no digest, rather than that of the
    other."""
    path = write_checkpoint(tmp_path / "m.safetensors", TINY["sd1"])
    engine = load(path)
    before = engine.run(request()).record()["receipt"]
    write_checkpoint(path, TINY["sd1"], seed=4)
    made = engine.run(request()).save(tmp_path / "x.png")[0]
    record = record_of(made)
    assert before["files"][0]["sha256"] is not None  # type: ignore[index]
    assert record["receipt"]["files"] == [{"name": "m.safetensors", "sha256": None}]  # type: ignore[index]
    finding = verify(made, load(path))
    assert finding.code == 2 and "replaced" in finding.what
    assert "Model hash" not in read_file(made).texts["parameters"]


def test_resealed_records_do_not_pass(picture: Path, engine: Engine, tmp_path: Path) -> None:
    """Oracle: a record changed and closed again is whole, and the run from it parts where it must."""

    def resealed(change: Callable[[dict], object]) -> Callable[[dict], object]:
        def both(record: dict) -> None:
            change(record)
            record["seals"] = seals(record)

        return both

    for change, first in (
        (lambda r: r["request"].update(seed=6), "start"),
        (lambda r: r["request"].update(prompt="a dog"), "text"),
        (lambda r: r["request"].update(cfg_scale=5.5), "step 1"),
        (lambda r: r["request"].update(steps=5), "text"),  # which says until which step it holds
        (lambda r: r["receipt"]["marks"].pop(), "the number of steps"),
        (lambda r: r["receipt"]["marks"][3].__setitem__(2, "0" * 64), "step 2"),
    ):
        out = rewritten(picture, tmp_path / "r.png", resealed(change))
        finding = verify(out, engine)
        assert (finding.verdict, finding.first) == ("differs", first)
    for change in (
        lambda r: r["request"].update(steps="many"),
        lambda r: r["request"].update(controls=5),
        lambda r: r["request"].update(loras=[{"weight": 1}]),
        lambda r: r["request"].update(image={"path": "/etc/passwd"}),
    ):
        out = rewritten(picture, tmp_path / "r.png", resealed(change))
        assert verify(out, engine).code == 2
    for change in (
        lambda r: r["receipt"].update(marks=[1]),
        lambda r: r["receipt"].update(files=None),
        lambda r: r["receipt"].update(files=["x"]),
        lambda r: r["receipt"].update(versions=[]),
        lambda r: r["receipt"].pop("pixels"),
    ):
        out = rewritten(picture, tmp_path / "r.png", resealed(change))
        assert verify(out, engine).code == 3


def test_words_that_no_file_can_hold(engine: Engine, tmp_path: Path) -> None:
    """Oracle: a prompt with a lone surrogate is drawn, kept and proven."""
    path = engine.run(request(prompt="a \ud800 cat")).save(tmp_path / "x.png")[0]
    assert verify(path, engine).verdict == "proven"


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
    assert finding.verdict == "differs" and finding.first == f"step {at}" and finding.level == ""
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

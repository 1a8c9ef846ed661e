"""The rungs R1 to R7 of the ladder in docs/receipts.md, each with a test and an inverse test.

Oracle: the same picture drawn otherwise, and verify on it. Rungs R0, R2, R3 and R4 have their tests mostly in
tests/samplers/test_noise.py, test_invariance.py and test_executor.py. Rows of the fault table: F56 to F59,
F61.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from minisd.engine import Engine, load
from minisd.levels import BANDS, level_of
from minisd.model import Model
from minisd.models.fused import GroupNorm
from minisd.receipt import processor, seals
from minisd.request import Request
from minisd.samplers.noise import philox_normal
from minisd.verify import verify
from tests.test_invariance import batched, drawn, threads
from tests.test_receipt import rewritten
from tests.tiny import TINY, tiny_model, write_checkpoint

SAMPLERS = (
    *("euler", "euler_ancestral", "heun", "dpm_2", "dpmpp_2m", "dpmpp_sde", "dpmpp_2m_sde", "ddim", "unipc"),
    *("lms", "restart", "lcm"),
)
ASKED = Request(prompt="a (red:1.2) cat", negative_prompt="dark", seed=5, steps=3, cfg_scale=4.0)
GOLDEN = Path(__file__).parent / "data" / "golden.safetensors"
NEAR = 1e-5  # relative, of golden latents on another processor; rounding gives about 1e-6


def digests() -> list[str]:
    """Of the latents after every step and of the pixels, by every sampler."""
    engine = Engine(tiny_model("sd1"))
    out = []
    for sampler in SAMPLERS:
        receipt = engine.run(replace(ASKED, sampler=sampler)).record()["receipt"]
        assert isinstance(receipt, dict)
        out += [f"{sampler} {mark[0]} {mark[2]}" for mark in receipt["marks"]]
        out.append(f"{sampler} pixels {receipt['pixels']}")
    return out


PROGRAM = """
import json, os, sys
if sys.argv[1] == "one processor" and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from tests.test_ladder import digests
print(json.dumps(digests()))
"""


def test_r1_fresh_processes_draw_the_same() -> None:
    """R1, R3, F57: every digest of 12 samplers in this process and in two others, with one thread and with
    four, held to one processor or not, hashing strings otherwise. Inverse: another seed; no seed at all."""
    runs = []
    for where, count in (("one processor", "4"), ("all", "1")):
        env = os.environ | {
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "OMP_NUM_THREADS": count,
            "PYTHONHASHSEED": count,
        }
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM, where]
        runs.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    here = digests()
    told = [json.loads(run.communicate()[0]) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert told == [here, here] and len(here) == len(set(here))
    engine = Engine(tiny_model("sd1"))
    asked = replace(ASKED, seed=None, steps=1)
    drawn_seeds = [engine.run(asked) for _ in range(2)]
    assert drawn_seeds[0].request.seed != drawn_seeds[1].request.seed
    assert drawn_seeds[0].image.tobytes() != drawn_seeds[1].image.tobytes()


def test_r2_a_needle_in_batches() -> None:
    """R2: one image at a random place of a random batch, in one call or not, by its bits. The inverse is
    test_invariance.py's test_each_rule_is_needed."""
    model, pick = tiny_model("sd1"), random.Random(0)
    needle = drawn(model, seed=1000, steps=1, sampler="euler_ancestral").latents[0]
    for _ in range(20):
        count = pick.randint(1, 5)
        slot = pick.randrange(count)
        images, prompts = pick.random() < 0.5, pick.random() < 0.5
        used = batched(model, images=images, prompts=prompts)
        many = drawn(used, seed=1000 - slot, count=count, steps=1, sampler="euler_ancestral")
        assert torch.equal(many.latents[slot], needle), (count, slot, images, prompts)


def test_f56_f59_order_and_threads_of_requests() -> None:
    """F56, F59: requests shuffled, and from eight threads at once on one engine; by their pixels."""
    engine = Engine(tiny_model("sd1"))
    asked = [
        replace(ASKED, seed=i, steps=1 + i % 2, sampler=SAMPLERS[i % 4], cfg_scale=1.0 + i % 3)
        for i in range(12)
    ]
    wanted = [engine.run(r).image.tobytes() for r in asked]
    order = random.Random(1).sample(range(12), 12)
    assert [engine.run(asked[i]).image.tobytes() for i in order] == [wanted[i] for i in order]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda r: engine.run(r).image.tobytes(), asked)) == wanted
    assert len(set(wanted)) == 12


@contextmanager
def meddled(what: str) -> Iterator[None]:
    """Inside, another program in this process has set torch as it likes it."""
    if what == "default dtype":
        torch.set_default_dtype(torch.float64)
    if what == "seeds":
        torch.manual_seed(99)
    if what == "deterministic":
        torch.use_deterministic_algorithms(True)
    if what == "matmul":
        torch.set_float32_matmul_precision("medium")
    try:
        if what == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                yield
        elif what == "threads":
            with threads(2 if torch.get_num_threads() == 1 else 1):
                yield
        elif what == "grad":
            with torch.enable_grad():
                yield
        else:
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")


MEDDLED = ("default dtype", "seeds", "deterministic", "autocast", "threads", "grad")


@pytest.mark.parametrize("what", MEDDLED)
def test_f58_what_others_set_changes_nothing(what: str, tmp_path: Path) -> None:
    """F58: the picture and every digest with torch's global state changed by someone else, who finds it as
    it was. Loading, too."""
    path = write_checkpoint(tmp_path / "tiny.safetensors", TINY["sd1"])
    asked = replace(ASKED, sampler="dpmpp_sde")

    def marks() -> object:
        with load(path) as engine:
            receipt = engine.run(asked).record()["receipt"]
        assert isinstance(receipt, dict)
        return receipt["marks"], receipt["pixels"]

    def state() -> tuple[object, ...]:
        flags = torch.get_default_dtype(), torch.get_num_threads(), torch.is_autocast_enabled("cpu")
        more = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
        return (*flags, *more, torch.is_grad_enabled(), torch.get_rng_state().sum().item())

    wanted = marks()
    with meddled(what):
        before = state()
        assert marks() == wanted
        assert state() == before


def test_f58_a_lower_precision_for_all_of_torch_is_told(checkpoint: Path, picture: Path) -> None:
    """F58: what an application has set for every float32 product is not undone behind its back, but in the
    receipt: verify names it and claims no more than R5."""
    with meddled("matmul"), load(checkpoint, offload="none") as engine:
        finding = verify(picture, engine)
    assert finding.other == {"float32_matmul": "medium here, highest then"}
    assert finding.verdict != "proven" or "R5" in finding.level


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors", TINY["sd1"])


@pytest.fixture(scope="module")
def picture(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with load(checkpoint, offload="none") as engine:
        return engine.run(ASKED).save(tmp_path_factory.mktemp("made") / "cat.png")[0]


@contextmanager
def scaled_network(engine: Engine, by: float) -> Iterator[None]:
    """Inside, the UNet's answers are larger by this share."""
    handle = engine.model.unet.register_forward_hook(lambda module, args, out: out * (1 + by))
    try:
        yield
    finally:
        handle.remove()


def test_r3_verify_on_other_threads(checkpoint: Path, picture: Path) -> None:
    """R3: proven, and the level says why it may be claimed; inverse: a network that answers otherwise."""
    with load(checkpoint, offload="none") as engine, threads(2 if torch.get_num_threads() == 1 else 1):
        finding = verify(picture, engine)
        assert finding.code == 0 and finding.level.startswith("R3") and set(finding.other) == {"threads"}
        with scaled_network(engine, 1e-6):
            finding = verify(picture, engine)
        assert finding.code == 1 and finding.level == "" and finding.first == "step 1"


@pytest.mark.parametrize("offload", ["staged", "streamed", "disk"])
def test_r4_verify_by_another_memory_plan(offload: str, checkpoint: Path, picture: Path) -> None:
    """R4: proven; inverse: a network that answers otherwise is not excused by the plan."""
    with load(checkpoint, device="cpu", offload=offload) as engine:
        finding = verify(picture, engine)
        assert finding.code == 0 and finding.level.startswith("R4"), finding
        assert all(name.endswith("residency") for name in finding.other)
        with scaled_network(engine, 1e-6):
            assert verify(picture, engine).verdict == "differs"


def test_r5_other_kernels(checkpoint: Path, picture: Path) -> None:
    """R5, F61, on one processor: other attention kernels are near, and no more is said; inverse: a network
    that answers by a hundredth otherwise, and one picture in another place."""
    with load(checkpoint, kernels="self_attention=sliced,cross_attention=sliced") as engine:
        finding = verify(picture, engine)
        assert finding.verdict in ("near", "proven") and "R5" in finding.level and "kernels" in finding.other
        if finding.verdict == "near":
            assert finding.code == 1 and finding.first is not None
            assert finding.size.get("psnr_db", 999.0) >= BANDS["R5"]
        assert "R1" not in finding.level
        with scaled_network(engine, 0.05):
            finding = verify(picture, engine)
        assert finding.verdict == "differs" and finding.level == ""
        assert finding.size["psnr_db"] < BANDS["R5"]


def test_r6_another_precision(checkpoint: Path, picture: Path) -> None:
    """R6, F61: near within the band of that precision, exit code 1, the first digest named; inverse: a
    network that answers otherwise by far more than the precision."""
    with load(checkpoint, dtype="bfloat16") as engine:
        finding = verify(picture, engine)
        assert finding.verdict == "near" and finding.code == 1, finding
        assert finding.level == "R6: another precision (bfloat16); near, not equal"
        assert finding.first == "text" and finding.size["psnr_db"] >= BANDS["R6 bfloat16"]
        with scaled_network(engine, 0.5):
            finding = verify(picture, engine)
        assert finding.verdict == "differs" and finding.level == ""


def test_r7_other_versions(checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    """R7, F61: a record of another torch, with equal bits; inverse: with bits that are not."""

    def older(record: dict) -> None:
        record["receipt"]["versions"]["torch"] = "1.0"
        record["seals"] = seals(record)

    out = rewritten(picture, tmp_path / "o.png", older)
    with load(checkpoint, offload="none") as engine:
        finding = verify(out, engine)
        assert finding.code == 0 and finding.level == "R7: equal bits by other versions"
        assert list(finding.other) == ["torch"] and finding.other["torch"].endswith("1.0 then")
        with scaled_network(engine, 0.05):
            assert verify(out, engine).verdict == "differs"


def test_what_differs_leads_to_a_rung() -> None:
    """Oracle: the table in docs/receipts.md; of several differences the weakest rung holds."""
    for other, rung in (
        ({}, "R1"),
        ({"threads": ""}, "R3"),
        ({"unet residency": ""}, "R4"),
        ({"threads": "", "vae residency": ""}, "R4"),
        ({"batching": ""}, "R4"),
        ({"isa": ""}, "R5"),
        ({"unet device": "", "gpu": ""}, "R5"),
        ({"vae_tile": "64 here, None then"}, "R5"),
        ({"unet dtype": "float16 here, float32 then", "unet device": ""}, "R6 float16"),
        ({"vae dtype": "float32 here, bfloat16 then", "torch": ""}, "R6 bfloat16"),
        ({"torch": "", "minisd": ""}, "R7"),
        ({"torch": "", "cpu": ""}, "R5"),
        ({"something new": ""}, "R7"),
    ):
        assert level_of(other).rung == rung, other
    assert not level_of({}).holds({"levels": 0.0}), "R1 promises bits, not nearness"
    assert level_of({"isa": ""}).holds({"levels": 0.0}) and not level_of({"isa": ""}).holds({})


def golden_model(name: str) -> Model:
    """A tiny model whose weights are the same numbers everywhere: Philox's, not torch's."""
    model = tiny_model(name)
    networks = (model.unet, model.vae, *model.text_encoders)
    for place, network in enumerate(networks):
        for draw, (key, weight) in enumerate(sorted(network.named_parameters())):
            value = philox_normal(place, draw, tuple(weight.shape)).double()
            if "embedding" in key and weight.dim() == 2:
                value *= 0.5
            elif weight.dim() >= 2:
                value /= weight[0].numel() ** 0.5
            else:
                value = value * 0.1 + (1.0 if key.endswith("weight") else 0.0)
            weight.copy_(value.float())
    return model


CASES = {
    "sd1 dpmpp_2m": ("sd1", {"sampler": "dpmpp_2m"}),
    "sd1 euler_ancestral": ("sd1", {"sampler": "euler_ancestral", "schedule": "karras"}),
    "sd2-v ddim": ("sd2-v", {"sampler": "ddim", "conventions": "diffusers", "rng": "philox"}),
    "sdxl dpmpp_sde": ("sdxl", {"sampler": "dpmpp_sde", "conventions": "a1111"}),
}


def golden(case: str, model: Model | None = None) -> Tensor:
    name, fields = CASES[case]
    asked = replace(ASKED, **fields)  # type: ignore[arg-type]
    return Engine(model or golden_model(name)).run(asked).drawing.latents


def here() -> dict[str, str]:
    isa = torch.backends.cpu.get_cpu_capability()
    return {"cpu": processor(), "isa": isa, "torch": torch.__version__.split("+")[0]}


@pytest.mark.parametrize("case", CASES)
def test_r7_golden_latents(case: str) -> None:
    """R7: latents that were committed: near everywhere, equal where processor and torch are those that drew
    them. Inverse: one eps of a GroupNorm that is another.

    Who changes them on purpose draws them anew with `python -m tests.test_ladder` and says why."""
    with safe_open(GOLDEN, "pt") as file:
        wanted, then = file.get_tensor(case), dict(file.metadata())
    found = golden(case)
    assert float((found - wanted).norm() / wanted.norm()) < NEAR
    if then == here():
        assert torch.equal(found, wanted)
    model = golden_model(CASES[case][0])
    norm = next(m for m in model.unet.modules() if isinstance(m, GroupNorm))
    norm.eps = 1e-3
    changed = golden(case, model)
    assert float((changed - wanted).norm() / wanted.norm()) > 5 * NEAR


def write_golden() -> None:
    save_file({case: golden(case).contiguous() for case in CASES}, GOLDEN, metadata=here())


if __name__ == "__main__":
    write_golden()

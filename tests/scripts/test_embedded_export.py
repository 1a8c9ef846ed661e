"""Oracle: the networks that were exported. What `read` gives back and what training goes on from is what was
written, within the stored types' rounding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minisd.config import TrainingSchedule
from minisd.models.vae import AutoencoderKL
from scripts.embedded import diffusion, export
from scripts.embedded.data import Emoji
from scripts.embedded.diffusion import DiffusionRecipe, build, initialise, train_diffusion
from scripts.embedded.latents import LatentPool
from scripts.embedded.pictures import Object, Picture
from scripts.embedded.run import Run
from scripts.embedded.vae import CONFIG
from scripts.embedded.vocabulary import UNKNOWN, Vocabulary

APPLE = Emoji("\U0001f34e", "red apple", "Food & Drink", "food-fruit")
WORDS = Vocabulary.of(["a red apple", "food fruit, an emoji of a picture on a blue background"])
TOLD = {"minutes": 1.0, "steps": 7, "pictures": 224}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, torch.Tensor]]]:
    torch.manual_seed(0)
    text, unet = build(WORDS)
    initialise(text, unet, DiffusionRecipe())
    vae = AutoencoderKL(CONFIG)
    path = tmp_path_factory.mktemp("export") / "m.safetensors"
    export.export(path, export.state_dict(text, unet, vae, WORDS), export.model_config(0.25), TOLD)
    return path, {"text": text.state_dict(), "unet": unet.state_dict(), "vae": vae.state_dict()}


def test_an_exported_file_is_read_back(
    written: tuple[Path, dict[str, dict[str, torch.Tensor]]],
) -> None:
    path, wanted = written
    found = export.read(path, WORDS)
    assert found.prediction == "v"
    assert found.scale_factor == 0.25 and found.training == TOLD
    for part, named in wanted.items():
        seen = getattr(found, part)
        assert seen.keys() == named.keys()
        for name, tensor in named.items():
            rtol = 0.07 if name == export.TOKENS else 1e-3  # float8 e4m3, float16
            torch.testing.assert_close(seen[name], tensor, rtol=rtol, atol=2e-3, msg=name)


def test_a_word_new_since_the_export_begins_as_unknown(
    written: tuple[Path, dict[str, dict[str, torch.Tensor]]],
) -> None:
    more = Vocabulary.of(["a red apple", "a zebra"])
    table = export.read(written[0], more).text[export.TOKENS]
    (zebra,) = (more.row[i] for i in more.ids if i not in WORDS.row)
    assert torch.equal(table[zebra], table[UNKNOWN])
    kept = next(i for i in more.ids if i in WORDS.row)
    assert not torch.equal(table[more.row[kept]], table[UNKNOWN])


def begun(exported: Path, folder: Path, seconds: float, steps: int) -> tuple[export.Exported, LatentPool]:
    """What was exported, as a run of this length in the folder, and one picture to train it with."""
    found = export.read(exported, WORDS)
    weights = {"text": found.text, "unet": found.unet, "text_ema": found.text, "unet_ema": found.unet}
    Run.begin_from(folder / "diffusion.pt", weights, seconds, steps, 224)
    picture = Picture((Object(0),))
    return found, LatentPool([picture], torch.zeros(1, 4, 16, 16).half(), found.scale_factor)


def train(
    run: Run, pool: LatentPool, recipe: DiffusionRecipe, look: Callable[..., None] | None = None
) -> None:
    even = torch.ones(1, dtype=torch.float64)
    train_diffusion(run, pool, even, (APPLE,), WORDS, TrainingSchedule(), recipe, look=look)


def test_training_goes_on_from_an_exported_file(
    written: tuple[Path, dict[str, dict[str, torch.Tensor]]], tmp_path: Path
) -> None:
    found, pool = begun(written[0], tmp_path, TOLD["minutes"] * 60, 7000)
    run = Run(tmp_path, "diffusion", TOLD["minutes"] + 0.02, look_every=0.0)
    shown: list[bool] = []
    recipe = DiffusionRecipe(batch=2, lr=1e-2, log_every=1)
    train(run, pool, recipe, look=lambda text, unet: shown.append(text is not unet))
    saved = torch.load(run.checkpoint, weights_only=True)
    steps = saved["step"] - 7000
    assert steps > 0 and saved["seen"] == 224 + 2 * steps and saved["elapsed"] > 60
    before, after = found.unet, saved["modules"]["unet"]
    away = max(float((after[n] - before[n]).abs().max()) for n in before)
    # a training from new weights would be away by the size of the weights themselves
    assert 0 < away < 0.1 * max(float(t.abs().max()) for t in before.values())
    # the average follows from the first step on: at the decay of a long training it would hardly move
    followed = saved["modules"]["unet_ema"]
    moved = sum(float((followed[n] - before[n]).norm()) for n in before)
    assert moved > 0.1 * sum(float((after[n] - before[n]).norm()) for n in before)
    rows = [json.loads(line) for line in run.log_path.read_text("utf-8").splitlines()]
    assert len(shown) == steps
    assert rows[0]["step"] == 7001 and {"rate", "left_minutes", "loss"} <= rows[0].keys()


def test_the_first_line_of_a_log_is_the_mean_of_its_own_steps(
    written: tuple[Path, dict[str, dict[str, torch.Tensor]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Oracle: a loss that is a half at every step; the run goes on one step before a line is due."""
    _, pool = begun(written[0], tmp_path, 60.0, 7001)
    monkeypatch.setattr(diffusion, "loss_of", lambda text, unet, *_: 0 * unet.out[2].bias.sum() + 0.5)
    run = Run(tmp_path, "diffusion", 1.03)
    train(run, pool, DiffusionRecipe(batch=2, log_every=2))
    rows = [json.loads(line) for line in run.log_path.read_text("utf-8").splitlines()]
    assert rows[0]["step"] == 7002 and rows[0]["loss"] == 0.5


def test_a_spent_budget_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = torch.nn.Linear(2, 2)
    Run.begin_from(tmp_path / "s.pt", {"net": layer.state_dict()}, 120.0, 1, 1)
    run = Run(tmp_path, "s", 1.0)
    assert run.resume({"net": layer}, []) and run.done
    assert "a longer budget goes on" in capsys.readouterr().out


def test_a_file_of_another_origin_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="does not say how it was trained"):
        export.read(path, WORDS)

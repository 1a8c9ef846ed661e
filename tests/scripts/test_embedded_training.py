"""Oracle: closed forms of v and eps for a picture of zeros; the device of every operation, one by one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from minisd.config import TrainingSchedule
from minisd.samplers.schedule import alphas_cumprod
from scripts import train_embedded
from scripts.embedded import diffusion, vae
from scripts.embedded.diffusion import DiffusionRecipe, build, loss_of
from scripts.embedded.run import Place, Run
from scripts.embedded.vocabulary import Vocabulary

TABLE = alphas_cumprod(**asdict(TrainingSchedule())).float()
WORDS = Vocabulary.of(["a red apple"])


class Knows(nn.Module):
    """For a picture of zeros x = sqrt(1 - a) eps, so that both targets follow from x and t."""

    def __init__(self, prediction: str) -> None:
        super().__init__()
        self.prediction = prediction

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        a = TABLE[t][:, None, None, None]
        eps = x / (1 - a).sqrt()
        return eps if self.prediction == "eps" else a.sqrt() * eps


@pytest.mark.parametrize("prediction", ["v", "eps"])
def test_the_network_is_asked_for_what_the_recipe_says(prediction: str) -> None:
    text, _ = build(WORDS)
    z, rows = torch.zeros(16, 4, 8, 8), WORDS.rows(["a red apple"] * 16)

    def loss(known: str) -> float:
        recipe = DiffusionRecipe(prediction=prediction)  # pyright: ignore[reportArgumentType]
        generator = torch.Generator().manual_seed(0)
        return float(loss_of(text, Knows(known), z, rows, TABLE, generator, recipe, Place()))  # pyright: ignore[reportArgumentType]

    assert loss(prediction) < 1e-8
    assert loss({"v": "eps", "eps": "v"}[prediction]) > 0.1


def test_bfloat16_keeps_the_loss_and_the_weights_in_float32() -> None:
    text, unet = build(WORDS)
    z, rows = torch.randn(2, 4, 16, 16), WORDS.rows(["a red apple", ""])
    seen: list[torch.dtype] = []
    conv = next(m for m in unet.modules() if isinstance(m, nn.Conv2d))
    conv.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    loss = loss_of(
        text, unet, z, rows, TABLE, torch.Generator().manual_seed(0), DiffusionRecipe(), Place(bf16=True)
    )
    loss.backward()
    assert seen == [torch.bfloat16] and loss.dtype == torch.float32
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in unet.parameters())


class OneDevice(TorchDispatchMode):
    """Refuses an operation whose tensors are on two devices, as a GPU would; meta alone does not."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor) and t.ndim]
        moves = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        assert moves or len({t.device for t in tensors}) < 2, f"{func} on {[t.device for t in tensors]}"
        return func(*args, **(kwargs or {}))


def test_a_step_on_another_device_mixes_none() -> None:
    place = Place(torch.device("meta"))
    text, unet = build(WORDS)
    text.to(place.device)
    unet.to(place.device)
    coder = vae.AutoencoderKL(vae.CONFIG).to(place.device)
    average = diffusion.Average({"text": text, "unet": unet}, 0.9)
    z, rows = torch.randn(2, 4, 16, 16), WORDS.rows(["a red apple", ""])
    with OneDevice():
        loss = loss_of(text, unet, z, rows, TABLE, torch.Generator(), DiffusionRecipe(), place)
        picture = torch.zeros(2, 3, 64, 64, device=place.device)
        also = vae.loss_of(coder, picture, vae.VAERecipe(), torch.Generator())
        average.update()
        with pytest.raises(AssertionError, match="on "):
            torch.ones(2) @ torch.ones(2, device="meta")
    assert loss.device.type == also.device.type == "meta"
    assert next(average.shadow["unet"].parameters()).device.type == "meta"


def test_a_folder_keeps_to_what_its_unet_predicts(tmp_path: Path) -> None:
    parsed = train_embedded.parser().parse_args(["diffusion", "--work", str(tmp_path)])
    assert train_embedded.prediction_of(parsed) == "v"
    (tmp_path / train_embedded.KNOWN).write_text('{"prediction": "eps"}', encoding="utf-8")
    assert train_embedded.prediction_of(parsed) == "eps"
    parsed.prediction = "v"
    with pytest.raises(SystemExit, match="predicts eps"):
        train_embedded.prediction_of(parsed)


def test_time_for_a_sheet_comes_once_each_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("scripts.embedded.run.time.monotonic", lambda: now[0])
    run = Run(tmp_path, "s", 60.0, look_every=10.0)
    due = []
    for second in (5.0, 10.0, 12.0, 19.0, 20.0, 35.0):
        now[0] = second
        due.append(run.look_due())
    assert due == [False, True, False, False, True, True]

"""Oracle: formulas, equality of bits, the table of samplers: what a Request says of noise and levels."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache

import diffusers
import numpy as np
import pytest
import torch

from minisd.cli import main
from minisd.errors import RequestError
from minisd.first_noise import first_noise, slerp
from minisd.model import Model
from minisd.pipeline import Drawing, draw
from minisd.request import Request
from minisd.samplers.names import SAMPLERS, SCHEDULES, find_sampler, find_schedule, split_name
from minisd.samplers.noise import batch_normal, philox_normal
from minisd.samplers.schedule import karras_sigmas
from minisd.sampling import run_sigmas, schedule_of, sigma_table, step_noise
from tests.tiny import TINY, tiny_model

SHAPE = (4, 8, 6)
CONFIG = TINY["sd1"]
TABLE = sigma_table(CONFIG, Request())


def request(**fields: object) -> Request:
    return replace(Request(prompt="a cat", seed=7, steps=3), **fields)  # type: ignore[arg-type]


def levels(**fields: object) -> torch.Tensor:
    asked = request(**fields)
    return run_sigmas(sigma_table(CONFIG, asked), asked, schedule_of(asked), "sd1")


@cache
def model(name: str = "sd1") -> Model:
    return tiny_model(name)


def drawn(**fields: object) -> Drawing:
    return draw(model(), request(**fields).for_model(CONFIG, seed=0))


# noise


def test_slerp() -> None:
    """Oracle: the formula in float64; on the arc between two unit vectors at 90 degrees."""
    a, b = philox_normal(1, 0, SHAPE), philox_normal(2, 0, SHAPE)
    x, y = (t.double().flatten().numpy() for t in (a, b))
    angle = math.acos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    for share in (0.1, 0.5, 0.9):
        wanted = (math.sin((1 - share) * angle) * x + math.sin(share * angle) * y) / math.sin(angle)
        assert np.abs(slerp(a, b, share).flatten().numpy() - wanted).max() < 1e-6
        # the norm stays; a straight blend would lose a third of it in the middle
        assert float(slerp(a, b, share).norm()) == pytest.approx(float(a.norm()), rel=0.1)
    right, up = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert slerp(right, up, 1 / 3).tolist() == pytest.approx([math.cos(math.pi / 6), 0.5], rel=1e-6)
    assert torch.equal(slerp(a, a, 0.3), a)


def test_variation_seed() -> None:
    """Oracle: strength 0 changes no bit, strength 1 is the other seed, between them slerp of the two."""
    plain = first_noise(request(count=2), SHAPE)
    assert torch.equal(plain, batch_normal("philox", [7, 8], 0, SHAPE))
    off = request(count=2, variation_seed=99)
    assert torch.equal(first_noise(off, SHAPE), plain)
    other = batch_normal("philox", [99, 100], 0, SHAPE)
    whole = first_noise(replace(off, variation_strength=1.0), SHAPE)
    assert (whole - other).abs().max() < 1e-6
    part = first_noise(replace(off, variation_strength=0.25), SHAPE)
    for i in range(2):  # pictures of a batch vary the one seed
        assert torch.equal(part[i], slerp(plain[0], other[i], 0.25))


def test_variation_seed_is_drawn_and_told() -> None:
    """Oracle: the request made whole holds it, and draws the same noise again."""
    whole = Request(seed=7, variation_strength=0.5).for_model(CONFIG, seed=1234)
    assert whole.variation_seed == 1234
    assert Request(seed=7).for_model(CONFIG, seed=1234).variation_seed is None


@pytest.mark.parametrize("size,shape", [((32, 48), (8, 10)), ((128, 80), (8, 6)), ((64, 32), (4, 8))])
def test_seed_size(size: tuple[int, int], shape: tuple[int, int]) -> None:
    """Oracle: the other size's noise, middle on middle, and fresh noise where it does not reach."""
    noise = first_noise(request(seed_size=size), (4, *shape))[0]
    small = philox_normal(7, 0, (4, size[0] // 8, size[1] // 8))
    fresh = philox_normal(7, 0, (4, *shape))
    for y in range(shape[0]):
        for x in range(shape[1]):
            # of floor((a - b) / 2) towards the top left
            row = y - (shape[0] - small.shape[1]) // 2
            column = x - (shape[1] - small.shape[2]) // 2
            inside = 0 <= row < small.shape[1] and 0 <= column < small.shape[2]
            wanted = small[:, row, column] if inside else fresh[:, y, x]
            assert torch.equal(noise[:, y, x], wanted)


def test_seed_size_of_the_picture_itself_changes_nothing() -> None:
    """Oracle: bits without it, through the pipeline; another size changes the picture."""
    assert torch.equal(drawn(seed_size=(64, 64)).latents, drawn().latents)
    assert not torch.equal(drawn(seed_size=(32, 64)).latents, drawn().latents)


def test_noise_of_the_steps() -> None:
    """Oracle: draws 1, 2, ... of each seed; with a delta draws 0, 1, ... of the seed that far off."""
    like = torch.zeros(1, dtype=torch.float64)
    sigmas = karras_sigmas(3, 0.03, 14.6)
    for delta, seeds, first in ((0, [7, 8], 1), (31337, [7 + 31337, 8 + 31337], 0)):
        asked = request(count=2, eta_seed_delta=delta)
        with step_noise(asked, SAMPLERS["euler_ancestral"], sigmas, SHAPE, like, {}) as noise:
            for i in range(3):
                drawn_now = noise(2.0, 1.0)
                assert drawn_now.dtype == torch.float64
                assert torch.equal(drawn_now, batch_normal("philox", seeds, first + i, SHAPE).double())


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_sde"])
def test_eta_seed_delta_through_the_pipeline(sampler: str) -> None:
    """Oracle: 0 changes no bit, another changes stochastic samplers and no others."""
    plain = drawn(sampler=sampler).latents
    assert torch.equal(drawn(sampler=sampler, eta_seed_delta=0).latents, plain)
    assert not torch.equal(drawn(sampler=sampler, eta_seed_delta=5).latents, plain)
    assert torch.equal(drawn(sampler="euler", eta_seed_delta=5).latents, drawn(sampler="euler").latents)


@pytest.mark.parametrize(
    "fields",
    [
        {"sampler": "ddim", "eta": 0.5},
        {"sampler": "euler", "s_churn": 5.0},
        {"sampler": "heun", "s_churn": 5.0, "s_tmin": 1.0},
        {"sampler": "euler_ancestral", "s_noise": 0.9},
        {"sampler": "euler_ancestral", "rng": "torch"},
        {"sigma_max": 5.0},
        {"discard": "always"},
        {"variation_strength": 0.2, "variation_seed": 5},
    ],
)
def test_fields_reach_the_picture(fields: dict[str, object]) -> None:
    """Oracle: inequality with the picture of the same sampler without the field."""
    sampler = fields.get("sampler", "dpmpp_2m")
    assert not torch.equal(drawn(**fields).latents, drawn(sampler=sampler).latents)


# levels


def test_custom_sigmas() -> None:
    """Oracle: the very levels, told by the drawing; equal to the schedule they were copied from."""
    own = (14.0, 5.0, 1.0, 0.3, 0.0)
    picture = drawn(sigmas=own, steps=9)
    assert picture.sigmas == own and picture.schedule == "custom"
    karras = drawn(schedule="karras")
    assert torch.equal(drawn(sigmas=karras.sigmas).latents, karras.latents)


@pytest.mark.parametrize("sigmas", [(1.0, 2.0), (3.0, 3.0), (2.0, 1.0, 1.5, 0.0), (2.0, -1.0), (-1.0, -2.0)])
def test_custom_sigmas_that_cannot_be(sigmas: tuple[float, ...]) -> None:
    """Oracle: RequestError that names the field and says what would do."""
    with pytest.raises(RequestError, match="each below the one before") as caught:
        levels(sigmas=sigmas)
    assert caught.value.field == "sigmas"


def test_discard_next_to_last() -> None:
    """Oracle: the schedule of one step more, without its last positive level; by sampler where asked so."""
    longer = karras_sigmas(4, TABLE.sigma_min, TABLE.sigma_max)
    assert levels(discard="always").tolist() == [*longer[:3].tolist(), 0.0]
    plain = karras_sigmas(3, TABLE.sigma_min, TABLE.sigma_max)
    assert torch.equal(levels(discard="never"), plain)
    for name, sampler in SAMPLERS.items():
        always, never = levels(sampler=name, discard="always"), levels(sampler=name, discard="never")
        own = levels(sampler=name, discard="sampler")
        assert torch.equal(own, always if sampler.discard else never), name
        assert len(always) == len(never) == 4


@pytest.mark.parametrize("schedule", [n for n in SCHEDULES if n not in ("auto", "align_your_steps")])
def test_sigma_min_and_max(schedule: str) -> None:
    """Oracle: the ends of what every schedule visits; its own table's ends without them."""
    ends = {"sigma_max": 5.0} if schedule == "linear_quadratic" else {"sigma_min": 0.2, "sigma_max": 5.0}
    plain, held = levels(schedule=schedule, steps=8), levels(schedule=schedule, steps=8, **ends)
    assert len(plain) == len(held) == 9 and (held.diff() < 0).all()
    top = 5.0 if schedule != "ddim" else float(held[0])
    assert float(held[0]) == top <= 5.0 < float(plain[0])
    if schedule != "linear_quadratic":
        assert float(held[-2]) >= 0.2 * (1 - 1e-12)
    if schedule in ("karras", "exponential", "polyexponential", "kl_optimal"):
        assert float(held[-2]) == pytest.approx(0.2, rel=1e-12)


@pytest.mark.parametrize(
    "fields,field",
    [
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_min"),
        ({"sigma_min": 20.0}, "sigma_min"),
        ({"schedule": "align_your_steps", "sigma_max": 5.0}, "sigma_max"),
        ({"schedule": "linear_quadratic", "sigma_min": 0.2}, "sigma_min"),
        ({"sigmas": (2.0, 0.0), "sigma_min": 0.2}, "sigma_min"),
    ],
)
def test_ends_that_cannot_be(fields: dict[str, object], field: str) -> None:
    """Oracle: RequestError that names the field: an end that nothing looks at is refused too."""
    with pytest.raises(RequestError) as caught:
        levels(**fields)
    assert caught.value.field == field


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_zero_terminal_snr_under_every_sampler(name: str) -> None:
    """Oracle: the first level is the table's last, 4096, whatever schedule the sampler comes with."""
    config = replace(CONFIG, zero_terminal_snr=True)
    asked = request(sampler=name, steps=8)
    table = sigma_table(config, asked)
    assert table.sigma_max == pytest.approx(4096, rel=1e-6)
    sigmas = run_sigmas(table, asked, schedule_of(asked), "sd2")
    assert float(sigmas[0]) == table.sigma_max and float(sigmas[-1]) == 0


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_sde", "euler_cfgpp", "lcm", "restart", "unipc"])
def test_zero_terminal_snr_draws(name: str) -> None:
    """Oracle: finite latents of about the size that data have, from a v model with zero terminal SNR."""
    own = tiny_model("sd2-v")
    own = replace(own, config=replace(own.config, zero_terminal_snr=True))
    out = draw(own, request(sampler=name, steps=4).for_model(own.config, seed=0))
    assert out.sigmas[0] > 4095 and torch.isfinite(out.latents).all()
    assert 0.05 < float(out.latents.std()) < 20


# names


def test_every_name_leads_to_its_sampler() -> None:
    """Oracle: the table: every alias of every program, in any case, and no alias of two."""
    owners: dict[str, str] = {}
    for name, sampler in SAMPLERS.items():
        for alias in (name, *sampler.aliases):
            assert owners.setdefault(alias.lower(), name) == name, alias
            for spelled in (alias, alias.upper(), alias.lower(), f" {alias} "):
                assert find_sampler(spelled).name == name
                assert Request(sampler=spelled).sampler == name
    for name, schedule in SCHEDULES.items():
        for alias in (name, schedule.label, *schedule.aliases):
            assert find_schedule(alias) == find_schedule(alias.upper()) == name


# A1111's samplers: label, other names, schedule under "Automatic"
A1111 = """
DPM++ 2M | k_dpmpp_2m | karras
DPM++ SDE | k_dpmpp_sde | karras
DPM++ 2M SDE | k_dpmpp_2m_sde | exponential
DPM++ 2M SDE Heun | k_dpmpp_2m_sde_heun | exponential
DPM++ 2S a | k_dpmpp_2s_a | karras
DPM++ 3M SDE | k_dpmpp_3m_sde | exponential
Euler a | k_euler_a k_euler_ancestral | normal
Euler | k_euler | normal
LMS | k_lms | normal
Heun | k_heun | normal
DPM2 | k_dpm_2 | karras
DPM2 a | k_dpm_2_a | karras
DPM fast | k_dpm_fast | normal
DPM adaptive | k_dpm_ad | normal
Restart | restart | karras
DDIM | ddim | normal
DDIM CFG++ | ddim_cfgpp | normal
PLMS | plms | normal
UniPC | unipc | normal
LCM | k_lcm | lcm
"""


def test_names_of_a1111() -> None:
    """Oracle: its table of samplers, written down by hand; the three that leave out a level."""
    rows = [[part.strip() for part in line.split("|")] for line in A1111.strip().splitlines()]
    for label, others, schedule in rows:
        sampler = find_sampler(label)
        assert sampler.a1111 == label and sampler.schedule == schedule
        assert all(find_sampler(other) is sampler for other in others.split())
    assert {s.a1111 for s in SAMPLERS.values() if s.a1111} == {label for label, _, _ in rows}
    assert {s.a1111 for s in SAMPLERS.values() if s.discard} == {"DPM2", "DPM2 a", "DPM++ 3M SDE"}


def test_names_of_diffusers_are_its_classes() -> None:
    """Oracle: the package itself."""
    named = [s.diffusers for s in SAMPLERS.values() if s.diffusers]
    assert len(named) == len(set(named)) > 15
    assert all(isinstance(getattr(diffusers, name), type) for name in named)


@pytest.mark.parametrize(
    "name",
    ["DPM++ 2M Karras", "dpm++ 2m karras", "dpmpp_2m Karras", " DPM++ 2M KARRAS ", "k_dpmpp_2m_ka"],
)
def test_a_name_with_its_schedule(name: str) -> None:
    """Oracle: A1111's old names, split."""
    asked = Request(sampler=name)
    assert (asked.sampler, asked.schedule) == ("dpmpp_2m", "karras")
    assert split_name("DPM++ 2M SDE Exponential") == ("DPM++ 2M SDE", "exponential")
    assert split_name("k_dpmpp_3m_sde_exp") == ("k_dpmpp_3m_sde", "exponential")
    assert split_name("b_ka") == ("b_ka", None)
    assert split_name("Karras") == ("Karras", None) and split_name("Euler a") == ("Euler a", None)


@pytest.mark.parametrize(
    "fields,hint",
    [
        ({"sampler": "dpmpp_2mm"}, "did you mean 'dpmpp_2m'"),
        ({"sampler": "Euler A Karas"}, "did you mean"),
        ({"sampler": "zzz"}, "known are euler, "),
        ({"schedule": "karas"}, "did you mean 'karras'"),
        ({"schedule": "zzz"}, "known are auto, "),
    ],
)
def test_unknown_names(fields: dict[str, str], hint: str) -> None:
    """Oracle: RequestError with the nearest name, or all of them."""
    with pytest.raises(RequestError, match=hint) as caught:
        Request(**fields)  # type: ignore[arg-type]
    assert caught.value.field in fields


def test_minisd_samplers(capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: the table, as JSON and as text."""
    assert main(["samplers", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [s["name"] for s in answer["schedules"]] == list(SCHEDULES)
    assert [r["name"] for r in answer["samplers"]] == list(SAMPLERS)
    for row in answer["samplers"]:
        own = SAMPLERS[row["name"]]
        assert (row["order"], row["calls"], row["noise"], row["a1111"]) == (
            own.order,
            own.calls,
            own.noise,
            own.a1111,
        )
    assert main(["samplers"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*SAMPLERS, *SCHEDULES))

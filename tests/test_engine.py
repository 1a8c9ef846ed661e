"""Oracle: equality of bits between runs of one engine: threads, streams, cancelling, previews, failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch
from PIL import Image

from minisd.engine import Engine
from minisd.errors import Cancelled, MinisdError, NumericalError, RequestError
from minisd.events import Pace, Preview, Progress
from minisd.previews import By
from minisd.request import Request
from minisd.stream import Final
from tests.tiny import tiny_model

REQUEST = Request(prompt="a cat", width=64, height=64, seed=5, steps=4, sampler="euler", cfg_scale=7.5)


@cache
def engine() -> Engine:
    return Engine(tiny_model("sd1"))


@cache
def expected() -> torch.Tensor:
    """The latents of REQUEST."""
    return engine().run(REQUEST).drawing.latents


def names_of_threads() -> list[str]:
    return [t.name for t in threading.enumerate()]


@contextmanager
def calls_of_the_unet(engine: Engine, at: int = 0, do: threading.Event | None = None) -> Iterator[list[int]]:
    """Counts network calls; sets the event `do` during call number `at`."""
    count: list[int] = []

    def hook(*_: object) -> None:
        count.append(len(count) + 1)
        if do is not None and len(count) == at:
            do.set()

    handle = engine.model.unet.register_forward_pre_hook(hook)
    try:
        yield count
    finally:
        handle.remove()


def test_two_threads_draw_what_one_after_the_other_draws() -> None:
    """Oracle: equality with runs in sequence, of different requests on one engine."""
    requests = [
        replace(REQUEST, seed=seed, sampler=sampler, prompt=f"prompt {seed}")
        for seed, sampler in enumerate(["euler", "dpmpp_2m", "euler_ancestral", "heun"])
    ]
    alone = [engine().run(r).drawing.latents for r in requests]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda r: engine().run(r).drawing.latents, requests))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("at", [1, 2, 3, 8])
def test_a_token_stops_within_one_call(at: int) -> None:
    """Oracle: the count of network calls (8 in a whole run), and equality of the run after it."""
    token = threading.Event()
    with calls_of_the_unet(engine(), at, token) as calls, pytest.raises(Cancelled, match="unchanged"):
        engine().run(REQUEST, cancel=token)
    assert len(calls) == at
    assert torch.equal(engine().run(REQUEST).drawing.latents, expected())


def test_a_token_that_was_set_before_stops_everything() -> None:
    """Oracle: no network call at all."""
    token = threading.Event()
    token.set()
    with calls_of_the_unet(engine()) as calls, pytest.raises(Cancelled):
        engine().run(REQUEST, cancel=token)
    assert calls == []


def test_events_of_a_stream_in_order() -> None:
    """Oracle: one Progress a step, the previews asked for, the result last, equal to that of `run`."""
    events = list(engine().stream(REQUEST, preview_every=2))
    kinds = [type(e) for e in events]
    assert kinds == [Progress, Progress, Preview, Progress, Progress, Final]
    progress = [e for e in events if isinstance(e, Progress)]
    assert [(e.step, e.steps) for e in progress] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    sigmas = [e.sigma for e in progress]
    assert sigmas == sorted(sigmas, reverse=True)
    seconds = [e.seconds for e in progress]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert progress[0].left > 0 and progress[-1].left == 0.0
    final = events[-1]
    assert isinstance(final, Final)
    assert final.result.drawing.sigmas[:-1] == tuple(sigmas)
    assert torch.equal(final.result.drawing.latents, expected())
    assert "minisd-stream" not in names_of_threads()


def test_leaving_a_stream_early_cancels() -> None:
    """Oracle: the count of network calls, and no thread left."""
    with calls_of_the_unet(engine()) as calls:
        events = engine().stream(replace(REQUEST, steps=50))
        assert isinstance(next(events), Progress)
        events.close()  # type: ignore[attr-defined]  # what leaving a for loop does to a generator
        # the drawing may be two steps ahead: one event waits, one is being offered
        assert len(calls) < 2 * 6
    assert "minisd-stream" not in names_of_threads()
    assert torch.equal(engine().run(REQUEST).drawing.latents, expected())


def test_a_token_stops_a_stream() -> None:
    """Oracle: Cancelled in the caller's thread after the event at which the token was set."""
    token = threading.Event()
    seen = []
    with pytest.raises(Cancelled):
        for event in engine().stream(replace(REQUEST, steps=50), cancel=token):
            seen.append(event)
            token.set()
    assert 1 <= len(seen) <= 4
    assert "minisd-stream" not in names_of_threads()


def test_errors_of_a_stream_reach_the_caller() -> None:
    """Oracle: the error that `run` raises."""
    with pytest.raises(RequestError, match="clip_skip 9"):
        list(engine().stream(replace(REQUEST, clip_skip=9)))


def test_an_exception_in_a_listener_reaches_the_caller() -> None:
    """Oracle: the same object, and an engine that draws the same afterwards."""
    problem = KeyError("mine")

    def listen(event: Progress | Preview) -> None:
        raise problem

    with pytest.raises(KeyError) as caught:
        engine().run(REQUEST, on_event=listen)
    assert caught.value is problem
    assert torch.equal(engine().run(REQUEST).drawing.latents, expected())


@pytest.mark.parametrize(
    ("by", "name", "size"),
    [
        ("auto", "vae", (96, 64)),
        ("auto", "tiny", (192, 128)),
        ("vae", "vae", (96, 64)),
        ("linear", "linear", (24, 16)),
    ],
)
def test_previews_change_nothing(by: By, name: str, size: tuple[int, int]) -> None:
    """Oracle: equality with the run without; a small picture through the VAE, a whole one through TAESD, a
    pixel for each latent by the linear map. The other way round: what is shown is not always the same."""
    own = Engine(tiny_model("sd1", tiny_vae=name == "tiny"))
    large = replace(REQUEST, width=192, height=128, count=2)
    previews: list[Preview] = []

    def listen(event: Progress | Preview) -> None:
        if isinstance(event, Preview):
            previews.append(event)

    with_previews = own.run(large, on_event=listen, preview_every=1, preview=by, job="seven")
    assert [p.step for p in previews] == [1, 2, 3]  # after the last step comes the picture itself
    assert all((p.by, p.job, p.steps) == (name, "seven", 4) for p in previews)
    assert all(isinstance(i, Image.Image) and i.size == size for p in previews for i in p.images)
    assert all(len(p.images) == 2 for p in previews)
    assert len({i.tobytes() for p in previews for i in p.images}) == 6
    without = own.run(large)
    assert torch.equal(with_previews.drawing.latents, without.drawing.latents)
    assert with_previews.images == without.images


def test_a_preview_that_is_not_there() -> None:
    """Oracle: the names there are; the way to a tiny VAE."""
    for by, words in (("linaer", "did you mean 'linear'"), ("tiny", "tiny_vae=PATH")):
        with pytest.raises(RequestError, match=words) as caught:
            engine().run(REQUEST, on_event=lambda event: None, preview_every=1, preview=by)  # type: ignore[arg-type]
        assert caught.value.field == "preview"


def test_pace() -> None:
    """Oracle: by hand, with a clock that is set: the first step's long beginning does not count twice."""
    with pytest.MonkeyPatch.context() as patch:
        now = [100.0]
        patch.setattr("minisd.events.time.perf_counter", lambda: now[0])
        pace, told = Pace(), []
        for step, at in ((1, 110.0), (2, 112.0), (3, 114.0), (4, 116.0)):
            now[0] = at
            told.append(pace.times(step, 4))
    assert told == [(10.0, 30.0), (12.0, 4.0), (14.0, 2.0), (16.0, 0.0)]


def test_events_of_images_with_their_own_words_go_on() -> None:
    """Oracle: steps and times rise over both images, and the last step has nothing left."""
    own = replace(REQUEST, prompt="a {red|green|blue} cat", count=3)
    words = {r.prompt for r in engine().lists.written_out(own.for_model(engine().model.config, seed=0))}
    assert len(words) > 1, "images that say the same are drawn at once; take another seed"
    heard: list[Progress] = []
    engine().run(own, on_event=lambda e: heard.append(e) if isinstance(e, Progress) else None, job="x")
    assert [(e.step, e.steps, e.job) for e in heard] == [(n, 12, "x") for n in range(1, 13)]
    assert [e.seconds for e in heard] == sorted(e.seconds for e in heard)
    assert heard[-1].left == 0.0 and heard[5].left > 0.0


def test_numbers_that_are_not_finite_name_the_step() -> None:
    """Oracle: NaN from the third step on is found at step 3, and nothing is drawn; without it all is well."""
    own = Engine(tiny_model("sd1"))
    steps: list[int] = []

    def listen(event: Progress | Preview) -> None:
        steps.append(event.step)
        if event.step == 2:
            own.model.unet.out[2].bias.fill_(float("nan"))

    before = own.model.unet.out[2].bias.clone()
    with pytest.raises(NumericalError, match="after step 3 in torch.float32"):
        own.run(REQUEST, on_event=listen)
    assert steps == [1, 2]
    own.model.unet.out[2].bias.copy_(before)
    assert torch.equal(own.run(REQUEST).drawing.latents, expected())


@pytest.mark.parametrize("part,where", [("text", "step 1"), ("vae", "VAE gave pixels that are not finite")])
def test_bad_weights_elsewhere(part: str, where: str) -> None:
    """Oracle: NumericalError naming where it was found."""
    model = tiny_model("sd1")
    network = (
        model.vae.decoder.conv_out if part == "vae" else model.text_encoders[0].text_model.final_layer_norm
    )
    network.weight.fill_(float("nan"))
    with pytest.raises(NumericalError, match=where):
        Engine(model).run(REQUEST)


@pytest.mark.parametrize("name,what", [("sd1-ip2p", "edits a picture"), ("sd2-depth", "needs a depth map")])
def test_models_that_need_more_than_text(name: str, what: str) -> None:
    """Oracle: RequestError saying what is missing."""
    with pytest.raises(RequestError, match=what):
        Engine(tiny_model(name)).run(REQUEST)


def test_a_closed_engine_says_so() -> None:
    """Oracle: MinisdError that names the way out, from every door."""
    own = Engine(tiny_model("sd1"))
    with own as same:
        assert same is own
    for use in (lambda: own.run(REQUEST), lambda: own.plan, lambda: list(own.stream(REQUEST))):
        with pytest.raises(MinisdError, match="closed; load again"):
            use()
    own.close()  # twice is fine


def test_txt2img_takes_the_fields_of_a_request() -> None:
    """Oracle: equality with `run`, and the error of from_dict."""
    result = engine().txt2img("a cat", width=64, height=64, seed=5, steps=4, sampler="Euler", cfg_scale=7.5)
    assert torch.equal(result.drawing.latents, expected())
    with pytest.raises(RequestError, match="did you mean 'steps'"):
        engine().txt2img("a cat", stpes=4)


def test_nothing_global_changes() -> None:
    """Oracle: torch's generator, default dtype, threads and grad mode before and after a run."""

    def state() -> tuple[object, ...]:
        return (
            torch.get_rng_state().tolist(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
        )

    before = state()
    engine().run(replace(REQUEST, sampler="euler_ancestral"))
    assert state() == before

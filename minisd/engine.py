"""The public face: load a model once, draw with it as often as you like, from as many threads as you like.

    engine = minisd.load()                                   # the embedded model; or a path
    engine.txt2img("a red apple", seed=1).save("apple.png")

No global state, no network, no print. `stream` gives events while it draws; a cancel token stops within one
network call.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Unpack

from minisd import __version__
from minisd.control import REFERENCE
from minisd.control_nets import ControlNets
from minisd.errors import MinisdError
from minisd.events import CancelToken, Listener, Preview, Progress
from minisd.hashes import Stamp
from minisd.joined import draw_each
from minisd.loras import Loras, embeddings_from
from minisd.model import Model, load_model
from minisd.picture_prompt_nets import guests_of
from minisd.pipeline import Drawing, draw
from minisd.placement import Plan
from minisd.previews import By, Previews
from minisd.request import Request
from minisd.result import Beside, Result
from minisd.shortage import lowered, ran_out, shortage
from minisd.stream import Final, streamed
from minisd.text.choices import Wildcards
from minisd.text.lists import Styles
from minisd.text.written import Lists
from minisd.trail import Trail
from minisd.trust import Proof
from minisd.upscale import Upscalers
from minisd.wishes import Named

EMBEDDED = "emoji.safetensors"
REFINER_AT = 0.8  # of the run, as SDXL's authors hand over
EMBEDDED_TINY_VAE = "emoji_taesd.safetensors"


class Engine:
    """A loaded model. `close` (or leaving a `with` block) gives its memory back."""

    def __init__(
        self,
        model: Model,
        controls: Mapping[str, str | os.PathLike[str]] | None = None,
        loras: str | os.PathLike[str] | None = None,
        lists: Lists | None = None,
        upscalers: Mapping[str, str | os.PathLike[str]] | None = None,
    ) -> None:
        self._model: Model | None = model
        self._lock = threading.RLock()  # held while the model is exchanged
        self.lists = Lists() if lists is None else lists
        self.controls = ControlNets(controls)
        self.loras = Loras(loras)
        self.previews = Previews()
        self.upscalers = Upscalers(upscalers)

    @property
    def model(self) -> Model:
        with self._lock:
            if self._model is None:
                raise MinisdError("this engine is closed; load again")
            return self._model

    @property
    def plan(self) -> Plan:
        """Where the parts of the model live, in what precision, and why."""
        return self.model.plan

    def txt2img(self, prompt: str, **fields: object) -> Result:
        """Text to picture; `fields` are those of Request."""
        return self.run(Request.from_dict({"prompt": prompt, **fields}))

    def run(
        self,
        request: Request,
        *,
        on_event: Listener | None = None,
        cancel: CancelToken | None = None,
        preview_every: int = 0,
        preview: By = "auto",
        job: str = "",
        trail: Trail | None = None,
        refiner: Engine | None = None,
    ) -> Result:
        """Draw a request. on_event hears of every step, and every `preview_every` steps of a preview: "tiny",
        "vae" or "linear" (`previews.py`). job: a name that its events carry. `trail` notes what is passed
        through; Trail(keep=True) keeps the latents. refiner: an engine that takes over at the request's
        `refiner_at` (0.8 where it says nothing).

        Where memory runs out, and `offload` was not asked for by name, it draws once more from the beginning
        with the model one rung lower (`shortage.py`), which stays so; the plan and the receipt tell of it.

        Raises RequestError, Cancelled, NumericalError or PlanError (no memory); the engine is usable after
        any of them."""
        whole = request.for_model(self.model.config, seed=secrets.randbits(32))
        if refiner is not None and whole.refiner_at is None:
            whole = replace(whole, refiner_at=REFINER_AT)
        requests = self.lists.written_out(whole)
        wanted = on_event is not None and preview_every > 0

        def drawn(model: Model) -> Result:
            def draw_one(one: Request, listener: Listener | None, marks: Trail) -> Drawing:
                return draw(
                    model,
                    one,
                    on_event=listener,
                    cancel=cancel,
                    preview_every=preview_every,
                    preview=shown,
                    job=job,
                    trail=marks,
                    networks=self.controls.networks(one.controls, model),
                    guests=guests_of(one.picture_prompts, model, self.controls.path),
                    stages=self.loras.stages,
                    refiner=None if refiner is None else refiner.model,
                    upscaler=self.upscalers.of(one, str(model.unet_device)),
                )

            with nullcontext() if model.executor is None else model.executor.busy():
                shown = self.previews.by(preview, model) if wanted else None
                drawing = draw_each(requests, whole, draw_one, on_event=on_event, trail=trail)
            others = () if refiner is None else refiner.model.files
            beside = self.beside(whole)
            return Result(drawing, model.name, __version__, model.plan, model.files, others, beside)

        again = False
        while True:
            model = self.model
            plan = model.plan
            try:
                return drawn(model)
            except (RuntimeError, MemoryError) as error:
                said = shortage(error)
                if said is None:
                    raise
            if again:
                raise ran_out(plan, said)
            del model
            self._lower(plan, said)  # what the frames that failed had held is free by now
            again = True
            if trail is not None:
                trail.clear()

    def _lower(self, plan: Plan, said: str) -> None:
        """Put the model one rung lower in place of that of `plan`; drawings under way keep the old one."""
        with self._lock:
            model = self.model
            if model.plan is not plan:  # another thread has done it
                return
            again, words = model.again, model.embeddings
            if again is None:
                raise ran_out(plan, said)
            del model
            self._let_go()
            try:
                self._model = replace(lowered(again, plan, said), again=again, embeddings=words)
            except MinisdError:
                self._model = replace(again({}), again=again, embeddings=words)  # as it was
                raise

    def beside(self, request: Request) -> tuple[Beside, ...]:
        """The networks that a request names, as files."""
        acting = (u.model for u in request.controls if u.weight != 0.0)
        controls = [("control", name) for name in acting if name != REFERENCE]
        asked = [p for p in request.picture_prompts if p.weight != 0.0]
        prompts = [("picture_prompt", name) for p in asked for name in (p.model, p.encoder)]
        found = [(kind, name, self.controls.path(name)) for kind, name in [*controls, *prompts]]
        if (upscaler := self.upscalers.path(request.hires_upscaler)) is not None:
            found.append(("upscaler", request.hires_upscaler, Path(upscaler)))
        return tuple(Beside(kind, name, Stamp.of(path)) for kind, name, path in found)

    def stream(
        self,
        request: Request,
        *,
        cancel: CancelToken | None = None,
        preview_every: int = 0,
        preview: By = "auto",
        job: str = "",
    ) -> Iterator[Progress | Preview | Final]:
        """The events of `run` as they happen, the result last. Leaving the loop early cancels the drawing.

        Drawing happens in a thread of its own and waits while nobody takes its events.
        """

        def run(on_event: Listener, left: CancelToken) -> Result:
            return self.run(
                request,
                on_event=on_event,
                cancel=left,
                preview_every=preview_every,
                preview=preview,
                job=job,
            )

        return streamed(run, cancel, job)

    def close(self) -> None:
        """Let go of the weights. Drawings under way finish with theirs."""
        with self._lock:
            self._let_go()
        self.upscalers.clear()

    def _let_go(self) -> None:
        model, self._model = self._model, None
        if model is not None and model.executor is not None:
            model.executor.close()
        self.controls.clear()
        self.loras.clear()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def embedded_model() -> Path:
    """The model that ships inside: emoji, 128 x 128, trained by scripts/train_embedded.py."""
    return asset(EMBEDDED)


def asset(name: str) -> Path:
    return Path(str(resources.files("minisd").joinpath("assets", name)))


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    vae: str | os.PathLike[str] | None = None,
    text_encoder: str | os.PathLike[str] | None = None,
    text_encoder_2: str | os.PathLike[str] | None = None,
    tiny_vae: str | os.PathLike[str] | None = None,
    ema: bool | None = None,
    kernels: str = "auto",
    request: Request | None = None,
    controls: Mapping[str, str | os.PathLike[str]] | None = None,
    loras: str | os.PathLike[str] | None = None,
    embeddings: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | None = None,
    wildcards: str | os.PathLike[str] | Wildcards | None = None,
    styles: str | os.PathLike[str] | Styles | None = None,
    upscalers: Mapping[str, str | os.PathLike[str]] | None = None,
    sha256: str | None = None,
    signature: str | os.PathLike[str] | None = None,
    public_key: str | os.PathLike[str] | None = None,
    **named: Unpack[Named],
) -> Engine:
    """Load a checkpoint file, a diffusers folder, or (without a path) the embedded model.

    vae, text_encoder, text_encoder_2: files or folders whose part replaces the checkpoint's, or supplies
    what it lacks. tiny_vae: a TAESD for previews (None: the embedded model has its own). ema: take the EMA
    copy of the UNet (None: as the family's authors do). controls: {name: file} of control networks, IP-
    Adapters and image encoders that a Request may name; they are loaded when one does. loras: a folder of
    adapters that a Request or a prompt may name. embeddings: a folder of textual inversions, or {word:
    file}. wildcards: a folder of lists, or {name: lines}. styles: a table as CSV, or {name: Style}.
    upscalers: {name: file} of networks that `hires_upscaler` may name.
    request: what room is to be left for (None: a picture of the size the model was trained at). sha256:
    the file's, which it must have. signature, public_key: a bundle of model-signing over the file or folder,
    and the key that it must be by; both are held against it before a tensor is used (`trust.py`).
    named: what is not left to the plan, the fields of `Wishes` (device, dtype, memory="6GiB",
    offload="staged", vae_tile, ...). kernels: names for operations, and restructurings ("triton",
    "geglu=triton,fused_qkv,text_once"; `minisd kernels list`).
    Raises CheckpointError, PlanError.
    """
    if path is None and tiny_vae is None:
        tiny_vae = asset(EMBEDDED_TINY_VAE)
    model = load_model(
        embedded_model() if path is None else path,
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tiny_vae=tiny_vae,
        ema=ema,
        kernels=kernels,
        request=request,
        proof=Proof(sha256, signature, public_key),
        **named,
    )
    if embeddings is not None:
        model = replace(model, embeddings=embeddings_from(embeddings, model))
    return Engine(model, controls, loras, Lists.of(wildcards, styles), upscalers)

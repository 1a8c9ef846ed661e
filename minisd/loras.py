"""Adapters of an engine: found by name or path, applied to its model, and when in a run which of them act.

    engine = minisd.load("sd15.safetensors", loras="loras")
    engine.txt2img("a lighthouse <lora:film:0.8>")
    engine.txt2img("a lighthouse", loras=[{"name": "film", "weight": 0.8, "end": 0.5}])

A run over which the adapters change is divided into stages, each with a model of its own; a stage without
adapters has the loaded model itself, so that outside its steps an adapter changes no bit.
"""

from __future__ import annotations

import difflib
import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from minisd.adapters import Use, adapted
from minisd.blocks import read_blocks
from minisd.errors import CheckpointError, RequestError, listed, quoted
from minisd.lora_use import LoraUse
from minisd.model import Model
from minisd.request import Request
from minisd.text.embeddings import Embedding
from minisd.text.script import tags_of
from minisd.text.tokenizer import encode
from minisd.weights_loader.embedding_file import EmbeddingVectors, open_embedding
from minisd.weights_loader.lora_file import Adapter, open_adapter
from minisd.weights_loader.lora_names import spellings

SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin")
FILES, MODELS = 16, 2  # that stay in memory
TAGS = ("lora", "lyco")  # kinds of tag that name an adapter
TAG_NAMES = ("te", "unet", "lbw")  # arguments of one


@dataclass(frozen=True)
class Applied:
    """An adapter that acted in a run: for the account of a picture."""

    name: str
    sha256: str  # of the file's tensors
    weight: float
    report: str  # "applied 264/264 modules: ..."


@dataclass(frozen=True)
class Stages:
    """models: (last step, counted from 1; the model up to there)."""

    models: tuple[tuple[int, Model], ...]
    applied: tuple[Applied, ...] = ()


def files_in(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """{name: file} of a folder and those in it: names without suffix, with the folder where that is needed.

    Raises CheckpointError where it is no folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise CheckpointError(f"{quoted(folder)} is not a folder; give the one that holds the files")
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    short = [p.stem for p in found]
    named = {p.relative_to(root).with_suffix("").as_posix(): p for p in found}
    return named | {p.stem: p for p in found if short.count(p.stem) == 1}


def uses_of(request: Request) -> tuple[LoraUse, ...]:
    """The adapters of a request: its field, then the tags of its prompt, `<lora:name:te:unet:lbw=1,0,...>`,
    where one number counts for both. A tag names a file of the engine's folder, never a path."""
    tags = [t for t in tags_of(request) if t.kind.lower() in TAGS]
    uses = []
    for tag in tags:
        if unknown := [n for n, _ in tag.named if n not in TAG_NAMES] or list(tag.args[2:]):
            raise RequestError(
                f"the tag {quoted(tag)} says {listed(unknown)}; known are {', '.join(TAG_NAMES)}, and the "
                "field loras has more",
                field="prompt",
            )
        te = tag.number("te", 0, 1.0)
        blocks = read_blocks(dict(tag.named).get("lbw", ""), f"LoRA {quoted(tag.name)}")
        uses.append(LoraUse(tag.name, tag.number("unet", 1, te), te, blocks=blocks))
    return (*request.loras, *uses)


class Loras:
    """Adapter files by name, and models with them. Thread-safe; keeps a few of each."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self._names = {} if folder is None else files_in(folder)
        self._files: OrderedDict[tuple[str, int, int], Adapter] = OrderedDict()
        self._models: OrderedDict[tuple[object, ...], Model] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    def add(self, name: str, path: str | os.PathLike[str]) -> None:
        """From now on `name` means this file."""
        with self._lock:
            self._names[name] = Path(path)

    def path(self, use: LoraUse, *, paths: bool = True) -> Path:
        """The file that a use means. Raises RequestError for a name that is not known."""
        if use.name in self._names:
            return self._names[use.name]
        if paths and Path(use.name).suffix.lower() in SUFFIXES:
            return Path(use.name)
        near = difflib.get_close_matches(use.name, self._names, 3)
        hint = f"did you mean {listed(near)}" if near else f"known are {listed(sorted(self._names))}"
        if not self._names:
            hint = "the engine was given no folder of them"
        raise RequestError(f"there is no LoRA {quoted(use.name)}; {hint}", field="loras")

    def stages(self, model: Model, request: Request, steps: int) -> Stages:
        """The models of a run of `steps` steps. Raises RequestError, CheckpointError."""
        found: list[Use] = []
        named = len(request.loras)
        for index, use in enumerate(uses_of(request)):
            adapter = self._adapter(self.path(use, paths=index < named), model)
            if use.sha256 not in (None, adapter.sha256):
                raise RequestError(
                    f"the LoRA {quoted(use.name)} is another file than was asked for: its sha256 is "
                    f"{adapter.sha256}, not {use.sha256}",
                    field="loras",
                )
            found.append((adapter, use))
        if not found:
            return Stages(((steps, model),))
        models = tuple((end, self._model(model, uses)) for end, uses in divided(found, steps))
        applied = tuple(Applied(a.name, a.sha256, use.weight, a.report) for a, use in found)
        return Stages(models, applied)

    def _adapter(self, path: Path, model: Model) -> Adapter:
        try:
            stat = path.stat()
        except OSError as error:
            raise CheckpointError(
                f"cannot read the LoRA {quoted(path)}: {error.strerror or error}"
            ) from error
        key = (os.path.abspath(path), stat.st_size, stat.st_mtime_ns)
        with self._lock:  # held while reading: two threads that want one file read it once
            if key not in self._files:
                self._files[key] = open_adapter(path, spellings(model.config))
            self._files.move_to_end(key)
            while len(self._files) > FILES:
                self._files.popitem(last=False)
            return self._files[key]

    def _model(self, model: Model, uses: Sequence[Use]) -> Model:
        if not uses:
            return model
        plain = [(a.sha256, replace(u, name="any", start=0.0, end=1.0, sha256=None)) for a, u in uses]
        key = (id(model), *sorted(plain, key=repr))
        with self._lock:
            if key not in self._models:
                self._models[key] = with_bundled(adapted(model, uses), uses)
            self._models.move_to_end(key)
            while len(self._models) > MODELS:
                self._models.popitem(last=False)
            return self._models[key]

    def clear(self) -> None:
        """Let go of all files and models."""
        with self._lock:
            self._files.clear()
            self._models.clear()


def divided(uses: Sequence[Use], steps: int) -> list[tuple[int, tuple[Use, ...]]]:
    """(last step, uses that act up to there), steps counted from 1. A use acts in the step i, counted from 0,
    where start * steps <= i < end * steps."""
    out: list[tuple[int, tuple[Use, ...]]] = []
    for step in range(steps):
        acting = tuple(u for u in uses if u[1].start * steps <= step < u[1].end * steps)
        if out and out[-1][1] == acting:
            out[-1] = (step + 1, acting)
        else:
            out.append((step + 1, acting))
    return out


def with_bundled(model: Model, uses: Sequence[Use]) -> Model:
    """The model that also knows the words which came with its adapters."""
    words = [embedding_of(vectors, model) for adapter, _ in uses for vectors in adapter.embeddings]
    return replace(model, embeddings={**model.embeddings, **{w.name: w for w in words}}) if words else model


def embedding_of(read: EmbeddingVectors, model: Model) -> Embedding:
    """A learned word for the encoders of this model. Raises CheckpointError where a width fits none."""
    widths = {use.part: use.config.width for use in model.config.text}
    slots = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
    placed = {}
    for slot, vectors in meant_for(read, widths):
        width = vectors.shape[1]
        part = slots.get(slot) if slot is not None else None
        part = part or next((p for p, w in widths.items() if w == width), None)
        if part is None or widths.get(part) != width:
            raise CheckpointError(
                f"the embedding {quoted(read.name)} has vectors of width {width}; {quoted(model.name)} takes "
                f"{listed([str(w) for w in widths.values()])}"
            )
        own = model.plan.part(part)  # not the table's device: it may be away
        placed[part] = vectors.to(own.device, own.dtype.value)
    return Embedding(read.name, placed)


def embeddings_from(
    source: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]], model: Model
) -> dict[str, Embedding]:
    """The learned words of a folder, called as the files are, or of {name: file}. Files for other models are
    left out of a folder. Raises CheckpointError, also for a file of a folder that is called as an ordinary
    word: it would take that word's place in every prompt."""
    if isinstance(source, Mapping):
        return {n: replace(embedding_of(open_embedding(p), model), name=n) for n, p in source.items()}
    out = {}
    for name, path in files_in(source).items():
        if "/" not in name:
            read = open_embedding(path)
            if fits(read, model):
                if len(encode(name)) == 1:
                    raise CheckpointError(
                        f"the embedding {quoted(name)} is called as a word of the vocabulary, whose place it "
                        "would take in every prompt; rename the file, or name it yourself: {word: file}"
                    )
                out[name] = embedding_of(read, model)
    return out


def fits(read: EmbeddingVectors, model: Model) -> bool:
    """Whether every width is one of the model's."""
    widths = {use.part: use.config.width for use in model.config.text}
    meant = meant_for(read, widths)
    return bool(meant) and all(vectors.shape[1] in widths.values() for _, vectors in meant)


def meant_for(read: EmbeddingVectors, parts: Collection[str]) -> list[tuple[str | None, Tensor]]:
    """The vectors that count for a model with these encoders: SDXL's refiner has the second alone, and takes
    its half of a pair."""
    return [(slot, v) for slot, v in read.vectors if slot != "clip_l" or "text_encoder" in parts]

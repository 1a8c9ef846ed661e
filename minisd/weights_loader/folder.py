"""A model folder in diffusers layout as one TensorSource: names start with the sub-folder
(`unet/conv_in.weight`).

The small JSON files (scheduler, configs) come along as metadata under their relative paths. Only the
sub-folders and file names below are ever opened; model_index.json is not needed and names no path that is
followed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minisd.errors import CheckpointError, quoted
from minisd.quantise.schemes import Form
from minisd.weights_loader.config_json import KEY
from minisd.weights_loader.open import open_source
from minisd.weights_loader.prediction import SCHEDULER
from minisd.weights_loader.quantised import StoredSource
from minisd.weights_loader.source import TensorInfo, TensorSource

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
CONFIG_FILE = "minisd.config.json"  # what metadata minisd.config is to a file
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
MAX_JSON = 1_000_000


class FolderSource:
    """The parts of a folder. `variant` asks for files such as `model.fp16.safetensors`; without it plain
    files come first, and a variant is taken where it is all there is.

    Raises CheckpointError if the folder holds no part, or a file of it cannot be read.
    """

    container = "diffusers folder"

    def __init__(self, path: str | os.PathLike[str], variant: str | None = None) -> None:
        self.path = Path(path)
        self._sources: dict[str, TensorSource] = {}
        self.files: dict[str, Path] = {}  # by part: what was opened
        metadata: dict[str, str] = {}
        tensors: dict[str, TensorInfo] = {}
        try:
            for part in self._parts():
                file = weights_file(self.path / part, variant)
                source = self._sources[part] = open_source(file)
                self.files[part] = file
                prefix = f"{part}/" if part else ""
                for name, info in source.tensors.items():
                    tensors[prefix + name] = replace(info, name=prefix + name)
                for key, value in source.metadata.items():
                    metadata.setdefault(key, value)
                add_json(metadata, f"{prefix}config.json", self.path)
        except BaseException:
            self.close()
            raise
        add_json(metadata, SCHEDULER, self.path)
        if text := _json(self.path / CONFIG_FILE):
            metadata[KEY] = text
        self.tensors: Mapping[str, TensorInfo] = tensors
        self.metadata: Mapping[str, str] = metadata

    def _parts(self) -> list[str]:
        parts = [p for p in PARTS if (self.path / p).is_dir()]
        if parts:
            return parts
        if _weights(self.path, None):
            return [""]  # the folder of a single part
        raise CheckpointError(
            f"{quoted(self.path.name)} is a folder without {', '.join(PARTS)} or weights of one; "
            "give a checkpoint file or a folder in diffusers layout"
        )

    def read(self, name: str, *, dtype: torch.dtype | None = None) -> Tensor:
        """As any TensorSource."""
        part, slash, rest = name.partition("/")
        if slash:
            return self._sources[part].read(rest, dtype=dtype)
        return self._sources[""].read(name, dtype=dtype)

    def stored(self, name: str) -> Form:
        """As `quantised.StoredSource`."""
        part, slash, rest = name.partition("/")
        source = self._sources[part] if slash else self._sources[""]
        assert isinstance(source, StoredSource), "only such a file has a QuantisedInfo"
        return source.stored(rest if slash else name)

    def close(self) -> None:
        for source in self._sources.values():
            source.close()


def add_json(metadata: dict[str, str], name: str, folder: Path) -> None:
    """Puts the text of a JSON file under its relative path, if it is there."""
    text = _json(folder / name)
    if text is not None:
        metadata[name] = text


def _json(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(
                f"{quoted(path.name)} has over {MAX_JSON:,} bytes; a config takes a few thousand"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{quoted(path.name)} cannot be read: {quoted(error)}") from error


def weights_file(folder: Path, variant: str | None) -> Path:
    """The weights of one part: the wanted variant, else the plain file, else the only variant; safetensors
    before pickles.

    Raises CheckpointError if there is none, or only several variants and none was asked for.
    """
    found = _weights(folder, variant)
    if not found:
        asked = f" in variant {quoted(variant)}" if variant else ""
        raise CheckpointError(
            f"the folder {quoted(folder.name)} holds no weights{asked}; expected {STEMS[0]}.safetensors or "
            f"{STEMS[1]}.safetensors, an index of shards, or a .bin file"
        )
    best = found[0][0]
    chosen = [path for rank, path in found if rank == best]
    if len(chosen) > 1:
        shown = ", ".join(quoted(p.name) for p in chosen)
        raise CheckpointError(f"the folder {quoted(folder.name)} holds {shown}; ask for one variant")
    return chosen[0]


Rank = tuple[int, int, int]


def _weights(folder: Path, variant: str | None) -> list[tuple[Rank, Path]]:
    """(rank, path) of every weights file of the folder, best first: by variant, then container, then whole
    before shards."""
    if not folder.is_dir():
        return []
    found: list[tuple[Rank, Path]] = []
    for path in sorted(folder.iterdir()):
        name = path.name
        for stem in STEMS:
            if not name.startswith(stem + "."):
                continue
            rest = name[len(stem) + 1 :].split(".")
            sharded = "index" in rest and rest[-1] == "json"
            kind = "safetensors" if "safetensors" in rest else "bin" if "bin" in rest else None
            if kind is None or (not sharded and rest[-1] != kind):
                continue
            extra = [r for r in rest if r not in ("index", "json", kind)]  # the variant, wherever it stands
            if any("-of-" in r for r in extra) or len(extra) > 1:
                continue  # a shard, which its index names
            this = extra[0] if extra else None
            if variant is not None and this != variant:
                continue  # asked for by name: nothing else will do
            order = (0 if this == variant else 1, 0 if kind == "safetensors" else 1, 1 if sharded else 0)
            found.append((order, path))
    return sorted(found, key=lambda pair: pair[0])

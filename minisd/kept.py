"""Drawings kept in a folder under a key of all that decides their pixels, so that none is drawn twice.

A key is a sha256 over the request as it is drawn (words written out, pictures by content), the digests of
every file that draws, the plan and the version. A drawing counts as there only if its files are whole: record
and pixels as they were when they were written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from PIL import Image

from minisd import __version__
from minisd.engine import Engine
from minisd.errors import ImageError
from minisd.events import CancelToken, Listener
from minisd.hashes import Stamp
from minisd.loras import uses_of
from minisd.metadata import read_pixels
from minisd.picture import digest
from minisd.receipt import canonical, named, plan_facts
from minisd.request import Request
from minisd.request_rules import SEEDS
from minisd.trail import digest_all
from minisd.verify import integrity, record_of

DIGITS = 32  # of a key


@dataclass(frozen=True)
class Kept:
    """A drawing and its files. requests: of each picture alone, as drawn, plain data; pixels: the digests of
    the pictures; seconds: spent now, 0 for what was there."""

    key: str
    images: tuple[Image.Image, ...]
    requests: tuple[dict[str, object], ...]
    pixels: tuple[str, ...]
    paths: tuple[Path, ...] = ()
    seconds: float = 0.0


class Keeper:
    """Draws with one engine into one folder; without a folder nothing is kept, and nothing found."""

    def __init__(
        self, engine: Engine, folder: str | os.PathLike[str] | None = None, *, refiner: Engine | None = None
    ) -> None:
        self.engine, self.refiner = engine, refiner
        self.folder = None if folder is None else Path(folder)
        words = engine.model.embeddings
        self._facts: dict[str, object] = {
            "minisd": __version__,
            "files": named(engine.model.files),
            "plan": plan_facts(engine.plan),
            "refiner": None if refiner is None else [named(refiner.model.files), plan_facts(refiner.plan)],
            "embeddings": {name: digest_all(dict(word.vectors)) for name, word in sorted(words.items())},
        }

    def key(self, request: Request, nth: int = 0) -> str:
        """nth: which of equal requests without a seed this is; each of them is a drawing of its own. Raises
        RequestError for what cannot be drawn with this model."""
        engine = self.engine
        whole = request.for_model(engine.model.config, seed=0)
        said = engine.lists.written_out(whole)
        uses = [(use, use in request.loras) for r in said for use in uses_of(r)]
        loras = {use.name: engine.loras.path(use, paths=paths) for use, paths in uses}
        facts = self._facts | {
            "request": [r.to_dict() for r in said],
            "seed": nth if request.seed is None else "given",
            "loras": {name: Stamp.of(path).sha256() for name, path in sorted(loras.items())},
            "beside": [[b.kind, b.name, b.file.sha256()] for b in engine.beside(whole)],
        }
        text = canonical(json.loads(json.dumps(facts)))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]

    def find(self, key: str, count: int) -> Kept | None:
        """A drawing that is there, whole; None for one that is not."""
        if self.folder is None:
            return None
        first = self.folder / f"{key}.png"
        paths = [first] if count == 1 else [first.with_stem(f"{key}-{i + 1}") for i in range(count)]
        if not all(path.is_file() for path in paths):
            return None
        try:
            records = [record_of(path) for path in paths]
            whole = all(integrity(p, r) is None for p, r in zip(paths, records, strict=True))
            images = tuple(read_pixels(path) for path in paths)
        except ImageError:
            return None
        requests = tuple(cast(dict[str, object], r["request"]) for r in records)
        if not whole or not one_drawing(requests):
            return None
        return Kept(key, images, requests, tuple(digest(image) for image in images), tuple(paths))

    def draw(
        self,
        request: Request,
        key: str,
        *,
        on_event: Listener | None = None,
        cancel: CancelToken | None = None,
    ) -> Kept:
        """Draw and keep. Raises what `Engine.run` and `Result.save` raise; then no file is left."""
        result = self.engine.run(request, on_event=on_event, cancel=cancel, refiner=self.refiner, job=key)
        paths = [] if self.folder is None else result.save(self.folder / f"{key}.png")
        requests = tuple(result.drawing.alone(i).to_dict() for i in range(len(result.images)))
        pixels = tuple(digest(image) for image in result.images)
        spent = sum(result.drawing.seconds.values())
        return Kept(key, result.images, requests, pixels, tuple(paths), spent)


def one_drawing(requests: Sequence[Mapping[str, object]]) -> bool:
    """Whether pictures are of one drawing: their seeds, or those of their variations, follow each other."""
    varied = cast(float, requests[0].get("variation_strength", 0.0)) > 0
    seeds = [cast(int, r["variation_seed" if varied else "seed"]) for r in requests]
    return all(seed == (seeds[0] + i) % SEEDS for i, seed in enumerate(seeds))

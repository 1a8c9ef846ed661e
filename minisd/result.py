"""Result: the pictures of a request, what made them, and how they are kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from minisd.atomic import Exists, write_bytes
from minisd.hashes import SHORT, Stamp
from minisd.infotext import parameters
from minisd.metadata import check_target, encoded, format_of, room_for_record
from minisd.pipeline import Drawing
from minisd.placement import Plan
from minisd.receipt import json_text, named, receipt, sealed
from minisd.request import Request
from minisd.sidecar import placed, sidecar_path
from minisd.spot import write_answers
from minisd.trail import digest_all

if TYPE_CHECKING:
    from minisd.credentials import Credentials
    from minisd.signing import SigningKey


@dataclass(frozen=True)
class Beside:
    """A file that drew beside the model. kind: "control", "picture_prompt"; name: as the request has it."""

    kind: str
    name: str
    file: Stamp


@dataclass(frozen=True)
class Result:
    """The pictures of a request and how they came to be. files: those of the model, refiner: those of the one
    that took over, beside: further ones; all for the receipt."""

    drawing: Drawing
    model: str
    version: str
    plan: Plan
    files: Sequence[Stamp] = ()
    refiner: Sequence[Stamp] = ()
    beside: Sequence[Beside] = ()

    @property
    def images(self) -> tuple[Image.Image, ...]:
        return self.drawing.images

    @property
    def image(self) -> Image.Image:
        """The first picture."""
        return self.images[0]

    @property
    def request(self) -> Request:
        """The request with everything decided, the seed among it."""
        return self.drawing.request

    def parameters(self, index: int = 0) -> str:
        """The community's `parameters` text of picture `index`."""
        seed = self.request.seeds()[index]
        sha256 = self.files[0].sha256() if self.files else None
        loras = tuple((a.name, a.sha256) for a in self.drawing.applied)
        return parameters(
            self.drawing.alone(index),
            self.drawing.schedule,
            seed,
            self.model,
            self.version,
            None if sha256 is None else sha256[:SHORT],
            loras,
            tuple((name, sha) for name, sha in self.words()),
            refiner=None if not self.refiner else self.refiner[0].path.stem,
        )

    def words(self) -> list[tuple[str, str]]:
        """(name, sha256 of its vectors) of the learned words that prompts made use of."""
        cuts = [c for a in self.drawing.accounts for c in (a.first, a.second) if c is not None]
        learned = {i.embedding.name: i.embedding for c in cuts for k in c.chunks for i in k.learned}
        return [(name, digest_all(dict(word.vectors))) for name, word in sorted(learned.items())]

    def record(self, index: int = 0, *, key: SigningKey | None = None) -> dict[str, object]:
        """Our own account of picture `index`, as plain data: a Request that draws just this picture, what it
        met, and the receipt; signed, with a key. Reads the model's files once, for their digests."""
        drawing = self.drawing
        made = receipt(
            drawing.images[index], index, drawing.trail.settle(), self.files, self.plan, self.version
        )
        files = [{"kind": b.kind, "name": b.name, "sha256": b.file.sha256()} for b in self.beside]
        words = [{"kind": "embedding", "name": name, "sha256": sha} for name, sha in self.words()]
        record = sealed(
            {
                "minisd": self.version,
                "model": self.model,
                "request": drawing.alone(index).to_dict(),
                "schedule": drawing.schedule,
                "sigmas": list(drawing.sigmas),
                "tokens": {"prompt": drawing.tokens[0], "read": drawing.tokens[1]},
                "prompts": [account.to_dict() for account in drawing.accounts],
                "adapters": [asdict(a) for a in drawing.applied],
                "beside": [*files, *words],
                "seconds": {k: round(v, 3) for k, v in drawing.seconds.items()},
                "receipt": made | {"refiner": named(self.refiner)},
            }
        )
        return record if key is None else key.signed(record)

    def texts(self, index: int = 0) -> dict[str, str]:
        """Both accounts of picture `index`, whole."""
        return {"parameters": self.parameters(index), "minisd": json_text(self.record(index))}

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        quality: int = 95,
        exists: Exists = "replace",
        key: SigningKey | None = None,
        credentials: Credentials | None = None,
    ) -> list[Path]:
        """Write the pictures with both accounts inside, in the format of the name: .png, .jpg, .webp, .avif.
        Several become name-1.png, name-2.png, ... A record above 64 KiB goes to name.png.json, and the
        answers of a run that listened to them (Trail(listen=True)) to name.png.steps.safetensors.

        quality: 1..100, of formats that lose something. exists: what to do where the name is taken: the next
        free number, replace, or refuse. key: signs the record. credentials: writes a C2PA manifest. Raises
        RequestError, ImageError, MinisdError.
        """
        target = Path(path)
        check_target(target, len(self.request.prompt) + len(self.request.negative_prompt))
        paths = []
        for index, image in enumerate(self.images):
            name = target if len(self.images) == 1 else target.with_stem(f"{target.stem}-{index + 1}")
            record, text, format = self.record(index, key=key), self.parameters(index), format_of(name)
            inside, beside = placed(record, room_for_record(format, text))
            data = encoded(image, format, {"parameters": text, "minisd": inside}, quality)
            if credentials is not None:
                data = credentials.embedded(data, format, record)
            written = write_bytes(data, name, exists=exists)
            try:
                if beside is not None:
                    write_bytes(beside, sidecar_path(written))
                if self.drawing.trail.listen:
                    write_answers(self.drawing.trail.answers, index, written)
            except BaseException:
                written.unlink(missing_ok=True)  # no picture without what belongs to it
                raise
            paths.append(written)
        return paths

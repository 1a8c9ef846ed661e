"""Result: the pictures of a request, what made them, and how they are kept."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from minisd.atomic import Exists
from minisd.hashes import SHORT, file_sha256
from minisd.infotext import parameters
from minisd.metadata import check_target, write_picture
from minisd.pipeline import Drawing
from minisd.placement import Plan
from minisd.receipt import receipt, sealed
from minisd.request import Request


@dataclass(frozen=True)
class Result:
    """The pictures of a request and how they came to be. files: those of the model, for the receipt."""

    drawing: Drawing
    model: str
    version: str
    plan: Plan
    files: Sequence[Path] = ()

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
        short = file_sha256(self.files[0])[:SHORT] if self.files else None
        loras = tuple((a.name, a.sha256) for a in self.drawing.applied)
        one = self.drawing.alone(index)
        return parameters(one, self.drawing.schedule, seed, self.model, self.version, short, loras)

    def record(self, index: int = 0) -> dict[str, object]:
        """Our own account of picture `index`, as plain data: a Request that draws just this picture, what it
        met, and the receipt. Reads the model's files once, for their digests."""
        drawing = self.drawing
        return sealed(
            {
                "minisd": self.version,
                "model": self.model,
                "request": drawing.alone(index).to_dict(),
                "schedule": drawing.schedule,
                "sigmas": list(drawing.sigmas),
                "tokens": {"prompt": drawing.tokens[0], "read": drawing.tokens[1]},
                "prompts": [account.to_dict() for account in drawing.accounts],
                "adapters": [asdict(a) for a in drawing.applied],
                "seconds": {k: round(v, 3) for k, v in drawing.seconds.items()},
                "receipt": receipt(
                    drawing.images[index], index, drawing.trail.settle(), self.files, self.plan, self.version
                ),
            }
        )

    def texts(self, index: int = 0) -> dict[str, str]:
        """Both accounts of picture `index`, as files carry them."""
        record = json.dumps(self.record(index), ensure_ascii=False, sort_keys=True)
        return {"parameters": self.parameters(index), "minisd": record}

    def save(
        self, path: str | os.PathLike[str], *, quality: int = 95, exists: Exists = "replace"
    ) -> list[Path]:
        """Write the pictures with both accounts inside, in the format of the name: .png, .jpg, .webp, .avif.
        Several become name-1.png, name-2.png, ...

        quality: 1..100, of formats that lose something. exists: what to do where the name is taken: the next
        free number, replace, or refuse. Raises RequestError, ImageError.
        """
        target = Path(path)
        check_target(target, len(self.request.prompt) + len(self.request.negative_prompt))
        paths = []
        for index, image in enumerate(self.images):
            name = target if len(self.images) == 1 else target.with_stem(f"{target.stem}-{index + 1}")
            paths.append(write_picture(image, name, self.texts(index), quality=quality, exists=exists))
        return paths

"""Result: the pictures of a request, what made them, and how they are kept."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from minisd.errors import RequestError
from minisd.images import save_png
from minisd.infotext import parameters
from minisd.pipeline import Drawing
from minisd.request import Request


@dataclass(frozen=True)
class Result:
    """The pictures of a request and how they came to be."""

    drawing: Drawing
    model: str
    version: str

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
        return parameters(self.request, self.drawing.schedule, seed, self.model, self.version)

    def record(self, index: int = 0) -> dict[str, object]:
        """Our own account of picture `index`, as plain data: a Request that draws just this picture, and what
        it met."""
        seed = self.request.seeds()[index]
        return {
            "minisd": self.version,
            "model": self.model,
            "request": self.request.to_dict() | {"seed": seed, "count": 1},
            "schedule": self.drawing.schedule,
            "sigmas": list(self.drawing.sigmas),
            "tokens": {"prompt": self.drawing.tokens[0], "read": self.drawing.tokens[1]},
            "adapters": [asdict(a) for a in self.drawing.applied],
            "seconds": {k: round(v, 3) for k, v in self.drawing.seconds.items()},
        }

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write the pictures as PNG with both accounts inside. Several become name-1.png, name-2.png, ..."""
        target = Path(path)
        if target.suffix.lower() != ".png":
            raise RequestError(
                f"pictures are written as PNG; {target.name!r} should end in .png", field="output"
            )
        paths = []
        for index, image in enumerate(self.images):
            name = target if len(self.images) == 1 else target.with_stem(f"{target.stem}-{index + 1}")
            record = json.dumps(self.record(index), ensure_ascii=False, sort_keys=True)
            paths.append(save_png(image, name, {"parameters": self.parameters(index), "minisd": record}))
        return paths

"""Picture: an image as part of a Request: frozen, equal by content, read with bounds.

Only PNG, JPEG and WebP are decoded, one frame, after the header has said how large it is. EXIF orientation
is applied, 16-bit grey is scaled to 8 bits, palettes and CMYK become RGB, and transparency is laid on white;
read as a mask, a picture that is transparent anywhere is its alpha. Colour profiles are ignored. Nothing is
ever fetched.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from minisd.errors import ImageError, quoted

if TYPE_CHECKING:  # Pillow is imported when there is a picture to read
    from PIL import Image

MAX_BYTES = 20_000_000  # of a file
MAX_SIDE = 8192
MAX_PIXELS = 4096 * 4096
FORMATS = ("PNG", "JPEG", "WEBP")
DATA_URL = re.compile(r"data:image/(png|jpeg|webp);base64,")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True, eq=False)
class Picture:
    """An 8-bit RGB or L image. sha256: of its mode, size and pixels; two pictures are equal if it is."""

    image: Image.Image
    sha256: str = field(default="")

    def __post_init__(self) -> None:
        if self.image.mode not in ("RGB", "L"):
            raise ImageError(f"a Picture holds RGB or L, got mode {self.image.mode}; use Picture.of")
        object.__setattr__(self, "sha256", digest(self.image))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"Picture({self.width} x {self.height} {self.image.mode}, {self.sha256[:12]})"

    @property
    def width(self) -> int:
        return self.image.width

    @property
    def height(self) -> int:
        return self.image.height

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.image.size

    @classmethod
    def of(cls, source: Source, *, mask: bool = False) -> Picture:
        """From a path, the bytes of a file, an image of Pillow's, or a Picture. mask: as L; 0 keeps, 255
        draws anew. Raises ImageError."""
        from PIL import Image

        if isinstance(source, Picture):
            return source if not mask or source.image.mode == "L" else cls(source.image.convert("L"))
        if isinstance(source, Image.Image):
            check_size(source.width, source.height)
            return cls(flattened(source, mask=mask))
        if isinstance(source, bytes):
            return cls(flattened(decoded(source), mask=mask))
        if isinstance(source, str | os.PathLike):
            return cls(flattened(decoded(file_bytes(source)), mask=mask))
        raise ImageError(f"a picture is a path, bytes, a PIL image or a Picture, got {type(source).__name__}")

    @classmethod
    def from_plain(
        cls,
        value: object,
        *,
        mask: bool = False,
        paths: bool = True,
        known: Mapping[str, Picture] | None = None,
    ) -> Picture:
        """From what JSON holds: {"path": ...}, {"data": base64 or a data URL}, or {"sha256": ...} of one
        that `known` holds by its digest. paths False: refuse to open files. Raises ImageError."""
        from PIL import Image

        if isinstance(value, Mapping):
            if isinstance(value.get("data"), str):
                return cls.of(from_base64(value["data"]), mask=mask)
            if isinstance(value.get("path"), str):
                value = value["path"]
            elif isinstance(value.get("sha256"), str):
                found = (known or {}).get(value["sha256"])
                if found is None:
                    raise ImageError(
                        f"a record names a picture by its sha256 {quoted(value['sha256'][:64])} but does not "
                        "hold it; give the picture itself"
                    )
                return cls.of(found, mask=mask)
            else:
                raise ImageError('a picture in JSON is {"path": ...} or {"data": base64}')
        if isinstance(value, str | os.PathLike) and not paths:
            raise ImageError('pictures are taken as {"data": base64} here, not by path')
        if isinstance(value, str | os.PathLike | bytes | Image.Image | Picture):
            return cls.of(value, mask=mask)
        raise ImageError(
            f'a picture in JSON is {{"path": ...}} or {{"data": base64}}, got {type(value).__name__}'
        )

    def to_dict(self) -> dict[str, object]:
        """What a record says of it: digest and size, not the pixels."""
        return {"sha256": self.sha256, "width": self.width, "height": self.height}


Source: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | Picture"


def digest(image: Image.Image) -> str:
    """sha256 of mode, size and pixels."""
    head = f"{image.mode} {image.width} {image.height}\n".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()


def check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ImageError("the picture has no pixels")
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise ImageError(
            f"the picture has {width} x {height} pixels; at most {MAX_SIDE} on a side and {MAX_PIXELS:,} in "
            "all are read. Scale it down"
        )


def file_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file, no more than MAX_BYTES."""
    name = os.fspath(path)
    if SCHEME.match(name) or name.startswith("\\\\"):
        raise ImageError(f"{quoted(name)} is an address, not a file; minisd fetches nothing. Save it first")
    try:
        if not Path(name).is_file():
            raise ImageError(f"there is no picture at {quoted(name)}; check the path")
        with open(name, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(f"cannot read the picture {quoted(name)}: {what}") from error
    return data


def from_base64(text: str) -> bytes:
    """The bytes behind base64 or a data URL of PNG, JPEG or WebP, strictly."""
    found = DATA_URL.match(text)
    if found is None and text[:5].lower() == "data:":
        head = text[: text.find(",")] if "," in text[:100] else text[:40]
        raise ImageError(f"a data URL must begin data:image/png;base64, (or jpeg, webp), got {quoted(head)}")
    body = text[found.end() :] if found else text
    if len(body) > MAX_BYTES * 4 // 3 + 4:
        raise ImageError(f"the picture has more than {MAX_BYTES:,} bytes; at most so many are read")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"the picture is not valid base64: {error}") from error


def decoded(data: bytes) -> Image.Image:
    """A loaded image, whatever its mode, upright. Raises ImageError for all that is not one picture."""
    from PIL import Image, ImageOps

    if len(data) > MAX_BYTES:
        raise ImageError(f"the picture has more than {MAX_BYTES:,} bytes; at most so many are read")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_size(*image.size)
        if getattr(image, "n_frames", 1) > 1:
            raise ImageError("the picture is animated; save the frame you mean by itself")
        image.load()
        return ImageOps.exif_transpose(image)
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError("the data is not a PNG, JPEG or WebP picture; save it as one of these") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"the picture has more than {MAX_PIXELS:,} pixels; scale it down") from error
    except (OSError, ValueError, SyntaxError, IndexError, KeyError, OverflowError, EOFError) as error:
        # Pillow's decoders report a broken file as any of these
        raise ImageError(f"the picture is damaged: {quoted(error)}; save it again") from error


def flattened(image: Image.Image, *, mask: bool = False) -> Image.Image:
    """An 8-bit RGB image (a mask: L) of any mode of Pillow's that has 8 or 16 bits or a palette."""
    from PIL import Image

    image = eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if mask and alpha.getextrema() != (255, 255):
            return alpha
        # on white; an opaque picture is left as it is, bit for bit
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=alpha)
        image = white
    return image.convert("L" if mask else "RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits (Pillow's own conversion clips it); other modes as they are."""
    if image.mode.startswith("I"):
        wide = image.convert("I")
        low, high = wide.getextrema()
        if not 0 <= float(low) <= float(high) <= 65535:  # type: ignore[arg-type]  # two numbers for one band
            raise ImageError(f"a grey picture holds values {low}..{high}; 0..65535 are read")
        return wide.point(lambda v: v * (1 / 257) + 0.5).convert("L")  # truncates: rounded by the half
    if image.mode == "F":
        raise ImageError("a picture of floating-point numbers has no white; convert it to 8 bits")
    return image

"""Oracle: pixels by hand; files that are too large, damaged, of other formats or somewhere else.

Rows of the fault table: F23 to F29. Sockets are blocked in all tests.
"""

from __future__ import annotations

import base64
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from minisd.errors import ImageError, RequestError
from minisd.picture import MAX_BYTES, Picture, from_base64
from minisd.request import Request


def file_of(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, data: bytes = b"") -> bytes:
    """A PNG with this size in its header and nearly nothing behind it."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", data or zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + body + chunk(b"IEND", b"")


GOOD = file_of(Image.new("RGB", (16, 8), (10, 20, 30)))
BOMB = zlib.compress(b"\0" * 50_000_000)
REFUSED = {
    "F23 pixels": (png(20_000, 20_000), r"20000 x 20000 pixels|more than 16,777,216 pixels"),
    "F23 side": (png(8193, 1), "at most 8192 on a side"),
    "F23 header of 2^31": (png(2**31 - 1, 2**31 - 1), "pixels"),
    "F23 bytes": (GOOD + bytes(MAX_BYTES), "more than 20,000,000 bytes"),
    "F24 truncated": (GOOD[:-30], "damaged"),
    "F24 checksum": (GOOD[:-20] + bytes([GOOD[-20] ^ 1]) + GOOD[-19:], "damaged"),
    "F24 empty": (b"", "not a PNG, JPEG or WebP"),
    "F24 html": (b"<!doctype html><html>404</html>", "not a PNG, JPEG or WebP"),
    "F24 svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a PNG, JPEG or WebP"),
    "F24 eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a PNG, JPEG or WebP"),
    "F24 fits": (b"SIMPLE  =                    T" + b" " * 2850, "not a PNG, JPEG or WebP"),
    "F24 psd": (b"8BPS\0\1" + bytes(6) + b"\0\3" + bytes(60), "not a PNG, JPEG or WebP"),
    "F24 gif": (file_of(Image.new("P", (8, 8)), "GIF"), "not a PNG, JPEG or WebP"),
    "F24 bmp": (file_of(Image.new("RGB", (8, 8)), "BMP"), "not a PNG, JPEG or WebP"),
    "F24 tiff": (file_of(Image.new("RGB", (8, 8)), "TIFF"), "not a PNG, JPEG or WebP"),
    "F24 apng": (
        file_of(Image.new("L", (8, 8)), save_all=True, append_images=[Image.new("L", (8, 8), 9)]),
        "animated",
    ),
    "F24 webp of two frames": (
        file_of(Image.new("L", (8, 8)), "WEBP", save_all=True, append_images=[Image.new("L", (8, 8), 90)]),
        "animated",
    ),
    "F25 zTXt": (png(4, 4, chunk(b"zTXt", b"a\0\0" + BOMB)), "damaged|bytes|text"),
    "F25 iTXt": (png(4, 4, chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)), "damaged|bytes|text"),
    "F25 iCCP": (png(4, 4, chunk(b"iCCP", b"a\0\0" + BOMB)), "damaged|bytes|text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    """F23, F24, F25: ImageError of one line that says what is wrong; by a Request, its field."""
    data, words = REFUSED[case]
    with pytest.raises(ImageError, match=words) as caught:
        Picture.of(data)
    assert "\n" not in str(caught.value)
    with pytest.raises(RequestError) as told:
        Request.from_dict({"image": {"data": base64.b64encode(data).decode()}})
    assert told.value.field == "image"


MEMORY = """
import resource, sys
from minisd.errors import ImageError
from minisd.picture import Picture
from PIL import Image, PngImagePlugin, JpegImagePlugin
data = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    Picture.of(data)
except ImageError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("case", ["F23 pixels", "F23 header of 2^31", "F25 zTXt", "F25 iTXt", "F25 iCCP"])
def test_refusing_takes_little_memory(case: str, tmp_path: Path) -> None:
    """F23, F25: the peak of a process of its own grows by less than 50 MB."""
    path = tmp_path / "bomb.png"
    path.write_bytes(REFUSED[case][0])
    root = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", MEMORY, str(path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    kilobytes = int(done.stdout) // (1024 if sys.platform == "darwin" else 1)
    assert kilobytes < 50_000


def pixel(data: bytes | Image.Image, *, mask: bool = False) -> object:
    return Picture.of(data, mask=mask).image.getpixel((0, 0))


def test_every_kind_of_pixel() -> None:
    """F26: by hand: what each mode's values are in 8 bits of RGB."""
    assert pixel(file_of(Image.new("RGB", (2, 2), (1, 2, 3)))) == (1, 2, 3)
    assert pixel(file_of(Image.new("L", (2, 2), 77))) == (77, 77, 77)
    assert pixel(file_of(Image.new("1", (2, 2), 1))) == (255, 255, 255)
    for value, wanted in ((0, 0), (40_000, 156), (65_535, 255), (128, 0), (129, 1)):
        grey = Image.fromarray(np.full((2, 2), value, np.uint16))
        assert pixel(file_of(grey)) == (wanted,) * 3, "scaled by 257, not clipped"
    for alpha, wanted in ((0, (255, 255, 255)), (255, (200, 0, 0)), (128, (227, 127, 127))):
        assert pixel(file_of(Image.new("RGBA", (2, 2), (200, 0, 0, alpha)))) == wanted, "laid on white"
    assert pixel(file_of(Image.new("LA", (2, 2), (90, 0)))) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([9, 9, 9, 50, 60, 70])
    assert pixel(file_of(palette)) == (50, 60, 70)
    assert pixel(file_of(palette, transparency=1)) == (255, 255, 255)
    assert pixel(file_of(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG", quality=100)) == (255, 255, 255)
    with pytest.raises(ImageError, match="floating-point"):
        Picture.of(Image.new("F", (2, 2)))


def test_orientation() -> None:
    """F26: EXIF's rotation is applied: orientation 6 is turned by a quarter to the right."""
    image = Image.new("RGB", (16, 8))
    image.paste((255, 255, 255), (0, 0, 8, 8))  # its left half
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Picture.of(file_of(image, exif=exif)).image
    assert turned.size == (8, 16)
    assert turned.getpixel((4, 2)) == (255, 255, 255) and turned.getpixel((4, 13)) == (0, 0, 0)


def test_masks() -> None:
    """F27: grey as it is, colours by luma, the alpha of what is transparent anywhere; a size of its own is
    refused where it is used."""
    assert pixel(Image.new("L", (2, 2), 99), mask=True) == 99
    assert pixel(Image.new("RGBA", (2, 2), (255, 255, 255, 40)), mask=True) == 40
    assert pixel(Image.new("RGBA", (2, 2), (255, 255, 255, 255)), mask=True) == 255
    assert pixel(Image.new("RGB", (2, 2), (0, 255, 0)), mask=True) == 150
    with pytest.raises(RequestError) as told:
        Request.from_dict({"image": Image.new("RGB", (64, 64)), "mask": Image.new("L", (32, 64))})
    assert told.value.field == "mask"


@pytest.mark.parametrize(
    "text,words",
    [
        ("AAA", "not valid base64"),
        ("AA AA", "not valid base64"),
        ("AAAA\n", "not valid base64"),
        ("äAAA", "not valid base64"),
        ("data:image/gif;base64,AAAA", "must begin data:image/png"),
        ("data:text/html,<b>", "must begin data:image/png"),
        ("DATA:image/png,AAAA", "must begin data:image/png"),
        ("A" * 30_000_000, "more than 20,000,000 bytes"),
    ],
    ids=lambda t: t[:20],
)
def test_base64(text: str, words: str) -> None:
    """F28: strictly."""
    with pytest.raises(ImageError, match=words):
        from_base64(text)


def test_base64_that_is_right() -> None:
    """Oracle: the picture's own bytes."""
    coded = base64.b64encode(GOOD).decode()
    assert from_base64(coded) == from_base64(f"data:image/png;base64,{coded}") == GOOD


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.com/a.png",
        "file:///etc/passwd",
        "ftp://x/y",
        "\\\\host\\share\\a.png",
    ],
)
def test_nothing_is_fetched(address: str) -> None:
    """F29: an error that says so; sockets are blocked in all tests. Where paths are not taken, none is."""
    with pytest.raises(ImageError, match="fetches nothing"):
        Picture.of(address)
    for value in (address, "/etc/passwd", {"path": "/etc/passwd"}):
        with pytest.raises(RequestError, match=r"not by path") as told:
            Request.from_dict({"image": value}, paths=False)
        assert told.value.field == "image"


def test_places_that_hold_no_picture(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.png", "a\0b"):
        with pytest.raises(ImageError, match="no picture|cannot read"):
            Picture.of(path)


def test_equal_by_content(tmp_path: Path) -> None:
    """Oracle: one digest of the same pixels, however they are packed."""
    image = Image.new("RGB", (16, 8), (10, 20, 30))
    info = PngInfo()
    info.add_text("a", "b")
    one, two = Picture.of(GOOD), Picture.of(file_of(image, compress_level=1, pnginfo=info))
    assert one == two and hash(one) == hash(two) and one == Picture.of(image)
    assert one != Picture.of(Image.new("RGB", (8, 16), (10, 20, 30)))

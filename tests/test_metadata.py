"""Oracle: Pillow's reading of what was written, TIFF by hand; files written by Pillow; hostile files.

Row F32 of the fault table.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from minisd.errors import ImageError, RequestError
from minisd.metadata import check_target, encoded, exif_bytes, format_of, read_file, speakable

FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "AVIF": ".avif"}
IMAGE = Image.new("RGB", (16, 16), (9, 90, 200))
HOSTILE = '<script>alert("x")</script>, café №5\n日本語: "a, b"\\\u2028\t𝄞'
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=200)


@pytest.mark.parametrize("format", FORMATS)
@given(parameters=TEXT, record=TEXT)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_texts_come_back(format: str, parameters: str, record: str, tmp_path: Path) -> None:
    """F32: any text of any script, in every format."""
    path = tmp_path / f"x{FORMATS[format]}"
    path.write_bytes(encoded(IMAGE, format, {"parameters": parameters, "minisd": record}))
    found = read_file(path)
    assert (found.format, found.width, found.height) == (format, 16, 16)
    assert dict(found.texts) == {"parameters": parameters, "minisd": record}


def test_chunks_of_a_png(tmp_path: Path) -> None:
    """Oracle: the kinds of chunk: tEXt where Latin-1 holds the text, as older tools need it, else iTXt."""
    for text, kind in (("a cat", b"tEXt"), ("café", b"tEXt"), ("猫", b"iTXt"), (HOSTILE, b"iTXt")):
        data = encoded(IMAGE, "PNG", {"parameters": text})
        assert kind + b"parameters\0" in data
        with Image.open(io.BytesIO(data)) as image:
            assert image.text["parameters"] == text  # type: ignore[attr-defined]


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_exif_as_a1111_reads_it(format: str) -> None:
    """Oracle: TIFF by hand: UserComment of type UNDEFINED that begins UNICODE, in UTF-16, big-endian."""
    with Image.open(io.BytesIO(encoded(IMAGE, format, {"parameters": HOSTILE}))) as image:
        raw = image.info["exif"]
        comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert bytes(comment) == b"UNICODE\0" + HOSTILE.encode("utf-16-be")
    tiff = raw.removeprefix(b"Exif\0\0")
    at = tiff.index(struct.pack(">H", 0x9286))
    assert tiff[:4] == b"MM\0*" and struct.unpack(">H", tiff[at + 2 : at + 4]) == (7,)


@pytest.mark.parametrize("packed", [False, True])
def test_texts_of_other_programs(packed: bool, tmp_path: Path) -> None:
    """Oracle: Pillow's writer: tEXt, zTXt and iTXt, packed or not."""
    info = PngInfo()
    info.add_text("parameters", "a cat", zip=packed)
    info.add_itxt("prompt", "猫", zip=packed)
    IMAGE.save(tmp_path / "x.png", pnginfo=info)
    assert dict(read_file(tmp_path / "x.png").texts) == {"parameters": "a cat", "prompt": "猫"}


@pytest.mark.parametrize("coding", ["utf-16-be", "utf-16-le", "utf-8"])
def test_comments_of_other_programs(coding: str, tmp_path: Path) -> None:
    """Oracle: a UserComment in either order of bytes, or as ASCII."""
    text = "a cat, seven"
    head = b"ASCII\0\0\0" if coding == "utf-8" else b"UNICODE\0"
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = head + text.encode(coding)
    IMAGE.save(tmp_path / "x.jpg", exif=exif)
    assert read_file(tmp_path / "x.jpg").texts["parameters"] == text


def test_surrogates_become_replacements() -> None:
    """Oracle: what UTF-8 cannot hold is U+FFFD; pairs are the character they mean."""
    assert speakable("a\ud800b") == "a\ufffdb" and speakable("\ud834\udd1e") == "𝄞"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEAD = SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
BOMB = zlib.compress(b"a" * 50_000_000)
HOSTILE_FILES = {
    "ends early": (HEAD, "ends before its IEND"),
    "length beyond the file": (HEAD + b"\xff\xff\xff\xfftEXtab", "beyond the end"),
    "no header": (SIGNATURE + chunk(b"IEND", b""), "no IHDR"),
    "text bomb": (HEAD + chunk(b"zTXt", b"a\0\0" + BOMB) + chunk(b"IEND", b""), "bytes of text"),
    "iTXt bomb": (HEAD + chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB) + chunk(b"IEND", b""), "bytes of text"),
    "many texts": (
        HEAD + b"".join(chunk(b"tEXt", b"%d\0" % i + b"x" * 900_000) for i in range(6)) + chunk(b"IEND", b""),
        "bytes of text",
    ),
    "many chunks": (HEAD + chunk(b"abCd", b"") * 100_001 + chunk(b"IEND", b""), "chunks"),
    "damaged text": (HEAD + chunk(b"zTXt", b"a\0\0nothing") + chunk(b"IEND", b""), "damaged"),
    "no picture": (b"hello", "damaged|not a|cannot"),
    "empty": (b"", "damaged|not a|cannot"),
}


@pytest.mark.parametrize("case", HOSTILE_FILES)
def test_hostile_files(case: str, tmp_path: Path) -> None:
    """Oracle: ImageError of one line."""
    data, words = HOSTILE_FILES[case]
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=words) as caught:
        read_file(path)
    assert "\n" not in str(caught.value)


@given(noise=st.binary(max_size=300))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_exif_is_read_or_refused(tmp_path: Path, noise: bytes) -> None:
    """Oracle: no exception but ImageError, for a block of EXIF whose end is noise."""
    whole = exif_bytes("a cat", "{}")
    path = tmp_path / "x.jpg"
    IMAGE.save(path, exif=whole[: len(whole) - min(len(noise), len(whole) - 6)] + noise)
    try:
        read_file(path)
    except ImageError:
        pass


def test_names_that_are_not_written(tmp_path: Path) -> None:
    """F30: RequestError or ImageError before anything is drawn."""
    assert format_of("a.JPEG") == "JPEG"
    for name in ("a.gif", "a", "a.png.exe"):
        with pytest.raises(RequestError, match="ends in none of these"):
            format_of(name)
    with pytest.raises(RequestError, match="write a PNG"):
        check_target(tmp_path / "x.jpg", 8_000)
    for name in ("CON.png", "nul.PNG", "a\0b.png", "a\nb.png", "x" * 300 + ".png", "none/x.png"):
        with pytest.raises(ImageError):
            check_target(tmp_path / name)
    with pytest.raises(ImageError, match="cannot hold"):
        encoded(IMAGE, "JPEG", {"parameters": "x" * 40_000})

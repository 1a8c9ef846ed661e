"""Texts inside picture files: PNG chunks, and the EXIF block of JPEG, WebP and AVIF.

Two texts travel with a picture. `parameters` is what the community's tools read: in PNG a tEXt chunk (iTXt
where Latin-1 does not hold it), elsewhere EXIF UserComment, which must be of EXIF type UNDEFINED (7) or
piexif, and with it A1111, cannot read it. `minisd` is our own JSON: an iTXt or tEXt chunk, elsewhere EXIF
MakerNote. Files are foreign input: sizes are checked before anything is read whole, and whatever is wrong is
an ImageError.

Formats: PNG (third edition) 11.3; EXIF 2.32 4.6.5; TIFF 6.0 section 2.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from minisd.atomic import check_name, write_bytes
from minisd.errors import ImageError, RequestError, quoted
from minisd.picture import check_size, flattened

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".avif": "AVIF"}
SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 4 * 2**20  # bytes of all texts of a file, unpacked
MAX_CHUNKS = 100_000  # of a PNG; encoders write data in chunks of 8 KiB and more
MAX_FILE = 256 * 2**20  # of formats that Pillow reads whole
JPEG_EXIF = 65_533  # bytes that one APP1 segment holds
OURS = b"minisd\0\0"  # how a MakerNote of ours begins
EXIF_IFD, MAKER_NOTE, USER_COMMENT = 0x8769, 0x927C, 0x9286


@dataclass(frozen=True)
class PictureFile:
    """What a file says about itself, without its pixels. texts: by keyword, `parameters` and `minisd` among
    them."""

    path: Path
    format: str
    width: int
    height: int
    texts: Mapping[str, str]


def format_of(path: str | os.PathLike[str]) -> str:
    """The format that a name's ending asks for. Raises RequestError for one that is not written."""
    from PIL import features

    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise RequestError(
            f"pictures are written as {', '.join(FORMATS)}; {quoted(Path(path).name)} ends in none of these",
            field="output",
        )
    if suffix == ".avif" and not features.check("avif"):
        raise RequestError("this Pillow was built without AVIF; write .png or .webp", field="output")
    return FORMATS[suffix]


def check_target(path: str | os.PathLike[str], prompt_length: int = 0) -> None:
    """Whether a picture can be written there, asked before it is drawn."""
    if format_of(path) == "JPEG" and prompt_length > 7_500:
        raise RequestError(
            f"a JPEG cannot hold prompts of {prompt_length:,} characters beside the picture; write a PNG",
            field="output",
        )
    check_name(Path(path))


def encoded(image: Image.Image, format: str, texts: Mapping[str, str], quality: int = 95) -> bytes:
    """The bytes of a picture file with these texts. quality: 1..100 of JPEG, WebP and AVIF; PNG loses
    nothing."""
    file = io.BytesIO()
    clean = {key: speakable(text) for key, text in texts.items()}
    if format == "PNG":
        info = PngInfo()
        for key, text in clean.items():
            info.add_text(key, text)  # tEXt where Latin-1 holds it, else iTXt
        image.save(file, "PNG", pnginfo=info)
        return file.getvalue()
    exif = exif_bytes(clean.get("parameters"), clean.get("minisd")) if clean else b""
    if format == "JPEG" and len(exif) > JPEG_EXIF:
        raise ImageError(f"a JPEG cannot hold {len(exif):,} bytes of text; write a PNG")
    options: dict[str, object] = {"subsampling": 0} if format in ("JPEG", "AVIF") else {}
    if format == "AVIF":
        options["subsampling"] = "4:4:4"
    image.save(file, format, quality=quality, exif=exif, **options)
    return file.getvalue()


def save_png(image: Image.Image, path: str | os.PathLike[str], texts: Mapping[str, str]) -> Path:
    """Write a PNG with texts, whole or not at all. Raises ImageError if it cannot be written."""
    return write_bytes(encoded(image, "PNG", texts), path)


def room_for_record(format: str, parameters: str) -> int:
    """Bytes that our record may have beside a `parameters` text."""
    if format != "JPEG":
        return MAX_TEXT // 8
    return JPEG_EXIF - len(parameters.encode("utf-16-be", "surrogatepass")) - 256  # less tags and headers


def speakable(text: str) -> str:
    """Text that UTF-8 can hold: a surrogate that stands alone becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def exif_bytes(parameters: str | None, record: str | None) -> bytes:
    """An EXIF block, big-endian, with UserComment and MakerNote."""
    values: list[tuple[int, bytes]] = []
    if record is not None:
        values.append((MAKER_NOTE, OURS + record.encode()))
    if parameters is not None:
        values.append((USER_COMMENT, b"UNICODE\0" + parameters.encode("utf-16-be")))
    place = 26 + 2 + 12 * len(values) + 4
    entries, data = b"", b""
    for tag, value in values:
        entries += struct.pack(">HHII", tag, 7, len(value), place + len(data))
        data += value + b"\0" * (len(value) % 2)  # values begin at even places
    first = struct.pack(">HHHIII", 1, EXIF_IFD, 4, 1, 26, 0)
    second = struct.pack(">H", len(values)) + entries + struct.pack(">I", 0)
    return b"Exif\0\0MM\0*\0\0\0\x08" + first + second + data


def read_file(path: str | os.PathLike[str]) -> PictureFile:
    """What a picture file says about itself. Raises ImageError for one that cannot be read."""
    target = Path(path)
    try:
        if not target.is_file():
            raise ImageError(f"there is no picture at {quoted(path)}; check the path")
        with open(target, "rb") as file:
            if file.read(8) == SIGNATURE:
                return read_png(file, target)
            if os.fstat(file.fileno()).st_size > MAX_FILE:
                raise ImageError(f"{quoted(target.name)} has more than {MAX_FILE:,} bytes; it is not read")
            file.seek(0)
            return read_exif(file, target)
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(f"cannot read {quoted(path)}: {what}") from error


def read_png(file: BinaryIO, path: Path) -> PictureFile:
    """Chunk by chunk: texts are unpacked within MAX_TEXT, everything else is skipped."""
    size = os.fstat(file.fileno()).st_size
    texts: dict[str, str] = {}
    width = height = 0
    left = MAX_TEXT
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            raise ImageError(f"{quoted(path.name)} ends before its IEND chunk; save it again")
        length, kind = struct.unpack(">I4s", head)
        if length > size - file.tell():
            raise ImageError(
                f"{quoted(path.name)}: a chunk of {length:,} bytes goes beyond the end of the file; "
                "save it again"
            )
        if kind == b"IEND":
            if not width:
                raise ImageError(f"{quoted(path.name)} has no IHDR chunk; it is not a PNG")
            return PictureFile(path, "PNG", width, height, texts)
        if kind == b"IHDR" and length >= 8:
            width, height = struct.unpack(">II", file.read(8))
            file.seek(length - 8 + 4, os.SEEK_CUR)
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            if length > left:
                raise ImageError(f"{quoted(path.name)} holds more than {MAX_TEXT:,} bytes of text")
            keyword, text = png_text(kind, file.read(length), left, path)
            left -= max(length, 4 * len(text))
            texts.setdefault(keyword, text)
            file.seek(4, os.SEEK_CUR)  # the checksum; Pillow checks it where pixels are read
        else:
            file.seek(length + 4, os.SEEK_CUR)
    raise ImageError(f"{quoted(path.name)} has more than {MAX_CHUNKS:,} chunks; save it again")


def png_text(kind: bytes, data: bytes, limit: int, path: Path) -> tuple[str, str]:
    """(keyword, text) of a text chunk, unpacked to no more than `limit` bytes."""
    keyword, _, rest = data.partition(b"\0")
    packed = kind == b"zTXt"
    if packed:
        rest = rest[1:]  # the method: deflate is the only one
    if kind == b"iTXt":
        packed, rest = rest[:1] == b"\1", rest[2:]
        rest = rest.split(b"\0", 2)[2] if rest.count(b"\0") >= 2 else b""  # language, translated keyword
    if packed:
        unpack = zlib.decompressobj()
        try:
            rest = unpack.decompress(rest, limit)
        except zlib.error as error:
            raise ImageError(f"{quoted(path.name)}: a packed text is damaged; save it again") from error
        if unpack.unconsumed_tail:
            raise ImageError(f"{quoted(path.name)} holds more than {MAX_TEXT:,} bytes of text")
    coding = "utf-8" if kind == b"iTXt" else "latin-1"
    return keyword.decode("latin-1"), rest.decode(coding, "replace")


def read_exif(file: BinaryIO, path: Path) -> PictureFile:
    """JPEG, WebP and AVIF through Pillow, header and EXIF only."""
    try:
        with Image.open(file, formats=("JPEG", "WEBP", "AVIF")) as image:
            check_size(*image.size)
            tags = image.getexif().get_ifd(EXIF_IFD)
            kind, width, height = str(image.format), *image.size
    except ImageError:
        raise
    except Exception as error:  # Pillow's EXIF reader lets struct, index and type errors out
        raise ImageError(f"{quoted(path.name)} is not a PNG, JPEG, WebP or AVIF that can be read") from error
    texts: dict[str, str] = {}
    record = whole_bytes(tags.get(MAKER_NOTE))
    ours = record.startswith(OURS)
    if ours and len(record) <= MAX_TEXT:
        texts["minisd"] = record[len(OURS) :].decode("utf-8", "replace")
    comment = whole_bytes(tags.get(USER_COMMENT))
    if comment and len(comment) <= MAX_TEXT:
        texts["parameters"] = comment_text(comment, ours)
    return PictureFile(path, kind, width, height, texts)


def whole_bytes(value: object) -> bytes:
    """A tag's value as its bytes; none where it is of another kind."""
    data = value.encode("latin-1", "replace") if isinstance(value, str) else value
    return data if isinstance(data, bytes) else b""


def comment_text(data: bytes, ours: bool = False) -> str:
    """An EXIF UserComment. Its UTF-16 has the byte order of whoever wrote it, and programs disagree: where it
    is not ours, the order in which more characters are of the first 256 is taken, big-endian in doubt."""
    head, body = data[:8], data[8:]
    if head == b"UNICODE\0":
        if ours:
            return body.decode("utf-16-be", "replace")
        if body[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return body.decode("utf-16", "replace")
        high, low = body[0::2].count(0), body[1::2].count(0)
        return body.decode("utf-16-le" if low > high else "utf-16-be", "replace")
    if head in (b"ASCII\0\0\0", b"\0" * 8):
        return body.rstrip(b"\0").decode("utf-8", "replace")
    return data.rstrip(b"\0").decode("utf-8", "replace")


def read_pixels(path: str | os.PathLike[str]) -> Image.Image:
    """The pixels of a file, RGB. Raises ImageError for one that is damaged or too large."""
    found = read_file(path)
    check_size(found.width, found.height)
    try:
        with Image.open(path, formats=(found.format,)) as image:
            image.load()
            return flattened(image)
    except ImageError:
        raise
    except Exception as error:  # what Pillow's decoders raise for damaged files is not one class
        raise ImageError(f"{quoted(found.path.name)} is damaged: {quoted(error)}") from error

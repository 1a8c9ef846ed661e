"""The raw material: every emoji that Noto Color Emoji draws, as a sprite with a name.

Names, groups and sequences come from the Unicode Consortium's emoji-test.txt (Debian package unicode-data,
Unicode licence); pictures from NotoColorEmoji.ttf (Debian package fonts-noto-color-emoji, SIL Open Font
License 1.1), whose bitmap strike is 136x128 pixels at size 109. Left out: skin-tone variants, which would
be half of the data and show the same objects.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, features
from torch import Tensor

STRIKE = 109  # the only size this bitmap font can be opened at
ADVANCE = 136  # pixels; a sequence that the font lacks is drawn as several glyphs and is wider
SIZE = 128  # pixels of a training picture
MARGIN = 4  # pixels around the widest glyph

UNICODE_FOLDERS = (Path("/usr/share/unicode"), Path("/usr/local/share/unicode"))


@dataclass(frozen=True)
class Emoji:
    """One row of emoji-test.txt. `alias` is the older name of UnicodeData.txt where it differs, else None."""

    text: str
    name: str
    group: str
    subgroup: str
    alias: str | None = None


def find_font(given: Path | None = None) -> Path | None:
    """`given`, or the file that fontconfig has for "Noto Color Emoji", or None."""
    if given is not None:
        return given if given.is_file() else None
    try:
        command = ["fc-match", "--format=%{file}", "Noto Color Emoji"]
        found = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        return None  # no fontconfig here; the caller says how to name the font
    return (
        found if found.name.startswith("NotoColorEmoji") else None
    )  # fc-match answers with some font, always


def find_unicode(given: Path | None = None) -> Path | None:
    """`given` or the folder where Debian keeps unicode-data, if it holds emoji/emoji-test.txt; else None."""
    folders = UNICODE_FOLDERS if given is None else (given,)
    return next((f for f in folders if (f / "emoji" / "emoji-test.txt").is_file()), None)


def unicode_names(lines: Sequence[str]) -> dict[str, str]:
    """{character: lower-case name} of the lines of UnicodeData.txt."""
    names = {}
    for line in lines:
        code, name, _ = line.split(";", 2)
        if not name.startswith("<"):
            names[chr(int(code, 16))] = name.lower()
    return names


def parse_emoji(lines: Sequence[str], names: dict[str, str] | None = None) -> list[Emoji]:
    """The fully-qualified emoji of emoji-test.txt without skin tones, in file order. `names`: see
    `unicode_names`.
    """
    names = names or {}
    emoji, group, subgroup = [], "", ""
    for line in lines:
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.partition(":")[2].strip()
        elif "; fully-qualified" in line:
            codes, _, comment = line.partition(";")
            text = "".join(chr(int(code, 16)) for code in codes.split())
            name = comment.partition("#")[2].split(maxsplit=2)[2].strip()  # glyph, version, name
            if "skin tone" in name or group == "Component":
                continue
            alias = names.get(text.removesuffix("\ufe0f"))
            emoji.append(Emoji(text, name, group, subgroup, None if alias == name.lower() else alias))
    return emoji


def read_emoji(folder: Path) -> list[Emoji]:
    """`parse_emoji` of a unicode-data folder."""
    names = unicode_names((folder / "UnicodeData.txt").read_text("utf-8").splitlines())
    return parse_emoji((folder / "emoji" / "emoji-test.txt").read_text("utf-8").splitlines(), names)


def render(font: ImageFont.FreeTypeFont, text: str, size: int = SIZE) -> np.ndarray | None:
    """The emoji centred on a transparent square: uint8 [size, size, 4], colour premultiplied by alpha.

    None where the font does not draw this sequence as one glyph.
    """
    left, top, right, bottom = font.getbbox(text)
    if right <= left or bottom <= top or font.getlength(text) > ADVANCE * 1.05:
        return None
    canvas = Image.new("RGBA", (ADVANCE, ADVANCE))
    at = ((ADVANCE - (right - left)) / 2 - left, (ADVANCE - (bottom - top)) / 2 - top)
    ImageDraw.Draw(canvas).text(at, text, font=font, embedded_color=True)
    inner = size - 2 * MARGIN * size // SIZE
    # resized as premultiplied ("RGBa"), or the hidden colour of transparent pixels would bleed into the edges
    glyph = np.asarray(canvas.convert("RGBa").resize((inner, inner), Image.Resampling.LANCZOS))
    if glyph[..., 3].max() == 0:
        return None
    out = np.zeros((size, size, 4), np.uint8)
    edge = (size - inner) // 2
    glyph = np.minimum(glyph, glyph[..., 3:])  # Lanczos overshoots; colour above alpha would glow
    out[edge : edge + inner, edge : edge + inner] = glyph
    return out


@dataclass(frozen=True)
class Sprites:
    """The emoji and their pictures: uint8 [n, 4, 128, 128], premultiplied red, green, blue and alpha."""

    emoji: tuple[Emoji, ...]
    pixels: Tensor


def load_sprites(font_path: Path, unicode_folder: Path) -> Sprites:
    """Render all emoji that the font draws (about 15 s).

    Raises RuntimeError where Pillow lacks Raqm, without which joined sequences fall apart.
    """
    if not features.check("raqm"):
        raise RuntimeError(
            "this Pillow has no Raqm text layout; install the Pillow wheel from PyPI, which has it"
        )
    font = ImageFont.truetype(font_path, STRIKE, layout_engine=ImageFont.Layout.RAQM)
    drawn = [(e, render(font, e.text)) for e in read_emoji(unicode_folder)]
    kept = [(e, p) for e, p in drawn if p is not None]
    pixels = torch.from_numpy(np.stack([p for _, p in kept])).permute(0, 3, 1, 2).contiguous()
    return Sprites(tuple(e for e, _ in kept), pixels)

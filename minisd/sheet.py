"""Contact sheets: labelled pictures on one page, all whole and legible."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PAGE, INK, FAINT, BORDER = "#fbfaf7", "#2b2b2b", "#8d8a83", "#e4e1da"
GAP, MARGIN, LINE, LABEL = 14, 28, 17, 13  # pixels: between pictures, around, per line of text, text size
MOST_LINES = 6  # of one label
ROW_WIDTH = 160  # of the labels at the left
MAX_PAGE_SIDE, MAX_PAGE_PIXELS = 12_000, 2**26  # beyond, pictures are shown smaller

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def shown_size(size: tuple[int, int], columns: int, rows: int) -> tuple[int, int]:
    """Width and height at which pictures of `size` are shown, so that the page stays within its bounds."""
    width, height = size
    share = min(
        1.0,
        MAX_PAGE_SIDE / (columns * (width + GAP)),
        MAX_PAGE_SIDE / (rows * (height + GAP)),
        (MAX_PAGE_PIXELS / (columns * (width + GAP) * rows * (height + GAP))) ** 0.5,
    )
    return max(1, int(width * share)), max(1, int(height * share))


def lay_out(
    pictures: Sequence[Image.Image], columns: Sequence[str], rows: Sequence[str], title: str = ""
) -> Image.Image:
    """Pictures (row by row) on a page, `columns` written above, `rows` at the left, `title` over all."""
    width = max(p.width for p in pictures)
    height = max(p.height for p in pictures)
    font = ImageFont.load_default(LABEL)
    heads = [wrapped(text, font, width) for text in columns]
    sides = [wrapped(text, font, ROW_WIDTH) if text else [""] for text in rows]
    across = len(columns) * (width + GAP) - GAP
    over = wrapped(title, font, max(across, width)) if title else []
    widest = max(int(font.getlength(line)) for lines in sides for line in lines)
    left = MARGIN + (widest + GAP if widest else 0)
    begin = MARGIN + (LINE * len(over) + GAP if over else 0)
    top = begin + LINE * max(len(lines) for lines in heads) + GAP // 2
    tall = max(height, *(LINE * len(lines) for lines in sides))
    page = Image.new("RGB", (left + across + MARGIN, top + len(rows) * (tall + GAP) - GAP + MARGIN), PAGE)
    pen = ImageDraw.Draw(page)
    for n, line in enumerate(over):
        pen.text((left, MARGIN + n * LINE), line, fill=INK, font=font, anchor="la")
    for column, lines in enumerate(heads):
        x = left + column * (width + GAP) + width // 2
        for n, line in enumerate(reversed(lines)):  # the last line stands on the picture
            pen.text((x, top - GAP // 2 - n * LINE), line, fill=INK, font=font, anchor="md")
    for row, lines in enumerate(sides):
        y = top + row * (tall + GAP)
        middle = y + tall // 2 - (len(lines) - 1) * LINE // 2
        for n, line in enumerate(lines):
            pen.text((left - GAP, middle + n * LINE), line, fill=FAINT, font=font, anchor="rm")
        for column in range(len(columns)):
            picture = pictures[row * len(columns) + column]
            x0 = left + column * (width + GAP) + (width - picture.width) // 2
            y0 = y + (tall - picture.height) // 2
            page.paste(picture, (x0, y0))
            pen.rectangle((x0 - 1, y0 - 1, x0 + picture.width, y0 + picture.height), outline=BORDER)
    return page


def wrapped(text: str, font: Font, width: int) -> list[str]:
    """Lines no wider than `width` pixels, broken between words; a single longer word is cut with an
    ellipsis."""
    lines = [""]
    for word in " ".join(text.split()).split(" ") if text.strip() else ["(empty prompt)"]:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
            if len(lines) > MOST_LINES:
                break
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1] + "..."]
    return [cut(line, font, width) for line in lines]


def cut(line: str, font: Font, width: int) -> str:
    line = line[:1000]  # no label is wider, and a prompt may have 100,000 characters
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..."

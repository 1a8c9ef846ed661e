"""Canvas: a request's picture and mask at the size that is drawn, and the way of the drawn picture back.

Everything here is pixels and numpy; `start.py` makes latents of it. What a hard mask leaves black in the
picture that was given is copied back byte for byte (fork `paste`); the edge is blurred inwards only, so that
this holds for any blur, or across the edge, as A1111 does (fork `mask_edge`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from minisd.errors import RequestError
from minisd.request import Request

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Canvas:
    """image: RGB of the size drawn. mask: L of that size, 0 stays and 255 is drawn anew, as it stands before
    any blur; None: all is drawn. whole: the picture (outpainted, if so) before it was cut and scaled, and
    `box` the part of it that `image` shows. weights: L of whole's size, how much of the drawn picture is laid
    over it; None: the drawn picture is the result. size: of the result, without what was padded."""

    image: Image.Image
    mask: Image.Image | None
    whole: Image.Image
    box: Box
    weights: Image.Image | None
    size: tuple[int, int]

    def finished(self, drawn: Image.Image) -> Image.Image:
        """The result, from the picture drawn at the canvas's size."""
        left, top, right, bottom = self.box
        size = (right - left, bottom - top)
        if self.weights is None:
            return drawn if drawn.size == self.size else drawn.crop((0, 0, *self.size))
        part = drawn if drawn.size == size else drawn.resize(size, Image.Resampling.LANCZOS)
        out = self.whole.copy()
        out.paste(part, (left, top))
        # exact at both ends: a weight of 0 gives the bytes of the picture that was given
        out = Image.composite(out, self.whole, self.weights)
        return out if out.size == self.size else out.crop((0, 0, *self.size))


def canvas_of(request: Request) -> Canvas | None:
    """The canvas of a request made whole; None without a picture."""
    if request.image is None:
        return None
    assert request.width is not None and request.height is not None, "set by Request.for_model"
    size = (request.width, request.height)
    whole, mask = extended(request)
    padded = request.resize == "pad" and request.mask_area != "masked"
    result = whole.size if padded or request.mask_area == "masked" else size
    box = (0, 0, *whole.size)
    if request.mask_area == "masked" and mask is not None:
        box = area_of(mask, request.mask_padding, size)
    if mask is None:
        image = resized(whole.crop(box), size, request.resize or "stretch")
        return Canvas(image, None, image, (0, 0, *size), None, result)
    if not request.mask_soft:
        mask = mapped(mask, lambda v: 255 if v >= 128 else 0)
    if request.mask_area != "masked" and whole.size != size:  # the whole is what is drawn, scaled
        whole, mask = (resized(i, size, request.resize or "stretch") for i in (whole, mask))
        if not request.mask_soft:
            mask = mapped(mask, lambda v: 255 if v >= 128 else 0)
        box = (0, 0, *size)
    weights = softened(mask, request.mask_blur, request.forks.mask_edge)
    seen = weights if request.forks.mask_edge == "across" else mask
    image, part = (i.crop(box).resize(size, Image.Resampling.LANCZOS) for i in (whole, seen))
    if whole.size == size:
        image, part = whole, seen
    if request.mask_fill == "fill":
        image = filled(image, part)
    pasted = request.forks.paste or request.mask_area == "masked"
    return Canvas(image, part, whole, box, weights if pasted else None, result)


def mapped(image: Image.Image, level: Callable[[int], int]) -> Image.Image:
    """An L image with each level replaced."""
    return image.point([level(v) for v in range(256)])


def extended(request: Request) -> tuple[Image.Image, Image.Image | None]:
    """The picture and its mask (or None), with what `outpaint` adds and `resize` pads."""
    assert request.image is not None
    image = request.image.image.convert("RGB")
    mask = request.mask.image if request.mask is not None else None
    if mask is not None and request.mask_invert:
        mask = ImageOps.invert(mask)
    if request.outpaint is not None:
        left, top, right, bottom = request.outpaint
        size = (image.width + left + right, image.height + top + bottom)
        grown = Image.new("L", size, 255)
        grown.paste(mask if mask is not None else 0, (left, top, left + image.width, top + image.height))
        image, mask = bordered(image, (left, top, right, bottom)), grown
    return image, mask


def bordered(image: Image.Image, border: Box) -> Image.Image:
    """image with (left, top, right, bottom) pixels around it that repeat its edge."""
    left, top, right, bottom = border
    pixels = np.asarray(image)
    pads = ((top, bottom), (left, right)) + ((0, 0),) * (pixels.ndim - 2)
    return Image.fromarray(np.pad(pixels, pads, mode="edge"))


def resized(image: Image.Image, size: tuple[int, int], how: str) -> Image.Image:
    """image at `size`. stretch: each side by itself. crop: the middle, filling it. fill: all of it, its edge
    repeated around. pad: as it is, its edge repeated right and below. Lanczos."""
    if image.size == size:
        return image
    if how == "stretch":
        return image.resize(size, Image.Resampling.LANCZOS)
    if how == "crop":
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    if how == "fill":
        image = ImageOps.contain(image, size, Image.Resampling.LANCZOS)
    right, bottom = size[0] - image.width, size[1] - image.height
    if right < 0 or bottom < 0:
        raise RequestError(
            f"a picture of {image.width} x {image.height} pixels cannot be padded to {size[0]} x {size[1]}; "
            "say resize stretch, crop or fill",
            field="resize",
        )
    if how == "fill":
        return bordered(image, (right // 2, bottom // 2, right - right // 2, bottom - bottom // 2))
    return bordered(image, (0, 0, right, bottom))


def softened(mask: Image.Image, blur: float, edge: str) -> Image.Image:
    """How much of the drawn picture is seen at each pixel. inside: from nothing at the mask's edge to all of
    it within the mask, and nothing outside. across: the mask, blurred. blur: sigma in pixels."""
    if edge == "across":
        return mask.filter(ImageFilter.GaussianBlur(blur)) if blur > 0 else mask
    hard = mapped(mask, lambda v: 255 if v > 0 else 0)
    if blur == 0:
        return hard
    soft = mapped(hard.filter(ImageFilter.GaussianBlur(blur)), lambda v: max(0, 2 * v - 255))
    soft = ImageChops.multiply(soft, hard)
    # a mask too thin for its blur keeps its middle: nothing that was to be drawn vanishes
    return soft if soft.getextrema()[1] == 255 else ImageChops.multiply(hard, stretched(soft))


def stretched(image: Image.Image) -> Image.Image:
    """Its brightest value made 255; all 255 where it is black everywhere."""
    high = image.getextrema()[1]
    assert isinstance(high, int | float)
    return (
        mapped(image, lambda v: min(255, round(v * 255 / high))) if high else ImageChops.constant(image, 255)
    )


def area_of(mask: Image.Image, padding: int, size: tuple[int, int]) -> Box:
    """The part of the picture to draw: the mask's bounding box and `padding` pixels around it, grown to the
    proportions of `size` where the picture has room. Raises RequestError for a mask that is all black."""
    found = mapped(mask, lambda v: 255 if v >= 128 else 0).getbbox() or mask.getbbox()
    if found is None:
        raise RequestError("the mask is black everywhere: there is nothing to draw", field="mask")
    left, top = max(0, found[0] - padding), max(0, found[1] - padding)
    right, bottom = min(mask.width, found[2] + padding), min(mask.height, found[3] + padding)
    ratio = size[0] / size[1]
    width, height = right - left, bottom - top
    if width < height * ratio:
        left, right = grown(left, right, round(height * ratio), mask.width)
    else:
        top, bottom = grown(top, bottom, round(width / ratio), mask.height)
    return left, top, right, bottom


def grown(low: int, high: int, length: int, limit: int) -> tuple[int, int]:
    """low .. high made `length` long about its middle, within 0 .. limit."""
    length = max(high - low, min(length, limit))
    low = min(max(0, low - (length - (high - low)) // 2), limit - length)
    return low, low + length


def filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """image, with what the mask covers replaced by the colours around it, smoother the further inside.

    Pull and push (Gortler et al. 1996, The Lumigraph, section 3.3): known pixels are averaged 2 x 2 until
    everything is known, then each level fills the holes of the finer one.
    """
    known = 1.0 - np.asarray(mask, dtype=np.float64)[..., None] / 255
    if known.max() == 0:
        return Image.new("RGB", image.size, (128, 128, 128))
    pixels = np.asarray(image, dtype=np.float64)
    out = pull_push(pixels * known, known)
    return Image.fromarray((pixels * known + out * (1 - known)).round().clip(0, 255).astype(np.uint8))


def pull_push(weighted: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Colours [h, w, 3] of a picture known only in part: weighted [h, w, 3] = colour * weight [h, w, 1]."""
    if weight.shape[:2] == (1, 1):
        return weighted / np.maximum(weight, 1e-12)
    coarse = pull_push(*(halved(a) for a in (weighted, weight)))
    h, w = weight.shape[:2]
    # bilinear: each fine pixel leans a quarter towards its neighbours
    doubled = coarse.repeat(2, axis=0).repeat(2, axis=1)
    p = np.pad(doubled, ((1, 1), (1, 1), (0, 0)), mode="edge")
    p = (p[:-2] + 2 * p[1:-1] + p[2:]) / 4
    p = (p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]) / 4
    sure = np.minimum(weight, 1.0)
    own = weighted / np.maximum(weight, 1e-12)
    return sure * own + (1 - sure) * p[:h, :w]


def halved(a: np.ndarray) -> np.ndarray:
    """Sums of 2 x 2, the last row or column of an odd side alone."""
    h, w = a.shape[:2]
    a = np.pad(a, ((0, h % 2), (0, w % 2), (0, 0)))
    return a[0::2, 0::2] + a[1::2, 0::2] + a[0::2, 1::2] + a[1::2, 1::2]

"""Hints for control networks from a picture, as far as no network is needed: numpy and Pillow alone.

`hint(image, "canny")` gives an RGB image of the same size. Where published control networks were trained on
maps of one program, the same rule is followed: Canny 1986 as OpenCV computes it (Sobel taps, L1 norm, the
strongest channel, thresholds 100 and 200), the content shuffle of ControlNet 1.1 (a smooth random
displacement).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from minisd.errors import ImageError

Array = np.ndarray
TAN_22 = 0.4142135623730951  # tan 22.5 degrees; 1 / it is tan 67.5
LOW, HIGH = 100, 200
GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
TILE = 4  # pixels of a side that become one
BLUR = 5.0  # sigma in pixels
WAVES = 256  # pixels of a displacement's wave length


def canny(image: Image.Image, low: float = LOW, high: float = HIGH) -> Image.Image:
    """White lines one pixel wide where the gradient is largest along its own direction, and above `high` or
    joined to such a place above `low`. Gradients: sums of absolute 8-bit differences, 0..2040."""
    pixels = np.asarray(image.convert("RGB")).astype(np.int32)
    dx, dy = sobel(pixels)
    strongest = (abs(dx) + abs(dy)).argmax(-1)[..., None]
    dx, dy = (np.take_along_axis(d, strongest, -1)[..., 0] for d in (dx, dy))
    size = abs(dx) + abs(dy)
    ridge = ridges(size, dx, dy) & (size > low)
    found = joined(ridge & (size > high), ridge)
    return Image.fromarray(np.where(found, 255, 0).astype(np.uint8)).convert("RGB")


def sobel(pixels: Array) -> tuple[Array, Array]:
    """(d/dx, d/dy) of h w c, 3 x 3 taps, the edge repeated."""
    p = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    smooth_rows = p[:-2] + 2 * p[1:-1] + p[2:]
    smooth_columns = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    return smooth_rows[:, 2:] - smooth_rows[:, :-2], smooth_columns[2:] - smooth_columns[:-2]


def ridges(size: Array, dx: Array, dy: Array) -> Array:
    """Whether a pixel's gradient is largest among the two neighbours that its direction, in eighths of a
    turn, points to and comes from. Outside the picture there is none."""
    h, w = size.shape
    p = np.pad(size, 1)

    def at(down: int, right: int) -> Array:
        return p[1 + down : 1 + down + h, 1 + right : 1 + right + w]

    flat = abs(dy) < TAN_22 * abs(dx)
    steep = TAN_22 * abs(dy) > abs(dx)
    same = (dx < 0) == (dy < 0)  # the diagonal from top left to bottom right
    across = (size > at(0, -1)) & (size >= at(0, 1))
    along = (size > at(-1, 0)) & (size >= at(1, 0))
    falling = (size > at(-1, -1)) & (size > at(1, 1))
    rising = (size > at(-1, 1)) & (size > at(1, -1))
    return np.where(flat, across, np.where(steep, along, np.where(same, falling, rising)))


def joined(seeds: Array, allowed: Array) -> Array:
    """The pixels of `allowed` that a path of neighbours, diagonals included, joins to one of `seeds`."""
    width = seeds.shape[1] + 2
    left = np.pad(allowed, 1).ravel()
    found = np.pad(seeds, 1).ravel().copy()
    steps = np.array([-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1])
    front = np.flatnonzero(found)
    while front.size:
        near = np.unique(front[:, None] + steps)
        front = near[left[near] & ~found[near]]
        found[front] = True
    return found.reshape(-1, width)[1:-1, 1:-1]


def edge(image: Image.Image) -> Image.Image:
    """Soft edges: the length of the gradient of grey, the longest white."""
    grey = np.asarray(image.convert("RGB")) @ GREY
    dx, dy = sobel(grey[..., None])
    size = np.hypot(dx, dy)[..., 0]
    levels = size * (255 / max(float(size.max()), 1.0))
    return Image.fromarray(levels.round().astype(np.uint8)).convert("RGB")


def blur(image: Image.Image, sigma: float = BLUR) -> Image.Image:
    return image.convert("RGB").filter(ImageFilter.GaussianBlur(sigma))


def tile(image: Image.Image, factor: int = TILE) -> Image.Image:
    """Without its fine detail: every factor x factor pixels averaged, and smoothly enlarged again."""
    image = image.convert("RGB")
    small = tuple(max(1, round(n / factor)) for n in image.size)
    return image.resize((small[0], small[1]), Image.Resampling.BOX).resize(
        image.size, Image.Resampling.BICUBIC
    )


def shuffle(image: Image.Image, seed: int = 0) -> Image.Image:
    """Colours and textures without their places: each pixel comes from where two smooth random fields say.

    Seeded by `seed` alone (Philox), so that the same picture gives the same hint.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    w, h = image.size
    places = []
    for length in (w, h):
        cells = tuple(max(2, n // WAVES + 2) for n in (h, w))
        field = Image.fromarray(rng.random(cells).astype(np.float32))
        smooth = np.asarray(field.resize((w, h), Image.Resampling.BICUBIC))
        low, high = float(smooth.min()), float(smooth.max())
        spread = (smooth - low) / max(high - low, 1e-6)  # so that every place is reached
        places.append((spread * (length - 1)).round().astype(np.int64))
    return Image.fromarray(np.ascontiguousarray(np.asarray(image.convert("RGB"))[places[1], places[0]]))


def invert(image: Image.Image) -> Image.Image:
    """Black lines on white, as they are drawn, to white on black, as networks for lines read them."""
    return ImageOps.invert(image.convert("RGB"))


def none(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


HINTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "none": none,
    "canny": canny,
    "edge": edge,
    "blur": blur,
    "tile": tile,
    "shuffle": shuffle,
    "invert": invert,
}


def hint(image: Image.Image, preprocessor: str) -> Image.Image:
    """The hint that this preprocessor makes, RGB, as large as the picture. Raises ImageError for a name that
    there is not."""
    if preprocessor not in HINTS:
        raise ImageError(f"there is no preprocessor {preprocessor!r}; known are {', '.join(HINTS)}")
    return HINTS[preprocessor](image)

"""Oracle: Canny pixel by pixel in plain Python, scipy's gradients and labels; properties of the others."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from minisd.cli import main
from minisd.control import PREPROCESSORS
from minisd.errors import ImageError
from minisd.preprocess import HINTS, canny, edge, hint, joined, shuffle
from tests.control_files import map_of


def noisy(width: int, height: int) -> Image.Image:
    """Shapes with hard edges, and noise."""
    rng = np.random.default_rng(1)
    base = np.asarray(map_of(width, height)).astype(int)
    base[height // 4 : height // 2, width // 4 : width // 2] = 250
    return Image.fromarray((base + rng.integers(-20, 20, base.shape)).clip(0, 255).astype(np.uint8))


def plain_canny(image: Image.Image, low: float, high: float) -> np.ndarray:
    """Canny 1986 with OpenCV's choices, one pixel at a time."""
    pixels = np.asarray(image).astype(int)
    h, w, _ = pixels.shape

    def value(y: int, x: int, c: int) -> int:
        return int(pixels[min(max(y, 0), h - 1), min(max(x, 0), w - 1), c])

    size, gradient = np.zeros((h, w), int), {}
    for y in range(h):
        for x in range(w):
            best = (-1, 0, 0)
            for c in range(3):
                dx = sum(
                    k * (value(y + i, x + 1, c) - value(y + i, x - 1, c))
                    for i, k in zip((-1, 0, 1), (1, 2, 1), strict=True)
                )
                dy = sum(
                    k * (value(y + 1, x + i, c) - value(y - 1, x + i, c))
                    for i, k in zip((-1, 0, 1), (1, 2, 1), strict=True)
                )
                if abs(dx) + abs(dy) > best[0]:
                    best = (abs(dx) + abs(dy), dx, dy)
            size[y, x], gradient[y, x] = best[0], best[1:]

    def at(y: int, x: int) -> int:
        return int(size[y, x]) if 0 <= y < h and 0 <= x < w else 0

    kept = np.zeros((h, w), bool)
    for (y, x), (dx, dy) in gradient.items():
        turn = math.degrees(math.atan2(abs(dy), abs(dx)))
        here = at(y, x)
        if turn < 22.5:
            ridge = here > at(y, x - 1) and here >= at(y, x + 1)
        elif turn > 67.5:
            ridge = here > at(y - 1, x) and here >= at(y + 1, x)
        else:
            s = 1 if (dx < 0) == (dy < 0) else -1
            ridge = here > at(y - 1, x - s) and here > at(y + 1, x + s)
        kept[y, x] = ridge and here > low
    labels, _ = ndimage.label(kept, np.ones((3, 3)))
    strong = np.unique(labels[kept & (size > high)])
    return np.isin(labels, strong) & kept


@pytest.mark.parametrize("low,high", [(100, 200), (40, 400)])
def test_canny_as_its_definition(low: float, high: float) -> None:
    image = noisy(48, 40)
    found = np.asarray(canny(image, low, high))
    wanted = plain_canny(image, low, high)
    assert np.array_equal(found[..., 0] > 0, wanted)
    assert 0.01 < wanted.mean() < 0.4 and set(np.unique(found)) == {0, 255}


def test_joined_follows_long_paths() -> None:
    """Oracle: scipy's labels; a spiral of 2000 pixels is one path."""
    spiral = np.zeros((64, 64), bool)
    y, x, dy, dx = 0, 0, 0, 1
    for _ in range(2000):
        spiral[y, x] = True
        ahead = (y + 2 * dy, x + 2 * dx)
        if not (0 <= y + dy < 64 and 0 <= x + dx < 64) or (
            0 <= ahead[0] < 64 and 0 <= ahead[1] < 64 and spiral[ahead]
        ):
            dy, dx = dx, -dy
        y, x = y + dy, x + dx
    seeds = np.zeros_like(spiral)
    seeds[0, 0] = True
    labels, _ = ndimage.label(spiral, np.ones((3, 3)))
    assert np.array_equal(joined(seeds, spiral), labels == labels[0, 0])


def test_soft_edges_as_scipy() -> None:
    image = noisy(40, 30)
    grey = np.asarray(image) @ [0.299, 0.587, 0.114]
    size = np.hypot(ndimage.sobel(grey, 0, mode="nearest"), ndimage.sobel(grey, 1, mode="nearest"))
    wanted = size * 255 / size.max()
    assert abs(np.asarray(edge(image))[..., 1] - wanted).max() <= 0.5001


def test_shuffle_moves_pixels_and_makes_none() -> None:
    """Oracle: the set of colours of the picture."""
    image = noisy(96, 64)
    made = shuffle(image)
    colours = {tuple(c) for c in np.asarray(image).reshape(-1, 3)}
    assert {tuple(c) for c in np.asarray(made).reshape(-1, 3)} <= colours
    assert np.array_equal(np.asarray(made), np.asarray(shuffle(image)))
    assert not np.array_equal(np.asarray(made), np.asarray(shuffle(image, seed=1)))
    assert (np.asarray(made) != np.asarray(image)).mean() > 0.5


def test_blur_and_tile_keep_the_large_and_lose_the_small() -> None:
    """Oracle: means of 16 x 16 pixels, and differences of neighbours."""
    image = noisy(64, 64)

    def means(i: Image.Image) -> np.ndarray:
        return np.asarray(i, dtype=float).reshape(4, 16, 4, 16, 3).mean((1, 3))

    def roughness(i: Image.Image) -> float:
        return float(abs(np.diff(np.asarray(i, dtype=float), axis=1)).mean())

    for name in ("blur", "tile"):
        made = hint(image, name)
        assert abs(means(made) - means(image)).mean() < 12
        assert roughness(made) < 0.5 * roughness(image)


def test_every_name_keeps_the_size() -> None:
    assert tuple(HINTS) == PREPROCESSORS
    for name in PREPROCESSORS:
        for size in ((33, 17), (1, 1)):
            made = hint(map_of(*size), name)
            assert (made.size, made.mode) == (size, "RGB")
    image = map_of(8, 8)
    assert np.array_equal(np.asarray(hint(image, "invert")), 255 - np.asarray(image))
    with pytest.raises(ImageError, match="canny"):
        hint(image, "depth")


def test_the_command(tmp_path: Path) -> None:
    image = noisy(32, 24)
    image.save(tmp_path / "a.png")
    assert main(["preprocess", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "canny"]) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), np.asarray(canny(image)))

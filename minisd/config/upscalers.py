"""Networks that enlarge a picture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RRDBNetConfig:
    """ESRGAN's network (Wang et al. 2018, arXiv:1809.00219) and Real-ESRGAN's (arXiv:2107.10833).

    ups: doublings of the size. unshuffle: pixels of a square that become channels first (2x and 1x networks).
    """

    channels: int = 3
    width: int = 64
    blocks: int = 23
    growth: int = 32
    ups: int = 2
    unshuffle: int = 1

    @property
    def scale(self) -> int:
        return 2**self.ups // self.unshuffle

    @property
    def reach(self) -> int:
        """Pixels around one that what becomes of it depends on: 15 convolutions to a block, and the last ones
        at larger sizes."""
        return self.unshuffle * (15 * self.blocks + 4)


@dataclass(frozen=True)
class CompactConfig:
    """SRVGGNetCompact of Real-ESRGAN: a row of 3x3 convolutions. `convs` counts all of them."""

    channels: int = 3
    width: int = 64
    convs: int = 34
    scale: int = 4

    @property
    def reach(self) -> int:
        return self.convs + 1  # the picture itself, enlarged, is added


@dataclass(frozen=True)
class OtherUpscalerConfig:
    """A network of an architecture that is not written here; the package spandrel runs it.

    reach: not known; transformers see the whole picture. tiled: whether parts of a picture may be shown to it
    alone.
    """

    architecture: str
    channels: int
    scale: int
    tiled: bool = True
    reach: int = 1 << 30


UpscalerConfig = RRDBNetConfig | CompactConfig

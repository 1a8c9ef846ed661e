"""Sizes of tiles, warps and stages, by architecture, head dim and number of keys: data, never found by timing
at run time.

They depend on nothing that a batch changes, so that an image has the same bits in any company. Each row was
compiled ahead of time for its architecture (`scripts/aot_check.py`); none has been timed on hardware yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Config:
    """Rows and columns of a tile (and depth of a product), warps of a program, stages of its pipeline."""

    rows: int
    columns: int
    warps: int
    stages: int
    depth: int = 64


ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
# The nearest row stands in for an architecture without one: shared memory and registers decide.
KIN = {"sm_86": "sm_120", "sm_87": "sm_80", "sm_89": "sm_120", "sm_103": "sm_100", "gfx950": "gfx942"}
SHORT = 2048  # tokens: below, tiles of 64 rows fill the multiprocessors better (SDXL's 1024 tokens)

# (architecture, largest head dim): long sequences, short sequences
FLASH: dict[tuple[str, int], tuple[Config, Config]] = {
    ("sm_90", 64): (Config(128, 64, 4, 3), Config(64, 128, 4, 3)),
    ("sm_90", 128): (Config(128, 64, 8, 3), Config(64, 64, 4, 3)),
    ("sm_90", 256): (Config(128, 64, 8, 2), Config(64, 64, 4, 2)),
    ("sm_100", 64): (Config(128, 64, 8, 3), Config(64, 64, 4, 3)),
    ("sm_100", 128): (Config(128, 64, 8, 2), Config(64, 64, 4, 2)),
    ("sm_100", 256): (Config(128, 32, 8, 2), Config(64, 32, 4, 2)),
    ("sm_80", 64): (Config(128, 64, 8, 3), Config(64, 64, 4, 3)),
    ("sm_80", 128): (Config(128, 64, 8, 2), Config(64, 64, 4, 2)),
    ("sm_80", 256): (Config(64, 32, 4, 2), Config(64, 32, 4, 2)),
    ("sm_120", 64): (Config(128, 64, 8, 2), Config(64, 64, 4, 2)),
    ("sm_120", 128): (Config(64, 64, 4, 2), Config(64, 64, 4, 2)),
    ("sm_120", 256): (Config(64, 32, 8, 2), Config(64, 32, 8, 2)),
    ("gfx942", 64): (Config(128, 64, 4, 1), Config(64, 64, 4, 1)),
    ("gfx942", 128): (Config(128, 32, 4, 1), Config(64, 32, 4, 1)),
    ("gfx942", 256): (Config(64, 32, 4, 1), Config(64, 32, 4, 1)),
}
# one block of keys: rows of queries, no loop; columns are the keys themselves
CROSS: dict[tuple[str, int], Config] = {
    ("sm_90", 64): Config(128, 128, 8, 1),
    ("sm_90", 256): Config(64, 128, 8, 1),
    ("sm_100", 64): Config(128, 128, 8, 1),
    ("sm_100", 256): Config(64, 128, 8, 1),
    ("sm_80", 64): Config(64, 128, 4, 1),
    ("sm_80", 256): Config(32, 128, 4, 1),
    ("sm_120", 64): Config(64, 128, 8, 1),
    ("sm_120", 256): Config(32, 128, 8, 1),
    ("gfx942", 64): Config(64, 128, 4, 1),
    ("gfx942", 256): Config(32, 128, 4, 1),
}
GEGLU: dict[str, Config] = {
    "sm_90": Config(128, 64, 8, 3),
    "sm_100": Config(128, 64, 8, 3),
    "sm_80": Config(128, 64, 8, 3),
    "sm_120": Config(128, 64, 8, 2, depth=32),
    "gfx942": Config(128, 64, 4, 1),
}
LINEAR: dict[str, Config] = {
    "sm_90": Config(128, 128, 8, 3),
    "sm_100": Config(128, 128, 8, 3),
    "sm_80": Config(128, 64, 4, 3),
    "sm_120": Config(128, 64, 4, 2),
    "gfx942": Config(128, 64, 4, 1),
}
DEFAULT = "sm_90"  # what the interpreter runs: the tiles of the machine this is meant for


def arch_of(device: torch.device) -> str:
    """ "sm_90" or "gfx942" of a GPU; "" for what is none."""
    if device.type != "cuda":
        return ""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def row_of(arch: str) -> str | None:
    """The architecture whose rows serve this one; None if there are none."""
    arch = KIN.get(arch, arch)
    return arch if arch in ARCHITECTURES else None


def known(arch: str) -> str:
    """row_of after the conditions have been checked; `DEFAULT` where there is no architecture."""
    row = row_of(arch) if arch else DEFAULT
    assert row is not None, f"no tile sizes for {arch}"
    return row


def flash_config(arch: str, d: int, keys: int, itemsize: int) -> Config:
    """For the loop over keys. float32 takes twice the shared memory: half the columns, fewer stages."""
    largest = min(limit for row, limit in FLASH if row == arch and limit >= d)
    config = FLASH[arch, largest][keys <= SHORT]
    if itemsize < 4:
        return config
    return Config(min(config.rows, 64), 32, config.warps, min(config.stages, 2))


def cross_config(arch: str, d: int, itemsize: int) -> Config:
    """For one block of keys."""
    largest = min(limit for row, limit in CROSS if row == arch and limit >= d)
    config = CROSS[arch, largest]
    return config if itemsize < 4 else Config(32, config.columns, config.warps, 1)

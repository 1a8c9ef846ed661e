"""k_diffusion.sampling without the rest of k-diffusion, which needs packages that no test needs.

Its solvers use of all that only `utils.append_dims`; a stand-in for it and empty modules take the places
while it is read.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from torch import Tensor


def append_dims(x: Tensor, dims: int) -> Tensor:
    return x.reshape(x.shape + (1,) * (dims - x.ndim))


def stand_in(name: str, **contents: object) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(contents)
    return module


def load() -> ModuleType:
    """The module `k_diffusion.sampling`; sys.modules is left as it was."""
    spec = importlib.util.find_spec("k_diffusion")  # finds without importing
    assert spec is not None and spec.submodule_search_locations, "pip install --no-deps k-diffusion"
    path = Path(spec.submodule_search_locations[0]) / "sampling.py"
    utils = stand_in("k_diffusion.utils", append_dims=append_dims)
    package = stand_in("k_diffusion", utils=utils, __path__=[])
    places = {
        "k_diffusion": package,
        "k_diffusion.utils": utils,
        "scipy": stand_in("scipy", integrate=None),
        "torchdiffeq": stand_in("torchdiffeq", odeint=None),
        "torchsde": stand_in("torchsde"),
    }
    with patch.dict(sys.modules, places):
        found = importlib.util.spec_from_file_location("k_diffusion.sampling", path)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    return module

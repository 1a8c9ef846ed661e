"""Oracle: the table of DESIGN's "Imports point one way", against every import statement of the source."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN_TIME = {
    "torch",
    "safetensors",
    "tokenizers",
    "numpy",
    "PIL",
    "einops",
    "triton",
}  # pyproject's dependencies
FACE = {  # what faces may know: what `minisd` exports, and where that lives
    "minisd",
    "minisd.axis",
    "minisd.batch",
    "minisd.config",
    "minisd.control",
    "minisd.conventions",
    "minisd.conversion",
    "minisd.credentials",
    "minisd.demo",
    "minisd.differences",
    "minisd.engine",
    "minisd.errors",
    "minisd.events",
    "minisd.grid",
    "minisd.hash_cache",
    "minisd.hashes",
    "minisd.infotext",
    "minisd.lab",
    "minisd.lab.pictures",
    "minisd.lab.work",
    "minisd.lora_extract",
    "minisd.lora_info",
    "minisd.lora_merge",
    "minisd.lora_use",
    "minisd.merging",
    "minisd.metadata",
    "minisd.model",
    "minisd.picture",
    "minisd.picture_prompt",
    "minisd.pipeline",
    "minisd.placement",
    "minisd.preprocess",
    "minisd.quantisation",
    "minisd.quantise_report",
    "minisd.region",
    "minisd.request",
    "minisd.samplers.names",  # names and facts, no torch
    "minisd.signing",
    "minisd.trail",
    "minisd.text.account",
    "minisd.text.written",
    "minisd.upscale",
    "minisd.verify",
    "minisd.weights_loader.checkpoint",
    "minisd.wishes",
}
# place: (packages of others, modules of ours). A module of ours stands for everything below it, with `=` for
# itself alone; the first place that a file lies in counts.
TABLE: list[tuple[str, set[str], set[str]]] = [
    ("minisd/kernels/", {"torch", "triton", "numpy", "einops"}, {"minisd.kernels"}),
    ("minisd/samplers/", {"torch", "numpy"}, {"minisd.samplers"}),
    (
        "minisd/weights_loader/",
        {"torch", "numpy", "safetensors"},
        {"minisd.weights_loader", "minisd.config", "minisd.errors", "minisd.quantise"},
    ),
    (
        "minisd/models/",
        {"torch", "einops"},
        {"minisd.models", "minisd.kernels", "minisd.config", "minisd.errors", "minisd.quantise"},
    ),
    ("minisd/quantise/", {"torch"}, {"minisd.quantise"}),
    ("minisd/text/", RUN_TIME, {"minisd"}),
    ("minisd/config/", set(), {"minisd.config"}),
    ("minisd/errors.py", set(), set()),
    ("minisd/conventions.py", set(), set()),
    ("minisd/wishes.py", set(), set()),
    ("minisd/trust.py", {"cryptography"}, {"minisd.errors", "minisd.weights_loader.binary_file"}),
    ("minisd/signing.py", {"cryptography"}, {"minisd.errors", "minisd.receipt"}),
    ("minisd/credentials.py", {"c2pa"}, {"minisd"}),
    (
        "minisd/upscale_others.py",
        {"torch", "spandrel"},
        {"minisd.config", "minisd.errors", "minisd.weights_loader"},
    ),
    ("minisd/picture.py", {"PIL"}, {"minisd.errors"}),
    ("minisd/control.py", set(), {"minisd.errors", "minisd.picture"}),
    ("minisd/picture_prompt.py", set(), {"minisd.control", "minisd.errors", "minisd.picture"}),
    ("minisd/blocks.py", set(), {"minisd.errors"}),
    ("minisd/lora_use.py", set(), {"minisd.blocks", "minisd.errors"}),
    ("minisd/region.py", set(), {"minisd.errors", "minisd.picture"}),
    ("minisd/preprocess.py", {"numpy", "PIL"}, {"minisd.errors"}),
    (
        "minisd/request_checks.py",
        set(),
        {"minisd.control", "minisd.errors", "minisd.picture", "minisd.request", "minisd.samplers.names"},
    ),
    (
        "minisd/request_model.py",
        set(),
        {"minisd.config", "minisd.errors", "minisd.picture", "minisd.request"},
    ),
    (
        "minisd/request_data.py",
        set(),
        {
            "minisd.control",
            "minisd.errors",
            "minisd.picture",
            "minisd.picture_prompt",
            "minisd.region",
            "minisd.request_rules",
        },
    ),
    (
        "minisd/request_rules.py",
        set(),
        {
            "minisd.control",
            "minisd.conventions",
            "minisd.errors",
            "minisd.lora_use",
            "minisd.picture",
            "minisd.picture_prompt",
            "minisd.region",
        },
    ),
    (
        "minisd/request.py",
        set(),
        {
            "minisd.config",
            "minisd.conventions",
            "minisd.picture",
            "minisd.request_checks",
            "minisd.request_data",
            "minisd.request_model",
            "minisd.request_rules",
        },
    ),
    ("minisd/cli.py", {"PIL"}, {f"={name}" for name in FACE} | {"minisd.commands"}),
    ("minisd/__main__.py", set(), {"minisd.cli"}),
    ("minisd/commands/", {"PIL"}, {f"={name}" for name in FACE} | {"minisd.commands"}),
    ("minisd/server/", {"PIL"}, {f"={name}" for name in FACE} | {"minisd.server"}),
    ("minisd/", RUN_TIME, {"minisd"}),
]
FACES = (
    "minisd/cli.py",
    "minisd/__main__.py",
    "minisd/commands/",
    "minisd/server/",
)  # nothing else knows of them
DOORWAYS = {"kernels", "samplers", "weights_loader"}
NETWORK = {"socket", "ssl", "http", "ftplib", "smtplib", "asyncio", "xmlrpc", "socketserver"}
EXECUTING = {"pickle", "marshal", "shelve", "dill"}  # a checkpoint is data
CALLS = {"print", "eval", "exec", "input", "breakpoint"}
GLOBAL_STATE = {  # of torch: set for one call, it would hold for the whole program
    "manual_seed",
    "seed",
    "set_default_dtype",
    "set_default_device",
    "set_num_threads",
    "set_grad_enabled",
    "set_float32_matmul_precision",
    "use_deterministic_algorithms",
    "load",  # executes what a pickle says
}


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, full name) of every import; `from a import b` gives `a`, a relative one begins with a dot.
    `from minisd import engine` gives the module, `from minisd import load` the public face."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names = [a.name for a in node.names] if module == "minisd" else []
            modules = [f"minisd.{n}" for n in names if is_module(n)]
            yield from ((node.lineno, name) for name in modules or [module])


def is_module(name: str) -> bool:
    place = ROOT / "minisd" / name
    return place.is_dir() or place.with_suffix(".py").is_file()


def within(name: str, allowed: set[str]) -> bool:
    if f"={name}" in allowed:
        return True
    parts = name.split(".")
    return any(".".join(parts[:n]) in allowed for n in range(1, len(parts) + 1))


def why_not(path: str, name: str) -> str | None:
    """What is wrong with this import in the file at `path`, relative to the root; None if nothing."""
    top = name.split(".")[0]
    if top in DOORWAYS:
        return f"is a doorway: import minisd.{name}"
    if not path.startswith("minisd/"):
        return None
    if name.startswith("."):
        return "is relative: write the full name"
    if (top in NETWORK or name == "urllib.request") and not path.startswith("minisd/server/"):
        return "opens the network"
    if top in EXECUTING:
        return "executes what it reads"
    packages, ours = next((a, b) for place, a, b in TABLE if path.startswith(place))
    if top == "minisd":
        if name.startswith(("minisd.cli", "minisd.commands", "minisd.server")) and not path.startswith(FACES):
            return "is a face: nothing but itself knows it"
        return None if within(name, ours) else "points the wrong way"
    if top in sys.stdlib_module_names or top in packages:
        return None
    return "is not a package of this place"


def calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of calls that a library must not make."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in CALLS:
            yield node.lineno, node.func.id
        of = node.func.value if isinstance(node.func, ast.Attribute) else None
        if isinstance(node.func, ast.Attribute) and isinstance(of, ast.Name) and of.id == "torch":
            if node.func.attr in GLOBAL_STATE:
                yield node.lineno, f"torch.{node.func.attr}"


def violations(path: str, source: str) -> list[str]:
    """Every wrong import and call in one file."""
    tree = ast.parse(source)
    found = [(line, f"{name} {wrong}") for line, name in imported(tree) if (wrong := why_not(path, name))]
    if path.startswith("minisd/"):
        found += [(line, f"{name}() is called") for line, name in calls(tree)]
    return [f"{path}:{line}: {what}" for line, what in sorted(found)]


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", ["minisd", "tests", "scripts"])
def test_imports_point_one_way(folder: str) -> None:
    """Oracle: the table above; no network, no print, nothing global, no bare doorway."""
    files = sources(folder)
    assert len(files) > 5
    wrong = [v for f in files for v in violations(f.relative_to(ROOT).as_posix(), f.read_text("utf-8"))]
    assert wrong == []


@pytest.mark.parametrize(
    "path,source,wrong",
    [
        (
            "minisd/kernels/a.py",
            "from minisd.config import SD1",
            "minisd.config points the wrong way",
        ),
        (
            "minisd/samplers/a.py",
            "from minisd.models.unet import UNet",
            "minisd.models.unet points the wrong way",
        ),
        ("minisd/samplers/a.py", "def f():\n    import minisd.text", "minisd.text points the wrong way"),
        ("minisd/weights_loader/a.py", "from minisd import pipeline", "minisd.pipeline points the wrong way"),
        ("minisd/weights_loader/a.py", "import pickle", "pickle executes what it reads"),
        ("minisd/models/a.py", "import numpy", "numpy is not a package of this place"),
        (
            "minisd/models/a.py",
            "from minisd.weights_loader.open import x",
            "minisd.weights_loader.open points",
        ),
        ("minisd/config/model.py", "import torch", "torch is not a package of this place"),
        ("minisd/cli.py", "import torch", "torch is not a package of this place"),
        ("minisd/cli.py", "import minisd.models.unet", "minisd.models.unet points the wrong way"),
        ("minisd/engine.py", "from minisd.cli import main", "minisd.cli is a face"),
        ("minisd/engine.py", "from diffusers import UNet2DConditionModel", "diffusers is not a package"),
        (
            "minisd/engine.py",
            "try:\n    import transformers\nexcept ImportError: ...",
            "transformers is not a",
        ),
        ("minisd/engine.py", "import socket", "socket opens the network"),
        ("minisd/engine.py", "import urllib.request", "urllib.request opens the network"),
        ("minisd/engine.py", "from .model import Model", ".model is relative"),
        ("minisd/engine.py", "from . import model", ". is relative"),
        ("minisd/engine.py", "import kernels", "kernels is a doorway: import minisd.kernels"),
        ("minisd/engine.py", "def f():\n    print('x')", "print() is called"),
        ("minisd/engine.py", "import torch\ntorch.manual_seed(0)", "torch.manual_seed() is called"),
        ("minisd/model.py", "import torch\ntorch.load('a.ckpt')", "torch.load() is called"),
        ("tests/test_a.py", "from samplers.ode import sample_euler", "samplers.ode is a doorway"),
        ("scripts/a.py", "import weights_loader as w", "weights_loader is a doorway"),
    ],
)
def test_a_planted_mistake_is_found(path: str, source: str, wrong: str) -> None:
    """Oracle: sources with one mistake each; the finding names the file and what is wrong."""
    found = violations(path, source)
    assert len(found) == 1 and found[0].startswith(f"{path}:") and wrong in found[0]


@pytest.mark.parametrize(
    "path,source",
    [
        (
            "minisd/kernels/a.py",
            "import triton.language as tl\nfrom minisd.kernels import reference",
        ),
        ("minisd/engine.py", "import urllib.parse\nimport torch\ng = torch.Generator('cpu').manual_seed(0)"),
        ("minisd/pipeline.py", "from minisd.models.unet import UNet\nfrom minisd.samplers import ode"),
        ("minisd/cli.py", "from minisd import Request\nfrom minisd.engine import load"),
        ("tests/test_a.py", "import diffusers\nprint('x')"),
    ],
)
def test_what_is_right_is_let_through(path: str, source: str) -> None:
    """Oracle: sources without a mistake."""
    assert violations(path, source) == []


def test_the_table_names_what_exists() -> None:
    """Oracle: the tree: a place or module that is gone must leave the table (the server is yet to come)."""
    for place, _, ours in TABLE:
        assert (ROOT / place).exists() or place == "minisd/server/", place
        for name in ours - {"minisd.server"}:
            path = ROOT / name.removeprefix("=").replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").is_file(), name


def test_the_doorways_are_links() -> None:
    """Oracle: the layout of the root."""
    for name in DOORWAYS:
        assert (ROOT / name).is_symlink()
        assert (ROOT / name).resolve() == ROOT / "minisd" / name

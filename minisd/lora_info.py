"""What an adapter file is: kind, ranks, what it changes and how strongly, what it fits, what it was trained
with."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping

import torch

from minisd.adapters import INDEPENDENT
from minisd.errors import quoted
from minisd.hashes import file_hashes
from minisd.lora_writing import config_of, energy, fitting, root
from minisd.weights_loader.lora_file import Adapter, read_adapter
from minisd.weights_loader.lora_kinds import BY_NAME, Change
from minisd.weights_loader.lora_names import Target, spellings
from minisd.weights_loader.open import open_source

TRAINING = {  # of kohya's ss_ metadata: what a person asks for first
    "ss_base_model_version": "base",
    "ss_sd_model_name": "trained on",
    "ss_network_dim": "declared rank",
    "ss_network_alpha": "declared alpha",
    "ss_num_train_images": "images",
    "ss_steps": "steps",
    "ss_epoch": "epochs",
    "ss_learning_rate": "learning rate",
    "ss_optimizer": "optimizer",
    "ss_resolution": "resolution",
    "ss_clip_skip": "clip skip",
    "modelspec.title": "title",
    "modelspec.author": "author",
    "modelspec.trigger_phrase": "trigger",
    "minisd.merge": "merged from",
    "minisd.extracted": "extracted from",
}


def lora_info(path: str | os.PathLike[str], model: str | os.PathLike[str] | None = None) -> dict[str, object]:
    """Plain data. model: that it is held against; None: the published families. Raises CheckpointError for
    what is no adapter, or fits none of them."""
    source = open_source(path)
    try:
        config = config_of(source, model)
        families = [c.family for c in fitting(source)]
        table = spellings(config)
        adapter = read_adapter(source, table)
    finally:
        source.close()
    hashes = file_hashes(path)
    targets = {(t.part, t.module): t for t in table.values()}
    return {
        "file": str(path),
        "report": adapter.report,
        "kinds": dict(Counter(kind_of(c) for c in adapter.changes.values())),
        "fits": families if model is None else [str(model)],
        "ranks": dict(sorted(Counter(r for c in adapter.changes.values() if (r := rank_of(c))).items())),
        "scales": dict(sorted(Counter(c.scale for c in adapter.changes.values() if c.factors).items())),
        "parts": parts_told(adapter, targets),
        "dtypes": dict(Counter(str(t.dtype)[6:] for t in source.tensors.values())),
        "embeddings": [e.name for e in adapter.embeddings],
        "sha256": hashes.sha256,
        "autov3": hashes.autov3,
        "tensors_sha256": adapter.sha256,
        "training": {told: adapter.metadata[k] for k, told in TRAINING.items() if k in adapter.metadata},
        "metadata_keys": len(adapter.metadata),
    }


def kind_of(change: Change) -> str:
    if not change.factors:
        return "bias alone"
    return change.kind if change.dora is None else f"{change.kind} with DoRA"


def rank_of(change: Change) -> int:
    """0 where there is none."""
    rank = BY_NAME[change.kind].rank if change.factors else None
    return 0 if rank is None else rank({k: tuple(v.shape) for k, v in change.factors.items()})


def parts_told(adapter: Adapter, targets: Mapping[tuple[str, str], Target]) -> dict[str, dict[str, object]]:
    """{part: modules, Frobenius norm of all its changes at weight 1, the module that is changed most}."""
    told: dict[str, dict[str, object]] = {}
    for part in sorted({p for p, _ in adapter.changes}, reverse=True):
        sizes = {m: norm_of(c, targets[p, m].shape) for (p, m), c in adapter.changes.items() if p == part}
        known = {m: s for m, s in sizes.items() if s is not None}
        most = max(known, key=lambda m: known[m], default=None)
        told[part] = {
            "modules": len(sizes),
            # of kinds that depend on the model's weights there is none without them
            "norm": root(sum(s * s for s in known.values())) if len(known) == len(sizes) else None,
            "largest": None if most is None else {"module": most, "norm": known[most]},
        }
    return told


def norm_of(change: Change, shape: tuple[int, ...]) -> float | None:
    """Frobenius norm of the change of a weight; None where it depends on the weight."""
    if not change.factors:
        return 0.0
    if change.kind not in INDEPENDENT or change.dora is not None:
        return None
    if change.kind == "lora" and "lora_mid" not in change.factors:
        up, down = (change.factors[n].double().flatten(1) for n in ("lora_up", "lora_down"))
        return abs(change.scale) * root(energy(up, down))
    zero = torch.zeros((), dtype=torch.float64).expand(shape)
    return float(torch.linalg.vector_norm(change.dense(zero)))


def told(info: Mapping[str, object]) -> str:
    """For people."""

    def row(name: str, value: object) -> str:
        return f"{name:<14} {value}"

    def counts(name: str) -> str:
        found = info[name]
        assert isinstance(found, dict)
        return ", ".join(f"{k} ({n})" if len(found) > 1 else f"{k}" for k, n in found.items())

    lines = [str(info["file"]), row("", info["report"])]
    fits = info["fits"]
    assert isinstance(fits, list)
    lines.append(row("fits", ", ".join(fits) or "no published family"))
    for name in ("ranks", "scales", "dtypes"):
        if info[name]:
            lines.append(row(name, counts(name)))
    parts = info["parts"]
    assert isinstance(parts, dict)
    for part, values in parts.items():
        norm = "depends on the model" if values["norm"] is None else f"{values['norm']:.4g}"
        most = values["largest"]
        most = f", most in {most['module']} ({most['norm']:.3g})" if most else ""
        lines.append(row(part, f"{values['modules']} modules, norm {norm}{most}"))
    if info["embeddings"]:
        lines.append(row("words", info["embeddings"]))
    lines += [row(name, info[name]) for name in ("sha256", "autov3", "tensors_sha256")]
    training = info["training"]
    assert isinstance(training, dict)
    # a file's own words: escaped and cut, or they could write to a terminal
    lines += [row(name, quoted(value, 90)[1:-1]) for name, value in training.items()]
    return "\n".join(lines)

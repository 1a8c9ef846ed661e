"""What the top value of a torch checkpoint holds: tensors by name, scalars as metadata, the names of the
rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from minisd.errors import CheckpointError, quoted
from minisd.weights_loader.limits import MAX_NAME, check_count, check_name
from minisd.weights_loader.pickle_values import TensorRef


@dataclass(slots=True)
class Entries:
    """`ignored` has the path of every entry that is neither a named tensor nor a top-level scalar."""

    tensors: dict[str, TensorRef] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def collect(value: object, where: str) -> Entries:
    """Sorts the entries of a checkpoint's value (of `read_pickle`, hence a bounded tree).

    `state_dict` is entered when present, also several deep; what lies beside it is not weights. Dicts below
    are flattened with dots: `{"image_proj": {"norm.weight": t}}` gives `image_proj.norm.weight`, the name
    that the safetensors form of such a file has. Raises CheckpointError when there is no dict, no tensor, or
    one name twice.
    """
    entries = Entries()
    while isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        for key, item in value.items():
            if key != "state_dict" and not _is_metadata(key, item, entries):
                entries.ignored.append(str(key)[:MAX_NAME])
        value = value["state_dict"]
    if not isinstance(value, dict):
        kind = "one tensor" if isinstance(value, TensorRef) else f"a {type(value).__name__}"
        raise CheckpointError(f"{where} holds {kind}; expected a dict of named tensors")
    _flatten(value, "", entries, where)
    if not entries.tensors:
        raise CheckpointError(f"{where} holds no tensors; expected a dict of named tensors")
    return entries


def _flatten(value: dict[object, object], prefix: str, entries: Entries, where: str) -> None:
    for key, item in value.items():
        if isinstance(key, str) and isinstance(item, TensorRef):
            name = prefix + key
            check_name(name, where)
            if name in entries.tensors:
                raise CheckpointError(
                    f"{where}: the name {quoted(name)} comes up twice in nested dicts; refusing"
                )
            entries.tensors[name] = item
            check_count(len(entries.tensors), where)
        elif isinstance(key, str) and isinstance(item, dict) and item:
            check_name(prefix + key, where)  # bounds the path before it grows with depth
            _flatten(item, f"{prefix}{key}.", entries, where)
        elif prefix or not _is_metadata(key, item, entries):
            entries.ignored.append(prefix + str(key)[:MAX_NAME])


def _is_metadata(key: object, item: object, entries: Entries) -> bool:
    if not isinstance(key, str) or not isinstance(item, str | int | float):
        return False
    entries.metadata.setdefault(key, str(item))  # the outermost wins
    return True

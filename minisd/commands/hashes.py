"""`minisd hash`: digests of model files, as other programs name them."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minisd.commands import Commands


def add(commands: Commands) -> None:
    p = commands.add_parser(
        "hash",
        help="digests of model files: sha256, AutoV2, AutoV3",
        description="Digests of model files as other programs name them: sha256 of all bytes; AutoV2, its "
        "first 10 digits (the model hash of a picture); AutoV3, 12 digits over what follows a safetensors "
        "header (the hash of a LoRA), the same whatever its metadata say.",
        epilog="Digests are remembered under XDG_CACHE_HOME/minisd for as long as the file is untouched.",
    )
    p.add_argument(
        "files", nargs="+", metavar="FILE", help="any file; a folder has a sha256 over its weights"
    )
    p.add_argument("--no-cache", action="store_true", help="read the files, and remember nothing")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> dict[str, object]:
    from minisd.hash_cache import remembered_hashes
    from minisd.hashes import SHORT, file_hashes, file_sha256

    told: list[dict[str, object]] = []
    for path in args.files:
        if os.path.isdir(path):
            sha256 = file_sha256(path)
            row = {"sha256": sha256, "autov2": sha256[:SHORT], "autov3": None, "remembered": False}
        else:
            made, known = (file_hashes(path), False) if args.no_cache else remembered_hashes(path)
            row = {"sha256": made.sha256, "autov2": made.autov2, "autov3": made.autov3, "remembered": known}
        told.append({"path": path, **row})
        if not args.json:
            sys.stdout.write(f"{path}\n  sha256  {row['sha256']}\n  AutoV2  {row['autov2']}\n")
            if row["autov3"] is not None:
                sys.stdout.write(f"  AutoV3  {row['autov3']}\n")
    return {"files": told}

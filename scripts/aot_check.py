"""Compile every Triton kernel ahead of time, without a GPU, and hold what it takes against what is promised.

    python scripts/aot_check.py                        # sm_80, sm_90, gfx942 must hold; the others are shown
    python scripts/aot_check.py --only flash cross     # some of the cases

Promised: everything compiles and fits into shared memory on sm_80, sm_90 and gfx942; on sm_90 no register is
spilled, and wherever there is a product the warp-group instructions of Hopper (wgmma, HGMMA in its assembly)
compute it. Exit code 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from minisd.lab.work import ahead_of_time, resource_table

PROMISED = ("sm_80", "sm_90", "gfx942")
SHOWN = ("sm_100", "sm_120")


def broken(row: dict[str, object]) -> str | None:
    """What a row breaks of the promise, or None."""
    if row["target"] not in PROMISED:
        return None
    if "error" in row:
        return str(row["error"])
    if not row["fits"]:
        return f"{row['shared']} bytes of shared memory do not fit"
    if row["target"] != "sm_90":
        return None
    if row["spills"]:
        return f"{row['spills']} instructions move spilled registers"
    matrix = row["matrix"]
    assert isinstance(matrix, dict)
    if row["product"] and set(matrix) != {"HGMMA"}:
        return f"its products run as {', '.join(matrix) or 'no matrix instruction'}, not as HGMMA"
    return None


def check(targets: Sequence[str], only: Sequence[str]) -> tuple[list[dict[str, object]], list[str]]:
    """(all rows, what is broken)."""
    rows = ahead_of_time(targets, None, only)
    wrong = [f"{r['case']} on {r['target']}: {why}" for r in rows if (why := broken(r)) is not None]
    return rows, wrong


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", nargs="+", default=[*PROMISED, *SHOWN])
    parser.add_argument("--only", nargs="+", default=[], help="cases whose names hold one of these")
    args = parser.parse_args(argv)
    rows, wrong = check(args.targets, args.only)
    sys.stdout.write(resource_table(rows) + "\n")
    sys.stdout.write("".join(f"BROKEN {line}\n" for line in wrong))
    sys.stdout.write(f"{len(rows)} kernels compiled, {len(wrong)} break the promise\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

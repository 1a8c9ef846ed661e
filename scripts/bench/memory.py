"""Predicted against measured: peak resident memory (VmHWM of a fresh process each) of loading and drawing.

    python -m scripts.bench.memory FILE [pixels] [modes ...]      # modes: none staged streamed disk

FILE is a full-size checkpoint; `scripts/bench/loading.py` writes ones with random weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

from scripts.bench.common import PEAK, fresh, record

RUN = (
    PEAK
    + """
import sys, time, torch, minisd
torch.set_num_threads(1)
from minisd.request import Request
side = int(sys.argv[2])
request = Request(prompt="a castle", steps=1, cfg_scale=7.5, width=side, height=side, seed=1)
named = dict(dtype="bfloat16", offload=sys.argv[3], vae_tile=int(sys.argv[4]) or None)
predicted = minisd.plan(sys.argv[1], request, **named).peak
begun = time.perf_counter()
engine = minisd.load(sys.argv[1], request=request, **named)
told = {"load, s": time.perf_counter() - begun, "peak after load, GB": peak() / 1e9}
result = engine.run(request)
import hashlib
told |= {"predicted, GB": predicted / 1e9, "peak, GB": peak() / 1e9}
told["pixels"] = int(hashlib.sha256(result.image.tobytes()).hexdigest()[:12], 16)
engine.close()
told |= {"resident after close, GB": resident() / 1e9}
told |= {f"{k}, s": v for k, v in result.drawing.seconds.items()}
print(json.dumps(told))
"""
)


def main(
    file: str, side: int = 512, tile: int = 0, modes: tuple[str, ...] = ("none", "staged", "streamed", "disk")
) -> None:
    figures: dict[str, object] = {"pixels": side, "steps": 1, "tile": tile}
    for mode in modes:
        found = fresh(RUN, file, str(side), mode, str(tile))
        ratio = found["predicted, GB"] / found["peak, GB"]
        figures[mode] = {**found, "predicted over measured": ratio}
        print(mode, figures[mode], flush=True)
    print(record(f"memory-{Path(file).stem}-{side}", figures))


if __name__ == "__main__":
    path, *rest = sys.argv[1:]
    numbers = [int(a) for a in rest if a.isdecimal()]
    named = tuple(a for a in rest if not a.isdecimal())
    size, tile = [*numbers, 512, 0][0], [*numbers[1:], 0][0]
    main(path, size, tile, named or ("none", "staged", "streamed", "disk"))

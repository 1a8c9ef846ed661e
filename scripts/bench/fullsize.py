"""Full-size SD1.5 and SDXL, random weights in the released layout: load an fp16 file to bfloat16, take a
step, decode.

    python -m scripts.bench.fullsize [pixels]

A proof that the real shapes run from file to picture, with times and peak memory of a fresh process each.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from scripts.bench.common import PEAK, fresh, record
from scripts.bench.loading import write

RUN = (
    PEAK
    + """
import sys, time, torch, minisd
begun = time.perf_counter()
engine = minisd.load(sys.argv[1], dtype="bfloat16", vae_dtype="bfloat16")
loaded = time.perf_counter() - begun
loaded_peak = peak()
side = int(sys.argv[2])
result = engine.txt2img("a castle", steps=1, cfg_scale=1.0, width=side, height=side, seed=1)
weights = sum(p.weight_bytes for p in engine.plan.parts)
told = {"load, s": loaded, "peak after load, GB": loaded_peak / 1e9}
told |= {"weights, GB": weights / 1e9, "peak, GB": peak() / 1e9}
told |= {f"{k}, s": v for k, v in result.drawing.seconds.items()}
assert result.image.size == (side, side)
print(json.dumps(told))
"""
)


def main(side: int = 512) -> None:
    figures: dict[str, object] = {"pixels": side, "steps": 1}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("sd15", "sdxl-base"):
            path = Path(folder) / f"{name}.safetensors"
            write(path, name, "F16", random=True)
            figures[name] = fresh(RUN, str(path), str(side))
            path.unlink()
            print(name, figures[name])
    print(record(f"fullsize-{side}", figures))


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))

"""How long until something happens: import, and a picture from a cold start."""

from __future__ import annotations

from scripts.bench.common import fresh, median, record

TXT2IMG = """
import json, sys, io, contextlib, tempfile, os
from minisd.cli import main
out = io.StringIO()
with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(out):
    assert main(["txt2img", "a red apple", "-o", os.path.join(folder, "a.png"), "--seed", "1", "--json"]) == 0
print(json.dumps({"sampling": sum(json.loads(out.getvalue())["pictures"][0]["seconds"].values())}))
"""
IMPORT = """
import json, sys, time
begun = time.perf_counter()
import minisd
print(json.dumps({"import": time.perf_counter() - begun, "torch": int("torch" in sys.modules)}))
"""


def main(rounds: int = 5) -> None:
    empty, torch_only, importing, drawing, sampling = [], [], [], [], []
    for _ in range(rounds + 1):
        empty.append(fresh("pass")["seconds"])
        torch_only.append(fresh("import torch")["seconds"])
        found = fresh(IMPORT)
        assert not found["torch"], "import minisd imported torch"
        importing.append(found["import"])
        found = fresh(TXT2IMG)
        drawing.append(found["seconds"])
        sampling.append(found["sampling"])
    figures = {
        "python alone, s": median(empty[1:]),
        "import minisd, s": median(importing[1:]),
        "python -c 'import torch', s": median(torch_only[1:]),
        "cold txt2img, s": median(drawing[1:]),
        "of it encode + sample + decode, s": median(sampling[1:]),
    }
    ratio = (median(drawing[1:]) - median(sampling[1:])) / median(torch_only[1:])
    for name, value in figures.items():
        print(f"{name:<36}{value:8.3f}")
    print(f"{'start-up over import torch':<36}{ratio:8.2f}x  (aim: under 3)")
    print(record("startup", {**figures, "start-up over import torch": ratio}))


if __name__ == "__main__":
    main()

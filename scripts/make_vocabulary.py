"""Make minisd/assets/clip_merges.txt.gz from OpenAI's bpe_simple_vocab_16e6.txt.gz (MIT; it ships inside
open_clip_torch).

    python scripts/make_vocabulary.py path/to/bpe_simple_vocab_16e6.txt.gz

Only lines 2..48895 are used by CLIP: 49152 - 256 - 2 = 48,894 merges. The output is reproducible to the byte.
"""

import gzip
import hashlib
import sys
from pathlib import Path

SOURCE_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
TARGET = Path(__file__).parent.parent / "minisd" / "assets" / "clip_merges.txt.gz"


def main() -> None:
    packed = Path(sys.argv[1]).read_bytes()
    digest = hashlib.sha256(packed).hexdigest()
    if digest != SOURCE_SHA256:
        sys.exit(f"{sys.argv[1]} has sha256 {digest}, expected {SOURCE_SHA256}")
    merges = gzip.decompress(packed).decode("utf-8").split("\n")[1 : 1 + 49152 - 256 - 2]
    TARGET.write_bytes(gzip.compress("\n".join(merges).encode("utf-8"), mtime=0))
    print(f"{TARGET.name}: {len(merges)} merges, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()

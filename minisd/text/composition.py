"""Several prompts in one: `a castle AND a sunset :0.6`, each pulling with its weight (Liu et al. 2022,
arXiv:2206.01714)."""

from __future__ import annotations

import math
import re

from minisd.errors import RequestError

MAX_PROMPTS = 16  # each costs a call of the network per step
AND = re.compile(r"\bAND\b")
WEIGHT = re.compile(r":\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*$")


def split_prompt(prompt: str) -> list[tuple[str, float]]:
    """(text, weight) of each part between the words AND (in capitals). A weight stands behind a colon at a
    part's end; without AND nothing is read as a weight. Linear in the length of the prompt. Raises
    RequestError for more than MAX_PROMPTS parts."""
    parts = AND.split(prompt)
    if len(parts) == 1:
        return [(prompt, 1.0)]
    if len(parts) > MAX_PROMPTS:
        raise RequestError(
            f"the prompt joins {len(parts):,} prompts with AND; at most {MAX_PROMPTS}", field="prompt"
        )
    out = []
    for part in parts:
        tail = part[-40:]  # a weight is short; searching only there keeps this linear
        found = WEIGHT.search(tail)
        if found is None:
            out.append((part.strip(), 1.0))
            continue
        weight = float(found.group(1))
        if not math.isfinite(weight) or abs(weight) > 100:
            raise RequestError(f"the weight {found.group(1)} behind AND is outside -100..100", field="prompt")
        out.append((part[: len(part) - len(tail) + found.start()].strip(), weight))
    return out

"""Several prompts in one: `a castle AND a sunset :0.6`, each pulling with its weight (Liu et al. 2022,
arXiv:2206.01714)."""

from __future__ import annotations

import re

from minisd.errors import RequestError

MAX_PROMPTS = 16  # each costs a call of the network per step
MAX_WEIGHT = 100.0
AND = re.compile(r"\bAND\b")
WEIGHT = re.compile(r":\s*+([-+]?(?:\d++\.?+\d*+|\.\d++))\Z")


def split_prompt(prompt: str, *, lone: bool = False) -> list[tuple[str, float]]:
    """(text, weight) of each part between the words AND (in capitals). A weight stands behind a colon at a
    part's end.

    lone: read a weight in a prompt without AND as well, as A1111 does: "time 12:30" is then "time 12" with
    weight 30. Linear in the length of the prompt. Raises RequestError for more than MAX_PROMPTS parts and for
    weights beyond MAX_WEIGHT.
    """
    parts = AND.split(prompt)
    if len(parts) == 1 and not lone:
        return [(prompt, 1.0)]
    if len(parts) > MAX_PROMPTS:
        raise RequestError(
            f"the prompt joins {len(parts):,} prompts with AND; at most {MAX_PROMPTS}", field="prompt"
        )
    return [weighed(part) for part in parts]


def weighed(part: str) -> tuple[str, float]:
    """A part without blanks at its end, and the weight behind it (1 without)."""
    part = part.rstrip()
    start = part.rfind(":")  # the last one, so that nothing is searched twice
    found = WEIGHT.match(part, start) if start >= 0 else None
    if found is None:
        return part, 1.0
    weight = float(found.group(1))
    if abs(weight) > MAX_WEIGHT:
        raise RequestError(
            f"the weight {weight:g} behind AND is outside -{MAX_WEIGHT:g}..{MAX_WEIGHT:g}", field="prompt"
        )
    return part[:start].rstrip(), weight

"""Styles, choices and wildcards of a request written out: what is left says the same without any list.

Choices are drawn by the seed of each image, so that image i of a batch stays the picture that its seed gives
alone; where their words differ, images are drawn one after the other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from minisd.request import Request
from minisd.request_rules import SEEDS
from minisd.text.choices import Wildcards, expand
from minisd.text.lists import Styles, read_styles, read_wildcards, style_named, styled

FIELDS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2", "prompt_to")


@dataclass(frozen=True)
class Lists:
    """What prompts may name: lists of wildcards and styles; None where none were given."""

    wildcards: Wildcards | None = None
    styles: Styles | None = None

    @classmethod
    def of(
        cls,
        wildcards: str | os.PathLike[str] | Wildcards | None = None,
        styles: str | os.PathLike[str] | Styles | None = None,
    ) -> Lists:
        """From a folder or mapping, and a CSV or mapping. Raises MinisdError for what cannot be read."""
        lists = read_wildcards(wildcards) if isinstance(wildcards, str | os.PathLike) else wildcards
        table = read_styles(styles) if isinstance(styles, str | os.PathLike) else styles
        return cls(lists, table)

    def written_out(self, request: Request) -> list[Request]:
        """A request made whole by `Request.for_model` -> one that draws all its images, itself where nothing
        is to be written out; or one for each image, where their words differ.

        Raises RequestError for names that are not there, with the nearest that is.
        """
        plain = self.with_styles(request)
        if plain.forks.choices == "literal":
            return [plain]
        said = [self.drawn(plain, seed) for seed in seeds_of_words(request)]
        if said[0] == words_of(plain) and all(words == said[0] for words in said):
            return [plain]
        if all(words == said[0] for words in said):
            return [replace(plain, **said[0], choices="literal")]
        return [replace(alone(plain, index), **words, choices="literal") for index, words in enumerate(said)]

    def with_styles(self, request: Request) -> Request:
        prompt, negative = request.prompt, request.negative_prompt
        for name in request.styles:
            style = style_named(name, self.styles)
            prompt = styled(prompt, style.prompt, "prompt")
            negative = styled(negative, style.negative_prompt, "negative_prompt")
        return replace(request, prompt=prompt, negative_prompt=negative, styles=())

    def drawn(self, request: Request, seed: int) -> dict[str, Any]:
        """The texts with their choices made by one seed. The second encoder draws as the first."""
        texts = {
            name: expand(text, seed, field=name.removesuffix("_2"), wildcards=self.wildcards)
            for name, text in texts_of(request).items()
        }
        regions = [
            replace(r, prompt=expand(r.prompt, seed, field=f"regions {i}", wildcards=self.wildcards))
            for i, r in enumerate(request.regions)
        ]
        return {**texts, "regions": tuple(regions)}


def texts_of(request: Request) -> dict[str, str]:
    """Those fields that hold a text."""
    return {name: text for name in FIELDS if (text := getattr(request, name)) is not None}


def words_of(request: Request) -> dict[str, Any]:
    """All that choices may stand in."""
    return {**texts_of(request), "regions": request.regions}


def seeds_of_words(request: Request) -> list[int]:
    """The seed that draws each image's words. Variations of one picture say the same."""
    seeds = request.seeds()
    return [seeds[0]] * len(seeds) if request.variation_strength > 0 else seeds


def alone(request: Request, index: int) -> Request:
    """The request that draws just image `index` of a whole one."""
    if request.variation_strength > 0:
        assert request.variation_seed is not None, "set by Request.for_model"
        return replace(request, count=1, variation_seed=(request.variation_seed + index) % SEEDS)
    return replace(request, count=1, seed=request.seeds()[index])

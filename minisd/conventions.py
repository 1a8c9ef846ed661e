"""The forks: where implementations differ silently, so that one seed gives different pictures elsewhere.

Each fork is a field that a Request may set alone; a named convention sets them together, so that a picture
made by that program can be made here. The values actually used travel with the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Forks:
    """One choice for every fork. The defaults are minisd's own."""

    # first x: sigma * n (k-diffusion), or sqrt(1 + sigma^2) * n, the true variance of a noised unit-variance
    # latent
    initial_noise: Literal["sigma", "variance"] = "variance"
    # which training timesteps the "normal" schedule visits (Lin et al. 2023, table 2), and the offset of
    # "leading"
    spacing: Literal["linspace", "leading", "trailing", "sgm"] = "trailing"
    steps_offset: int = 0
    # between trained levels: log sigma linear in t (k-diffusion), or sigma linear in t (diffusers)
    interpolation: Literal["log", "linear"] = "log"
    # a sigma between trained levels is given a fractional timestep, or the nearest trained one
    quantised: bool = False
    # DDIM ends at sigma 0, or at the first trained level (diffusers: set_alpha_to_one False)
    ddim_end: Literal["zero", "first"] = "zero"
    # leave out the next-to-last level: never, always, or where A1111 does so for a sampler (DPM2, 3M SDE)
    discard: Literal["never", "always", "sampler"] = "never"
    # random numbers: our portable Philox stream (A1111's "NV"), or torch's generator on the CPU or on a CUDA
    # device
    rng: Literal["philox", "torch", "cuda"] = "philox"
    # SDXL: an empty negative prompt becomes all zeros (as in training), or is encoded as text
    empty_negative: Literal["zeros", "encode"] = "zeros"
    # a prompt of more than 75 tokens is cut into contexts that the UNet sees side by side: behind the last
    # comma of each if there is one near its end, or after 75; or it is cut off
    long_prompt: Literal["commas", "chunks", "truncate"] = "commas"
    # all prompts of a request get as many contexts as the longest has, or each as many as its own text takes
    chunk_padding: Literal["all", "own"] = "all"
    # the word AND joins prompts that are predicted apart, or is a word like others
    composition: Literal["and", "literal"] = "and"
    # how a prompt is read: with the community's weights, editing and tags; the same with A1111's accidents
    # ("12:30" is a weight, a bar outside [a|b] ends editing, a BREAK in brackets is none), as its versions
    # before 1.6 counted steps; with Compel's weights; or as plain text
    prompt_language: Literal["minisd", "a1111", "a1111_old", "compel", "literal"] = "minisd"
    # how a word's weight acts: scaled, mean restored; scaled; as Compel; not. auto: as the language has it
    emphasis: Literal["auto", "mean", "plain", "compel", "ignore"] = "auto"
    # {a|b} and __list__ are drawn by seed, or are text
    choices: Literal["expand", "literal"] = "expand"
    # which steps a strength makes: see start.py. share: the last round(strength * steps); a1111 one more;
    # a1111_exact, sdnext: `steps` of a longer schedule; diffusers: int(strength * steps); sgm by levels
    strength_rule: Literal["share", "a1111", "a1111_exact", "diffusers", "sdnext", "sgm"] = "share"
    # a picture becomes the mean of what the VAE's encoder gives, or a sample of it. (A1111 samples too, from
    # a generator that nothing records: the mean is as near as one can come.)
    vae_latent: Literal["mean", "sample"] = "mean"
    # a latent is drawn anew if the mask is white at any of its pixels, at the first of them, or in the scaled
    # mask, rounded
    mask_cells: Literal["cover", "nearest", "round"] = "cover"
    # the mask's blur stays within its edge, or reaches across it
    mask_edge: Literal["inside", "across"] = "inside"
    # the given picture is laid over the drawn one where the mask is black
    paste: bool = True
    # a share of the run at which another model takes over: of its steps; of the trained timesteps; of the
    # steps, and one more
    refiner_rule: Literal["steps", "times", "a1111"] = "steps"


CONVENTIONS: dict[str, Forks] = {
    "minisd": Forks(),
    "a1111": Forks(
        initial_noise="sigma",
        spacing="linspace",
        discard="sampler",
        chunk_padding="own",
        prompt_language="a1111",
        choices="literal",
        strength_rule="a1111",
        mask_cells="round",
        mask_edge="across",
        refiner_rule="a1111",
    ),
    "diffusers": Forks(
        spacing="leading",
        steps_offset=1,
        interpolation="linear",
        ddim_end="first",
        rng="torch",
        long_prompt="truncate",
        composition="literal",
        prompt_language="literal",
        choices="literal",
        strength_rule="diffusers",
        vae_latent="sample",
        mask_cells="nearest",
        paste=False,
        refiner_rule="times",
    ),
    "sgm": Forks(
        spacing="sgm",
        quantised=True,
        rng="torch",
        long_prompt="truncate",
        composition="literal",
        prompt_language="literal",
        choices="literal",
        strength_rule="sgm",
        vae_latent="sample",
        mask_cells="nearest",
        paste=False,
        refiner_rule="times",
    ),
}

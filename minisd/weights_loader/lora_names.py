"""What the modules of a model are called in adapter files: a table from every published spelling to our name.

A file's name for a module is looked up, never taken apart: `lora_unet_down_blocks_0_attentions_0_proj_in`
could be cut in many places. The table is made forwards, from the modules of the config at hand.

Spellings: kohya sd-scripts (`lora_unet_`, `lora_te1_`; diffusers blocks for SD1 and SD2, sgm or diffusers
blocks for SDXL), LyCORIS (`lycoris_`), kohya OFT (`oft_unet_`), diffusers and PEFT (`unet.`, or nothing in
the earliest files; attention processors before 0.20), Transformers 5 (no `text_model.`), ComfyUI
(`diffusion_model.`, `clip_l.`), OneTrainer (`lora_te1.` and dots).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from minisd.config import ModelConfig
from minisd.weights_loader.keymap import Rules, hf_rules, unet_rules


@dataclass(frozen=True, slots=True)
class Target:
    """A module that an adapter may change: the part of the model, our name, and the shape of its weight."""

    part: str  # "unet", "text_encoder", "text_encoder_2"
    module: str  # "input_blocks.1.1.proj_in"
    shape: tuple[int, ...]
    bias: bool

    def __str__(self) -> str:
        return f"{self.part}.{self.module}"


UNET_FLAT = ("lora_unet_", "lycoris_", "oft_unet_")
UNET_DOTTED = ("unet.", "", "lora_unet.", "base_model.model.", "unet.base_model.model.")
UNET_LDM = ("diffusion_model.", "model.diffusion_model.")
ONE_ENCODER = (
    ("lora_te_", "lora_te1_"),
    ("", "text_encoder.", "lora_te.", "lora_te1.", "clip_l.", "clip_h."),
)
ENCODERS = {
    "text_encoder": (("lora_te1_",), ("text_encoder.", "lora_te1.", "clip_l.")),
    "text_encoder_2": (("lora_te2_",), ("text_encoder_2.", "lora_te2.", "clip_g.")),
}
# attention of diffusers before 0.20 and of the text encoders beside it: `processor.to_q_lora.down.weight`
PROCESSOR = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "to_out"}
TEXT_PROCESSOR = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def modules(rules: Rules, part: str) -> Iterator[tuple[Target, str]]:
    """(target, the module's name in the other naming of the rules), each module once."""
    biased = {r.ours.rpartition(".")[0] for r in rules if r.ours.endswith(".bias")}
    for rule in rules:
        module, _, kind = rule.ours.rpartition(".")
        if kind == "weight":
            yield Target(part, module, rule.shape, module in biased), rule.theirs.removesuffix(".weight")


def spellings(config: ModelConfig) -> dict[str, Target]:
    """{name in a file, without the factor's suffix: target} of everything that an adapter can change."""
    table: dict[str, Target] = {}
    for target, diffusers in modules(unet_rules(config.unet), "unet"):
        names = {prefix + flat(path) for prefix in UNET_FLAT for path in (target.module, diffusers)}
        names |= {prefix + diffusers for prefix in UNET_DOTTED} | {p + target.module for p in UNET_LDM}
        names |= {prefix + old for prefix in ("unet.", "") for old in processor_names(diffusers)}
        _enter(table, names, target)
    for use in config.text:
        flats, dotted = ENCODERS[use.part]
        if len(config.text) == 1:
            flats, dotted = (*flats, *ONE_ENCODER[0]), (*dotted, *ONE_ENCODER[1])
        for target, path in modules(hf_rules(use.config), use.part):
            short = path.removeprefix("text_model.")  # as Transformers 5 writes it
            names = {prefix + flat(p) for prefix in flats for p in (path, short)}
            bases = {path, short, f"transformer.{path}"}
            names |= {prefix + p for prefix in dotted for p in bases}
            parent, _, last = path.rpartition(".")
            if parent.endswith("self_attn") and last in TEXT_PROCESSOR:
                old = f"{parent}.{TEXT_PROCESSOR[last]}"
                names |= {prefix + old for prefix in dotted}
            _enter(table, names, target)
    return table


def kohya_names(config: ModelConfig) -> dict[Target, str]:
    """What kohya's scripts call each module: blocks as diffusers counts them for SD1 and SD2, as sgm does for
    SDXL. Every program reads these."""
    sgm = config.unet.y_dim is not None
    names: dict[Target, str] = {}
    for target, diffusers in modules(unet_rules(config.unet), "unet"):
        names[target] = UNET_FLAT[0] + flat(target.module if sgm else diffusers)
    for use in config.text:
        one = len(config.text) == 1 and use.part == "text_encoder"
        prefix = ONE_ENCODER[0][0] if one else ENCODERS[use.part][0][0]
        for target, path in modules(hf_rules(use.config), use.part):
            names[target] = prefix + flat(path)
    return names


def flat(path: str) -> str:
    return path.replace(".", "_")


def processor_names(path: str) -> Iterator[str]:
    """`...attn1.to_out.0` -> `...attn1.processor.to_out`."""
    for tail, old in PROCESSOR.items():
        parent = path.removesuffix(f".{tail}")
        if parent != path and parent.endswith(("attn1", "attn2")):
            yield f"{parent}.processor.{old}"


def _enter(table: dict[str, Target], names: Iterable[str], target: Target) -> None:
    for name in names:
        known = table.setdefault(name, target)
        assert known == target, f"{name} is {known} and {target}"

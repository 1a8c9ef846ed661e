"""Files that are not Stable Diffusion models: adapters and foreign networks, told by their keys and shapes
alone.

The order matters and is that of detection in the field: a ControlNet 1.0 file contains a whole model, a LoRA
may name UNet modules. Each kind comes with the sentence for the person who gave the file as a model.
"""

from __future__ import annotations

from dataclasses import dataclass

from minisd.weights_loader.source import Tensors

FAMILY_OF_CONTEXT = {
    768: "sd1",
    1024: "sd2",
    2048: "sdxl",
    1280: "sdxl-refiner",
}  # width of the text at attn2
FAMILY_NAMES = {"sd1": "SD1.x", "sd2": "SD2.x", "sdxl": "SDXL", "sdxl-refiner": "SDXL refiner"}


@dataclass(frozen=True)
class NotAModel:
    """What the file is instead: `kind` for programs, `what` for people, `mark` the key that told."""

    kind: str
    family: str | None
    what: str
    mark: str

    @property
    def sentence(self) -> str:
        return f"this is {self.what}, not a model; {ADVICE[self.kind]}"


ADVICE = {
    "lora": "load it as a LoRA onto a model",
    "textual_inversion": "load it as an embedding beside a model",
    "controlnet": "load it as a ControlNet beside a model",
    "t2i_adapter": "load it as a T2I-Adapter beside a model",
    "ip_adapter": "load it as an IP-Adapter beside a model",
    "upscaler": "use it to enlarge pictures",
    "image_encoder": "IP-Adapters take it beside a model",
    "foreign": "minisd runs SD1.x, SD2.x and SDXL",
}
NOT_RUN = "minisd does not run"


# A dotted part of a name, where it must stand ("" anywhere), and what has it.
FOREIGN: tuple[tuple[str, str], ...] = (
    ("joint_blocks", "a Stable Diffusion 3 transformer"),
    ("distilled_guidance_layer", "a Chroma transformer"),
    ("double_blocks", "a Flux-like transformer"),
    ("single_transformer_blocks", "a Flux transformer in diffusers layout"),
    ("add_k_proj", "a Stable Diffusion 3 or Flux transformer in diffusers layout"),
    ("clip_txt_mapper", "a Stable Cascade network"),
    ("clip_mapper", "a Stable Cascade network"),
    ("time_stack", "a video model (Stable Video Diffusion)"),
    ("time_mixer", "a video model (Stable Video Diffusion)"),
    ("temporal_transformer_blocks", "a video model (Stable Video Diffusion)"),
    ("motion_modules", "an AnimateDiff motion module"),
    ("adaln_single", "a PixArt-like transformer"),
    ("noise_refiner", "a Lumina-like transformer"),
    ("modulation", "a video transformer (Wan)"),
    ("cond_proj", "an LCM model with an embedded guidance scale"),
)
LORA_MARKS = (
    *(".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".lora.down.", ".lora.up.", "_lora.down."),
    *(
        ".lora_linear_layer.",
        ".hada_w1_a",
        ".lokr_w1",
        ".dora_scale",
        ".oft_blocks",
        ".lora_magnitude_vector",
    ),
)
LORA_MARKS_AFTER_PREFIX = (".diff", ".w_norm", ".on_input", ".a1.weight")
RANK_MARKS = (".lora_down.weight", ".lora_A.weight", ".lora.down.weight", "_lora.down.weight", ".hada_w1_b")
WIDTHS = {768: "CLIP-L", 1024: "OpenCLIP ViT-H", 1280: "OpenCLIP bigG"}


def not_a_model(tensors: Tensors) -> NotAModel | None:
    """The first kind that fits, or None: then the file is looked at for networks of ours."""
    return (
        _control(tensors)  # before LoRA: a Control-LoRA has the key lora_controlnet
        or _lora(tensors)
        or _embedding(tensors)
        or _image_adapter(tensors)
        or _foreign(tensors)
        or _upscaler(tensors)
        or _image_encoder(tensors)
    )


def other_task(tensors: Tensors) -> tuple[str, str] | None:
    """UNets of the right build for tasks that minisd does not do: (what, why)."""
    for name, info in tensors.items():
        if name in (
            "model.diffusion_model.label_emb.weight",
            "label_emb.weight",
            "unet/class_embedding.weight",
        ):
            return "the x4 upscaler", f"{name} is {list(info.shape)}"
        if name.endswith("label_emb.0.0.weight") and info.shape[1:] in ((1536,), (2048,)):
            return "an unCLIP model", f"{name} is {list(info.shape)}"
    return None


def _first(tensors: Tensors, *marks: str) -> str | None:
    return next((name for name in tensors if any(mark in name for mark in marks)), None)


def _context_family(tensors: Tensors) -> str | None:
    """From any key or value projection of attention to the text: its input width."""
    for name, info in tensors.items():
        if ("attn2" in name and "to_k" in name) or name.endswith("to_k_ip.weight"):
            if "lora_up" in name or "lora_B" in name or "lora.up" in name or not info.shape:
                continue
            if family := FAMILY_OF_CONTEXT.get(info.shape[-1]):
                return family
    return None


def _lora(tensors: Tensors) -> NotAModel | None:
    mark = _first(tensors, *LORA_MARKS)
    if mark is None:
        prefixed = [n for n in tensors if n.startswith(("lora_", "lycoris_"))]
        mark = next((n for n in prefixed if n.endswith(LORA_MARKS_AFTER_PREFIX)), None)
        if mark is None and prefixed:
            mark = prefixed[0]
    if mark is None or _first(tensors, "image_proj.") is not None:  # IP-Adapter FaceID carries LoRA layers
        return None
    ranks = [t.shape[0] for n, t in tensors.items() if n.endswith(RANK_MARKS) and t.shape]
    modules = len(
        {n.split(".")[0] if n.startswith(("lora_", "lycoris_")) else n.rsplit(".", 2)[0] for n in tensors}
    )
    family = "sdxl" if any(n.startswith("lora_te2_") for n in tensors) else _context_family(tensors)
    rank = f"rank {max(set(ranks), key=ranks.count)}, " if ranks else ""
    return NotAModel("lora", family, f"a LoRA ({rank}{modules} modules){_for(family)}", mark)


def _for(family: str | None) -> str:
    return f" for {FAMILY_NAMES[family]}" if family else ""


def _embedding(tensors: Tensors) -> NotAModel | None:
    mark = _first(tensors, "string_to_param", "emb_params")
    small = sum(t.nbytes for t in tensors.values()) < 1_000_000
    vectors = [t for t in tensors.values() if len(t.shape) in (1, 2) and t.shape[-1] in WIDTHS]
    if mark is None and set(tensors) == {"clip_l", "clip_g"}:
        mark = "clip_l"
    if mark is None and small and 0 < len(tensors) <= 4 and len(vectors) == len(tensors):
        mark = next(iter(tensors))
    if mark is None:
        return None
    widths = sorted({t.shape[-1] for t in vectors})
    family = "sdxl" if 1280 in widths else FAMILY_OF_CONTEXT.get(widths[0]) if widths else None
    towers = " and ".join(WIDTHS[w] for w in widths) or "an unknown encoder"
    return NotAModel("textual_inversion", family, f"a textual inversion for {towers}", mark)


def _control(tensors: Tensors) -> NotAModel | None:
    exact = (
        ("lora_controlnet", "controlnet", "a Control-LoRA"),
        ("control_model.zero_convs.0.0.weight", "controlnet", "a ControlNet"),
        ("zero_convs.0.0.weight", "controlnet", "a ControlNet"),
        ("controlnet_cond_embedding.conv_in.weight", "controlnet", "a ControlNet in diffusers layout"),
        ("body.0.block1.weight", "t2i_adapter", "a T2I-Adapter"),
        ("adapter.body.0.resnets.0.block1.weight", "t2i_adapter", "a T2I-Adapter in diffusers layout"),
        ("body.0.in_conv.weight", "t2i_adapter", "a light T2I-Adapter"),
        ("style_embedding", "t2i_adapter", "a style T2I-Adapter"),
    )
    for mark, kind, what in exact:
        if mark in tensors:
            if "control_add_embedding.linear_1.bias" in tensors:
                what = "a ControlNet-Union"
            family = _context_family(tensors)
            if kind == "t2i_adapter" and "conv_in.weight" in tensors:
                wide = tensors["conv_in.weight"].shape[1:2]
                family = "sdxl" if wide in ((256,), (768,)) else "sd1"
            return NotAModel(kind, family, what + _for(family), mark)
    if mark := _first(tensors, "lllite"):
        return NotAModel("controlnet", "sdxl", "a ControlNet-LLLite for SDXL", mark)
    return None


def _image_adapter(tensors: Tensors) -> NotAModel | None:
    mark = next((n for n in tensors if n.startswith("image_proj.")), None)
    if mark is None or not any(n.startswith("ip_adapter.") for n in tensors):
        return None
    family = _context_family(tensors)
    return NotAModel("ip_adapter", family, "an IP-Adapter" + _for(family), mark)


def _foreign(tensors: Tensors) -> NotAModel | None:
    for part, what in FOREIGN:
        for name in tensors:
            if part in name and part in name.split("."):
                return NotAModel("foreign", None, what, name)
    return None


def _upscaler(tensors: Tensors) -> NotAModel | None:
    marks = (
        "model.1.sub.0.RDB1.conv1.0.weight",
        "body.0.rdb1.conv1.weight",
        "RRDB_trunk.0.RDB1.conv1.weight",
    )
    for name in tensors:
        bare = name.removeprefix("params_ema.").removeprefix("params.")
        compact = bare == "body.1.weight" and len(tensors[name].shape) == 1  # PReLU of SRVGGNetCompact
        if bare in marks or compact or bare == "layers.0.residual_group.blocks.0.norm1.weight":
            return NotAModel("upscaler", None, "an upscaler of pictures", name)
    return None


def _image_encoder(tensors: Tensors) -> NotAModel | None:
    if not tensors or "text_model.embeddings.token_embedding.weight" in tensors:
        return None
    inside = [
        n
        for n in tensors
        if n.startswith(("vision_model.", "visual_projection.", "visual.", "concept_embeds"))
    ]
    if len(inside) < 0.9 * len(tensors):
        return None
    return NotAModel("image_encoder", None, "an image encoder (CLIP vision)", inside[0])

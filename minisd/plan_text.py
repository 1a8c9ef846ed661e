"""A plan as a table for people, and as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minisd.placement import Plan


def as_text(plan: Plan) -> str:
    rows = [f"{'part':<16}{'device':<8}{'dtype':<10}{'weights':>12}  {'kept':<10}why"]
    for p in plan.parts:
        dtype = str(p.dtype.value).removeprefix("torch.")
        weights = f"{p.weight_bytes / 1e6:>9,.1f} MB  {p.residency.value:<10}"
        rows.append(f"{p.part:<16}{p.device:<8}{dtype:<10}{weights}{p.dtype.reason}")
        if p.layers:
            rows.append(f"{'':<16}{len(p.layers)} layers stored as {p.quant.value}: {p.quant.reason}")
    batching = [n for n in ("images", "prompts") if getattr(plan.batching.value, n)]
    rows += [
        f"device          {plan.device.value}: {plan.device.reason}",
        f"attention       {plan.attention.value}: {plan.attention.reason}",
        f"kernels         {plan.kernels.value}: {plan.kernels.reason}",
        f"batched         {' and '.join(batching) or 'nothing'}: {plan.batching.reason}",
        *(
            [f"guidance        on {plan.cfg_device.value} too: {plan.cfg_device.reason}"]
            if plan.cfg_device.value is not None
            else []
        ),
        f"channels last   {', '.join(plan.channels_last.value) or 'no'}: {plan.channels_last.reason}",
        f"VAE tiles       {plan.vae_tile.value or 'none'}: {plan.vae_tile.reason}",
    ]
    if plan.memory.value is not None:
        rows.append(f"memory          {plan.memory.value / 1e9:.2f} GB: {plan.memory.reason}")
    rows.append(f"weights         {plan.rung.value}: {plan.rung.reason}")
    for s in plan.stages:
        rows.append(
            f"{s.stage:<16}{s.device:<8}{s.peak / 1e9:>6.2f} GB at most: weights {s.weights / 1e9:.2f}, "
            f"work {s.work / 1e9:.2f}" + (f", the program {s.base / 1e9:.2f}" if s.base else "")
        )
    return "\n".join(rows)


def as_data(plan: Plan) -> dict[str, object]:
    return {
        "device": plan.device.value,
        "parts": [
            {
                "part": p.part,
                "device": p.device,
                "dtype": str(p.dtype.value).removeprefix("torch."),
                "reason": p.dtype.reason,
                "weight_bytes": p.weight_bytes,
                "residency": p.residency.value,
                "residency_reason": p.residency.reason,
                "quant": p.quant.value,
                "quant_reason": p.quant.reason,
                "quant_layers": len(p.layers),
            }
            for p in plan.parts
        ],
        "attention": plan.attention.value,
        "kernels": str(plan.kernels.value),
        "images_together": plan.batching.value.images,
        "prompts_together": plan.batching.value.prompts,
        "cfg_device": plan.cfg_device.value,
        "channels_last": list(plan.channels_last.value),
        "vae_tile": plan.vae_tile.value,
        "memory": plan.memory.value,
        "weights": {"rung": plan.rung.value, "reason": plan.rung.reason},
        "stages": [
            {"stage": s.stage, "device": s.device, "weights": s.weights, "work": s.work, "base": s.base}
            for s in plan.stages
        ],
        "peak": plan.peak,
        "shortage": plan.shortage,
    }

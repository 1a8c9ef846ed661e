"""From the network to `denoise(x, sigma)`, the one function a solver sees: scaling, calls, guidance.

What is called for one level: the conditional prediction; the unconditional one unless the scale is 1; and for
PAG, SLG and SAG one worse prediction each, whose difference to the good one is added. On a CPU they are made
one image and one prompt at a time (`Batching`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minisd.areas import Area, in_tile
from minisd.attention_blur import attention_received, degraded
from minisd.control_run import Control, Seen, residuals_of
from minisd.guidance import (
    Guidance,
    active,
    cfg,
    instruct,
    projected,
    rescaled,
    step_at,
    thresholded,
    weighted,
)
from minisd.halves import Half
from minisd.kernels import fused
from minisd.lllite_run import with_shifts
from minisd.models.conv import NO_WRAP, Wrap
from minisd.models.edits import Edit, FreeU
from minisd.models.once import Once, Text, Times
from minisd.models.tiling import Tile
from minisd.models.unet import UNet
from minisd.picture_prompt_run import Guest, with_pictures
from minisd.reference_run import Recorded, Recorder, Reference, acting_on, with_references
from minisd.samplers.scaling import Prediction, c_in, denoised_from, linear_in
from minisd.samplers.schedule import SigmaTable
from minisd.shortcuts import NO_SHORTCUTS, Memory, Place, Shortcuts
from minisd.text.conditioning import Conditioning, Timeline

Edits = Mapping[str, Edit]


@dataclass(frozen=True)
class Batching:
    """What runs together. On a CPU nothing: one image and one prompt at a time is as fast, needs less memory,
    and makes the bits of an image independent of the batch it stands in."""

    images: bool
    prompts: bool


@dataclass(frozen=True)
class Denoiser:
    """The network of one run with its prompts and rules. `denoise` and `denoise_both` are what solvers take.

    sigmas: the levels of the run, by which start and end of rules are counted. dtype: what the network
    computes in; everything outside it stays in x's dtype. concat [b k h w]: further input channels
    (inpainting mask and picture, depth). check: called before each network call; it may raise
    (cancelling). weight, also: further prompts, each with its weight beside that of cond; they stand for
    one conditional prediction, the weighted sum of differences to the unconditional one. always_uncond:
    predict it even where no rule needs it (CFG++). timeline: prompts that change with the steps, in place
    of those of the first step (cond, weight, also, uncond); empty where nothing changes. networks: (last
    step, network) in place of `network`, where adapters act in a part of the run. image_scale: second
    scale of an instruct-pix2pix model, whose third prediction sees no picture. controls: networks that
    read a picture and add to what this one computes. guests: pictures that it attends to beside the text.
    references: pictures that it attends to beside its own, in a further call each.
    half: where the unconditional prediction is made, if not beside the other.
    once: what is not computed again at every step. combined_by: implementation of guidance. wrap: axes
    along which the picture goes on at its opposite edge. areas: of regions, in which the prompts differ;
    the first has those of this Denoiser. shortcuts: what is left out of the network's passes; memory: what
    they keep of a run, which each `denoise` makes for itself, and image: of which this one is the first.
    """

    network: UNet
    table: SigmaTable
    prediction: Prediction
    cond: Conditioning
    uncond: Conditioning
    guidance: Guidance
    batching: Batching
    dtype: torch.dtype
    sigmas: Sequence[float]
    weight: float = 1.0
    also: tuple[tuple[Conditioning, float], ...] = ()
    timeline: Timeline = ()
    networks: tuple[tuple[int, UNet], ...] = ()
    always_uncond: bool = False
    image_scale: float | None = None
    concat: Tensor | None = None
    freeu: FreeU | None = None
    controls: tuple[Control, ...] = ()
    guests: tuple[Guest, ...] = ()
    references: tuple[Reference, ...] = ()
    check: Callable[[], None] | None = None
    once: Once | None = None
    combined_by: str = "torch"
    wrap: Wrap = NO_WRAP
    areas: tuple[Area, ...] = ()
    half: Half | None = None
    shortcuts: Shortcuts = NO_SHORTCUTS
    memory: Memory | None = None
    image: int = 0

    def at_tile(self, tile: Tile) -> Denoiser:
        """This one for a part of the picture."""
        return replace(
            self.over(in_tile(self.areas, tile)),
            concat=None if self.concat is None else tile.of(self.concat),
            controls=tuple(c.at_tile(tile) for c in self.controls),
            references=tuple(r.at_tile(tile) for r in self.references),
            wrap=tile.wrap,
        )

    def over(self, areas: tuple[Area, ...]) -> Denoiser:
        """This one with the prompts of these areas in their places; with those of the first alone, where it
        is everywhere."""
        if not areas:
            return self
        timeline = areas[0].timeline
        (cond, weight), *also = timeline[0][1].conds
        return replace(
            self,
            cond=cond,
            weight=weight,
            also=tuple(also),
            uncond=timeline[0][1].uncond,
            timeline=timeline if len(timeline) > 1 else (),
            areas=areas if len(areas) > 1 else (),
        )

    def denoise(self) -> Callable[[Tensor, float], Tensor]:
        """A fresh `denoise(x, sigma) -> denoised` for one run over x [b c h w]."""
        answers = self.answers(both=False)
        return lambda x, sigma: answers(x, sigma)[0]

    def denoise_both(self) -> Callable[[Tensor, float], tuple[Tensor, Tensor]]:
        """The same, returning (guided, unconditional); what CFG++ solvers take."""
        return self.answers(both=True)

    def answers(self, *, both: bool) -> Callable[[Tensor, float], tuple[Tensor, Tensor]]:
        """(guided, unconditional) for one run; where not both are asked for, anything may stand in the second
        place. APG's running average lives in the closure, and so does what shortcuts keep."""
        averages: dict[int, Tensor | None] = {}
        memory = Memory(self.shortcuts) if self.shortcuts.recalls else None

        def call(x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
            now = self.at(sigma)
            if memory is not None:
                now = replace(now, memory=memory)
            if self.batching.images:
                guided, uncond, averages[0] = now.predict(x, sigma, self.concat, averages.get(0), both)
                return guided, uncond
            rows = []
            for i in range(len(x)):
                extra = None if self.concat is None else self.concat[i : i + 1]
                one = now if memory is None else replace(now, image=i)
                guided, uncond, averages[i] = one.predict(x[i : i + 1], sigma, extra, averages.get(i), both)
                rows.append((guided, uncond))
            if len(rows) == 1:
                return rows[0]
            guided = torch.cat([g for g, _ in rows])
            return guided, torch.cat([u for _, u in rows]) if both else guided

        return call

    def at(self, sigma: float) -> Denoiser:
        """This one with the prompts that hold at a level. A function of the level alone, so that any step can
        be taken again: the second evaluation of a step (heun) lies in the next one."""
        if not self.timeline and not self.networks and all(len(a.timeline) == 1 for a in self.areas):
            return self
        step = step_at(sigma, self.sigmas) + 1
        if self.areas:
            return replace(self, areas=tuple(a.at(step) for a in self.areas)).at_own(step)
        return self.at_own(step)

    def at_own(self, step: int) -> Denoiser:
        """This one with its own prompts and network of a step, counted from 1."""
        network = next((n for end, n in self.networks if step <= end), self.network)
        if not self.timeline:
            return replace(self, network=network, networks=())
        prompts = next((p for end, p in self.timeline if step <= end), self.timeline[-1][1])
        (cond, weight), *also = prompts.conds
        return replace(
            self,
            cond=cond,
            weight=weight,
            also=tuple(also),
            uncond=prompts.uncond,
            timeline=(),
            network=network,
            networks=(),
        )

    def predict(
        self, x: Tensor, sigma: float, extra: Tensor | None, average: Tensor | None, both: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(guided, unconditional, APG's average) for the images x; where guidance does not act, both are the
        conditional one. both: whether anybody asks for the second."""
        rule = self.guidance
        acts = active(sigma, self.sigmas, rule.start, rule.end)
        maps: list[Tensor] = []
        seen: Edits = {}
        if acts and rule.sag_scale > 0:
            seen = {
                "middle_block": Edit(observe=lambda q, k, heads: maps.append(attention_received(q, k, heads)))
            }
        two_scales = self.image_scale not in (None, 1.0)
        weighed = pulls(((self.cond, self.weight), *self.also))
        joined = weighed or any(pulls(a.conds(1)) for a in self.areas)
        if self.always_uncond or joined or (acts and (rule.needs_uncond or two_scales)):
            same = self.cond.context.shape == self.uncond.context.shape
            if self.half is not None:
                out_c, out_u = self.half.both(self, x, sigma, extra, seen)
            elif self.batching.prompts and same and not seen:
                out_c, out_u = self.call(x, sigma, extra, [self.cond, self.uncond]).chunk(2)
            else:
                out_c = self.call(x, sigma, extra, [self.cond])
                out_u = self.call(x, sigma, extra, [self.uncond], seen)
        else:
            out_c = out_u = self.call(x, sigma, extra, [self.cond])
        if weighed:
            outs = [out_c, *(self.call(x, sigma, extra, [c]) for c, _ in self.also)]
            out_c = weighted(outs, [self.weight, *(w for _, w in self.also)], out_u, 1.0)
        alone = out_c is out_u
        if self.areas:
            out_c = self.areas[0].share * out_c
            for area in self.areas[1:]:
                outs = [self.call(x, sigma, extra, [c]) for c, _ in area.conds(1)]
                own = outs[0]
                if pulls(area.conds(1)):
                    own = weighted(outs, [w for _, w in area.conds(1)], out_u, 1.0)
                out_c = out_c + area.share * own
            out_u = out_c if alone else out_u
        guides = acts and (rule.scale != 1.0 or two_scales)
        guided = self.combined(out_c, out_u, x, sigma, extra) if guides and not rule.projected else None
        if guided is not None and not both and not rule.compares:
            return guided, guided, average
        cond = denoised_from(out_c, x, sigma, self.prediction)
        uncond = cond if out_u is out_c else denoised_from(out_u, x, sigma, self.prediction)
        if not guides:
            guided = cond
        elif guided is None:
            guided, average = projected(cond, uncond, rule, average)
            if rule.rescale > 0:  # APG works on pictures: theirs is the deviation that is brought back
                guided = rescaled(guided, cond, rule.rescale)
        if rule.mimic_scale > 0 and acts and rule.scale != 1.0:
            guided = thresholded(cond, uncond, guided, rule)
        if acts:
            guided = self.further(x, sigma, extra, guided, cond, uncond, maps)
        return guided, uncond, average

    def combined(self, out_c: Tensor, out_u: Tensor, x: Tensor, sigma: float, extra: Tensor | None) -> Tensor:
        """The guided picture of the network's conditional and unconditional outputs, by CFG."""
        rule = self.guidance
        if self.combined_by != "torch" and rule.rescale == 0 and self.image_scale is None:
            keep, add = linear_in(sigma, self.prediction)
            numbers = rule.scale, keep, add, 1.0
            return fused.guidance(out_c, out_u, x, *numbers, implementation=self.combined_by)[0]
        if self.image_scale is None or extra is None:
            output = cfg(out_c, out_u, rule.scale)
        else:
            blank = torch.zeros_like(extra)
            neither = self.call(x, sigma, blank, [self.uncond], role="neither")
            output = instruct(out_c, out_u, neither, rule.scale, self.image_scale)
        if rule.rescale > 0:
            output = rescaled(output, out_c, rule.rescale)
        return denoised_from(output, x, sigma, self.prediction)

    def further(
        self,
        x: Tensor,
        sigma: float,
        extra: Tensor | None,
        guided: Tensor,
        cond: Tensor,
        uncond: Tensor,
        maps: list[Tensor],
    ) -> Tensor:
        """guided plus the differences to predictions made worse on purpose."""
        rule = self.guidance
        if rule.pag_scale > 0:
            worse = self.worse(x, sigma, extra, {p: Edit(identity=True) for p in rule.pag_places}, "pag")
            guided = guided + rule.pag_scale * (cond - worse)
        if rule.slg_scale > 0 and active(sigma, self.sigmas, rule.slg_start, rule.slg_end):
            worse = self.worse(x, sigma, extra, {p: Edit(skip=True) for p in rule.slg_places}, "slg")
            guided = guided + rule.slg_scale * (cond - worse)
        if rule.sag_scale > 0:
            noise = x - uncond  # sigma * eps
            blurred = degraded(uncond, maps[-1].to(uncond.device), rule.sag_blur)
            output = self.call(blurred + noise, sigma, extra, [self.uncond], role="sag")
            worse = denoised_from(output, blurred + noise, sigma, self.prediction)
            # the difference of the two noises, as the paper adds it
            guided = guided + rule.sag_scale * ((uncond - worse) - (uncond - blurred))
        return guided

    def worse(self, x: Tensor, sigma: float, extra: Tensor | None, edits: Edits, role: str) -> Tensor:
        output = self.call(x, sigma, extra, [self.cond], edits, role)
        if self.areas:
            output = self.areas[0].share * output
            for area in self.areas[1:]:
                output = output + area.share * self.call(x, sigma, extra, [area.conds(1)[0][0]], edits, role)
        return denoised_from(output, x, sigma, self.prediction)

    def call(
        self,
        x: Tensor,
        sigma: float,
        extra: Tensor | None,
        parts: list[Conditioning],
        edits: Edits | None = None,
        role: str = "",
    ) -> Tensor:
        """The network's output for the images x under each of `parts`, b k c h w flattened to (k b) c h w.
        role: what it is for, where it is not a prediction of the picture."""
        if self.check is not None:
            self.check()
        told = self.table.told(sigma)
        # filled there, not copied there: a copy would make the host wait for the device
        timesteps: Tensor | Times = torch.full((1,), told, dtype=torch.float32, device=x.device)
        scaled = (x * c_in(sigma, self.prediction)).to(self.dtype)
        seen = Seen(scaled, timesteps, parts, self.wrap)
        residuals = residuals_of(self.controls, seen, self.uncond, sigma, self.sigmas)
        if extra is not None:
            scaled = torch.cat([scaled, extra.to(self.dtype)], dim=1)
        b, k = scaled.shape[0], len(parts)
        contexts, ys = [p.context for p in parts], [p.y for p in parts if p.y is not None]
        y = torch.cat([one.expand(b, -1) for one in ys]) if ys else None
        context: Tensor | Text
        if self.once is not None and self.once.texts:
            context = self.once.text(contexts, b)
        else:
            context = contexts[0] if b * k == 1 else torch.cat([c.expand(b, -1, -1) for c in contexts])
        if self.once is not None and self.once.times:
            timesteps = self.once.time(self.network.embed, told, ys, b, self.dtype, x.device)
        scaled = scaled if k == 1 else scaled.repeat(k, 1, 1, 1)
        config, levels = self.network.config, self.sigmas
        if self.guests:
            edits = with_pictures(edits or {}, self.guests, config, parts, self.uncond, b, sigma, levels)
        if self.controls:
            edits = with_shifts(edits or {}, self.controls, config, seen, self.uncond, sigma, levels)
        if acting := acting_on(self.references, parts, self.uncond, sigma, levels):
            recorded = list[Recorded]()
            for reference, weights in acting:
                if self.check is not None:
                    self.check()
                other = reference.noised(x, sigma, self.prediction, self.dtype).expand(b * k, -1, -1, -1)
                recorder = Recorder(config)
                self.network(other, timesteps, context, y, edits=recorder.edits, wrap=self.wrap)
                recorded.append(Recorded(recorder, tuple(w for w in weights for _ in range(b))))
            edits = with_references(edits or {}, recorded, config)
        recall = None
        if self.memory is not None:
            beside = (
                *(c.acts(sigma, levels) for c in self.controls),
                *(g.acts(sigma, levels) for g in self.guests),
            )
            beside += tuple(any(reference is r for r, _ in acting) for reference in self.references)
            places = [Place(p, self.image + i, role) for p in parts for i in range(b)]
            recall = self.memory.recall(places, step_at(sigma, levels), self.network, beside)
        return self.network(
            scaled,
            timesteps,
            context,
            y,
            edits=self.shortcuts.edited(edits or {}, config),
            freeu=self.freeu,
            residuals=residuals,
            wrap=self.wrap,
            recall=recall,
        ).to(x.dtype)


def pulls(conds: Sequence[tuple[Conditioning, float]]) -> bool:
    """Whether prompts pull by weight, which takes the unconditional prediction: several, or one whose weight
    is not 1."""
    return len(conds) > 1 or conds[0][1] != 1.0

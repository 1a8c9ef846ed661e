"""The names of solvers and schedules: ours, and those of A1111, SD.Next, diffusers and ComfyUI. Exact or
refused, never substituted.

Only names and facts, so that a Request can be checked without importing torch; `solver` fetches the function.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sampler:
    """A solver and what must be known to use it."""

    name: str
    module: str  # of minisd.samplers; the function there is sample_<function>
    order: int  # of convergence on the ODE (eta 0)
    calls: int  # of the network per step; the step into sigma 0 takes one
    eta: float | None = None  # its default, for solvers that take eta
    noise: Literal["none", "step", "brownian"] = "none"
    schedule: str = "normal"  # where a request says "auto"
    function: str = ""
    options: Mapping[str, object] = field(default_factory=dict)  # fixed by the name
    takes: tuple[str, ...] = ()  # of s_churn (with s_tmin, s_tmax), s_noise, table
    both: bool = False  # needs the guided and the unconditional picture (CFG++)
    discard: bool = False  # A1111 leaves out the next-to-last level
    a1111: str | None = None
    sdnext: str | None = None
    diffusers: str | None = None
    comfy: str | None = None
    others: tuple[str, ...] = ()

    @property
    def aliases(self) -> tuple[str, ...]:
        named = (self.a1111, self.sdnext, self.diffusers, self.comfy)
        return tuple(dict.fromkeys(n for n in (*named, *self.others) if n is not None))

    @property
    def label(self) -> str:
        """What the community calls it."""
        return self.a1111 or self.sdnext or self.name


CHURN = ("s_churn", "s_noise")
# fmt: off
SAMPLERS: dict[str, Sampler] = {
    s.name: s
    for s in (
        Sampler("euler", "ode", 1, 1, takes=CHURN, a1111="Euler", sdnext="Euler",
                diffusers="EulerDiscreteScheduler", comfy="euler", others=("k_euler",)),
        Sampler("euler_ancestral", "sde", 1, 1, eta=1.0, noise="step", takes=("s_noise",), a1111="Euler a",
                sdnext="Euler a", diffusers="EulerAncestralDiscreteScheduler", comfy="euler_ancestral",
                others=("k_euler_a", "k_euler_ancestral", "euler_a")),
        Sampler("heun", "ode", 2, 2, takes=CHURN, a1111="Heun", sdnext="Heun",
                diffusers="HeunDiscreteScheduler", comfy="heun", others=("k_heun",)),
        Sampler("dpm_2", "ode", 2, 2, takes=CHURN, schedule="karras", discard=True, a1111="DPM2",
                sdnext="KDPM2", diffusers="KDPM2DiscreteScheduler", comfy="dpm_2", others=("k_dpm_2",)),
        Sampler("dpm_2_ancestral", "sde", 2, 2, eta=1.0, noise="step", takes=("s_noise",), schedule="karras",
                discard=True, a1111="DPM2 a", sdnext="KDPM2 a", diffusers="KDPM2AncestralDiscreteScheduler",
                comfy="dpm_2_ancestral", others=("k_dpm_2_a",)),
        Sampler("lms", "multistep", 4, 1, a1111="LMS", sdnext="LMSD", diffusers="LMSDiscreteScheduler",
                comfy="lms", others=("k_lms",)),
        Sampler("dpm_fast", "dpm_solver", 3, 1, eta=0.0, noise="step", takes=("s_noise",), a1111="DPM fast",
                comfy="dpm_fast", others=("k_dpm_fast",)),
        Sampler("dpm_adaptive", "dpm_solver", 3, 3, eta=0.0, noise="step", takes=("s_noise",),
                a1111="DPM adaptive", comfy="dpm_adaptive", others=("k_dpm_ad",)),
        Sampler("dpmpp_2s_ancestral", "sde", 2, 2, eta=1.0, noise="step", takes=("s_noise",),
                schedule="karras", a1111="DPM++ 2S a", comfy="dpmpp_2s_ancestral", others=("k_dpmpp_2s_a",)),
        Sampler("dpmpp_2m", "ode", 2, 1, schedule="karras", a1111="DPM++ 2M", sdnext="DPM++ 2M",
                diffusers="DPMSolverMultistepScheduler", comfy="dpmpp_2m", others=("k_dpmpp_2m",)),
        Sampler("dpmpp_sde", "sde_multistep", 2, 2, eta=1.0, noise="brownian", takes=("s_noise",),
                schedule="karras", a1111="DPM++ SDE", sdnext="DPM SDE", diffusers="DPMSolverSDEScheduler",
                comfy="dpmpp_sde", others=("k_dpmpp_sde",)),
        Sampler("dpmpp_2m_sde", "sde_multistep", 2, 1, eta=1.0, noise="brownian", takes=("s_noise",),
                schedule="exponential", a1111="DPM++ 2M SDE", sdnext="DPM++ 2M SDE", comfy="dpmpp_2m_sde",
                others=("k_dpmpp_2m_sde",)),
        Sampler("dpmpp_2m_sde_heun", "sde_multistep", 2, 1, eta=1.0, noise="brownian", takes=("s_noise",),
                schedule="exponential", a1111="DPM++ 2M SDE Heun", comfy="dpmpp_2m_sde_heun",
                others=("k_dpmpp_2m_sde_heun",)),
        Sampler("dpmpp_3m_sde", "sde_multistep", 2, 1, eta=1.0, noise="brownian", takes=("s_noise",),
                schedule="exponential", discard=True, a1111="DPM++ 3M SDE", comfy="dpmpp_3m_sde",
                others=("k_dpmpp_3m_sde",)),
        Sampler("dpmpp_3m_sde_exact", "sde_multistep", 3, 1, eta=1.0, noise="brownian", takes=("s_noise",),
                schedule="exponential"),
        Sampler("restart", "restart", 2, 2, noise="step", takes=("s_noise",), schedule="karras",
                a1111="Restart"),
        Sampler("ddim", "sde", 1, 1, eta=0.0, noise="step", a1111="DDIM", sdnext="DDIM",
                diffusers="DDIMScheduler", comfy="ddim"),
        Sampler("ddpm", "sde", 1, 1, noise="step", sdnext="DDPM", diffusers="DDPMScheduler", comfy="ddpm"),
        Sampler("plms", "multistep", 2, 1, a1111="PLMS", sdnext="PNDM", diffusers="PNDMScheduler"),
        Sampler("ipndm", "multistep", 2, 1, sdnext="IPNDM", diffusers="IPNDMScheduler", comfy="ipndm"),
        Sampler("deis", "multistep", 3, 1, sdnext="DEIS", diffusers="DEISMultistepScheduler", comfy="deis"),
        Sampler("unipc", "unipc", 3, 1, a1111="UniPC", sdnext="UniPC", diffusers="UniPCMultistepScheduler",
                comfy="uni_pc_bh2"),
        Sampler("unipc_bh1", "unipc", 3, 1, function="unipc", options={"variant": "bh1"}, comfy="uni_pc"),
        Sampler("unipc_3", "unipc", 4, 1, function="unipc", options={"order": 3}),
        Sampler("sa_solver", "sa_solver", 2, 1, noise="step", sdnext="SA Solver",
                diffusers="SASolverScheduler", comfy="sa_solver"),
        Sampler("er_sde_1", "er_sde", 1, 1, noise="step", function="er_sde", options={"order": 1},
                sdnext="ER-SDE"),
        Sampler("er_sde_2", "er_sde", 2, 1, noise="step", function="er_sde", options={"order": 2},
                sdnext="ER-SDE 2M"),
        Sampler("er_sde", "er_sde", 2, 1, noise="step", takes=("s_noise",), sdnext="ER-SDE 3M",
                comfy="er_sde"),
        Sampler("res_multistep", "multistep", 2, 1, sdnext="RES-Multistep 2M", comfy="res_multistep"),
        Sampler("lcm", "consistency", 1, 1, noise="step", schedule="lcm", a1111="LCM", sdnext="LCM",
                diffusers="LCMScheduler", comfy="lcm", others=("k_lcm",)),
        Sampler("tcd", "consistency", 1, 1, noise="step", schedule="turbo", takes=("table",), sdnext="TCD",
                diffusers="TCDScheduler"),
        Sampler("euler_cfgpp", "cfgpp", 1, 1, both=True, comfy="euler_cfg_pp", others=("Euler CFG++",)),
        Sampler("ddim_cfgpp", "cfgpp", 1, 1, eta=0.0, noise="step", both=True, a1111="DDIM CFG++"),
    )
}
# fmt: on


@dataclass(frozen=True)
class Schedule:
    """A schedule's name and label, and the other names it goes by."""

    name: str
    label: str
    aliases: tuple[str, ...] = ()


SCHEDULES: dict[str, Schedule] = {
    s.name: s
    for s in (
        Schedule("auto", "Automatic"),
        Schedule("normal", "Uniform", ("Normal",)),
        Schedule("karras", "Karras"),
        Schedule("exponential", "Exponential"),
        Schedule("polyexponential", "Polyexponential"),
        Schedule("sgm_uniform", "SGM Uniform", ("SGMUniform",)),
        Schedule("simple", "Simple"),
        Schedule("ddim", "DDIM", ("ddim_uniform",)),
        Schedule("beta", "Beta"),
        Schedule("kl_optimal", "KL Optimal"),
        Schedule("align_your_steps", "Align Your Steps", ("ays",)),
        Schedule("linear_quadratic", "Linear Quadratic"),
        Schedule("turbo", "Turbo", ("lightning", "hyper")),
        Schedule("lcm", "LCM"),
    )
}


def find(kind: str, name: object, table: Mapping[str, str]) -> str:
    """The value of `name` in a table of lower-case names. Raises ValueError with the nearest that exists."""
    if not isinstance(name, str):
        raise ValueError(f"a {kind} is named by text, got {type(name).__name__}")
    found = table.get(name.strip().lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), table, n=1)
        hint = (
            f"did you mean {table[near[0]]!r}?"
            if near
            else f"known are {', '.join(dict.fromkeys(table.values()))}"
        )
        raise ValueError(f"there is no {kind} {name!r}; {hint}")
    return found


@cache
def sampler_names() -> Mapping[str, str]:
    """Our name of every sampler by all its names in lower case; ours win over another program's."""
    table = {alias.lower(): s.name for s in SAMPLERS.values() for alias in s.aliases}
    return table | {s.name: s.name for s in SAMPLERS.values()}


@cache
def schedule_names() -> Mapping[str, str]:
    return {n.lower(): s.name for s in SCHEDULES.values() for n in (s.name, s.label, *s.aliases)}


def find_sampler(name: str) -> Sampler:
    """The sampler of this name or alias, whatever the case. Raises ValueError with the nearest names."""
    return SAMPLERS[find("sampler", name, sampler_names())]


def find_schedule(name: str) -> str:
    """Our name of a schedule, from any of its names. Raises ValueError with the nearest names."""
    return find("schedule", name, schedule_names())


def split_name(name: str) -> tuple[str, str | None]:
    """A1111's old names carry the schedule behind the sampler: "DPM++ 2M Karras" -> ("DPM++ 2M", "karras"),
    "k_dpmpp_2m_ka" -> ("k_dpmpp_2m", "karras")."""
    given = name.strip()
    for schedule, short in (("karras", "_ka"), ("exponential", "_exp")):
        for label in (f" {schedule}", short if given.lower().startswith("k_") else f" {schedule}"):
            if given.lower().endswith(label):
                return given[: -len(label)], schedule
    return name, None


def solver(name: str) -> Callable[..., Tensor]:
    """The function of a sampler: `sample_x(denoise, x, sigmas, *, noise, on_step, ...)`, with what its name
    fixes."""
    sampler = find_sampler(name)
    module = importlib.import_module(f"minisd.samplers.{sampler.module}")
    function = getattr(module, f"sample_{sampler.function or sampler.name}")
    return partial(function, **sampler.options) if sampler.options else function

"""The command line: a thin face over Request -> Result. `minisd COMMAND --help` explains each command.

The flags of `txt2img` are the fields of Request. Exit codes: 0 done, 1 failed, 2 wrong request or flags, 3
wrong file, 130 stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import typing
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING

from minisd.errors import Cancelled, CheckpointError, ImageError, MinisdError, RequestError
from minisd.request import Request

if TYPE_CHECKING:
    from minisd.pipeline import Preview, Progress

FIELD_HELP: dict[str, str] = {
    "negative_prompt": "what the picture should not show",
    "width": "pixels, a multiple of 8 (default: the size the model was trained at)",
    "height": "pixels, a multiple of 8 (default: the size the model was trained at)",
    "seed": "picture i of a batch is the picture of seed + i alone (default: drawn at random and told)",
    "count": "number of pictures",
    "steps": "number of sampling steps",
    "sampler": "any name that `minisd samplers` lists, ours or another program's",
    "schedule": "which noise levels the steps visit; `minisd samplers` lists them",
    "cfg_scale": "guidance: how strongly the prompt pulls; 1 is off",
    "cfg_rescale": "0..1: keeps contrast down at high guidance",
    "guidance_start": "0..1: guidance begins at this part of the run",
    "guidance_end": "0..1: and ends at this one",
    "apg_eta": "share of guidance along the picture itself; 1 is off (adaptive projected guidance)",
    "apg_norm": "largest norm of the guidance; 0 is off",
    "apg_momentum": "weight of earlier guidance, usually negative; 0 is off",
    "mimic_scale": "keeps the range that guidance at this scale has; 0 is off (dynamic thresholding)",
    "mimic_percentile": "0.5..1: share of values held to that range",
    "pag_scale": "perturbed-attention guidance; 0 is off",
    "sag_scale": "self-attention guidance; 0 is off",
    "slg_scale": "skip-layer guidance; 0 is off",
    "slg_start": "0..1: skip-layer guidance begins at this part of the run",
    "slg_end": "0..1: and ends at this one",
    "freeu": "B1 B2 S1 S2: stronger backbone, weaker skips (1 1 1 1 is off)",
    "s_churn": "euler, heun, dpm_2: noise added before each step",
    "s_tmin": "churn only above this sigma",
    "s_tmax": "churn only below this sigma",
    "s_noise": "standard deviation of added noise",
    "sigmas": "noise levels by hand, falling, the last 0; replaces steps and schedule",
    "sigma_min": "lowest level of karras, exponential and the like (default: the model's)",
    "sigma_max": "their highest level (default: the model's)",
    "variation_seed": "seed of the variation (default: drawn)",
    "variation_strength": "0..1: how far towards the variation's noise",
    "seed_size": "HEIGHT WIDTH whose noise is placed in the middle, to keep a seed's composition",
    "eta_seed_delta": "added to the seed for the noise of the steps",
    "discard": "leave out the next-to-last noise level",
    "eta": "0..1: noise of stochastic samplers (default: the sampler's own)",
    "clip_skip": "text layer counted from the last; 1 is the last",
    "original_size": "SDXL: HEIGHT WIDTH the picture should look to have come from",
    "crop": "SDXL: TOP LEFT of the crop it should look to be",
    "target_size": "SDXL: HEIGHT WIDTH it should look to be for",
    "aesthetic_score": "SDXL refiner: 0..10",
    "negative_aesthetic_score": "SDXL refiner: 0..10, for the negative prompt",
    "conventions": "minisd, a1111, diffusers or sgm: sets the choices below as that program makes them",
    "initial_noise": "sigma: scaled by sigma; variance: by sqrt(1 + sigma^2)",
    "spacing": "which trained timesteps the normal schedule visits",
    "steps_offset": "added to the timesteps of leading spacing",
    "interpolation": "between trained noise levels",
    "quantised": "use only trained timesteps",
    "ddim_end": "where DDIM ends: at zero noise or at the first trained level",
    "rng": "philox: the same numbers on every machine; torch, cuda: torch's generators",
    "empty_negative": "SDXL: an empty negative prompt is all zeros, or is encoded",
    "composition": "AND in a prompt joins prompts with weights (a AND b :0.5), or is a word",
    "long_prompt": "beyond 75 tokens: further chunks, or cut off",
}


def add_request_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each field of Request but the prompt. A flag that is not given leaves the field's
    default."""
    group = parser.add_argument_group("the picture")
    forks = parser.add_argument_group("choices in which programs differ (see --conventions)")
    hints = typing.get_type_hints(Request)
    place = group
    for field in fields(Request):
        if field.name == "prompt":
            continue
        place = forks if field.name == "conventions" else place
        kinds = [
            k for k in (typing.get_args(hints[field.name]) or (hints[field.name],)) if k is not type(None)
        ]
        options: dict[str, object] = {"default": argparse.SUPPRESS, "help": FIELD_HELP[field.name]}
        if bool in kinds:
            options["action"] = argparse.BooleanOptionalAction
        elif hints[field.name] == tuple[int, int] or tuple[int, int] in kinds:
            options |= {"type": int, "nargs": 2, "metavar": "N"}
        elif tuple[float, ...] in kinds:
            options |= {"type": float, "nargs": "+", "metavar": "N"}
        elif typing.get_origin(kinds[0]) is typing.Literal:
            options["choices"] = typing.get_args(kinds[0])
        elif kinds[0] in (int, float):
            options |= {"type": kinds[0], "metavar": "N"}
        else:
            options["metavar"] = field.name.split("_")[-1].upper()
        if field.default not in (None, MISSING, "", ()) and "default" not in str(options["help"]):
            options["help"] = f"{options['help']} (default: {field.default})"
        flag = "--" + field.name.replace("_", "-")
        place.add_argument(flag, dest=field.name, **options)  # type: ignore[arg-type]


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the model")
    group.add_argument(
        "-m", "--model", metavar="PATH", help="checkpoint file or diffusers folder (default: embedded)"
    )
    group.add_argument("--vae", metavar="PATH", help="take the VAE from this file")
    group.add_argument("--text-encoder", metavar="PATH", help="take the text encoder from this file")
    group.add_argument(
        "--text-encoder-2", metavar="PATH", help="take the second text encoder (SDXL) from this file"
    )
    group.add_argument("--ema", action=argparse.BooleanOptionalAction, help="take the EMA copy of the UNet")
    group.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps, xpu (default: what torch finds)"
    )
    group.add_argument(
        "--dtype", default="auto", help="float32, bfloat16, float16 (default: as the device likes)"
    )
    group.add_argument("--vae-dtype", default="auto", metavar="DTYPE", help="the same for the VAE alone")
    group.add_argument("--attention", default="auto", metavar="NAME", help="sdpa, sliced, reference")
    group.add_argument(
        "--vae-tile", type=int, metavar="PIXELS", help="decode in tiles of this size, to save memory"
    )


class Bar:
    """A progress line on a terminal; nothing elsewhere."""

    def __init__(self, show: bool) -> None:
        self.show = show
        self.begun = time.perf_counter()
        self.width = 0

    def write(self, text: str) -> None:
        if self.show:
            sys.stderr.write("\r" + text.ljust(self.width))
            sys.stderr.flush()
            self.width = len(text)

    def __call__(self, event: Progress | Preview) -> None:
        step, steps = event.step, getattr(event, "steps", 0)
        if not steps:
            return
        done = round(24 * step / steps)
        rate = step / (time.perf_counter() - self.begun)
        left = (steps - step) / rate
        bar = "█" * done + "░" * (24 - done)
        self.write(f"{bar} {step}/{steps} steps, {rate:.1f} a second, {left:.0f} s left")

    def clear(self) -> None:
        if self.show and self.width:
            sys.stderr.write("\r" + " " * self.width + "\r")
            sys.stderr.flush()


def txt2img(args: argparse.Namespace) -> dict[str, object]:
    names = {f.name for f in fields(Request)}
    request = Request.from_dict({k: v for k, v in vars(args).items() if k in names})
    target = args.output
    if not os.path.isdir(os.path.dirname(os.path.abspath(target))):
        raise ImageError(f"the folder of {target} does not exist; make it first")
    bar = Bar(sys.stderr.isatty() and not args.quiet and not args.json)
    bar.write("loading")
    from minisd.engine import load

    with load(
        args.model,
        vae=args.vae,
        text_encoder=args.text_encoder,
        text_encoder_2=args.text_encoder_2,
        ema=args.ema,
        device=args.device,
        dtype=args.dtype,
        vae_dtype=args.vae_dtype,
        attention=args.attention,
        vae_tile=args.vae_tile,
    ) as engine:
        bar.begun = time.perf_counter()
        try:
            result = engine.run(request, on_event=bar)
        finally:
            bar.clear()
    paths = result.save(target)
    if not args.json and not args.quiet:
        spent = sum(result.drawing.seconds.values())
        for path, seed in zip(paths, result.request.seeds(), strict=True):
            sys.stdout.write(f"{path}  seed {seed}\n")
        read, counted = result.drawing.tokens[1], result.drawing.tokens[0]
        cut = f"; only {read} of the prompt's {counted} tokens were read" if read < counted else ""
        sys.stdout.write(f"{len(paths)} picture{'s' * (len(paths) > 1)} in {spent:.1f} s{cut}\n")
    return {"pictures": [{"path": str(p), **result.record(i)} for i, p in enumerate(paths)]}


def samplers(args: argparse.Namespace) -> dict[str, object]:
    from minisd.samplers.names import SAMPLERS, SCHEDULES

    rows: list[dict[str, object]] = []
    for s in SAMPLERS.values():
        names = {"a1111": s.a1111, "sdnext": s.sdnext, "diffusers": s.diffusers, "comfy": s.comfy}
        facts = {"name": s.name, "order": s.order, "calls": s.calls, "noise": s.noise, "schedule": s.schedule}
        rows.append({**facts, **names, "others": list(s.others)})
    if not args.json:
        widths = {"name": 20, "order": 6, "calls": 6, "noise": 9, "schedule": 12, "a1111": 18, "sdnext": 18}
        sys.stdout.write("".join(f"{h:<{w}}" for h, w in widths.items()) + "comfy\n")
        for row in rows:
            shown = {h: str("-" if v is None else v) for h, v in row.items()}
            sys.stdout.write("".join(f"{shown[h]:<{w}}" for h, w in widths.items()) + shown["comfy"] + "\n")
        sys.stdout.write(f"schedules: {', '.join(SCHEDULES)}\n")
    return {"samplers": rows, "schedules": [{"name": s.name, "label": s.label} for s in SCHEDULES.values()]}


def inspect(args: argparse.Namespace) -> dict[str, object]:
    from minisd.weights_loader.checkpoint import open_checkpoint

    report = open_checkpoint(args.file).report()
    if not args.json:
        sys.stdout.write(str(report) + "\n")
    return report.to_dict()


def convert(args: argparse.Namespace) -> dict[str, object]:
    from minisd.conversion import convert as write

    prune = not args.keep_ema
    target = write(
        args.source, args.target, layout=args.layout, dtype=args.dtype, prune_ema=prune, ema=args.ema
    )
    if not args.json:
        sys.stdout.write(f"{target}\n")
    return {"path": str(target), "layout": args.layout}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="minisd",
        description="Stable Diffusion, small and readable: pictures from text with SD1, SD2 and SDXL files.",
        epilog='Try: minisd txt2img "a red apple" -o apple.png',
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    p = commands.add_parser(
        "txt2img",
        help="draw a picture from text",
        description="Draw a picture from text and write it as PNG, with how it was made inside.",
        epilog='minisd txt2img "a red apple" -o apple.png --seed 7 --count 4',
    )
    p.add_argument("prompt", help="what the picture shows")
    p.add_argument(
        "-o", "--output", default="out.png", metavar="FILE", help="PNG; several become FILE-1, FILE-2, ..."
    )
    add_request_flags(p)
    add_model_flags(p)
    p.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    p.set_defaults(run=txt2img)

    p = commands.add_parser(
        "inspect",
        help="say what a model file is",
        description="Say what a model file is, by its keys and shapes alone: family, evidence, parts, sizes, "
        "leftovers. Reads headers only.",
    )
    p.add_argument("file", help="checkpoint, VAE, text encoder, adapter, or a diffusers folder")
    p.set_defaults(run=inspect)

    p = commands.add_parser(
        "convert",
        help="rewrite a model in another layout or precision",
        description="Rewrite a model: single file or diffusers folder, other precision, without EMA.",
        epilog="minisd convert model.ckpt model.safetensors --dtype float16",
    )
    p.add_argument("source", help="file or folder to read")
    p.add_argument("target", help="file (original) or folder (diffusers) to write; must not exist")
    p.add_argument(
        "--layout", choices=("original", "diffusers"), default="original", help="(default: original)"
    )
    p.add_argument("--dtype", default=None, help="float32, float16, bfloat16 (default: as in the source)")
    p.add_argument("--ema", action=argparse.BooleanOptionalAction, help="take the EMA copy as the weights")
    p.add_argument(
        "--keep-ema", action="store_true", help="keep the EMA copy beside the weights (original layout)"
    )
    p.set_defaults(run=convert)

    p = commands.add_parser(
        "samplers",
        help="list samplers and schedules",
        description="List the samplers with their order of convergence, network calls per step, noise, own "
        "schedule, and the names they have in other programs.",
    )
    p.set_defaults(run=samplers)

    for p in commands.choices.values():
        p.add_argument("--json", action="store_true", help="write one JSON object to standard output")
    return top


def fail(args: argparse.Namespace, error: Exception, code: int) -> int:
    """One line on standard error; with --json the same as an object on standard output."""
    if args.json:
        field = getattr(error, "field", None)
        kind = type(error).__name__
        sys.stdout.write(
            json.dumps({"error": str(error), "kind": kind, **({"field": field} if field else {})}) + "\n"
        )
    else:
        sys.stderr.write(f"minisd: {error}\n")
    return code


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        answer = args.run(args)
        if args.json:
            sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return 0
    except RequestError as error:
        return fail(args, error, 2)
    except CheckpointError as error:
        return fail(args, error, 3)
    except (Cancelled, KeyboardInterrupt):
        sys.stderr.write("\nminisd: stopped\n")
        return 130
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), 1
        )  # the reader left; let the interpreter's last flush go nowhere
        return 1
    except (MinisdError, OSError) as error:
        return fail(args, error, 1)


if __name__ == "__main__":
    sys.exit(main())

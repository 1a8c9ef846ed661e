"""Train the model that ships inside minisd from a font and a list of names, on two CPU cores.

    python -m scripts.train_embedded vae       --work build/embedded --minutes 33
    python -m scripts.train_embedded latents   --work build/embedded
    python -m scripts.train_embedded diffusion --work build/embedded --minutes 70
    python -m scripts.train_embedded decoder   --work build/embedded --minutes 20
    python -m scripts.train_embedded sheet     --work build/embedded
    python -m scripts.train_embedded export    --work build/embedded

Run from the root of the repository. The stages that train log to STAGE.jsonl in the work folder, save every
three minutes and go on where they stopped when started again; `sheet` and `export` take the last
checkpoint, also while training runs. `decoder` is optional and may run beside `diffusion`: it improves the
decoder for the latents as they are. `start` unpacks a file that `export` wrote, after which `latents` and
`diffusion` go on from it, at the learning rate at which it stopped: --minutes counts those before.

    python -m scripts.train_embedded start     --work build/more
    python -m scripts.train_embedded latents   --work build/more
    python -m scripts.train_embedded diffusion --work build/more --minutes 260

`scripts/embedded/RECIPE.md` records the run whose result is shipped.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from minisd.config import TrainingSchedule
from minisd.models.clip import TextEncoder
from minisd.models.unet import UNet
from minisd.models.vae import AutoencoderKL
from scripts.embedded import diffusion as diffusion_stage
from scripts.embedded import export as export_stage
from scripts.embedded.captions import every_caption
from scripts.embedded.data import Emoji, Sprites, find_font, find_unicode, load_sprites
from scripts.embedded.latents import LatentPool, encode_pool, plan_pictures, proportions
from scripts.embedded.pictures import COLOURS, GROUP_WEIGHT, Painter, PictureSource, Shares, held_out
from scripts.embedded.run import Place, Run
from scripts.embedded.sheets import PROMPTS, Drawer, sheet
from scripts.embedded.vae import CONFIG, VAERecipe, train_vae
from scripts.embedded.vocabulary import Vocabulary

HELD_OUT = Path(__file__).parent / "embedded" / "heldout.txt"
HELD_OUT_COUNT, HELD_OUT_STACKED = 200, 60
MODEL = Path(__file__).parent.parent / "minisd" / "assets" / "emoji.safetensors"
KNOWN = "known.json"  # in the work folder: what a UNet has learned to predict, and the scale of its latents

# jitter: what the UNet makes is a little off; the decoder should not turn that into texture
DECODER = VAERecipe(lr=2e-3, warm_up=30, batch=8, whole_from=0.0, jitter=0.04)


def sprites_of(args: argparse.Namespace) -> Sprites:
    font, names = find_font(args.font), find_unicode(args.unicode)
    if font is None:
        sys.exit("no Noto Color Emoji: install the package fonts-noto-color-emoji, or name it with --font")
    if names is None:
        sys.exit("no emoji-test.txt: install the package unicode-data, or name its folder with --unicode")
    return load_sprites(font, names)


def source_of(
    emoji: tuple[Emoji, ...],
    shares: Shares,
    *,
    mirror: float,
    favour: float = 1.0,
    groups: Mapping[str, float] = GROUP_WEIGHT,
) -> PictureSource:
    held = held_out(emoji, HELD_OUT_COUNT, HELD_OUT_STACKED)
    HELD_OUT.write_text("".join("\t".join(row) + "\n" for row in held), encoding="utf-8")
    return PictureSource(emoji, frozenset(held), shares, mirror=mirror, favour=favour, groups=groups)


def vocabulary_of(emoji: tuple[Emoji, ...]) -> Vocabulary:
    return Vocabulary.of(every_caption(emoji, tuple(COLOURS)))


def trained_vae(work: Path, *stages: str) -> AutoencoderKL:
    """The autoencoder of the first of these stages that has a checkpoint."""
    for stage in stages:
        if (work / f"{stage}.pt").exists():
            saved = torch.load(work / f"{stage}.pt", map_location="cpu", weights_only=True)
            model = AutoencoderKL(CONFIG)
            model.load_state_dict(saved["modules"]["vae"])
            return model
    sys.exit(f"{work} holds no trained autoencoder; run the stage vae first")


def vae(args: argparse.Namespace) -> None:
    sprites = sprites_of(args)
    # more colours than the diffusion stage sees: the autoencoder should be at home on all of them
    source = source_of(sprites.emoji, Shares(white=0.45), mirror=0.2)
    train_vae(run_of(args, "vae"), Painter(sprites), source, VAERecipe())


def decoder(args: argparse.Namespace) -> None:
    sprites = sprites_of(args)
    source = source_of(sprites.emoji, Shares(white=0.5), mirror=0.1)
    first = trained_vae(args.work, "vae")
    train_vae(run_of(args, "decoder"), Painter(sprites), source, DECODER, encoder_of=first)


def start(args: argparse.Namespace) -> None:
    """Checkpoints of the exported file --model, as if its training had stopped here."""
    if any(args.work.glob("*.pt")):
        sys.exit(f"{args.work} already holds a training; name an empty folder with --work")
    found = export_stage.read(args.model, vocabulary_of(sprites_of(args).emoji))
    Run.begin_from(args.work / "vae.pt", {"vae": found.vae}, 0.0, 0, 0)
    known = {"scale_factor": found.scale_factor, "prediction": found.prediction}
    (args.work / KNOWN).write_text(json.dumps(known), encoding="utf-8")
    weights = {"text": found.text, "unet": found.unet, "text_ema": found.text, "unet_ema": found.unet}
    told = found.training
    Run.begin_from(
        args.work / "diffusion.pt", weights, told["minutes"] * 60, int(told["steps"]), int(told["pictures"])
    )
    print(f"{args.model.name}: unpacked after {told['minutes']:.0f} minutes of training")


def latents(args: argparse.Namespace) -> None:
    sprites = sprites_of(args)
    source = source_of(sprites.emoji, Shares(), mirror=0.1, favour=args.favour)
    pictures = plan_pictures(source, colours_each=args.colours, pairs=args.pairs, others=args.others)
    # a UNet that goes on must meet the latents at the scale that it knows
    vae = trained_vae(args.work, "vae").to(args.device)
    pool = encode_pool(vae, Painter(sprites), pictures, known(args.work).get("scale_factor"))
    pool.save(args.work / "latents.pt")
    print(f"{len(pool.pictures)} pictures encoded, scale factor {pool.scale_factor:.4f}")


def known(work: Path) -> dict[str, Any]:
    path = work / KNOWN
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def prediction_of(args: argparse.Namespace) -> Literal["v", "eps"]:
    """What the UNet of this folder predicts, chosen when its training began."""
    found = known(args.work).get("prediction", args.prediction or "v")
    if args.prediction not in (None, found):
        sys.exit(f"{args.work} holds a UNet that predicts {found}; name another folder with --work")
    return found


def run_of(args: argparse.Namespace, stage: str) -> Run:
    place = Place(torch.device(args.device), args.bf16)
    return Run(args.work, stage, args.minutes, place=place, look_every=args.sheet_every * 60)


def diffusion(args: argparse.Namespace) -> None:
    prediction = prediction_of(args)
    args.work.mkdir(parents=True, exist_ok=True)
    (args.work / KNOWN).write_text(
        json.dumps(known(args.work) | {"prediction": prediction}), encoding="utf-8"
    )
    emoji = sprites_of(args).emoji
    pool = LatentPool.load(args.work / "latents.pt")
    shares = Shares(white=args.white, pairs=args.pair_share)
    groups = GROUP_WEIGHT | dict(args.weigh)
    source = source_of(emoji, shares, mirror=0.1, favour=args.favour, groups=groups)
    run, vocabulary, schedule = run_of(args, "diffusion"), vocabulary_of(emoji), TrainingSchedule()
    autoencoder = trained_vae(args.work, "decoder", "vae")

    def look(text: TextEncoder, unet: UNet) -> None:
        drawer = Drawer(text, unet, autoencoder, vocabulary, pool.scale_factor, schedule, prediction)
        save_sheet(args, drawer, run.step)

    diffusion_stage.train_diffusion(
        run,
        pool,
        proportions(source, pool.pictures),
        emoji,
        vocabulary,
        schedule,
        diffusion_stage.DiffusionRecipe(lr=args.lr, prediction=prediction),
        look=look,
    )


def drawer_of(args: argparse.Namespace) -> tuple[Drawer, dict[str, float]]:
    """The averaged networks of the last checkpoint, and how long they were trained."""
    vocabulary = vocabulary_of(sprites_of(args).emoji)
    text, unet = diffusion_stage.build(vocabulary)
    saved = torch.load(args.work / "diffusion.pt", map_location="cpu", weights_only=True)
    text.load_state_dict(saved["modules"]["text_ema"])
    unet.load_state_dict(saved["modules"]["unet_ema"])
    pool = LatentPool.load(args.work / "latents.pt")
    autoencoder = trained_vae(args.work, "decoder", "vae")
    schedule = TrainingSchedule()
    drawer = Drawer(text, unet, autoencoder, vocabulary, pool.scale_factor, schedule, prediction_of(args))
    return drawer, {"minutes": saved["elapsed"] / 60, "steps": saved["step"], "pictures": saved["seen"]}


def save_sheet(args: argparse.Namespace, drawer: Drawer, step: int) -> None:
    pictures = drawer.draw(PROMPTS, seed=args.seed, cfg_scale=args.cfg)
    path = args.work / f"sheet-{step:06}-cfg{args.cfg:g}-seed{args.seed}.png"
    sheet(pictures, PROMPTS).save(path)
    print(path, flush=True)


def draw_sheet(args: argparse.Namespace) -> None:
    drawer, figures = drawer_of(args)
    save_sheet(args, drawer, int(figures["steps"]))


def export(args: argparse.Namespace) -> None:
    drawer, figures = drawer_of(args)
    tensors = export_stage.state_dict(drawer.text, drawer.unet, drawer.vae, drawer.vocabulary)
    config = export_stage.model_config(drawer.scale_factor, prediction_of(args))
    print(f"{args.out}: {export_stage.export(args.out, tensors, config, figures):,} bytes, {figures}")


STAGES = {
    "start": start,
    "vae": vae,
    "latents": latents,
    "diffusion": diffusion,
    "decoder": decoder,
    "sheet": draw_sheet,
    "export": export,
}


def group_weight(text: str) -> tuple[str, float]:
    """ "Flags=0.5" -> ("Flags", 0.5)."""
    name, _, number = text.partition("=")
    if name not in GROUP_WEIGHT or not re.fullmatch(r"\d+(\.\d*)?", number):
        known = ", ".join(GROUP_WEIGHT)
        raise argparse.ArgumentTypeError(f"{text!r}: expected GROUP=WEIGHT, GROUP one of {known}")
    return name, float(number)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, logs and sheets")
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="time budget of a stage, resumes included"
    )
    parser.add_argument("--font", type=Path, help="NotoColorEmoji.ttf, if fontconfig does not find it")
    parser.add_argument("--unicode", type=Path, help="folder of unicode-data, if it is not in a usual place")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="where networks are trained, as torch names it: cuda")
    parser.add_argument("--bf16", action="store_true", help="vae, decoder, diffusion: compute in bfloat16")
    parser.add_argument("--colours", type=int, default=3, help="latents: coloured pictures of each object")
    parser.add_argument("--pairs", type=int, default=4000, help="latents: pictures of two objects")
    parser.add_argument("--others", type=int, default=1200, help="latents: of each other kind")
    parser.add_argument("--white", type=float, default=0.6, help="diffusion: share of white backgrounds")
    parser.add_argument("--pair-share", type=float, default=0.2, help="diffusion: share of two objects")
    parser.add_argument(
        "--favour", type=float, default=1.0, help="latents, diffusion: weight of favourite objects"
    )
    parser.add_argument(
        "--weigh",
        type=group_weight,
        nargs="+",
        default=[],
        metavar="GROUP=WEIGHT",
        help="diffusion: how often objects of a Unicode group are drawn, in place of the usual weight",
    )
    parser.add_argument("--lr", type=float, default=4e-3, help="diffusion: highest learning rate")
    parser.add_argument(
        "--prediction", choices=("v", "eps"), help="diffusion: what a new UNet learns to predict (default: v)"
    )
    parser.add_argument(
        "--sheet-every", type=float, default=20.0, metavar="MINUTES", help="diffusion: between sample sheets"
    )
    parser.add_argument("--cfg", type=float, default=5.0, help="sheet: guidance")
    parser.add_argument("--seed", type=int, default=0, help="sheet: of the noise")
    parser.add_argument("--model", type=Path, default=MODEL, help="start: the exported file to go on from")
    parser.add_argument("--out", type=Path, default=MODEL, help="export: the file to write")
    return parser


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    STAGES[args.stage](args)


if __name__ == "__main__":
    main()

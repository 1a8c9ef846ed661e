"""Train the embedded model's companions, each in a few minutes on two CPU cores.

    python -m scripts.train_companions tiny_vae  --minutes 4     # minisd/assets/emoji_taesd.safetensors
    python -m scripts.train_companions lora      --minutes 5     # tests/assets/blueprint_lora.safetensors
    python -m scripts.train_companions inversion --minutes 3     # tests/assets/striped-mug.safetensors
    python -m scripts.train_companions control   --minutes 6     # tests/assets/edge_controlnet.safetensors

Run from the root of the repository when the model is final: each is trained beside the weights of one file.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from minisd.engine import embedded_model
from scripts.embedded.companions import control, inversion, lora, tiny_vae
from scripts.embedded.companions.base import Base
from scripts.embedded.data import find_font, find_unicode, load_sprites
from scripts.embedded.pictures import Painter, PictureSource, Shares

ROOT = Path(__file__).parent.parent
ASSETS, TESTS = ROOT / "minisd" / "assets", ROOT / "tests" / "assets"
WRITES = {
    "tiny_vae": ASSETS / "emoji_taesd.safetensors",
    "lora": TESTS / "blueprint_lora.safetensors",
    "inversion": TESTS / "striped-mug.safetensors",
    "control": TESTS / "edge_controlnet.safetensors",
}
SHARES = {  # what each learns from: the encoder's pictures are those of training, styles only whole objects
    "tiny_vae": Shares(white=0.5),
    "lora": Shares(white=0.6, pairs=0.1, counts=0.0, smalls=0.0, styles=0.0),
    "control": Shares(white=0.5, pairs=0.1, counts=0.0, smalls=0.0, styles=0.0),
}
TRAINS = {"tiny_vae": tiny_vae.train, "lora": lora.train, "control": control.train}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("companion", choices=WRITES)
    parser.add_argument("--model", type=Path, default=embedded_model(), help="default: the one that ships")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--font", type=Path)
    parser.add_argument("--unicode", type=Path)
    parser.add_argument("--resume", action="store_true", help="tiny_vae: go on from the file that is there")
    parser.add_argument("--out", type=Path, help="default: where it belongs")
    args = parser.parse_args()
    if args.resume and args.companion != "tiny_vae":
        parser.error("only tiny_vae goes on from its file")
    torch.set_num_threads(args.threads)
    base = Base.load(args.model)
    if args.companion == "inversion":
        tensors = inversion.train(base, args.minutes, say)
    else:
        font, names = find_font(args.font), find_unicode(args.unicode)
        if font is None or names is None:
            sys.exit("no Noto Color Emoji or no emoji-test.txt: fonts-noto-color-emoji and unicode-data")
        sprites = load_sprites(font, names)
        # nothing held out: what is held out is for the model, not for what is trained beside it
        source = PictureSource(sprites.emoji, frozenset(), SHARES[args.companion], mirror=0.2, favour=3.0)
        train = TRAINS[args.companion]
        if args.resume:
            train = partial(tiny_vae.train, weights=load_file(WRITES["tiny_vae"]))
        tensors = train(base, Painter(sprites), source, args.minutes, say)
    told = {"minisd.training": json.dumps({"model": args.model.name, "minutes": args.minutes})}
    if args.companion == "lora":
        told |= {"ss_network_dim": str(lora.RANK), "ss_network_alpha": str(lora.ALPHA)}
    target = args.out or WRITES[args.companion]
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target, told)
    say(f"{target.name}: {target.stat().st_size:,} bytes")


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()

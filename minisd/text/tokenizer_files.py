"""The tokenizer as the files of a diffusers folder, so that what minisd writes there is complete.

vocab.json and merges.txt follow from the packaged merge list; they are equal to those of the released models.
Transformers reads the rest: the special tokens, and the padding, which is end-of-text for CLIP-L and "!" (id
0) for OpenCLIP.
"""

from __future__ import annotations

import json

from minisd.config import ModelConfig
from minisd.text.tokenizer import EOS, vocabulary

BOS_TEXT, EOS_TEXT = "<|startoftext|>", "<|endoftext|>"


def tokenizer_files(config: ModelConfig) -> dict[str, str]:
    """{"tokenizer/vocab.json": text, ...} for every text encoder of a model."""
    ids, merges = vocabulary()
    files = {}
    for use in config.text:
        folder = use.part.replace("text_encoder", "tokenizer")
        pad = EOS_TEXT if use.pad_id == EOS else "!"
        special = {"bos_token": BOS_TEXT, "eos_token": EOS_TEXT, "unk_token": EOS_TEXT, "pad_token": pad}
        settings = {
            **special,
            "tokenizer_class": "CLIPTokenizer",
            "do_lower_case": True,
            "add_prefix_space": False,
            "errors": "replace",
            "model_max_length": use.config.max_length,
        }
        files |= {
            f"{folder}/vocab.json": json.dumps(ids, ensure_ascii=False),
            f"{folder}/merges.txt": "#version: 0.2\n" + "\n".join(f"{a} {b}" for a, b in merges) + "\n",
            f"{folder}/special_tokens_map.json": json.dumps(special, indent=2) + "\n",
            f"{folder}/tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
        }
    return files

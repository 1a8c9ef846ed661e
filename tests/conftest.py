"""What every test shares: without a GPU, Triton runs its kernels as Python. It reads that when it is first
imported, so it is said here."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

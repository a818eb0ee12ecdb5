"""Which device a model runs on and in which number format: one home for both questions."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Literal

import torch

from sentiment.settings import Precision


def pick_device(use_gpu: bool | None = None) -> torch.device:
    """CUDA or the CPU, as told; None: CUDA where there is a GPU."""
    if use_gpu is None:
        use_gpu = torch.cuda.is_available()
    return torch.device("cuda" if use_gpu else "cpu")


def limit_threads(num_threads: int) -> None:
    """Give this process so many threads for torch and for the tokenizer, before either has computed anything.

    Several workers on one machine would otherwise each use all of its cores, and wait for each other.
    """
    torch.set_num_threads(num_threads)
    os.environ["RAYON_NUM_THREADS"] = str(num_threads)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is computed by the hardware; where it is emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def resolve_precision(requested: Precision, device: torch.device) -> Literal["bf16", "float32"]:
    """Turn "auto" into bf16 where the hardware has it, float32 elsewhere."""
    if requested == "auto":
        return "bf16" if has_fast_bf16(device) else "float32"
    return requested


def autocast(precision: Literal["bf16", "float32"], device: torch.device) -> AbstractContextManager[None]:
    """Mixed precision for a forward pass: weights stay float32, matrix products run in `precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

"""The Accelerator of every job, and the precision that it computes in."""

import ctypes
import importlib.util
import os
import platform
import warnings
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState

from debias_ssl.contract import Place
from debias_ssl.distributed.processes import num_launched
from debias_ssl.system.errors import InputError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
# glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def make_accelerator(
    precision: Precision = "auto", trackers: tuple[str, ...] = (), folder: Path | None = None
) -> Accelerator:
    """Makes the Accelerator; nothing may touch Accelerate before.

    Without `cpu=True` in the first state that Accelerate makes, two processes started by torchrun on a machine without
    a GPU both believe that they are the first of one.
    """
    has_gpu = torch.cuda.is_available()
    keep_freed_memory()
    if precision == "auto":
        precision = "bf16" if computes_in_bf16(torch.device("cuda" if has_gpu else "cpu")) else "fp32"
    if precision == "fp16" and not has_gpu:
        raise InputError("precision fp16 needs a GPU: take bf16 or fp32")
    missing = [tracker for tracker in trackers if importlib.util.find_spec(tracker) is None]
    if missing:
        raise InputError(f"log_with: {missing[0]} is not installed: pip install 'debias-ssl[{missing[0]}]'")
    # torch's new name for what is asked for below does less, and its hint would greet whoever starts several processes.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    # A job that runs several others in one process lets each choose its precision.
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = Accelerator(
        cpu=not has_gpu and not torch.backends.mps.is_available(),
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=list(trackers) or None,
        project_dir=folder,
        # Buffers that are broadcast would overwrite what other processes have added to theirs.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if num_launched() != accelerator.num_processes:
        raise InputError(f"{num_launched()} processes were launched, but Accelerate sees {accelerator.num_processes}")
    return accelerator


def keep_freed_memory() -> bool:
    """Has glibc keep freed memory for the next tensors; returns whether it does.

    Otherwise the activations of a step, tens of megabytes each, go back to the kernel one by one, and the next step
    gets them again page by page, zeroed. Nothing happens without glibc, or where the environment sets its allocator.
    """
    is_set = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or is_set:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Older versions of glibc take at most 32 MiB as the size from which a tensor has a mapping of its own.
    large = mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)
    return bool(large and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def chosen_device(device: torch.device | str | None) -> torch.device:
    """The device that is named; None is the accelerator if there is one, else the CPU."""
    return torch.device(device or torch.accelerator.current_accelerator(check_available=True) or "cpu")


def computes_in_bf16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bf16, rather than by way of fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu
    return device.type == "cpu" and (cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def reseed(seed: int, device: torch.device) -> None:
    """Seeds torch's generators of the CPU and of one device; `torch.manual_seed` goes through every kind of device."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def place_of(accelerator: Accelerator) -> Place:
    return Place(rank=accelerator.process_index, num_processes=accelerator.num_processes, device=accelerator.device)

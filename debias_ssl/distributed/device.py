"""Chooses a job's device and precision without an Accelerator."""

import ctypes
import os
import platform
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]
# glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def device_name() -> str:
    """The kind of the device: of a GPU its name, of a CPU the vector instructions that torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return str(accelerator) if accelerator else f"CPU with {torch.backends.cpu.get_cpu_capability()}"


def keep_freed_memory() -> bool:
    """Has glibc keep freed memory for the next tensors; returns whether it does.

    Otherwise the activations of a step, tens of megabytes each, go back to the kernel one by one, and the next step
    gets them again page by page, zeroed. Nothing happens without glibc, or where the environment sets its allocator.
    """
    is_set = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or is_set:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Older versions of glibc accept at most 32 MiB as the size from which a tensor gets its own mapping.
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

"""Makes the Accelerator (of Hugging Face Accelerate) that every job uses."""

import importlib.util
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from debias_ssl.contract import Place
from debias_ssl.distributed.device import Precision, computes_in_bf16, keep_freed_memory
from debias_ssl.distributed.processes import num_launched
from debias_ssl.system.errors import InputError

if TYPE_CHECKING:
    import accelerate


def make_accelerator(
    precision: Precision = "auto",
    trackers: tuple[str, ...] = (),
    folder: Path | None = None,
    deterministic: bool = True,
) -> "accelerate.Accelerator":
    """Makes the Accelerator, and sets what of torch decides on the last bits; nothing may touch Accelerate before.

    Without `cpu=True` in the first state that Accelerate makes, two processes started by torchrun on a machine without
    a GPU both believe that they are the first of one.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    has_gpu = torch.cuda.is_available()
    _check_gpus(torch.cuda.device_count() if has_gpu else 0)
    keep_freed_memory()
    set_determinism(deterministic, has_gpu)
    if precision == "auto":
        precision = "bf16" if computes_in_bf16(torch.device("cuda" if has_gpu else "cpu")) else "fp32"
    if precision == "fp16" and not has_gpu:
        raise InputError("precision fp16 needs a GPU: take bf16 or fp32")
    missing = [tracker for tracker in trackers if importlib.util.find_spec(tracker) is None]
    if missing:
        raise InputError(f"log_with: {missing[0]} is not installed: pip install 'debias-ssl[{missing[0]}]'")
    # torch's new name for the option below does less, and its warning would appear in every start of several processes.
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


def _check_gpus(num_gpus: int) -> None:
    """Raises InputError if more processes were launched on this machine than it has GPUs; without any they use CPUs.

    NCCL's own message, that a GPU is there twice, comes later and does not say what to do.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if 0 < num_gpus < here:
        gpus = "1 GPU" if num_gpus == 1 else f"{num_gpus} GPUs"
        raise InputError(
            f"{here} processes were launched on a machine with {gpus}: set --num_processes {num_gpus}, or "
            "CUDA_VISIBLE_DEVICES= to use the CPU"
        )


def set_determinism(deterministic: bool, has_gpu: bool) -> None:
    """Has a GPU give the same bits each time, or whatever is fastest.

    A CPU gives the same bits in any case. What has no deterministic algorithm on a GPU is named in a warning of torch,
    and computed as it can be.

    Args:
        deterministic: the same bits, and fp32 in full precision. Otherwise cuDNN times its algorithms and takes the
            fastest for each shape, and products of fp32 matrices and convolutions are in TF32.
        has_gpu: whether there is a GPU.
    """
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    # torch's default for convolutions is TF32, which keeps ten bits.
    torch.backends.cudnn.allow_tf32 = not deterministic
    torch.set_float32_matmul_precision("highest" if deterministic else "high")
    # Not `use_deterministic_algorithms`, which imports torch's compiler to tell it too: that takes longer than torch.
    torch.set_deterministic_debug_mode("warn" if deterministic and has_gpu else "default")
    # Nothing here reads memory that nobody has written to.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    if deterministic and has_gpu:
        # Without a workspace of its own, cuBLAS shares one among streams; it reads this when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def place_of(accelerator: "accelerate.Accelerator") -> Place:
    return Place(rank=accelerator.process_index, num_processes=accelerator.num_processes, device=accelerator.device)

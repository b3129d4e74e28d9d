"""Checkpoints: written completely or not at all, and exact on resume. Tensors are safetensors, the rest is JSON."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from debias_ssl.distributed.collectives import num_processes
from debias_ssl.distributed.device import device_name
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import unfinished, writes
from debias_ssl.training.learner import Learner


@dataclass(frozen=True, kw_only=True)
class Base:
    """The weights of a learner that are not trained, and how checkpoints treat them.

    Args:
        left_out: names in the learner's state that checkpoints do not contain.
        hash: hash of the weights if a checkpoint does not contain them, so that a resumed run can check its own; else
            None.
    """

    left_out: frozenset[str] = frozenset()
    hash: str | None = None


def base_of(learner: Learner, *, is_found_again: bool) -> Base:
    """The frozen weights that checkpoints leave out.

    Those of the averaged model are always left out, because they equal those of the trained model. Those of the trained
    model are left out if they were read from a file. Random initial weights are saved: their seed gives the same ones
    only with the same version of torch.

    Args:
        learner: whose weights.
        is_found_again: whether the weights were read from a file, which a resumed run reads again.
    """
    models = ("ema", "raw") if is_found_again else ("ema",)
    left_out = frozenset(f"{model}.model.{name}" for model in models for name in learner.frozen)
    if not is_found_again or not learner.frozen:
        return Base(left_out=left_out)
    digest = hashlib.sha256()
    for name, weight in _plain(learner.frozen).items():
        digest.update(name.encode())
        digest.update(weight.reshape(-1).view(torch.uint8).numpy().tobytes())
    return Base(left_out=left_out, hash=digest.hexdigest()[:32])


def machine() -> dict[str, Any]:
    """Properties of the machine that can change the last bits of floating-point sums."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": num_processes(),
        "device": device_name(),
    }


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    found = [path for path in folder.glob("step_*") if path.name.removeprefix("step_").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def save_checkpoint(
    folder: Path,
    step: int,
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: dict[str, Any],
    keep: int,
    *,
    is_evaluation_due: bool = False,
    base: Base = Base(),
) -> None:
    """Writes a checkpoint to a temporary folder, renames it, and removes all but the newest `keep`.

    Every process has the same state, so one of them writes it. `is_evaluation_due` says that the step is evaluated
    after the checkpoint. This may change the state once more, so a resumed run evaluates first.

    Raises:
        WriteError: it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    numbers = _without_tensors(optimizer.state_dict(), "optimizer", tensors)
    state = {"step": step, "optimizer": numbers, "scaler": scaler, "machine": machine()}
    state |= {"is_evaluation_due": is_evaluation_due, "base": base.hash}
    kept = {name: tensor for name, tensor in learner.state_dict().items() if name not in base.left_out}
    files = {"learner": _plain(kept), "optimizer": _plain(tensors)}
    with writes(folder):
        _write(folder / f"step_{step:08d}", files, state)
        for old in checkpoints(folder)[:-keep]:
            _remove(old)


def _write(path: Path, files: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    aside = unfinished(path)
    try:
        aside.mkdir(parents=True)
        for name, tensors in files.items():
            save_file(tensors, aside / f"{name}.safetensors")
        (aside / "state.json").write_text(json.dumps(state))
        for file in aside.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        _remove(path)
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _remove(checkpoint: Path) -> None:
    """Removes a checkpoint, if it exists. It is renamed first, so that a killed process leaves no damaged one."""
    if checkpoint.exists():
        # Files under this name are removed the next time the folder is locked.
        gone = unfinished(checkpoint)
        checkpoint.rename(gone)
        shutil.rmtree(gone)


def load_checkpoint(
    path: Path, learner: nn.Module, optimizer: torch.optim.Optimizer, base: Base = Base()
) -> dict[str, Any]:
    """Restores learner and optimizer, and returns the rest: step, scaler, machine and whether to evaluate first.

    Raises:
        InputError: the checkpoint is damaged, is of another model, or was trained with other frozen weights.
    """
    try:
        state = json.loads((path / "state.json").read_text())
        missing, unknown = learner.load_state_dict(load_file(path / "learner.safetensors"), strict=False)
        wrong = [*unknown, *(name for name in missing if name not in base.left_out)]
        if wrong:
            raise ValueError(f"only one of checkpoint and model has {wrong[0]!r}")
        optimizer.load_state_dict(_with_tensors(state["optimizer"], load_file(path / "optimizer.safetensors")))
        _match_layout(optimizer)
        # Older versions evaluated before they saved.
        due = state.get("is_evaluation_due", False)
        found = {key: state[key] for key in ("step", "scaler", "machine")} | {"is_evaluation_due": due}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"checkpoint {str(path)!r} cannot be loaded ({reason(error)}): remove it to use the previous one"
        ) from error
    if state.get("base") not in (None, base.hash):
        raise InputError(
            f"checkpoint {str(path)!r} belongs to other frozen weights: pass the file that the run started with "
            "as --model.weights"
        )
    return found


def _match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Gives the optimizer's tensors the memory layout of their parameters; files store them row by row.

    Fused kernels read memory in order. On a CPU they would use the momentum of one weight for another, without an
    error.
    """
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """An optimizer's state as JSON values. Its tensors are moved to `tensors` and replaced by their names."""
    match value:
        case Tensor():
            tensors[name] = value
            return {"tensor": name}
        case torch.dtype():
            return {"dtype": str(value).removeprefix("torch.")}
        case dict():
            return {"items": [[key, _without_tensors(each, f"{name}.{key}", tensors)] for key, each in value.items()]}
        case list() | tuple():
            inner = [_without_tensors(each, f"{name}.{i}", tensors) for i, each in enumerate(value)]
            return {"tuple": inner} if isinstance(value, tuple) else inner
        case _:
            return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The input of `_without_tensors`, restored."""
    match value:
        case {"tensor": name}:
            return tensors[name]
        case {"dtype": name}:
            return getattr(torch, name)
        case {"tuple": inner}:
            return tuple(_with_tensors(each, tensors) for each in inner)
        case {"items": items}:
            return {key: _with_tensors(each, tensors) for key, each in items}
        case list():
            return [_with_tensors(each, tensors) for each in value]
        case _:
            return value

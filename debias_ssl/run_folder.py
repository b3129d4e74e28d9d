"""The run folder: what a run leaves behind, and how other jobs read it."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Int64
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from debias_ssl.checkpoint import checkpoints
from debias_ssl.config import Config, completed, config_from, flat, read_yaml
from debias_ssl.data.datasets import DataConfig
from debias_ssl.data.reading import Reader
from debias_ssl.data.streams import EvaluationStream, Place
from debias_ssl.errors import InputError, reason
from debias_ssl.files import replacing, write_aside
from debias_ssl.learner import Predictor, white_pixel
from debias_ssl.methods.base import Problem
from debias_ssl.models import build

# Settings that may differ when a run is resumed: they change where and how it is computed, not what.
RESUMABLE = {"data.root", "data.workers", "data.cache", "data.download", "keep_checkpoints", "log_with"}
WRITTEN = ("config.yaml", "split.json", "unreadable.json", "metrics.jsonl", "checkpoints", "model.safetensors")
WRITTEN += ("method.safetensors", "model.json", "predictions", "summary.json", "report.html", "finetune.yaml")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and its rules: nothing is overwritten unless asked, and a resumed run is the same run."""

    path: Path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def split(self) -> Path:
        return self.path / "split.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def holds_run(self) -> bool:
        return (self.path / "config.yaml").exists()

    def is_finished(self) -> bool:
        return (self.path / "summary.json").exists()

    def check(self, resolved: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Raises InputError where the folder may not be written to by a run of these settings."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out {str(self.path)!r} is a file")
        if not self.holds_run() or overwrite:
            return
        if not resume:
            raise InputError(
                f"{str(self.path)!r} holds a run: pass --resume to go on with it, --overwrite to replace it"
            )
        differs = difference(completed(read_yaml(self.path / "config.yaml")), resolved)
        if differs:
            raise InputError(f"{str(self.path)!r} cannot be resumed: {differs}; leave it so, or choose another --out")

    def clear(self) -> None:
        """Removes what a run writes, and nothing else."""
        for name in WRITTEN:
            path = self.path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def latest_checkpoint(self) -> Path | None:
        found = checkpoints(self.checkpoints)
        return found[-1] if found else None

    def write_config(self, resolved: dict[str, Any]) -> None:
        write_aside(self.path / "config.yaml", yaml.safe_dump(resolved, sort_keys=False))

    def write_json(self, name: str, value: Any) -> None:
        write_aside(self.path / name, json.dumps(value, indent=1) + "\n")

    def read_summary(self) -> dict[str, Any]:
        """The figures of a finished run.

        Raises:
            InputError: the file is damaged.
        """
        path = self.path / "summary.json"
        try:
            summary = json.loads(path.read_text())
            # The figures that every reader asks for.
            _ = [summary[name]["last"]["accuracy"] for name in ("ema", "raw")], summary["steps"], summary["seconds"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{str(path)!r} is damaged ({reason(error)}): remove it, and go on by --resume") from error
        return summary

    def write_model(self, predictor: Predictor, description: dict[str, Any]) -> None:
        """Exports the network under timm's names, and the method's state beside it if there is any."""
        parts = {"model": predictor.model.net, "method": predictor.method}
        for name, module in parts.items():
            tensors = {key: tensor.cpu().contiguous() for key, tensor in module.state_dict().items()}
            if tensors:
                with replacing(self.path / f"{name}.safetensors") as aside:
                    save_file(tensors, aside)
        self.write_json("model.json", description)


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished run, ready to predict."""

    config: Config
    classes: tuple[str, ...]
    labeled_counts: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    """Side of the images in pixels."""
    data: DataConfig
    predictor: Predictor

    def stream(
        self,
        reader: Reader,
        index: Int64[np.ndarray, " N"],
        place: Place,
        *,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> EvaluationStream:
        """A reader's images, normalized like those of the run; batches are as large as in its evaluations."""
        return EvaluationStream(
            reader=reader,
            index=torch.from_numpy(index),
            mean=self.mean,
            std=self.std,
            batch_size=batch_size or self.config.eval_batch_size,
            place=place,
            progress=progress,
        )


def load_run(folder: RunFolder, device: torch.device) -> TrainedRun:
    """Loads the averaged model of a finished run.

    Raises:
        InputError: the folder holds no finished run, or its files do not fit together.
    """
    config = load_config(folder)
    try:
        model = json.loads((folder.path / "model.json").read_text())
        classes, counts = tuple(model["classes"]), tuple(model["labeled_counts"])
        transform = model["transform"]
        settings = replace(config.model, weights=None, pretrained=False)
        net = build(num_classes=len(classes), in_chans=transform["channels"], **vars(settings))
        problem = Problem(
            num_classes=len(classes),
            num_features=net.num_features,
            labeled_counts=counts,
            num_unlabeled=model["num_unlabeled"],
            labeled_loss=config.labeled_loss(counts),
        )
        white = white_pixel(transform["mean"], transform["std"])
        predictor = Predictor(net, config.method(problem), white)
        net.net.load_state_dict(load_file(folder.path / "model.safetensors"))
        if predictor.method.state_dict():
            predictor.method.load_state_dict(load_file(folder.path / "method.safetensors"))
        size, mean, std = transform["size"], tuple(transform["mean"]), tuple(transform["std"])
    except FileNotFoundError as error:
        raise InputError(
            # safetensors names the file in its message alone.
            f"{str(folder.path)!r} is not a finished run: it has no {Path(error.filename or str(error)).name}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"the model in {str(folder.path)!r} cannot be loaded: {reason(error)}") from error
    return TrainedRun(
        config=config,
        classes=classes,
        labeled_counts=counts,
        mean=mean,
        std=std,
        size=size,
        data=config.data,
        predictor=predictor.to(device).eval(),
    )


def load_config(folder: RunFolder) -> Config:
    if not folder.holds_run():
        raise InputError(f"{str(folder.path)!r} holds no run: it has no config.yaml")
    return config_from(read_yaml(folder.path / "config.yaml"))


def difference(saved: dict[str, Any], asked: dict[str, Any]) -> str | None:
    """The first setting in which a run that is there and one that is asked for differ; None where they are the same."""
    was, now = flat(saved), flat(asked)
    for key in sorted((was.keys() | now.keys()) - RESUMABLE):
        if was.get(key) != now.get(key):
            return f"{key} was {was.get(key)}, now it is {now.get(key)}"
    return None

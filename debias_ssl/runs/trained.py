"""A finished run, loaded to predict."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from safetensors import SafetensorError
from safetensors.torch import load_file

from debias_ssl.contract import Place, Problem
from debias_ssl.data.config import DataConfig
from debias_ssl.data.reading.reader import Reader
from debias_ssl.data.streams import EvaluationStream
from debias_ssl.models import build
from debias_ssl.runs.folder import RunFolder
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_yaml
from debias_ssl.training.config import Config
from debias_ssl.training.learner import Predictor, blank_pixel
from debias_ssl.training.saved import config_from


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
        method = config.method(problem)
        predictor = Predictor(net, method, blank_pixel(method.needs.blank, transform["mean"], transform["std"]))
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

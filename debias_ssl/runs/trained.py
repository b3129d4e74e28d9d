"""`TrainedRun` and `load_run`: a finished run, loaded to predict with it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from debias_ssl.contract import Place, Problem
from debias_ssl.data.config import DataConfig
from debias_ssl.data.evaluation_stream import EvaluationStream
from debias_ssl.data.reading.decode import center_crop
from debias_ssl.data.reading.reader import Reader, evaluation_share, feature_reader
from debias_ssl.data.sources.folder import find_files, listed_images
from debias_ssl.data.sources.images import Images
from debias_ssl.distributed.device import chosen_device
from debias_ssl.models import build
from debias_ssl.runs.folder import RunFolder
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_yaml
from debias_ssl.system.outputs import check_whole
from debias_ssl.training.config import Config
from debias_ssl.training.evaluation import predict_logits
from debias_ssl.training.learner import Predictor, blank_pixel
from debias_ssl.training.saved import config_from, no_run_told


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished run, ready to predict: `classes` are the names of the columns of `predict`."""

    config: Config
    classes: tuple[str, ...]
    labeled_counts: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    """Side of the images in pixels."""
    data: DataConfig
    predictor: Predictor

    @torch.no_grad()
    def predict(
        self,
        images: str | Path | Sequence[str | Path] | np.ndarray,
        *,
        root: str | Path | None = None,
        features: str | Path | None = None,
        batch_size: int = 500,
        workers: int = 0,
    ) -> Float32[np.ndarray, "N C"]:
        """Class probabilities of images, as `debias-ssl predict` computes them.

        Args:
            images: a folder of any depth, an image, a list or CSV file of paths, or tar files. A sequence of paths is
                also accepted, and so are uint8 pixels N x H x W x K, which are cropped and resized like those of files.
            root: the folder that paths of a list are relative to and must lie below; None is the folder of the list.
            features: for a run on features, the folder of `debias-ssl features` or `label` with features of the images.
            batch_size: images that pass through the network at a time.
            workers: processes that decode files; 0 decodes in this process.

        Returns:
            Probabilities N x C; files of a folder are in the order of their names.

        Raises:
            InputError: an image cannot be read, or does not fit the run.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}, must be at least 1")
        place = Place(device=next(self.predictor.parameters()).device)
        if isinstance(images, np.ndarray):
            reader, number = self._array_reader(images), len(images)
        else:
            below = None if root is None else str(root)
            found = (
                find_files(str(images), "images", below, "root")
                if isinstance(images, str | Path)
                else listed_images(images, "images")
            )
            folder = None if features is None else str(features)
            reader, number = self.file_reader(found, place, features=folder, workers=workers), len(found)
        return self.probabilities(reader, number, place, batch_size=batch_size).numpy()

    def file_reader(self, images: Images, place: Place, *, features: str | None, workers: int) -> Reader:
        """A reader of files that decodes, crops and resizes them as in the run's evaluations, or finds their features.

        Raises:
            InputError: features are missing, or are given for a run on pixels.
        """
        self.check_features(features is not None)
        config = self.reading(workers)
        if features is not None:
            return feature_reader(images, replace(config, features=(features,)), place.device)
        return Reader(pixels=None, files=images.names, config=config, channels=len(self.mean))

    def reading(self, workers: int) -> DataConfig:
        """The data settings for reading files."""
        return replace(self.data, image_size=self.size, workers=workers, input="streaming")

    def check_features(self, are_given: bool) -> None:
        """Raises InputError if features are missing, or are given for a run on pixels."""
        if self.data.features and not are_given:
            raise InputError(
                "the run was trained on features: make those of these images with the same model (debias-ssl features "
                "--images IMAGES --model MODEL --out FOLDER), and pass --features FOLDER"
            )
        if are_given and not self.data.features:
            raise InputError("the run was trained on pixels, not on features: leave out --features")

    def _array_reader(self, pixels: np.ndarray) -> Reader:
        """A reader of pixels, cropped and resized like those of files."""
        channels = len(self.mean)
        if self.data.features:
            raise InputError("images: the run was trained on features, not on pixels: pass paths and features")
        if pixels.ndim != 4 or pixels.dtype != np.uint8:
            raise InputError(f"images is {pixels.dtype} of shape {pixels.shape}, must be uint8 of N x H x W x K")
        if pixels.shape[3] != channels or not pixels.size:
            raise InputError(f"images is of shape {pixels.shape}, but the run takes N x H x W x {channels}")
        share = evaluation_share(self.data)
        cropped = [
            center_crop(Image.fromarray(image if channels == 3 else image[..., 0]), self.size, share)
            for image in pixels
        ]
        return Reader(pixels=torch.from_numpy(np.stack(cropped)), files=(), config=self.data)

    def probabilities(self, reader: Reader, number: int, place: Place, *, batch_size: int) -> Float[Tensor, "N C"]:
        """Class probabilities of a reader's first images, in their order, on every process."""
        stream = self.stream(reader, np.arange(number), place, batch_size=batch_size)
        return predict_logits(self.predictor, stream, len(self.classes)).softmax(-1)

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


def load_run(folder: str | Path, device: torch.device | str | None = None) -> TrainedRun:
    """Loads the averaged model of a finished run, to predict with it.

    Args:
        folder: a run folder of `debias-ssl train` or `finetune`.
        device: the device of the network; None is the accelerator if there is one, else the CPU.

    Raises:
        InputError: the folder holds no finished run, or its files do not fit together.
    """
    return load_trained(RunFolder(Path(folder)), chosen_device(device))


def load_trained(folder: RunFolder, device: torch.device) -> TrainedRun:
    """Loads the averaged model of a finished run.

    Raises:
        InputError: the folder holds no finished run, or its files do not fit together.
    """
    config = load_config(folder)
    try:
        model = json.loads((folder.path / "model.json").read_text())
        classes, counts = tuple(model["classes"]), tuple(model["labeled_counts"])
        transform = model["transform"]
        net = build(num_classes=len(classes), in_chans=transform["channels"], **vars(config.model.exported()))
        problem = Problem(
            num_classes=len(classes),
            num_features=net.num_features,
            labeled_counts=counts,
            num_unlabeled=model["num_unlabeled"],
            class_balanced=config.class_balanced,
        )
        method = config.method(replace(problem, labeled_loss=config.labeled_loss(problem)))
        predictor = Predictor(net, method, blank_pixel(method.needs.blank, transform["mean"], transform["std"]))
        net.net.load_state_dict(load_file(folder.path / "model.safetensors"))
        if predictor.method.state_dict():
            predictor.method.load_state_dict(load_file(folder.path / "method.safetensors"))
        size, mean, std = transform["size"], tuple(transform["mean"]), tuple(transform["std"])
    except FileNotFoundError as error:
        raise InputError(
            # safetensors names the file only in its message.
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
    check_whole(folder.path / "config.yaml")
    if not folder.holds_run():
        raise InputError(no_run_told(folder.path))
    return config_from(read_yaml(folder.path / "config.yaml"))

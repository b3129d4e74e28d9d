"""The classifiers that vote: trained runs, and existing matrices of predictions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from debias_ssl.contract import Place
from debias_ssl.data.reading.features import hash_of_model
from debias_ssl.data.reading.reader import Reader, feature_reader
from debias_ssl.data.sources.images import Images
from debias_ssl.data.splits import saved_inputs
from debias_ssl.labels.matrix.known_rows import LogitFile
from debias_ssl.labels.matrix.predictions import Predictions, read_predictions
from debias_ssl.labels.tables.row_names import match
from debias_ssl.labels.tables.truth import RowNumbers
from debias_ssl.models import Classifier
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.trained import TrainedRun, load_trained
from debias_ssl.system.errors import InputError, shortened
from debias_ssl.training.evaluation import gathered_batches, predict_all
from debias_ssl.training.learner import Predictor


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Existing predictions of unknown origin."""

    name: str
    """As it was given."""
    predictions: Predictions

    @property
    def classes(self) -> tuple[str, ...]:
        return self.predictions.classes

    def logits(self, names: Sequence[str], classes: Sequence[str]) -> LogitFile:
        """Logits of rows by their names, in an order of the classes.

        Raises:
            InputError: it has not all of them.
        """
        own = self.predictions.names
        both_are_numbers = isinstance(own, RowNumbers) and isinstance(names, RowNumbers)
        # Rows without names are numbered, and equal up to the shorter list.
        rows = np.arange(len(names)) if both_are_numbers and len(own) >= len(names) else match(own, names).entry_of
        if (rows < 0).any():
            missing = names[int((rows < 0).argmax())]
            raise InputError(
                f"--runs {self.name!r} has no row of {missing!r}: all members need the same images; its first row "
                f"is {own[0]!r}"
            )
        found, first = LogitFile(len(classes)), 0
        for logits in self.predictions.at(rows):
            found.write(first, in_order(logits, self.classes, classes))
            first += len(logits)
        return found


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained run, which predicts from images or from their features."""

    name: str
    """As it was given."""
    trained: TrainedRun
    features: tuple[str, ...] = ()
    """Folders of features, for a run on features."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.trained.classes

    def reader(self, images: Images, place: Place, workers: int) -> Reader:
        """A reader of the images, or of their features.

        Raises:
            InputError: features are missing, or those of another model than the run was trained on.
        """
        if self.features:
            config = replace(self.trained.reading(workers), features=self.features)
            return feature_reader(images, config, place.device)
        return self.trained.file_reader(images, place, features=None, workers=workers)

    def logits(self, reader: Reader, classes: Sequence[str], place: Place, batch_size: int) -> LogitFile:
        """Logits of all images of a reader, in an order of the classes; empty but in the main process."""
        stream = self.trained.stream(
            reader, np.arange(len(reader.files)), place, batch_size=batch_size, progress=place.rank == 0
        )
        found = LogitFile(len(classes))
        for first, logits in gathered_batches(self.trained.predictor, stream, len(classes)):
            if place.rank == 0:
                found.write(first, in_order(logits, self.classes, classes))
        return found

    def vectors(
        self, reader: Reader, rows: Int64[np.ndarray, " S"], place: Place, batch_size: int
    ) -> Float[Tensor, "S D"]:
        """The input of its classifier for some images: the features of its network, in every process."""
        network = self.trained.predictor.model
        assert isinstance(network, Classifier)
        stream = self.trained.stream(reader, rows, place, batch_size=batch_size)
        return predict_all({"": _Features(self.trained.predictor)}, stream, network.num_features)[""]


class _Features(nn.Module):
    """Images to features."""

    def __init__(self, predictor: Predictor):
        super().__init__()
        self.predictor = predictor

    def forward(self, images: Float[Tensor, "N K H W"]) -> Float[Tensor, "N D"]:
        return self.predictor.view(images).features


Member = Run | Matrix


def read_members(given: Sequence[str], features: Sequence[str], device: torch.device) -> list[Member]:
    """Loads runs and matrices, which must have the same classes, in any order.

    Args:
        given: folders of finished runs, of labels, or files of predictions.
        features: folders of features; a run on features takes those that were made by the model of its own, and without
            any its own ones.
        device: where networks go.

    Raises:
        InputError: there are fewer than two, one cannot be loaded, or its classes are others.
    """
    if len(given) < 2:
        raise InputError(f"--runs names {len(given)} run; a vote needs two or more")
    places = [Path(each).resolve() for each in given]
    if twice := [each for i, each in enumerate(given) if places[i] in places[:i]]:
        raise InputError(f"--runs names {twice[0]!r} twice, so it would have two votes: leave one out")
    members = [read_member(each, features, device) for each in given]
    first = members[0]
    for other in members[1:]:
        if {*other.classes} != {*first.classes}:
            differing = sorted({*first.classes} ^ {*other.classes})
            raise InputError(
                f"--runs {other.name!r} has other classes than {first.name!r}: {shortened(differing)} in only one "
                "of them; all members need the same classes"
            )
    used = {folder for member in members if isinstance(member, Run) for folder in member.features}
    if unused := [folder for folder in features if folder not in used]:
        raise InputError(f"--features {unused[0]!r} has features of a model on which none of --runs was trained")
    return members


def read_member(given: str, features: Sequence[str], device: torch.device, flag: str = "--runs") -> Member:
    """Loads one of them; `flag` is what errors call it.

    Raises:
        InputError: it cannot be loaded.
    """
    path = Path(given)
    if path.is_dir() and not RunFolder(path).holds_run():
        if not (path / "probs.npy").is_file():
            raise InputError(
                f"{flag} {given!r} holds neither a run (it has no config.yaml) nor labels with probs.npy: name a "
                "folder of train, label, debias or vote, or a file of predict"
            )
        path = path / "probs.npy"
    if path.is_dir():
        trained = load_trained(RunFolder(path), device)
        return Run(name=given, trained=trained, features=_features_of(given, trained, features, flag))
    return Matrix(name=given, predictions=read_predictions(path))


def _features_of(name: str, run: TrainedRun, features: Sequence[str], flag: str) -> tuple[str, ...]:
    """The folders of features that a run takes: of those that are given, the ones of the model of its own."""
    own = tuple(run.data.features or ())
    if not own or not features:
        return own
    trained_on = (saved_inputs(RunFolder(Path(name)).split) or {}).get("data.features")
    found = tuple(folder for folder in features if trained_on in (None, hash_of_model(folder)))
    if not found:
        raise InputError(f"--features lacks the model on which {flag} {name!r} was trained: {', '.join(own)}")
    return found


def in_order(logits: Float[Tensor, "N C"], own: Sequence[str], classes: Sequence[str]) -> Float[Tensor, "N C"]:
    """The columns of one order of classes in another one."""
    return logits if tuple(own) == tuple(classes) else logits[:, [own.index(name) for name in classes]]

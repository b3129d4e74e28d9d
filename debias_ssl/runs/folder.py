"""`RunFolder`: the files of a run, and the check whether a job may write to its folder."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.torch import save_file

from debias_ssl.data.reading.reader import evaluation_share
from debias_ssl.data.splits import saved_inputs
from debias_ssl.distributed.agreement import hash_of_files
from debias_ssl.models import merged
from debias_ssl.models.timm_folder import FILE as TIMM_CONFIG
from debias_ssl.models.timm_folder import ImageFormat, timm_config
from debias_ssl.runs.card import model_card
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_array, read_yaml, replacing, write_aside
from debias_ssl.system.outputs import Outputs
from debias_ssl.training.checkpoint import checkpoints
from debias_ssl.training.config import Config
from debias_ssl.training.learner import Predictor
from debias_ssl.training.renamed import flat
from debias_ssl.training.saved import completed

# Settings that may differ between compared runs: they change where and how a run is computed, but not its result.
PLACES = {"data.root", "data.workers", "data.cache", "data.download", "keep_checkpoints", "log_with"}
# The batch size of an evaluation changes at most the last bits of figures; checkpoints change the lines of the log.
PLACES |= {"eval_batch_size", "checkpoint_every"}
# Settings that may differ when a run is resumed, because the training is the same: those above, how often the run is
# logged, and the number of evaluations in the final median. `eval_every` is not allowed to differ: some methods learn
# from evaluations, and the best one is reported. `compile`, `precision` and `deterministic` change bits.
RESUMABLE = PLACES | {"log_every", "median_of"}
# Places of inputs that may have been moved. The fingerprint in split.json, or hashes there, show whether an input is
# the same; or it does not matter to a run that has begun.
MOVABLE = {"data.labeled", "data.unlabeled", "data.path", "data.split", "model.weights"}
MOVABLE_BY_HASH = {"data.test", "data.features", "data.probs", "teacher"}
DATA_FILES = ("labeled", "unlabeled", "test", "path", "features", "probs", "split")
# In the order of removal: first the file that marks a run as finished, last the file that marks the folder as a run.
WRITTEN = ("summary.json", "model.json", "report.html", "finetune.yaml", "model.safetensors", "method.safetensors")
# Files of a model folder of timm and of the Hugging Face hub.
CARD = "README.md"
WRITTEN += (TIMM_CONFIG, CARD)
WRITTEN += ("predictions/*_ema.npy", "predictions/*_raw.npy", "predictions/*_labels.npy", "checkpoints/step_[0-9]*")
# Files of the trackers of the setting log_with.
WRITTEN += ("debias_ssl/events.out.*",)
# The reason why a trial chose the run's method.
TRIAL = "trial.json"
WRITTEN += (TRIAL, "confusion.npz", "metrics.jsonl", "unreadable.json", "split.json", "config.yaml")


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

    @property
    def outputs(self) -> Outputs:
        return Outputs(folder=self.path, kind="a run", names=WRITTEN)

    def check(self, resolved: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Raises InputError if a run with these settings may not write to the folder."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out {str(self.path)!r} is a file")
        self.outputs.check_foreign()
        if overwrite:
            return
        self.outputs.check_complete()
        if not resume and self.outputs.held():
            raise InputError(
                f"{str(self.path)!r} holds a run: pass --resume to go on with it, --overwrite to replace it"
            )
        if not self.holds_run():
            return
        movable = MOVABLE if saved_inputs(self.split) is None else MOVABLE | MOVABLE_BY_HASH
        differs = difference(completed(read_yaml(self.path / "config.yaml")), resolved, RESUMABLE, movable)
        if differs:
            raise InputError(
                f"{str(self.path)!r} cannot be resumed: {differs}; keep the earlier value, or choose another --out"
            )

    def changed(self, resolved: dict[str, Any]) -> list[str]:
        """The settings that change in a resumed run, as texts."""
        if not self.holds_run():
            return []
        return [*differences(completed(read_yaml(self.path / "config.yaml")), resolved).values()]

    def clear(self) -> None:
        """Removes the files of a run, and nothing else."""
        self.outputs.clear()

    def latest_checkpoint(self) -> Path | None:
        found = checkpoints(self.checkpoints)
        return found[-1] if found else None

    def hash_of_model(self) -> str:
        """Hash of the files that a finished run predicts with."""
        return hash_of_files(*(self.path / name for name in ("model.json", "model.safetensors", "method.safetensors")))

    def write_config(self, resolved: dict[str, Any]) -> None:
        self.outputs.claim("config.yaml")
        write_aside(self.path / "config.yaml", yaml.safe_dump(resolved, sort_keys=False))

    def write_json(self, name: str, value: Any) -> None:
        self.outputs.claim(name)
        write_aside(self.path / name, json.dumps(value, indent=1) + "\n")

    def read_summary(self) -> dict[str, Any]:
        """The figures of a finished run.

        Raises:
            InputError: the file is damaged.
        """
        path = self.path / "summary.json"
        try:
            summary = json.loads(path.read_text())
            # The figures that every reader needs.
            _ = [summary[name]["last"]["accuracy"] for name in ("ema", "raw")], summary["steps"], summary["seconds"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{str(path)!r} is damaged ({reason(error)}): remove it, and go on by --resume") from error
        return summary

    def is_uneven(self) -> bool:
        """Whether some class of the finished run has twice as many labels, or test images, as another.

        Raises:
            InputError: a file with these numbers is missing or damaged.
        """
        try:
            labeled = json.loads((self.path / "model.json").read_text())["labeled_counts"]
            test = read_array(self.path / "predictions" / "test_labels.npy")
            counts = np.bincount(test[test >= 0])
            return any(max(each) >= 2 * min(each) for each in (labeled, counts[counts > 0].tolist()) if each)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{str(self.path)!r} was changed after its run, or damaged: {reason(error)}") from error

    def write_model(self, predictor: Predictor, description: dict[str, Any], config: Config) -> None:
        """Exports the network under timm's names, the method's state if it has any, and their description.

        Args:
            predictor: the network and its method.
            description: the content of `model.json`.
            config: the settings of the run.
        """
        parts = {"model": merged(predictor.model.net), "method": predictor.method.state_dict()}
        for name, state in parts.items():
            tensors = {key: tensor.cpu().contiguous() for key, tensor in state.items()}
            if tensors:
                self.outputs.claim(f"{name}.safetensors")
                with replacing(self.path / f"{name}.safetensors") as aside:
                    save_file(tensors, aside)
        self.write_json("model.json", description)
        size, mean, std = (description["transform"][name] for name in ("size", "mean", "std"))
        images = ImageFormat(size=size, mean=mean, std=std, crop=evaluation_share(config.data))
        of_timm = timm_config(predictor.model.net, config.model, description["classes"], images)
        if of_timm is not None:
            self.write_json(TIMM_CONFIG, of_timm)

    def write_results(self, summary: dict[str, Any], predictor: Predictor) -> None:
        """Writes the model card after all other files, and then the summary, which marks the run as finished."""
        self.outputs.claim(CARD)
        write_aside(self.path / CARD, model_card(self.path, summary, is_plain=predictor.is_plain))
        self.write_json("summary.json", summary)


def inputs_of(resolved: dict[str, Any]) -> dict[str, Any]:
    """The files and folders that a run with these settings reads, by the names of the settings."""
    data = {f"data.{name}": resolved["data"].get(name) for name in DATA_FILES}
    return {"--teacher": resolved.get("teacher"), **data, "model.weights": resolved["model"].get("weights")}


def difference(
    saved: dict[str, Any],
    asked: dict[str, Any],
    may_differ: Collection[str] = PLACES,
    movable: Collection[str] = (),
) -> str | None:
    """The first setting in which an existing run and a requested one differ; None if they are the same.

    Settings that are `movable` may name different places, but must not change from or to null.
    """
    was, now = flat(saved), flat(asked)
    for key, text in differences(saved, asked).items():
        is_moved = key in movable and bool(was.get(key)) and bool(now.get(key))
        if key not in may_differ and not is_moved:
            return text
    return None


def differences(saved: dict[str, Any], asked: dict[str, Any]) -> dict[str, str]:
    """The settings in which two runs differ, in the order of their names, with both values in words."""
    was, now = flat(saved), flat(asked)
    return {
        key: f"{key} was {was.get(key)}, now it is {now.get(key)}"
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key)
    }

"""The run folder: its files, and when it may be written to."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file

from debias_ssl.distributed.agreement import hash_of_files
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_yaml, replacing, write_aside
from debias_ssl.training.checkpoint import checkpoints
from debias_ssl.training.learner import Predictor
from debias_ssl.training.renamed import flat
from debias_ssl.training.saved import completed

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

    def hash_of_model(self) -> str:
        """Hash of the files that a finished run predicts with."""
        return hash_of_files(*(self.path / name for name in ("model.json", "model.safetensors", "method.safetensors")))

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


def difference(saved: dict[str, Any], asked: dict[str, Any]) -> str | None:
    """The first setting in which a run that is there and one that is asked for differ; None where they are the same."""
    was, now = flat(saved), flat(asked)
    for key in sorted((was.keys() | now.keys()) - RESUMABLE):
        if was.get(key) != now.get(key):
            return f"{key} was {was.get(key)}, now it is {now.get(key)}"
    return None

"""What trackers get of a run: its settings, figures and pictures, at its steps; and what the pictures show."""

import io
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jobs import run
from PIL import Image

from debias_ssl.training import tracking
from debias_ssl.training.journal import read_journal
from debias_ssl.training.pictures import confusion_picture, examples_picture, marginal_picture, shown
from debias_ssl.training.tracking import MOST_POINTS, Tracking

PICTURES = ["confusion", "marginal", "pseudo_labels"]


def events_of(out: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "debias_ssl"), size_guidance={"images": 0})
    events.Reload()
    return events


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "a", "--log_with", "[tensorboard]")


def test_tensorboard_gets_pictures_and_settings_at_the_steps_of_the_run(tracked: Path):
    events = events_of(tracked)
    assert events.Tags()["images"] == PICTURES
    for name in PICTURES:
        assert [image.step for image in events.Images(name)] == [6, 12]
        pixels = np.asarray(Image.open(io.BytesIO(events.Images(name)[-1].encoded_image_string)))
        assert pixels.shape[2] == 3 and len(np.unique(pixels)) > 50
    (text,) = events.Tensors("config/text_summary")
    assert yaml.safe_load(text.tensor_proto.string_val[0].decode()) == yaml.safe_load(
        (tracked / "config.yaml").read_text()
    )
    records = [record for record in read_journal(tracked / "metrics.jsonl") if "ema" in record]
    for model, name in (("ema", "min_recall"), ("raw", "ece")):
        logged = {event.step: event.value for event in events.Scalars(f"{model}_{name}")}
        assert logged == pytest.approx({record["step"]: record[model][name] for record in records})


def test_a_resumed_run_goes_on_in_tensorboard_and_bits_are_those_without(tracked: Path, tmp_path: Path):
    shutil.copytree(tracked, tmp_path / "b")
    (tmp_path / "b" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step_00000012")
    run(tmp_path / "b", "--log_with", "[tensorboard]", "--resume")
    logged = [(event.step, event.value) for event in events_of(tmp_path / "b").Scalars("mask_rate")]
    assert logged == [(event.step, event.value) for event in events_of(tracked).Scalars("mask_rate")]
    without = run(tmp_path / "c")
    assert (without / "model.safetensors").read_bytes() == (tracked / "model.safetensors").read_bytes()


class _StandIn(types.ModuleType):
    """As much of the package wandb as is called, which is too large to be installed for tests."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace(name="wandb", loader=None)  # pyright: ignore[reportAttributeAccessIssue]
        self.begun: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0

    def init(self, **settings: Any) -> "_StandIn":
        self.begun = settings
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1

    Image = staticmethod(np.asarray)


def test_weights_and_biases_gets_the_same(tmp_path: Path, monkeypatch):
    from accelerate import tracking as of_accelerate

    stand_in = _StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    # Accelerate looks for packages once, when it is imported.
    monkeypatch.setattr(of_accelerate, "_available_trackers", [of_accelerate.LoggerType.WANDB])
    out = run(tmp_path / "mine", "--log_with", "[wandb]")
    begun = {"project": "debias_ssl", "name": "mine", "config": yaml.safe_load((out / "config.yaml").read_text())}
    assert stand_in.begun == begun and stand_in.finished == 1
    pictures = [
        (step, name, *each[0].shape[2:])
        for step, values in stand_in.logged
        for name, each in values.items()
        if name in PICTURES
    ]
    assert pictures == [(step, name, 3) for step in (6, 12) for name in PICTURES]
    final = json.loads((out / "summary.json").read_text())["ema"]["last"]["accuracy"]
    assert stand_in.logged[-1][0] == 12 and stand_in.logged[-1][1]["final_accuracy"] == final
    # Its server drops what comes with an earlier step.
    steps = [step for step, _ in stand_in.logged]
    assert steps == sorted(steps)


def test_a_picture_that_cannot_be_drawn_stops_no_run(tmp_path: Path, monkeypatch, capsys):
    def broken(*_: Any) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr(tracking, "confusion_picture", broken)
    out = run(tmp_path / "a", "--log_with", "[tensorboard]")
    assert "warning: no pictures for trackers: ValueError: no ink" in capsys.readouterr().err
    assert events_of(out).Tags()["images"] == [] and (out / "summary.json").exists()


def test_marginals_of_long_runs_are_thinned_and_keep_their_ends(tmp_path: Path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": k, "marginal": [0.5, 0.5]}) + "\n" for k in range(1, 1001)))
    accelerator: Any = types.SimpleNamespace(trackers=[None], is_main_process=True)
    each = Tracking(accelerator, classes=("a", "b"), mean=(0.5,), std=(0.5,), metrics=metrics)
    each.marginal([0.75, 0.25], 1001)
    known = each._known_marginals()
    assert len(known) <= MOST_POINTS and next(iter(known)) == 1 and [*known][-1] == 1001
    assert known[1001].tolist() == [0.75, 0.25] and [*known] == sorted(known)


def test_colors_of_a_confusion_matrix_are_shares_of_its_rows():
    classes = tuple(f"class_{k}" for k in range(40))
    perfect = confusion_picture(np.diag(np.arange(1, 41)), classes)
    assert (confusion_picture(np.diag(np.full(40, 7)), classes) == perfect).all()
    other = np.diag(np.full(40, 7))
    other[0, 39] = 7
    changed = np.argwhere((confusion_picture(other, classes) != perfect).any(2))
    # The first row, at the top: its first and its last cell.
    height, width = perfect.shape[:2]
    assert changed[:, 0].max() < 0.1 * height and changed[:, 1].max() - changed[:, 1].min() > 0.6 * width


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_pictures_of_any_number_of_classes_and_odd_names(num_classes: int):
    names = ("$a_b$", "_hidden", "猫", "\x00\udcff", "x" * 100)
    classes = tuple(f"{names[k % 5]}{k}" if k >= 5 else names[k] for k in range(num_classes))
    drawn = [
        confusion_picture(np.zeros((num_classes, num_classes), dtype=np.int64), classes),
        marginal_picture(np.array([3]), np.full((1, num_classes), 1 / num_classes), classes),
        examples_picture(np.zeros((9, 4, 5, 1)), [shown(classes[0])] * 9),
    ]
    for pixels in drawn:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert max(pixels.shape) < 2000


def test_examples_are_the_pixels_that_they_were():
    red = np.zeros((1, 2, 2, 3))
    red[..., 0] = 1
    pixels = examples_picture(red, ["title"]).reshape(-1, 3)
    assert (pixels == [255, 0, 0]).all(1).mean() > 0.02
    assert shown("a\nb") == "a?b" and shown("abcdefghijklmnop") == "abcdefghijklm…"

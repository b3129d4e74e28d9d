"""What a run writes, and when, is as the settings say."""

import itertools
import json
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jobs import run, same, weights
from safetensors.torch import load_file
from watched_runs import RISING, STEPS, TINY, WATCH, Run

from debias_ssl import train
from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources.load import load_data
from debias_ssl.training import journal as journal_module
from debias_ssl.training.journal import CONFUSION_FILE


def test_each_interval_is_its_own(made):
    flags = ["--steps", "7", "--log_every", "3", "--eval_every", "2", "--checkpoint_every", "5"]
    each = made(*flags)
    # A checkpoint closes an interval of the log, and so does the end.
    assert [record["step"] for record in each.records()] == [3, 5, 6, 7]
    assert [record["step"] for record in each.records("ema")] == [2, 4, 6, 7]
    assert sorted(path.name for path in (each.out / "checkpoints").iterdir()) == ["step_00000005", "step_00000007"]
    assert [sum(record["pseudo_counts"]) for record in each.records()] == [16 * steps for steps in (3, 2, 1, 1)]


def test_so_many_checkpoints_are_kept(made):
    for keep in (1, 3):
        found = sorted(path.name for path in (made("--keep_checkpoints", str(keep)).out / "checkpoints").iterdir())
        assert found == [f"step_{step:08d}" for step in range(STEPS + 1 - keep, STEPS + 1)]


def test_the_median_is_of_so_many_evaluations(made):
    each = made("--eval_every", "1", "--median_of", "2")
    losses = [record["ema"]["nll"] for record in each.records("ema")]
    summary = json.loads((each.out / "summary.json").read_text())
    assert len(set(losses)) == STEPS
    assert summary["ema"]["median"]["nll"] == pytest.approx(statistics.median(losses[-2:]), rel=1e-12)
    assert summary["ema"]["last"]["nll"] == losses[-1] == each.records("ema")[-1]["ema"]["nll"]
    assert summary["raw"]["last"]["nll"] == each.records("ema")[-1]["raw"]["nll"] != losses[-1]


def test_the_best_evaluation_is_the_most_accurate(made):
    each = made("--eval_every", "1", "--optim.lr", "0.1")
    summary = json.loads((each.out / "summary.json").read_text())
    for name in ("ema", "raw"):
        accuracies = [record[name]["accuracy"] for record in each.records("ema")]
        assert summary[name]["best"]["accuracy"] == max(accuracies) > min(accuracies)


def test_the_averaged_model_is_exported(made):
    each = made(*WATCH)
    exported = load_file(each.out / "model.safetensors")
    averaged = {key: exported[key] for key in each.trained(STEPS, "ema")}
    assert same(averaged, each.trained(STEPS, "ema")) and not same(averaged, each.trained(STEPS))


def test_evaluations_take_batches_of_their_size(made):
    test = len(load_data(DataConfig()).test)
    sizes = made(*WATCH, "--eval_batch_size", "100", "--steps", "1").predicted
    of_test = [100] * (test // 100) + [test % 100] * (test % 100 > 0)
    # By the averaged and by the trained model in turns, first the test images and then the 50 for validation; before
    # the first step, a largest batch of each of them is tried.
    # At the end, the model card asks for one prediction whether the method changes the network's.
    assert sizes == [100, 100, 50, 50] + [size for size in [*of_test, 50] for _ in range(2)] + [1]


def test_methods_are_told_how_the_averaged_model_does_on_validation_images(made):
    watch = made(*WATCH, "--eval_every", "2", "--optim.lr", "0.1")
    validations = [record["validation"] for record in watch.records("validation")]
    recalls = [(torch.tensor(each).diagonal() / torch.tensor(each).sum(1)).tolist() for each in watch.judged]
    assert len(recalls) == 2 and recalls == [pytest.approx(each["ema"]["recalls"], abs=1e-5) for each in validations]
    with np.load(watch.out / CONFUSION_FILE) as last:
        assert watch.judged[-1] == last["validation_ema"].tolist() != last["validation_raw"].tolist()
    # And the figures are of the averaged weights of that step.
    data, held_out = load_data(DataConfig()), watch.split()["validation"]
    assert data.train.pixels is not None
    images = (torch.from_numpy(data.train.pixels[held_out]).permute(0, 3, 1, 2) / 255 - data.mean[0]) / data.std[0]
    labels = torch.from_numpy(data.train.labels[held_out])
    for name in ("ema", "raw"):
        with torch.no_grad():
            logits = watch.model(2, name)(images)[0]
        assert validations[0][name]["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
        loss = torch.nn.functional.cross_entropy(logits, labels).item()
        assert validations[0][name]["nll"] == pytest.approx(loss, rel=1e-4)


def test_the_speed_is_of_labeled_and_unlabeled_images(tmp_path, monkeypatch):
    # A clock that goes on by a second when it is looked at.
    clock = itertools.count()
    monkeypatch.setattr(journal_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    out = run(tmp_path / "a", *TINY, "--log_every", "2", "--checkpoint_every", "2")
    assert [record["images_per_second"] for record in Run(out).records()] == [2 * (8 + 16)] * 2


def test_trackers_get_the_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = run(tmp_path / "a", *TINY, "--log_with", "[tensorboard]")
    (events,) = out.rglob("events.out.tfevents.*")
    logged = EventAccumulator(str(events.parent))
    logged.Reload()
    assert [event.value for event in logged.Scalars("learning_rate")] == pytest.approx(
        [record["learning_rate"] for record in Run(out).records()]
    )
    accuracy = json.loads((out / "summary.json").read_text())["ema"]["last"]["accuracy"]
    assert [event.value for event in logged.Scalars("final_accuracy")] == pytest.approx([accuracy])
    assert [event.value for event in logged.Scalars("ema_accuracy")] == pytest.approx([accuracy])


def test_without_a_tracker_there_are_no_events(made):
    assert not [*made().out.rglob("events.out.*")]


def test_the_folder_of_the_config_repeats_the_run(made, tmp_path):
    each = made(*RISING, "--optim.lr", "0.1")
    train.main(["--config", str(each.out / "config.yaml"), "--out", str(tmp_path / "b")])
    assert same(weights(tmp_path / "b", STEPS), each.weights(STEPS))

"""Whole runs: their folder, their resumption, their warnings."""

import csv
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import refused, run, same, weights
from launched import Launched
from safetensors.torch import load_file

import debias_ssl.runs.run as run_module
from debias_ssl import evaluate, predict, train
from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources.load import load_data
from debias_ssl.methods import FixMatch
from debias_ssl.models.wide_resnet import wrn_10_1
from debias_ssl.runs.summary import summarize
from debias_ssl.training.journal import read_journal


def records(out: Path) -> list[dict]:
    """The journal without what depends on the clock."""
    clock = ("seconds", "images_per_second", "data_wait")
    return [{k: v for k, v in record.items() if k not in clock} for record in read_journal(out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "a")


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the next run die in the middle of a step."""
    after_step = run_module.Learner.after_step

    def dying(self, done: int) -> None:
        if done == step:
            raise KeyboardInterrupt
        after_step(self, done)

    monkeypatch.setattr(run_module.Learner, "after_step", dying)


@pytest.mark.parametrize("step", [2, 5, 8, 11])
def test_resumed_run_ends_with_the_same_bits(step: int, finished: Path, tmp_path: Path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(SystemExit):
            run(tmp_path / "b")
    run(tmp_path / "b", "--resume")
    assert same(weights(finished), weights(tmp_path / "b"))
    assert records(finished) == records(tmp_path / "b")


def test_resume_without_a_config_takes_the_runs_own(finished: Path, tmp_path: Path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(7, patch)
        with pytest.raises(SystemExit):
            run(tmp_path / "b")
    train.main(["--out", str(tmp_path / "b"), "--resume"])
    assert same(weights(finished), weights(tmp_path / "b"))


def test_resolved_config_repeats_the_run(finished: Path, tmp_path: Path):
    train.main(["--config", str(finished / "config.yaml"), "--out", str(tmp_path / "b")])
    assert same(weights(finished), weights(tmp_path / "b"))


def test_another_seed_is_another_run(finished: Path, tmp_path: Path):
    other = run(tmp_path / "b", "--seed", "1")
    assert not same(weights(finished), weights(other))
    assert json.loads((finished / "split.json").read_text()) != json.loads((other / "split.json").read_text())


EMA = ["--target_model", "ema"]
ADAMW = ["--optim.name", "adamw", "--optim.lr", "0.002"]
RECIPES = {
    "ema teacher": [*EMA, *ADAMW, "--method.num_views", "2"],
    "layer decay": [*EMA, *ADAMW, "--model.name", "test_resnet", "--optim.layer_decay", "0.5"],
    "frozen": [*EMA, "--model.freeze", "backbone"],
    "lora": [*ADAMW, "--model.adapter", "lora", "--model.adapter_norms", "true", "--accumulation", "2"],
    "mixup": ["--method", "Supervised", "--method.mixup_alpha", "0.5"],
    "draws": ["--method", "DyTrim", "--method.base", "FixMatch", "--method.base.threshold", "0.1"],
    "windows": [
        "--method",
        "CCL",
        "--method.threshold",
        "0.3",
        "--method.negative_energy",
        "0",
        "--method.window",
        "0.25",
    ],
}


@pytest.mark.parametrize("flags", RECIPES.values(), ids=RECIPES)
def test_recipes_resume_exactly(flags: list[str], tmp_path: Path, monkeypatch):
    whole = run(tmp_path / "a", *flags)
    with monkeypatch.context() as patch:
        stop_at(6, patch)
        with pytest.raises(SystemExit):
            run(tmp_path / "b", *flags)
    assert same(weights(whole), weights(run(tmp_path / "b", *flags, "--resume")))


def test_a_run_resumes_exactly_with_admissions_in_flight(tmp_path: Path, monkeypatch):
    # Images are admitted after steps 3, 6 and 9; at the checkpoint of step 4 there are votes of one more step.
    flags = ["--method", "CPG", "--method.warm_up", "0", "--method.window", "0.25", "--method.threshold", "0.15"]
    whole = run(tmp_path / "a", *flags, "--keep_checkpoints", "3")
    state = weights(whole, 4)
    assert state["raw.method.admitted"].sum() > 0 and state["raw.method.memory.seen"].sum() == 128
    with monkeypatch.context() as patch:
        stop_at(6, patch)
        with pytest.raises(SystemExit):
            run(tmp_path / "b", *flags, "--keep_checkpoints", "3")
    assert same(weights(whole), weights(run(tmp_path / "b", *flags, "--keep_checkpoints", "3", "--resume")))
    assert weights(whole)["raw.method.admitted"].sum() > state["raw.method.admitted"].sum()


def test_run_folder_holds_what_the_design_promises(finished: Path):
    names = {"config.yaml", "split.json", "metrics.jsonl", "confusion.npz", "checkpoints", "model.safetensors"}
    names |= {"written.json", "model.json", "method.safetensors", "predictions", "summary.json"}
    names |= {"config.json", "README.md"}
    assert names == {path.name for path in finished.iterdir()}
    assert [path.name for path in sorted((finished / "checkpoints").iterdir())] == ["step_00000008", "step_00000012"]
    logs = [record for record in records(finished) if "loss" in record]
    assert [record["step"] for record in logs] == [2, 4, 6, 8, 10, 12]
    for record in logs:
        assert sum(record["pseudo_counts"]) == 2 * 128
        assert len(record["marginal"]) == 10 and sum(record["marginal"]) == pytest.approx(1, abs=1e-4)
        assert record["loss"].keys() == {"labeled", "unlabeled"}
    # FixMatch's cosine before step 8, which is logged as step 8.
    assert logs[3]["learning_rate"] == pytest.approx(0.03 * np.cos(7 / 16 * np.pi * 7 / 12))


def test_summary_is_what_the_predictions_say(finished: Path):
    summary = json.loads((finished / "summary.json").read_text())
    for name in ("ema", "raw"):
        logits = np.load(finished / "predictions" / f"test_{name}.npy")
        labels = np.load(finished / "predictions" / "test_labels.npy")
        recalls = [np.mean(logits[labels == k].argmax(1) == k) for k in range(10)]
        assert summary[name]["last"]["accuracy"] == pytest.approx(np.mean(logits.argmax(1) == labels))
        assert summary[name]["last"]["min_recall"] == pytest.approx(min(recalls))
        assert summary[name]["best"]["accuracy"] >= summary[name]["last"]["accuracy"]
    assert summary["steps"] == 12


def test_exported_weights_have_timms_names_and_give_the_predictions(finished: Path):
    net = wrn_10_1(num_classes=10, in_chans=1)
    net.load_state_dict(load_file(finished / "model.safetensors"))
    data = load_data(DataConfig())
    assert data.test.pixels is not None
    images = (torch.from_numpy(data.test.pixels).permute(0, 3, 1, 2) / 255 - data.mean[0]) / data.std[0]
    logits = np.load(finished / "predictions" / "test_ema.npy")
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(images), torch.from_numpy(logits), atol=1e-4, rtol=1e-4)


def test_evaluate_repeats_the_summary(finished: Path, tmp_path: Path, capsys):
    evaluate.main(["--run", str(finished), "--out", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    summary = json.loads((finished / "summary.json").read_text())["ema"]["last"]
    assert {name: figures[name] for name in summary} == pytest.approx(summary)
    assert f"accuracy      {100 * summary['accuracy']:>8.2f} %" in capsys.readouterr().out


def test_a_figure_that_older_evaluations_lack_is_summed_up_over_those_that_have_it():
    """A run from before a figure was there, resumed."""
    shared = {"accuracy": 0.5, "recalls": [0.5]}
    evaluations = [{"step": step, "ema": shared, "raw": shared} for step in (1, 2)]
    evaluations += [
        {"step": step, "ema": shared | {"nll": nll}, "raw": shared | {"nll": nll}} for step, nll in ((3, 2.0), (4, 1.0))
    ]
    log = {"step": 4, "loss": {}, "seconds": 1.0, "images_per_second": 1.0}
    ema = summarize([*evaluations, log], median_of=20)["ema"]
    assert ema["median"] == {"accuracy": 0.5, "nll": 1.5} and ema["last"]["nll"] == 1


def test_predict_writes_label_confidence_and_every_class(finished: Path, tmp_path: Path):
    from PIL import Image

    data = load_data(DataConfig())
    assert data.test.pixels is not None
    for i in range(5):
        folder = tmp_path / "images" / f"nested {i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.test.pixels[i, ..., 0]).save(folder / f'a "quoted", ü{i}.png')
    predict.main(["--run", str(finished), "--images", str(tmp_path / "images"), "--out", str(tmp_path / "o.csv")])
    # An image alone is labeled too, and paths are those below what was named.
    alone = tmp_path / "images" / "nested 0" / 'a "quoted", ü0.png'
    predict.main(["--run", str(finished), "--images", str(alone), "--out", str(tmp_path / "p.csv")])
    assert [row["path"] for row in csv.DictReader((tmp_path / "p.csv").read_text("utf-8").splitlines())] == [alone.name]
    rows = {Path(row["path"]).name: row for row in csv.DictReader((tmp_path / "o.csv").read_text("utf-8").splitlines())}
    assert len(rows) == 5 and rows[alone.name]["path"] == f"nested 0/{alone.name}"
    logits = torch.from_numpy(np.load(finished / "predictions" / "test_ema.npy"))
    for i in range(5):
        row, probs = rows[f'a "quoted", ü{i}.png'], logits[i].softmax(-1)
        assert row["label"] == str(probs.argmax().item())
        assert float(row["confidence"]) == pytest.approx(probs.max().item(), abs=1e-4)
        assert [float(row[f"p_{k}"]) for k in range(10)] == pytest.approx(probs.tolist(), abs=1e-4)


def test_validation_images_are_held_out_and_evaluated(tmp_path: Path):
    out = run(tmp_path / "a", "--data.validation_per_class", "5")
    last = records(out)[-1]
    assert "confusion" not in last["validation"]["ema"]
    with np.load(out / "confusion.npz") as matrices:
        assert set(matrices) == {f"{part}_{name}" for part in ("test", "validation") for name in ("ema", "raw")}
        assert matrices["validation_ema"].sum() == 50
    assert np.load(out / "predictions" / "validation_ema.npy").shape == (50, 10)
    evaluate.main(["--run", str(out), "--part", "validation", "--out", str(tmp_path / "f.json")])
    assert json.loads((tmp_path / "f.json").read_text())["accuracy"] == last["validation"]["ema"]["accuracy"]


def test_methods_of_one_seed_share_split_and_images(tmp_path: Path, monkeypatch):
    """The first step differs in nothing but the method: same initial weights, same images."""
    seen: dict[str, list] = {}
    forward = run_module.Learner.forward

    def recording(self, batch, progress):
        seen.setdefault(type(self.raw.method).__name__, []).append(batch)
        return forward(self, batch, progress)

    monkeypatch.setattr(run_module.Learner, "forward", recording)
    for method in ("FixMatch", "DebiasPL"):
        run(tmp_path / method, "--method", method)
    for a, b in zip(seen["FixMatch"], seen["DebiasPL"], strict=True):
        assert torch.equal(a.labeled, b.labeled) and torch.equal(a.weak[0], b.weak[0])
        assert torch.equal(a.strong[0], b.strong[0]) and torch.equal(a.index, b.index)


def test_no_strength_is_fixmatch_in_every_bit_of_a_run(tmp_path: Path):
    fixmatch = weights(run(tmp_path / "a", "--method", "FixMatch"))
    debiased = weights(run(tmp_path / "b", "--method.strength", "0"))
    extra = {key for key in debiased if key.endswith("method.marginal.value")}
    assert len(extra) == 2 and same(fixmatch, {key: debiased[key] for key in debiased.keys() - extra})


def test_folders_with_flat_unlabeled_images_train(folders: Path, tmp_path: Path):
    flags = [f"--data.{name}={folders / name}" for name in ("labeled", "unlabeled", "test")]
    flags += ["--data.name=folder", f"--data.cache={tmp_path / 'cache'}", "--data.labels_per_class=2"]
    flags += ["--method.threshold=0"]
    resident = run(tmp_path / "a", *flags)
    streaming = run(tmp_path / "b", *flags, "--data.input=streaming", "--data.workers=1")
    assert same(weights(resident), weights(streaming))
    # All pseudo-labels count; only those of the labeled images could be checked, which says nothing.
    assert records(resident)[0]["mask_rate"] == 1 and records(resident)[0]["pseudo_accuracy"] is None
    assert len(json.loads((resident / "split.json").read_text())["unlabeled"]) == 30 + 2 * 3


def test_unreadable_images_stop_the_run_or_are_listed(folders: Path, tmp_path: Path, capsys):
    broken = folders / "unlabeled" / "deep" / "broken.jpg"
    broken.write_bytes((folders / "unlabeled" / "deep" / "u0.jpg").read_bytes()[:300])
    flags = [f"--data.{name}={folders / name}" for name in ("labeled", "unlabeled", "test")]
    flags += ["--data.name=folder", f"--data.cache={tmp_path / 'cache'}", "--data.labels_per_class=2"]
    message = refused(lambda flags: run(tmp_path / "a", *flags), flags, capsys)
    assert "broken.jpg" in message and not (tmp_path / "a").exists()
    run(tmp_path / "a", *flags, "--data.on_error=skip")
    assert list(json.loads((tmp_path / "a" / "unreadable.json").read_text())) == [str(broken)]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A class tree, a flat folder and a test tree of small pictures."""
    from PIL import Image

    random = np.random.default_rng(0)
    root = tmp_path / "data"

    def save(path: Path, shade: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(random.normal(shade, 30, (8, 8, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=95)

    for k, name in enumerate(("dark", "medium", "light")):
        for i in range(4):
            save(root / "labeled" / name / f"{i}.jpg", 60 + 70 * k)
            save(root / "test" / name / f"{i}.jpg", 60 + 70 * k)
    for i in range(30):
        save(root / "unlabeled" / ("deep" if i % 2 == 0 else ".") / f"u{i}.jpg", 60 + 70 * (i % 3))
    return root


def test_bf16_losses_are_near_fp32s(finished: Path, tmp_path: Path):
    half = run(tmp_path / "b", "--precision", "bf16")
    for a, b in zip(records(finished), records(half), strict=True):
        if "loss" in a:
            assert b["loss"]["labeled"] == pytest.approx(a["loss"]["labeled"], rel=0.05)
            assert b["marginal"] == pytest.approx(a["marginal"], abs=0.02)
    assert all(value.dtype != torch.bfloat16 for value in weights(half).values())


def test_classes_without_a_test_image_are_named(tmp_path: Path, monkeypatch, capsys):
    make_task = run_module.make_task

    def without_three(*arguments, **settings):
        task = make_task(*arguments, **settings)
        keep = np.flatnonzero(task.data.test.labels != 3)
        assert task.data.test.pixels is not None
        test = replace(task.data.test, labels=task.data.test.labels[keep], pixels=task.data.test.pixels[keep])
        test = replace(test, names=[task.data.test.names[i] for i in keep.tolist()])
        pixels = task.readers["test"].pixels
        assert pixels is not None
        readers = task.readers | {"test": replace(task.readers["test"], pixels=pixels[torch.from_numpy(keep)])}
        return replace(task, data=replace(task.data, test=test), readers=readers)

    monkeypatch.setattr(run_module, "make_task", without_three)
    run(tmp_path / "a", "--steps", "2")
    assert "note: no test image of 3: recalls are those of the other classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("threshold", "message"),
    [("1", "no pseudo-label counts"), ("0", "every pseudo-label passes the threshold")],
)
def test_warnings_about_the_threshold(threshold: str, message: str, tmp_path: Path, capsys):
    run(tmp_path / "a", "--method.threshold", threshold)
    assert capsys.readouterr().err.count(message) == 1


def test_a_class_that_takes_most_pseudo_labels_is_named(tmp_path: Path, capsys):
    # Three quarters of the labels are of class 0: a few steps are enough to see it everywhere.
    flags = ["--data.labels_per_class", "100", "--data.labeled_imbalance", "1e6", "--method.threshold", "0"]
    run(tmp_path / "a", *flags, "--method.strength", "0")
    err = capsys.readouterr().err
    assert "class '0' has" in err and "6 classes at the end of the long tail" in err


def test_supervised_has_no_threshold_to_warn_about(tmp_path: Path, capsys):
    out = run(tmp_path / "a", "--method", "Supervised")
    assert "warning" not in capsys.readouterr().err
    assert records(out)[-2]["loss"].keys() == {"labeled"} and records(out)[-2]["mask_rate"] == 0


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path / "a", "--optim.lr", "1e30", "--optim.schedule", "constant", "--optim.warmup", "0.6")
    assert exit_.value.code == 1
    err = capsys.readouterr().err
    assert "not finite" in err and "last good checkpoint: none" in err


class Cliff(FixMatch):
    """Its loss is finite, and has no gradient."""

    def labeled_loss(self, views, logits=None):
        return super().labeled_loss(views, logits) + (0 * views.labeled.logits).abs().sum().sqrt()


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path / "a", "--method", f"{__name__}.Cliff", "--log_every", "1", "--checkpoint_every", "1")
    assert exit_.value.code == 1
    assert "a weight is not finite at step 1" in capsys.readouterr().err
    assert not [*(tmp_path / "a").glob("checkpoints/step_*")]


def test_tensorboard_gets_the_figures(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = run(tmp_path / "a", "--log_with", "[tensorboard]")
    (events,) = out.rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events.parent))
    accumulator.Reload()
    logged = {event.step: event.value for event in accumulator.Scalars("mask_rate")}
    assert logged == pytest.approx({r["step"]: r["mask_rate"] for r in records(out) if "loss" in r}, abs=1e-6)


def test_two_processes_killed_and_resumed_end_with_the_same_bits(tmp_path: Path):
    whole = Launched(2, tmp_path / "a")
    whole.finish()
    assert "FutureWarning" not in whole.log.read_text()
    killed = Launched(2, tmp_path / "b")
    deadline = time.monotonic() + 300
    while not list((tmp_path / "b").glob("checkpoints/step_*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    assert not (tmp_path / "b" / "summary.json").exists()
    Launched(2, tmp_path / "b", "--resume").finish()
    assert "resumed at step" in (tmp_path / "b.log").read_text()
    whole, resumed = (weights(tmp_path / name, 40) for name in ("a", "b"))
    assert same(whole, resumed)
    assert records(tmp_path / "a") == records(tmp_path / "b")


def test_slow_averages_of_batch_norms_in_a_short_run_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """With the papers' momentum, evaluations of a short run get worse while its loss falls."""
    run(tmp_path / "slow", "--steps", "2", "--model.batch_norm_momentum", "0.001")
    told = "note: batch norms average their statistics over about 1,000 steps, and the run has 2: "
    assert told in (said := capsys.readouterr().err) and "set --model.batch_norm_momentum 0.1\n" in said
    run(tmp_path / "fast", "--steps", "2", "--model.batch_norm_momentum", "0.1")
    run(tmp_path / "none", "--steps", "2", "--model.norm", "group")
    assert "batch norms" not in capsys.readouterr().err

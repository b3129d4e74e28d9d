"""What a run keeps when an evaluation fails, what it tells, and which settings may change when it goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jobs import refused, run, same, weights

import debias_ssl.training.loop as loop
from debias_ssl.methods import FixMatch
from debias_ssl.runs.folder import PLACES, RESUMABLE
from debias_ssl.training.journal import read_journal
from debias_ssl.training.learner import Learner, Predictor

CLOCK = ("seconds", "images_per_second", "data_wait")
# Evaluations fall on checkpoints and between them; the method learns from them, so that one more or less is seen.
CSST = ["--method", "CSST", "--method.rate", "5", "--data.validation_per_class", "3", "--eval_every", "2"]


def records(out: Path) -> list[dict[str, Any]]:
    found = read_journal(out / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in found]


def failing_at(evaluation: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the evaluation of this number, from 0, fail."""
    predict_all, number = loop.predict_all, [0]

    def failing(*arguments: Any) -> dict[str, torch.Tensor]:
        number[0] += 1
        if number[0] > evaluation:
            raise error
        return predict_all(*arguments)

    monkeypatch.setattr(loop, "predict_all", failing)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "whole", *CSST)


def stopped(out: Path, *flags: str) -> int | str | None:
    with pytest.raises(SystemExit) as exit_:
        run(out, *flags)
    return exit_.value.code


def test_an_evaluation_without_memory_costs_no_step_and_may_go_on_with_a_smaller_batch(
    whole: Path, tmp_path: Path, monkeypatch, capfd
):
    out = tmp_path / "b"
    with monkeypatch.context() as patch:
        # An evaluation is of two parts: the third is the first of step 4, of which there is a checkpoint.
        failing_at(2, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), patch)
        assert stopped(out, *CSST) == 1
    said = capfd.readouterr().err
    assert "error: out of memory in step 4, in the evaluation: --resume --eval_batch_size 250 goes on\n" in said
    assert "Traceback" not in said and [path.name for path in (out / "checkpoints").iterdir()] == ["step_00000004"]
    run(out, *CSST, "--resume", "--eval_batch_size", "10")
    assert "note: eval_batch_size was 500, now it is 10\n" in capfd.readouterr().err
    assert yaml.safe_load((out / "config.yaml").read_text())["eval_batch_size"] == 10
    assert same(weights(whole), weights(out))
    assert [record["step"] for record in records(out)] == [record["step"] for record in records(whole)]


@pytest.mark.parametrize("evaluation", [0, 2, 3, 4, 10, 11])
def test_a_method_that_learns_from_evaluations_resumes_exactly_wherever_one_was_killed(
    evaluation: int, whole: Path, tmp_path: Path, monkeypatch
):
    """Of step 2, after which there is no checkpoint, of step 4, 6 and 12, in the first or in the second part."""
    with monkeypatch.context() as patch:
        failing_at(evaluation, KeyboardInterrupt(), patch)
        stopped(tmp_path / "b", *CSST)
    run(tmp_path / "b", *CSST, "--resume")
    assert same(weights(whole), weights(tmp_path / "b")) and records(whole) == records(tmp_path / "b")


@pytest.mark.parametrize("step", [4, 5, 8])
def test_what_was_evaluated_after_the_checkpoint_is_evaluated_once_more(
    step: int, whole: Path, tmp_path: Path, monkeypatch
):
    with monkeypatch.context() as patch:
        after_step = Learner.after_step

        def dying(self: Learner, done: int) -> None:
            if done == step:
                raise KeyboardInterrupt
            after_step(self, done)

        patch.setattr(Learner, "after_step", dying)
        stopped(tmp_path / "b", *CSST)
    run(tmp_path / "b", *CSST, "--resume")
    assert same(weights(whole), weights(tmp_path / "b")) and records(whole) == records(tmp_path / "b")


def test_a_checkpoint_of_an_older_version_was_saved_after_its_evaluation(whole: Path, tmp_path: Path, monkeypatch):
    """Its state has learned from the evaluation already, whose line is there."""
    evaluate, save = loop.Trainer._evaluate, loop.save_checkpoint
    with monkeypatch.context() as patch:

        def and_save(self: loop.Trainer, step: int, journal: Any) -> Any:
            found = evaluate(self, step, journal)
            if step == 10:
                save(self.checkpoint_folder, step, self.learner, self.optimizer, {}, 2)
                raise KeyboardInterrupt
            return found

        patch.setattr(loop.Trainer, "_evaluate", and_save)
        stopped(tmp_path / "b", *CSST)
    state = tmp_path / "b" / "checkpoints" / "step_00000010" / "state.json"
    content = json.loads(state.read_text())
    del content["is_evaluation_due"]
    state.write_text(json.dumps(content))
    run(tmp_path / "b", *CSST, "--resume")
    assert same(weights(whole), weights(tmp_path / "b"))
    assert [record["step"] for record in records(tmp_path / "b") if "ema" in record] == [2, 4, 6, 8, 10, 12]


def test_a_batch_of_evaluation_that_is_too_large_is_told_before_the_first_step(tmp_path: Path, monkeypatch, capfd):
    forward = Predictor.forward

    def limited(self: Predictor, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 100:
            raise torch.OutOfMemoryError
        return forward(self, images)

    monkeypatch.setattr(Predictor, "forward", limited)
    taken = []
    monkeypatch.setattr(loop, "take_step", lambda *_: taken.append(1))
    assert stopped(tmp_path / "b") == 1 and not taken
    said = capfd.readouterr().err
    assert "error: out of memory in a first batch of the evaluation: --resume --eval_batch_size 250 goes on\n" in said


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_a_step_without_memory_names_the_settings_that_need_less(error: Exception, tmp_path: Path, monkeypatch, capfd):
    def failing(*_: Any) -> None:
        raise error

    monkeypatch.setattr(loop, "take_step", failing)
    assert stopped(tmp_path / "b") == 1
    assert "error: out of memory in step 1: a new run with --accumulation 2, " in capfd.readouterr().err


def test_another_error_of_a_method_stays_what_it_is(tmp_path: Path, monkeypatch):
    def failing(*_: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(FixMatch, "forward", failing)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(tmp_path / "b", "--method", "FixMatch")


def test_settings_that_leave_the_training_alone_may_change_on_resume(whole: Path, tmp_path: Path, monkeypatch, capfd):
    changes = {"eval_batch_size": 7, "log_every": 3, "checkpoint_every": 5, "median_of": 2, "keep_checkpoints": 1}
    with monkeypatch.context() as patch:
        failing_at(6, KeyboardInterrupt(), patch)
        stopped(tmp_path / "b", *CSST)
    flags = [part for name, value in changes.items() for part in (f"--{name}", str(value))]
    run(tmp_path / "b", *CSST, *flags, "--resume")
    assert same(weights(whole), weights(tmp_path / "b"))
    said = capfd.readouterr().err
    for name, value in changes.items():
        assert f"note: {name} was " in said and f", now it is {value}\n" in said
    evaluations = [record["ema"]["accuracy"] for record in records(tmp_path / "b") if "ema" in record]
    median = json.loads((tmp_path / "b" / "summary.json").read_text())["ema"]["median"]["accuracy"]
    assert median == pytest.approx(sum(evaluations[-2:]) / 2)
    # Settings of a comparison's runs may not change what is compared.
    assert {"log_every", "median_of"} == RESUMABLE - PLACES


@pytest.mark.parametrize("flags", [("--eval_every", "3"), ("--deterministic", "false"), ("--accumulation", "2")])
def test_settings_that_change_the_training_or_its_record_may_not(flags, tmp_path: Path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        failing_at(0, KeyboardInterrupt(), patch)
        stopped(tmp_path / "b")
    message = refused(lambda given: run(tmp_path / "b", *given), ["--resume", *flags], capsys)
    assert f"cannot be resumed: {flags[0].removeprefix('--')} was" in message


def test_another_device_is_told_on_resume(tmp_path: Path, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        failing_at(0, KeyboardInterrupt(), patch)
        stopped(tmp_path / "b")
    monkeypatch.setattr("debias_ssl.training.checkpoint.device_name", lambda: "Another GPU")
    run(tmp_path / "b", "--resume")
    assert "note: the last bits may differ from an uninterrupted run: device was CPU with " in capfd.readouterr().err


def test_evaluations_of_a_run_read_each_image_once_and_compute_in_its_precision(tmp_path: Path, monkeypatch):
    from debias_ssl.data.evaluation_stream import EvaluationStream

    numbers, precisions = [], []
    get, view = EvaluationStream.__getitem__, Predictor.view

    def counted(self: EvaluationStream, number: int) -> Any:
        numbers.append(number)
        return get(self, number)

    def told(self: Predictor, images: torch.Tensor) -> Any:
        if not self.training:
            precisions.append(torch.is_autocast_enabled("cpu"))
        return view(self, images)

    monkeypatch.setattr(EvaluationStream, "__getitem__", counted)
    monkeypatch.setattr(Predictor, "view", told)
    run(tmp_path / "b", "--precision", "bf16", "--eval_batch_size", "100")
    # Two evaluations, at steps 6 and 12; the test set has 599 images or fewer.
    assert sorted(numbers) == sorted(2 * [*range(len(numbers) // 2)]) and len(numbers) == 2 * 6
    assert all(precisions) and len(precisions) == 2 * (1 + len(numbers))

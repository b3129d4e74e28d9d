"""Seeds reach everything that is drawn, and a resumed run goes on with the same numbers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import run, same, weights
from watched_runs import STEPS, STILL, TINY, WATCH, Run, Watcher, watched, without_end

import debias_ssl.runs.run as run_module
from debias_ssl.distributed.accelerator import make_accelerator
from debias_ssl.training.config import Config
from debias_ssl.training.loop import take_step
from debias_ssl.training.optim import OptimConfig, make_optimizer


def test_another_seed_draws_another_split_unless_that_has_a_seed_of_its_own(made):
    one, other = made(*WATCH), made(*WATCH, "--seed", "1")
    assert one.split() != other.split()
    own = [made(*WATCH, "--seed", seed, "--data.split_seed", "5").split() for seed in ("0", "1")]
    assert own[0] == own[1] != one.split()


def test_another_seed_gives_other_initial_weights(made):
    one, other = (made(*STILL, "--seed", seed).trained(1) for seed in ("0", "1"))
    # Of every kernel, the classifier's among them.
    assert all(not torch.equal(one[key], other[key]) for key in one if one[key].ndim > 1)


def test_the_same_seed_gives_the_same_initial_weights(made):
    first = made(*STILL).trained(1)
    torch.manual_seed(7)
    assert same(first, made(*STILL, "--log_every", "2").trained(1))


def test_another_seed_gives_another_order_of_the_same_images(made):
    one, other = (made(*WATCH, "--seed", seed, "--data.split_seed", "5") for seed in ("0", "1"))
    assert [v.index.tolist() for v in one.given] != [v.index.tolist() for v in other.given]
    assert [v.labels.tolist() for v in one.given] != [v.labels.tolist() for v in other.given]


def test_another_seed_augments_the_same_image_differently(made, alone):
    one, other = (made("--data.split", alone, "--seed", seed, *STILL).batches[0] for seed in ("0", "1"))
    assert not torch.equal(one.weak[0], other.weak[0])
    assert not torch.equal(one.strong[0], other.strong[0])
    assert not torch.equal(one.labeled, other.labeled)


def test_what_a_step_draws_depends_on_seed_and_step_alone(made, tmp_path):
    watch = made(*WATCH)
    assert len({value.item() for value in watch.drawn}) == STEPS
    # Not on what steps before have drawn: the watcher draws more each time, and a resumed one begins anew.
    out = tmp_path / "b"
    shutil.copytree(watch.out, out)
    without_end(out, 2)
    resumed = Run(out)
    with watched(resumed):
        run(out, *TINY, *WATCH, "--resume")
    assert resumed.drawn == watch.drawn[2:]
    other = made(*WATCH, "--seed", "1")
    assert not {value.item() for value in watch.drawn} & {value.item() for value in other.drawn}


def test_processes_draw_different_numbers(make_learner, make_batch, monkeypatch):
    def drawn(rank: int) -> float:
        accelerator = make_accelerator("fp32")
        monkeypatch.setattr(type(accelerator), "process_index", rank)
        learner = make_learner(Watcher, blank=(1.0,))
        take_step(0, make_batch(), Config(), accelerator, learner, make_optimizer(learner, OptimConfig()))
        return Watcher.drawn[-1].item()

    Watcher.given.clear()
    first = drawn(0)
    Watcher.given.clear()
    assert drawn(1) != first
    Watcher.given.clear()
    assert drawn(0) == first


@pytest.mark.parametrize("rate", ["drop_rate", "drop_path_rate"])
def test_a_run_that_drops_at_random_resumes_exactly(rate, made, tmp_path):
    net = ["--model.name", "test_resnet"]
    flags = [*net, f"--model.{rate}", "0.5"]
    whole = made(*flags)
    # timm's blocks begin as identities, so that at first it does not matter which are dropped.
    assert whole.records()[-1]["loss"] != made(*net).records()[-1]["loss"]
    out = tmp_path / "b"
    shutil.copytree(whole.out, out)
    without_end(out, 1)
    run(out, *TINY, *flags, "--resume")
    assert same(weights(out, STEPS), whole.weights(STEPS))
    assert [r["loss"] for r in Run(out).records()] == [r["loss"] for r in whole.records()]


def test_a_resumed_run_keeps_the_split_that_it_has(tmp_path):
    flags = [*TINY, "--steps", "2", "--data.split", str(tmp_path / "split.json")]
    run(tmp_path / "a", *TINY, "--steps", "1")
    shutil.copy(tmp_path / "a" / "split.json", tmp_path / "split.json")
    out = run(tmp_path / "b", *flags)
    split = (out / "split.json").read_text()
    without_end(out, 1)
    (tmp_path / "split.json").unlink()
    run(out, *flags, "--resume")
    assert (out / "split.json").read_text() == split


def test_a_resumed_run_goes_on_with_the_scale_of_its_losses(tmp_path, monkeypatch):
    """Losses are scaled for fp16 alone, which needs a GPU; the scaler itself works on every device."""
    make_accelerator = run_module.make_accelerator

    def scaling(*arguments: Any) -> Any:
        accelerator = make_accelerator(*arguments)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)  # pyright: ignore[reportPrivateImportUsage]
        return accelerator

    def state(out: Path, step: int) -> dict[str, Any]:
        return json.loads((out / "checkpoints" / f"step_{step:08d}" / "state.json").read_text())["scaler"]

    monkeypatch.setattr(run_module, "make_accelerator", scaling)
    whole = run(tmp_path / "a", *TINY)
    assert [(state(whole, k)["scale"], state(whole, k)["_growth_tracker"]) for k in (1, 2, 3, 4)] == [
        (1024, 1),
        (2048, 0),
        (2048, 1),
        (4096, 0),
    ]
    shutil.copytree(whole, tmp_path / "b")
    without_end(tmp_path / "b", 3)
    run(tmp_path / "b", *TINY, "--resume")
    assert state(tmp_path / "b", 4) == state(whole, 4)

"""Four processes do what one does, and a run goes on with another number of them."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from jobs import weights
from launched import CONTEXT, DIGITS, SHORT, Launched
from test_distributed import averaged_buffers, learner_of, mixed_up, predicted, remembered, spoiled, summed, trained

import debias_ssl.runs.run as run_module
from debias_ssl import train
from debias_ssl.contract import Place
from debias_ssl.training.journal import read_journal
from debias_ssl.training.learner import Learner

NUM = 4
JOBS = (trained, mixed_up, remembered, summed, averaged_buffers, predicted, spoiled)


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=NUM)
    place = Place(rank=rank, num_processes=NUM)
    torch.save({job.__name__: job(place) for job in JOBS}, folder / f"{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return {job.__name__: job(Place()) for job in JOBS}


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("four")
    processes = [CONTEXT.Process(target=work, args=(rank, folder)) for rank in range(NUM)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0] * NUM
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(NUM)]


def test_trackers_gradients_weights_and_figures_are_those_of_one_process(one, four):
    expected = one["trained"]
    first = four[0]["trained"]["state"]
    for each in (found["trained"] for found in four):
        torch.testing.assert_close(each["marginals"], expected["marginals"], rtol=0, atol=1e-6)
        torch.testing.assert_close(each["gradients"], expected["gradients"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(each["state"], expected["state"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(each["state"], first, rtol=0, atol=0)
        assert each["statistics"]["pseudo_counts"] == expected["statistics"]["pseudo_counts"]
        assert each["statistics"]["loss"] == pytest.approx(expected["statistics"]["loss"], rel=1e-4)


def test_predictions_memories_sums_and_mixtures_are_those_of_one_process(one, four):
    for each in four:
        torch.testing.assert_close(each["predicted"], one["predicted"], rtol=1e-4, atol=1e-6)
        assert each["remembered"].equal(one["remembered"])
        torch.testing.assert_close(each["summed"], one["summed"])
        torch.testing.assert_close(each["mixed_up"]["gradients"], one["mixed_up"]["gradients"], rtol=1e-4, atol=1e-6)
        assert each["spoiled"]["nonfinite_steps"] == 1
    losses = torch.stack([each["mixed_up"]["loss"] for each in four])
    torch.testing.assert_close(losses.mean(), one["mixed_up"]["loss"])


def test_running_statistics_are_averaged_over_all(four):
    befores = [each["averaged_buffers"]["before"] for each in four]
    for i, mean in enumerate(four[0]["averaged_buffers"]["after"]):
        assert all(each["averaged_buffers"]["after"][i].equal(mean) for each in four)
        if mean.is_floating_point():
            torch.testing.assert_close(mean, torch.stack([before[i] for before in befores]).mean(0))


def test_a_run_of_one_process_goes_on_with_four_and_one_of_four_with_one(tmp_path, monkeypatch, capsys):
    flags = ["--config", str(DIGITS), *SHORT, "--model.norm", "group"]
    train.main([*flags, "--out", str(tmp_path / "whole")])
    after_step = Learner.after_step

    def signaling(self, done: int) -> None:
        if done == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        after_step(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(run_module.Learner, "after_step", signaling)
        with pytest.raises(SystemExit):
            train.main([*flags, "--out", str(tmp_path / "more")])
    more = Launched(NUM, tmp_path / "more", "--resume", base=flags)
    more.finish()
    assert "processes was 1, is 4" in more.log.read_text() and "resumed at step 6" in more.log.read_text()
    Launched(NUM, tmp_path / "fewer", "--keep_checkpoints", "9", base=flags).finish()
    # As if it had been killed after its eighth step.
    (tmp_path / "fewer" / "summary.json").unlink()
    for file in (tmp_path / "fewer" / "checkpoints" / "step_00000012").iterdir():
        file.unlink()
    (tmp_path / "fewer" / "checkpoints" / "step_00000012").rmdir()
    capsys.readouterr()
    train.main([*flags, "--out", str(tmp_path / "fewer"), "--resume"])
    assert "processes was 4, is 1" in capsys.readouterr().err
    expected = read_journal(tmp_path / "whole" / "metrics.jsonl")[-1]["ema"]
    for name in ("more", "fewer"):
        torch.testing.assert_close(weights(tmp_path / name), weights(tmp_path / "whole"), rtol=1e-3, atol=1e-4)
        found = read_journal(tmp_path / name / "metrics.jsonl")[-1]["ema"]
        assert found["nll"] == pytest.approx(expected["nll"], rel=1e-3)


def test_the_network_of_these_tests_mixes_no_images():
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in learner_of("group").modules())

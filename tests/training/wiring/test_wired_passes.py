"""Strong views, batch statistics, precision and compiled networks are those that the settings ask for."""

import shutil

import pytest
import torch
from jobs import refused, run, same, weights
from watched_runs import PLAIN, STEPS, STILL, TINY, WATCH, Run, close, without_end

from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources.load import load_data

WATCH_COUNTED = ["--method", "watched_runs.FirstFive"]
COUNT = ["--method", "FixMatch", "--method.threshold", "0.2", "--model.norm", "group"]


def test_strong_views_pass_where_they_count(made):
    counted, whole = (made(*COUNT, "--strong_views", setting) for setting in ("counted", "all"))
    shares = [record["strong_share"] for record in counted.records()]
    # Of 16 images, all of whose numbers are sizes.
    assert shares == [record["mask_rate"] for record in counted.records()]
    assert any(0 < share < 1 for share in shares)
    assert [record["strong_share"] for record in whole.records()] == [1.0] * STEPS
    close(counted.trained(STEPS), whole.trained(STEPS))


def test_strong_views_pass_by_default_where_they_count_if_that_changes_nothing(made):
    counted, by_default = made(*COUNT, "--strong_views", "counted"), made(*COUNT)
    assert same(by_default.weights(STEPS), counted.weights(STEPS))
    for norm, joint in (("batch", "false"), ("group", "true")):
        flags = [*COUNT, "--model.norm", norm, "--joint_pass", joint]
        assert [record["strong_share"] for record in made(*flags).records()] == [1.0] * STEPS


def test_batch_norm_has_the_statistics_of_strong_views_that_count_where_that_is_asked_for(made):
    counted = made(*WATCH_COUNTED, *STILL, "--steps", "1", "--strong_views", "counted")
    batch, model = counted.batches[0], counted.model(1)
    with torch.no_grad():
        expected = model.train()(torch.cat([batch.labeled, batch.strong[0][:5]]))[0][: len(batch.labeled)]
    torch.testing.assert_close(counted.given[0].labeled.logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method.base", "SoftMatch"], "SoftMatch gives every pseudo-label a weight above 0: set --strong_views all"),
        (["--method.base", "PseudoLabel"], "PseudoLabel has no strong views: set --strong_views all"),
        (["--joint_pass", "true"], "with joint_pass weak and strong views pass together"),
    ],
    ids=str,
)
def test_counted_strong_views_are_refused_with_the_reason(flags, message, tmp_path, capsys):
    given = [*TINY, *flags, "--strong_views", "counted"]
    said = refused(lambda arguments: run(tmp_path / "run", *arguments), given, capsys)
    assert said.startswith("error: strong_views is counted, but ") and message in said
    run(tmp_path / "run", *TINY, *flags, "--steps", "1")


def test_a_run_of_strong_views_that_count_resumes_exactly(made, tmp_path):
    whole, out = made(*COUNT, "--strong_views", "counted"), tmp_path / "run"
    shutil.copytree(whole.out, out)
    without_end(out, 2)
    run(out, *TINY, *COUNT, "--strong_views", "counted", "--resume")
    assert same(weights(out, STEPS), whole.weights(STEPS))
    assert [r["strong_share"] for r in Run(out).records()] == [r["strong_share"] for r in whole.records()]


def test_each_part_of_a_step_moves_the_statistics_once(made):
    for accumulation in (1, 2):
        found = made("--accumulation", str(accumulation)).statistics(STEPS)
        assert found["num_batches_tracked"] == accumulation * STEPS


def test_momentum_of_batch_norms_is_a_setting(made):
    one, half = (made(*STILL, "--model.batch_norm_momentum", m, "--steps", "1").statistics(1) for m in ("1", "0.5"))
    torch.testing.assert_close(one["running_mean"], 2 * half["running_mean"])
    assert one["running_mean"].abs().max() > 1e-3


def test_group_norm_keeps_no_statistics(made):
    assert not [key for key in made("--model.norm", "group").weights(1) if key.endswith("running_mean")]


def test_bf16_rounds_what_the_network_says(made):
    exact, rounded = made(*WATCH).given[0].labeled.logits, made(*WATCH, "--precision", "bf16").given[0].labeled.logits
    assert torch.equal(rounded, rounded.bfloat16().float()) and not torch.equal(exact, exact.bfloat16().float())


def test_networks_are_compiled_where_that_is_asked_for(made, tmp_path, monkeypatch):
    compiled = []

    def keeping(network: torch.nn.Module) -> torch.nn.Module:
        compiled.append(network)
        return network

    monkeypatch.setattr(torch, "compile", keeping)
    run(tmp_path / "a", *TINY, *PLAIN, "--compile", "true")
    assert len(compiled) == 2
    run(tmp_path / "b", *TINY, *PLAIN)
    assert len(compiled) == 2 and same(weights(tmp_path / "a", STEPS), weights(tmp_path / "b", STEPS))


def test_a_blank_image_is_white(made):
    watch, data = made(*WATCH, *STILL), load_data(DataConfig())
    white = torch.full((1, 1, 8, 8), (255 / 255 - data.mean[0]) / data.std[0])
    with torch.no_grad():
        expected = watch.model(1)(white)[0]
    blank = watch.given[0].blank
    assert blank is not None
    torch.testing.assert_close(blank.logits, expected)

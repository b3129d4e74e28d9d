import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from debias_ssl.methods import PseudoLabels, Step
from debias_ssl.training.evaluation import evaluate_logits
from debias_ssl.training.journal import (
    READ_BYTES,
    Journal,
    StepStatistics,
    cut_journal,
    data_warning,
    finite,
    last_records,
    read_journal,
    warnings_for,
)

CPU = torch.device("cpu")


def step(target: list, weight: list[float], *losses: float) -> Step:
    return Step(
        losses={name: torch.tensor(loss) for name, loss in zip(("labeled", "unlabeled"), losses, strict=False)},
        pseudo=PseudoLabels(target=torch.tensor(target), weight=torch.tensor(weight)),
    )


# -- statistics of steps


def test_statistics_worked():
    sums = StepStatistics(3, CPU)
    sums.add(step([0, 0, 1], [1.0, 0.0, 0.5], 1.0, 2.0), torch.tensor([0, 1, -1]))
    second = step([0, 1, 0], [1.0, 1.0, 1.0], 3.0, 6.0)
    sums.add(replace(second, strong_share=0.25), torch.tensor([1, 1, 0]))
    assert sums.collect() == {
        "loss": {"labeled": 2, "unlabeled": 4},
        "strong_share": 0.625,
        "mask_rate": 4.5 / 6,
        "pseudo_counts": [4, 2, 0],
        "pseudo_weights": [0.75, 0.75, 0],
        # Weights of right ones, 1 + 1 + 1, of all whose truth is known, 1 + 0 + 3.
        "pseudo_accuracy": 0.75,
        "nonfinite_steps": 0,
    }


def test_collecting_starts_anew():
    sums = StepStatistics(2, CPU)
    sums.add(step([0, 0], [1.0, 1.0], 5.0), torch.tensor([1, 1]))
    sums.collect()
    sums.add(step([1, 1], [0.0, 1.0], 1.0), torch.tensor([1, 1]))
    record = sums.collect()
    assert record["loss"] == {"labeled": 1}
    assert (record["pseudo_counts"], record["mask_rate"], record["pseudo_accuracy"]) == ([0, 2], 0.5, 1)


def test_soft_targets_count_by_their_largest_probability():
    sums = StepStatistics(3, CPU)
    sums.add(step([[0.1, 0.9, 0.0], [0.4, 0.3, 0.3]], [1.0, 0.5], 1.0), torch.tensor([1, 2]))
    record = sums.collect()
    assert record["pseudo_counts"] == [1, 1, 0]
    assert record["pseudo_accuracy"] == pytest.approx(1 / 1.5)


@pytest.mark.parametrize(("weight", "truth"), [([1.0, 1.0], [-1, -1]), ([0.0, 0.0], [0, 1])])
def test_accuracy_of_pseudo_labels_is_null_where_none_can_be_judged(weight, truth):
    sums = StepStatistics(2, CPU)
    sums.add(step([0, 1], weight, 1.0), torch.tensor(truth))
    assert sums.collect()["pseudo_accuracy"] is None


def test_steps_without_a_finite_loss_are_counted():
    sums = StepStatistics(2, CPU)
    for losses in ((1.0, math.nan), (math.inf, math.nan), (1.0, 1.0), (-math.inf, 0.0)):
        sums.add(step([0], [1.0], *losses), torch.tensor([0]))
    assert sums.collect()["nonfinite_steps"] == 3


# -- warnings


def record(mask_rate: float, counts: list[int], weights: list[float]) -> dict[str, Any]:
    return {"mask_rate": mask_rate, "pseudo_counts": counts, "pseudo_weights": weights}


NAMES = ("cat", "dog", "elk", "fox")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (record(0.0, [5, 5, 5, 5], [0.0] * 4), {"none"}),
        (record(0.001, [5, 5, 5, 5], [0.001] * 4), set()),
        (record(1.0, [5, 5, 5, 5], [1.0] * 4), {"all"}),
        (record(0.999, [5, 5, 5, 5], [0.999] * 4), set()),
        # Half of what passed, and a bit more; what did not pass is left out.
        (record(0.5, [100, 100, 200, 0], [0.5, 0.5, 0.5, 0.0]), set()),
        (record(0.5, [100, 90, 200, 0], [0.5, 0.5, 0.5, 0.0]), {"one"}),
        (record(0.5, [1000, 100, 100, 100], [0.01, 0.1, 0.1, 0.1]), set()),
        (record(0.5, [100, 1000, 100, 100], [0.9, 0.01, 0.1, 0.1]), {"one"}),
        (record(1.0, [40, 0, 0, 0], [1.0, 0.0, 0.0, 0.0]), {"all", "one"}),
        # A share of too few.
        (record(1.0, [39, 0, 0, 0], [1.0, 0.0, 0.0, 0.0]), {"all"}),
    ],
)
def test_warnings_are_those_of_what_is_wrong(found, expected):
    assert warnings_for(found, NAMES).keys() == expected


def test_a_method_without_a_threshold_is_not_told_to_change_it():
    assert "threshold" not in warnings_for(record(0.0, [5, 5], [0.0, 0.0]), ("cat", "dog"), None)["none"]
    assert warnings_for(record(1.0, [5, 5], [1.0, 1.0]), ("cat", "dog"), None) == {}


def test_a_collapse_names_its_class_and_share():
    found = record(0.5, [20, 10, 60, 10], [0.5] * 4)
    assert warnings_for(found, NAMES)["one"].startswith("class 'elk' has 60% of the pseudo-labels")


def test_two_classes_may_differ_more():
    assert not warnings_for(record(0.5, [89, 11], [0.5, 0.5]), ("cat", "dog"))
    assert warnings_for(record(0.5, [91, 9], [0.5, 0.5]), ("cat", "dog")).keys() == {"one"}


# -- the file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def journal(path: Path, *, is_main: bool = True) -> Journal:
    return Journal(path, start=0, steps=10, is_main=is_main)


def test_what_is_written_is_read(path):
    for number in (1, 2):  # a second journal goes on in the same file
        writer = journal(path)
        writer.write({"step": number, "loss": {"labeled": 0.5}, "marginal": [0.25, 0.75]})
        writer.close()
    assert read_journal(path) == [{"step": n, "loss": {"labeled": 0.5}, "marginal": [0.25, 0.75]} for n in (1, 2)]


def test_numbers_that_json_lacks_are_null(path):
    writer = journal(path)
    writer.write({"step": 1, "loss": {"a": math.nan, "b": [1.0, -math.inf]}, "name": "nan", "count": 3})
    writer.close()

    def refuse(constant: str):
        raise AssertionError(constant)

    text = path.read_text()
    expected = {"step": 1, "loss": {"a": None, "b": [1.0, None]}, "name": "nan", "count": 3}
    assert json.loads(text, parse_constant=refuse) == expected
    assert finite(math.inf) is None


def test_a_line_that_was_not_finished_is_left_out(path):
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "los')
    assert read_journal(path) == [{"step": 1}, {"step": 2}]


def test_reading_up_to_a_step_includes_it(path):
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    assert [each["step"] for each in read_journal(path, up_to=2)] == [1, 2]


def test_a_damaged_line_leaves_out_itself_alone(path):
    path.write_text('{"step": 1}\n{"ste\0\0\n7\n{"step": 2}\n')
    assert [each["step"] for each in read_journal(path)] == [1, 2]


def test_a_journal_that_is_not_there_is_empty(path):
    assert read_journal(path) == [] and [*last_records(path)] == []


@pytest.mark.parametrize("length", [0, 10, READ_BYTES - 20, READ_BYTES, 3 * READ_BYTES])
def test_reading_from_the_end_is_reading_backwards(length: int, path):
    lines = [json.dumps({"step": step, "filler": "x" * length}) for step in range(1, 5)]
    for text in ("\n".join(lines) + "\n", "\n".join(lines), "\n".join([*lines, '{"step": 5, "lo'])):
        path.write_text(text)
        assert [each["step"] for each in last_records(path)] == [4, 3, 2, 1]


def test_the_last_record_is_found_without_reading_the_rest(path, monkeypatch):
    path.write_text('{"step": 1, "filler": "' + "x" * 50 * READ_BYTES + '"}\n{"step": 2, "seconds": 7.5}\n')
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: loads(text) if len(text) < READ_BYTES else pytest.fail("too much"))
    assert next(last_records(path)) == {"step": 2, "seconds": 7.5}


LOG, EVALUATION = {"loss": {"labeled": 1.0}}, {"ema": {"accuracy": 0.5}}


@pytest.mark.parametrize(("with_evaluation", "expected"), [(True, 4), (False, 3)])
@pytest.mark.parametrize("rest", ["", '{"step": 7, "lo', "\n\n"])
def test_cutting_keeps_a_step_and_where_asked_its_evaluation(with_evaluation, expected, rest, path):
    kept = [{"step": 2, **LOG}, {"step": 2, **EVALUATION}, {"step": 4, **LOG}, {"step": 4, **EVALUATION}]
    later = [{"step": 6, **LOG}, {"step": 6, **EVALUATION}]
    path.write_text("".join(json.dumps(each) + "\n" for each in (*kept, *later)) + rest)
    cut_journal(path, 4, with_evaluation=with_evaluation)
    assert path.read_text() == "".join(json.dumps(each) + "\n" for each in kept[:expected])


def test_cutting_at_the_start_leaves_an_empty_file(path):
    cut_journal(path, 0, with_evaluation=True)
    assert path.read_text() == ""
    path.write_text('{"step": 1}\n')
    cut_journal(path, 0, with_evaluation=True)
    assert path.read_text() == ""


def test_evaluations_of_a_thousand_classes_stay_small(path):
    """With the confusion matrices in it, a line had six million bytes."""
    generator, num = torch.Generator().manual_seed(0), 5000
    logits, labels = torch.randn(num, 1000, generator=generator), torch.arange(num) % 1000
    logits[torch.arange(num), labels] += 3
    of_model = evaluate_logits(logits, labels, torch.arange(1000))
    figures = {part: {"ema": of_model, "raw": of_model} for part in ("test", "validation")}
    writer = journal(path)
    sizes = []
    for step in range(1, 201):
        writer.write_evaluation(step, figures)
        sizes.append(path.stat().st_size)
    writer.close()
    assert max(b - a for a, b in pairwise([0, *sizes])) < 4 * 10_000
    # The matrices of the last evaluation alone.
    assert (path.parent / "confusion.npz").stat().st_size < 200_000 and len([*path.parent.iterdir()]) == 2
    with np.load(path.parent / "confusion.npz") as matrices:
        assert matrices["validation_raw"].tolist() == of_model["confusion"]
    line = read_journal(path)[-1]
    assert line["step"] == 200 and "confusion" not in line["ema"] and line["ema"]["nll"] == of_model["nll"]


def test_a_line_of_the_log_with_a_thousand_classes_is_short(path):
    sums = StepStatistics(1000, CPU)
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(1000, (20_000,), generator=generator)
    for weight in torch.rand(3, 20_000, generator=generator):
        sums.add(
            Step(losses={"labeled": torch.tensor(1 / 3)}, pseudo=PseudoLabels(target=target, weight=weight)), target
        )
    record = {"step": 1, **sums.collect(), "marginal": torch.rand(1000, generator=generator).softmax(0).tolist()}
    writer = journal(path)
    writer.write(record)
    writer.close()
    assert path.stat().st_size < 26_000
    read = read_journal(path)[0]
    for name in ("marginal", "pseudo_weights", "pseudo_counts"):
        assert read[name] == pytest.approx(record[name], rel=1e-4)
    assert read["loss"] == record["loss"]


def test_only_the_first_process_reads_what_was_written(path, monkeypatch):
    path.write_text('{"step": 1, "seconds": 50.0}\n')
    monkeypatch.setattr("debias_ssl.training.journal.last_records", lambda path: pytest.fail("it reads"))
    journal(path, is_main=False).close()


def test_only_the_first_process_writes_and_speaks(path, capfd):
    writer = journal(path, is_main=False)
    writer.write({"step": 1})
    writer.warn({"none": "something"})
    writer.close()
    assert not path.exists()
    assert capfd.readouterr().err == ""


def test_each_kind_of_warning_is_said_once(path, capfd):
    writer = journal(path)
    for text in ("no label passes", "still none"):
        writer.warn({"none": text})
    writer.warn({"all": "all pass"})
    writer.close()
    said = capfd.readouterr().err
    assert said.count("warning:") == 2
    assert "no label passes" in said
    assert "still none" not in said


def test_rates_are_of_the_time_since_the_last_ones(path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("debias_ssl.training.journal.time.perf_counter", lambda: now[0])
    writer = journal(path)
    now[0] = 104.0
    writer.step(images=10, waited=1.0)
    writer.step(images=10, waited=0.0)
    assert writer.rates() == {"seconds": 4, "images_per_second": 5, "data_wait": 0.25}
    now[0] = 108.0
    writer.step(images=4, waited=2.0)
    assert writer.rates() == {"seconds": 8, "images_per_second": 1, "data_wait": 0.5}
    now[0] = 200.0
    writer.restart_clock()  # an evaluation
    now[0] = 202.0
    writer.step(images=10, waited=2.0)
    assert writer.rates() == {"seconds": 102, "images_per_second": 5, "data_wait": 1}
    writer.close()


def test_a_resumed_run_adds_to_the_seconds_it_has_spent(path, monkeypatch):
    path.write_text('{"step": 1, "seconds": 50.0}\n{"step": 1, "ema": {}}\n')
    now = [100.0]
    monkeypatch.setattr("debias_ssl.training.journal.time.perf_counter", lambda: now[0])
    writer = journal(path)
    now[0] = 103.0
    assert writer.rates()["seconds"] == 53
    writer.close()


def test_waiting_for_workers_is_said_from_a_tenth_of_the_time_on():
    assert data_warning(0.1, 4) == {}
    text = data_warning(0.37, 0)["data"]
    assert "37%" in text and "0 workers" in text and "--data.workers" in text
    # More of them than cores do not help.
    text = data_warning(0.37, 1000)["data"]
    assert "--data.workers" not in text and "--data.input resident" in text

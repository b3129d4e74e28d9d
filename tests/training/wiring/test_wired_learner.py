"""Losses, averages and models of a step are those that the settings ask for."""

from typing import ClassVar

import pytest
import torch
from jobs import run, same
from torch import Tensor
from watched_runs import PLAIN, STEPS, STILL, TINY, WATCH, close

from debias_ssl.methods.labeled_loss import CrossEntropy


class Counted(CrossEntropy):
    """A loss of a user's own; it keeps what it is given."""

    given: ClassVar[list[tuple[list[float], float]]] = []

    def forward(self, logits: Tensor, labels: Tensor, progress: float) -> Tensor:
        self.given.append((self.counts.tolist(), progress))
        return super().forward(logits, labels, progress)


def test_a_method_of_ones_own_is_told_the_progress(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_method.py").write_text(
        "from debias_ssl.methods import FixMatch\n"
        "class Telling(FixMatch):\n"
        "    def forward(self, views):\n"
        "        print('progress', views.progress)\n"
        "        return super().forward(views)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run(tmp_path / "run", *TINY, "--method", "own_method.Telling")
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("progress")]
    assert told == ["progress 0.0", "progress 0.25", "progress 0.5", "progress 0.75"]


def test_a_labeled_loss_of_ones_own_is_given_counts_and_progress(made):
    Counted.given.clear()
    imbalance = ["--data.labels_per_class", "8", "--data.labeled_imbalance", "8"]
    made(*WATCH, *imbalance, "--labeled_loss", f"{__name__}.Counted")
    counts = [8, 6, 5, 4, 3, 2, 2, 1, 1, 1]
    assert Counted.given == [(counts, progress) for progress in (0, 0.25, 0.5, 0.75)]


def test_losses_in_the_journal_are_those_of_the_method(made):
    watch = made(*WATCH)
    for record, views in zip(watch.records(), watch.given, strict=True):
        strong = views.strong.logits.logsumexp(-1).mean().item()
        labeled = torch.nn.functional.cross_entropy(views.labeled.logits, views.labels).item()
        assert record["loss"] == pytest.approx({"labeled": labeled, "strong": strong}, rel=1e-5)
        assert record["mask_rate"] == 1


def test_accuracy_of_pseudo_labels_is_that_of_the_true_classes(made):
    watch = made(*WATCH)
    for record, views, batch in zip(watch.records(), watch.given, watch.batches, strict=True):
        right = (views.weak.logits.argmax(-1) == batch.truth).float().mean().item()
        assert record["pseudo_accuracy"] == pytest.approx(right)


def test_the_logged_marginal_is_the_mean_of_weak_predictions(made):
    watch, marginal = made(*WATCH), torch.full((10,), 0.1)
    for record, views in zip(watch.records(), watch.given, strict=True):
        marginal = 0.99 * marginal + 0.01 * views.weak.logits.softmax(-1).mean(0)
        assert record["marginal"] == pytest.approx(marginal.tolist(), rel=1e-4)


def test_methods_are_told_how_many_images_there_are(made):
    watch = made(*WATCH, "--data.labels_per_class", "8", "--data.labeled_imbalance", "8")
    (problem,) = watch.problems
    assert problem.labeled_counts == (8, 6, 5, 4, 3, 2, 2, 1, 1, 1)
    assert problem.num_unlabeled == len(watch.split()["unlabeled"]) > 1000
    assert (problem.num_classes, problem.num_features) == (10, 64)


def test_a_loss_that_is_not_finite_stops_a_run_whose_weights_are(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path / "a", *TINY, "--labeled_loss", "watched_runs.Unbounded")
    assert exit_.value.code == 1 and "the loss is not finite at step 1" in capsys.readouterr().err


def test_the_trained_model_makes_the_pseudo_labels_with_the_statistics_of_the_batch(made):
    watch = made(*WATCH)
    for step in range(1, STEPS):
        with torch.no_grad():
            expected = watch.model(step).train()(watch.batches[step].weak[0])[0]
        torch.testing.assert_close(watch.given[step].weak.logits, expected)


def test_the_averaged_model_makes_the_pseudo_labels_where_it_is_asked_to(made):
    watch = made(*WATCH, "--target_model", "ema")
    for step in range(1, STEPS):
        with torch.no_grad():
            expected = watch.model(step, "ema")(watch.batches[step].weak[0])[0]
        torch.testing.assert_close(watch.given[step].weak.logits, expected)


def test_no_decay_makes_the_averaged_model_the_trained_one(made):
    each = made("--ema_decay", "0")
    for step in range(1, STEPS + 1):
        assert same(each.trained(step), each.trained(step, "ema"))


def test_weights_are_averaged_with_the_decay(made):
    each = made("--ema_decay", "0.15")
    for step in range(2, STEPS + 1):
        before, now, raw = each.trained(step - 1, "ema"), each.trained(step, "ema"), each.trained(step)
        # The first steps have a shorter average: (1 + k) / (10 + k) from k = 0 on.
        close(now, {key: 0.15 * before[key] + 0.85 * raw[key] for key in now})


def test_a_young_average_forgets_faster(made):
    each = made(*PLAIN, "--optim.lr", "0.1", "--ema_decay", "0.999")
    for step in range(2, STEPS + 1):
        decay = step / (9 + step)
        before, now, raw = each.trained(step - 1, "ema"), each.trained(step, "ema"), each.trained(step)
        close(now, {key: decay * before[key] + (1 - decay) * raw[key] for key in now})


def test_a_joint_pass_shares_the_statistics_of_the_batch(made):
    apart, joint = made(*WATCH, *STILL), made(*WATCH, *STILL, "--joint_pass", "true")
    batch, model = joint.batches[0], joint.model(1)
    assert torch.equal(batch.weak[0], apart.batches[0].weak[0])
    for images, watch in (
        ([batch.labeled, *batch.strong, *batch.weak], joint),
        ([batch.labeled, *batch.strong], apart),
    ):
        with torch.no_grad():
            expected = model.train()(torch.cat(images))[0][: len(batch.labeled)]
        torch.testing.assert_close(watch.given[0].labeled.logits, expected, rtol=1e-4, atol=1e-4)

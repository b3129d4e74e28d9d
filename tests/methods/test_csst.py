import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from launched import DIGITS
from safetensors.torch import load_file

from debias_ssl import train
from debias_ssl.methods import CSST, FixMatch, Problem


def problem(*counts: int) -> Problem:
    return Problem(num_classes=len(counts), num_features=2, labeled_counts=counts, num_unlabeled=10)


def test_with_equal_counts_it_starts_as_fixmatch(random_views):
    views = random_views(4)
    ours = CSST(problem(5, 5, 5, 5), threshold=0.5)(views)
    theirs = FixMatch(problem(5, 5, 5, 5), threshold=math.exp(-0.5))(views)
    torch.testing.assert_close(ours.losses, theirs.losses)
    assert ours.pseudo.target.equal(theirs.pseudo.target) and ours.pseudo.weight.equal(theirs.pseudo.weight)
    assert 0 < ours.pseudo.weight.mean() < 1


def test_with_equal_multipliers_its_losses_are_logit_adjusted(random_views):
    # G = diag(1 / (C pi)), so that -log D is log pi and a constant.
    views = random_views(3)
    step = CSST(problem(12, 6, 2), threshold=math.inf)(views)
    log_prior = torch.tensor([0.6, 0.3, 0.1]).log()
    labeled = F.cross_entropy(views.labeled.logits + log_prior, views.labels)
    unlabeled = F.cross_entropy(views.strong.logits + log_prior, views.weak.logits.argmax(-1))
    torch.testing.assert_close(step.losses, {"labeled": labeled, "unlabeled": unlabeled})


def test_the_worst_class_gains_weight():
    method = CSST(problem(5, 5), rate=0.5)
    # Recalls .75 and .25.
    method.on_evaluation(torch.tensor([[3, 1], [6, 2]]))
    odds = math.exp(-0.5 * 0.75) / math.exp(-0.5 * 0.25)
    assert method.multipliers.tolist() == pytest.approx([odds / (1 + odds), 1 / (1 + odds)])
    torch.testing.assert_close(method.gain, (2 * method.multipliers).diag())


def test_a_class_that_is_predicted_too_rarely_gains_from_every_row(make_views):
    method = CSST(problem(5, 15), objective="mean_recall", coverage=0.8, rate=2.0)
    confusion = torch.tensor([[8, 2], [9, 1]])
    method.on_evaluation(confusion)
    # Shares of predictions .85 and .15, .4 are wanted: lambda = 2 (.4 - .15) for the second class, 0 for the first.
    assert method.multipliers.tolist() == pytest.approx([0, 0.5])
    # 1 / (C pi) is 2 and 2/3.
    gain = torch.tensor([[2.0, 0.5], [0.0, 2 / 3 + 0.5]])
    torch.testing.assert_close(method.gain, gain)
    # M = G D^-1, and offsets log D; equal logits of an image of the first class.
    views = make_views(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 2), torch.zeros(1, 2))
    diagonal = gain.diagonal()
    log_probs = (-diagonal.log()).log_softmax(-1)
    expected = -(log_probs[0] + 0.5 / diagonal[1] * log_probs[1])
    assert method(views).losses["labeled"].item() == pytest.approx(expected.item())
    method.on_evaluation(torch.tensor([[0, 10], [0, 10]]))
    assert method.multipliers.tolist() == pytest.approx([2 * 0.4, 0])


def test_pseudo_labels_count_that_agree_with_the_gains_of_their_class(make_views):
    method = CSST(problem(5, 5), objective="mean_recall", threshold=0.05)
    method.multipliers.copy_(torch.tensor([0.0, 0.5]))
    # The first row of G is (1, .5): predictions near (2/3, 1/3) agree with it, sure ones do not.
    weak = torch.tensor([[math.log(2), 0.0], [3.0, 0.0]])
    step = method(make_views(torch.zeros(1, 2), torch.tensor([0]), weak, torch.zeros(2, 2)))
    assert step.pseudo.weight.tolist() == [1, 0]
    torch.testing.assert_close(step.pseudo.target, torch.tensor([0, 0]))


@pytest.mark.parametrize("objective", ["min_recall", "mean_recall"])
def test_many_evaluations_and_classes_without_labels_stay_finite(objective, random_views):
    method = CSST(problem(9, 3, 0), objective=objective, rate=5.0)
    for _ in range(50):
        method.on_evaluation(torch.tensor([[5, 0, 0], [5, 0, 0], [0, 0, 0]]))
    views = random_views(3)
    step = method(views)
    torch.stack([*step.losses.values()]).sum().backward()
    assert all(loss.isfinite() for loss in step.losses.values())
    assert views.labeled.logits.grad.isfinite().all()


def test_multipliers_are_saved_and_restored():
    method, other = CSST(problem(5, 5)), CSST(problem(5, 5))
    method.on_evaluation(torch.tensor([[3, 1], [6, 2]]))
    assert method.state_dict().keys() == {"multipliers"}
    other.load_state_dict(method.state_dict())
    assert other.gain.equal(method.gain)


def test_it_needs_validation_images_and_learns_from_them(tmp_path: Path, capsys):
    steps = ["--steps", "4", "--log_every", "2", "--eval_every", "2", "--checkpoint_every", "4"]
    flags = ["--config", str(DIGITS), "--method", "CSST", *steps, "--out"]
    with pytest.raises(SystemExit) as exit_:
        train.main([*flags, str(tmp_path / "a")])
    assert exit_.value.code == 2
    assert "CSST needs validation images: set data.validation_per_class" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    train.main([*flags, str(tmp_path / "b"), "--data.validation_per_class", "10"])
    multipliers = load_file(tmp_path / "b" / "method.safetensors")["multipliers"]
    assert multipliers.sum().item() == pytest.approx(1) and multipliers.std() > 0

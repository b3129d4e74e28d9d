"""The learner gives a method the network's outputs, with the statistics of the right batch."""

from dataclasses import replace

import pytest
import torch
from recorded_views import Recorder, recorded, running
from torch import Tensor

from debias_ssl.methods import FixMatch, Needs, View
from debias_ssl.models import batch_norms
from debias_ssl.training.learner import blank_pixel, frozen_averages


def test_views_are_the_networks_outputs_of_the_images_in_their_order(make_learner, make_batch):
    learner, batch = make_learner(Recorder, norm="group"), make_batch(num_weak=2, num_strong=2)
    views = recorded(learner, batch)
    for images, view in zip(
        (batch.labeled, *batch.weak, *batch.strong),
        (views.labeled, views.weak, *views.further_weak, views.strong, *views.further_strong),
        strict=True,
    ):
        logits, features = learner.raw.model(images)
        torch.testing.assert_close(view.logits, logits)
        torch.testing.assert_close(view.features, features)
    assert views.labels.equal(batch.labels)
    assert views.index.equal(batch.index)


def test_progress_reaches_the_method(make_learner, make_batch):
    learner = make_learner(Recorder)
    learner(make_batch(), 0.25)
    assert learner.raw.method.views.progress == 0.25


def test_weak_views_have_no_gradient_and_the_others_have(make_learner, make_batch):
    for joint_pass in (False, True):
        views = recorded(make_learner(Recorder, joint_pass=joint_pass), make_batch(num_weak=2))
        weak = [tensor for view in (views.weak, *views.further_weak) for tensor in vars(view).values()]
        assert not any(tensor.requires_grad for tensor in weak)
        assert views.labeled.logits.requires_grad
        assert views.strong.features.requires_grad


@pytest.mark.parametrize("joint_pass", [False, True])
def test_a_method_without_strong_views_gets_an_empty_one(make_learner, make_batch, joint_pass):
    views = recorded(make_learner(Recorder, joint_pass=joint_pass), make_batch(num_strong=0))
    assert views.strong.logits.shape == (0, 4)
    assert views.weak.logits.shape == (8, 4)


def test_the_logged_marginal_is_the_mean_of_weak_predictions_whatever_the_method(make_learner, make_batch):
    learner = make_learner(Recorder)
    views = recorded(learner, make_batch(num_weak=2))
    expected = 0.99 * 0.25 + 0.01 * views.weak.logits.softmax(-1).mean(0)
    torch.testing.assert_close(learner.marginal.value, expected)
    assert (learner.marginal.value - 0.25).abs().max() > 1e-5


@pytest.mark.parametrize("joint_pass", [False, True])
def test_strong_labeled_and_given_reach_the_method(make_learner, make_batch, joint_pass):
    learner, batch = make_learner(Recorder, norm="group", joint_pass=joint_pass), make_batch()
    batch = replace(
        batch, strong_labeled=batch.labeled + 1, teacher_probs=torch.rand(8, 4), labeled_teacher_probs=torch.rand(4, 4)
    )
    views = recorded(learner, batch)
    assert batch.strong_labeled is not None and views.strong_labeled is not None and views.teacher_probs is not None
    logits, _ = learner.raw.model(batch.strong_labeled)
    torch.testing.assert_close(views.strong_labeled.logits, logits)
    assert views.strong_labeled.logits.requires_grad
    torch.testing.assert_close(views.strong.logits, learner.raw.model(batch.strong[0])[0])
    assert batch.teacher_probs is not None and views.teacher_probs.equal(batch.teacher_probs)
    assert views.labeled_teacher_probs is batch.labeled_teacher_probs is not None


def test_partners_and_share_of_mixed_images_reach_the_method(make_learner, make_batch):
    learner, batch = make_learner(Recorder), make_batch()
    assert recorded(learner, batch).partner_labels is None
    views = recorded(learner, replace(batch, partner_labels=batch.labels.flip(0), mixup_lambda=0.3))
    assert views.partner_labels is not None and views.partner_labels.tolist() == [3, 2, 1, 0]
    assert views.mixup_lambda == 0.3


class Blank(Recorder):
    """Subtracts the logits of a blank image."""

    needs = Needs(blank="white")

    def predict(self, view: View, blank: View | None = None) -> Tensor:
        assert blank is not None
        return view.logits - blank.logits


def test_a_method_may_ask_for_a_blank_image(make_learner, make_batch):
    learner, batch = make_learner(Blank, blank=(1.5,)), make_batch()
    before = running(learner)
    blank = learner.raw.blank(batch.labeled)
    # With averaged statistics, which it leaves alone, and without gradient.
    assert all(ours.equal(same) for ours, same in zip(running(learner), before, strict=True))
    assert learner.raw.model.training and not blank.logits.requires_grad
    predictor = learner.ema
    of_blank = predictor.model(torch.full((1, 1, 8, 8), 1.5))[0]
    torch.testing.assert_close(predictor(batch.labeled), predictor.model(batch.labeled)[0] - of_blank)
    given = recorded(learner, batch).blank
    assert given is not None and given.logits.shape == (1, 4)
    assert recorded(make_learner(Recorder), batch).blank is None


def test_the_blank_image_is_seen_by_whoever_makes_the_pseudo_labels(make_learner, make_batch):
    for target_model in ("raw", "ema"):
        learner = make_learner(Blank, blank=(1.5,), target_model=target_model)
        with torch.no_grad():
            for weight in learner.ema.parameters():
                weight.mul_(1.1)
        given, teaches = recorded(learner, make_batch()).blank, learner.ema if target_model == "ema" else learner.raw
        assert given is not None
        torch.testing.assert_close(given.logits, teaches.blank(make_batch().labeled).logits)


def test_a_blank_pixel_is_white_and_normalized_like_the_images_or_ones_as_the_network_takes_them():
    assert blank_pixel("white", (0.5, 0.2), (0.25, 0.4)) == (2.0, 2.0)
    assert blank_pixel("ones", (0.5, 0.2), (0.25, 0.4)) == (1.0, 1.0)
    assert blank_pixel(None, (0.5, 0.2), (0.25, 0.4)) == ()


def test_only_the_pass_with_gradient_moves_running_averages(make_learner, make_batch):
    learner, same, batch = make_learner(FixMatch), make_learner(FixMatch), make_batch()
    learner(batch, 0.0)
    same.raw.model(torch.cat([batch.labeled, *batch.strong]))
    for ours, expected in zip(running(learner), running(same), strict=True):
        assert ours.equal(expected)
    assert not running(learner)[0].equal(torch.zeros(16))


def test_the_student_labels_with_the_statistics_of_its_weak_views(make_learner, make_batch):
    learner, batch = make_learner(Recorder), make_batch()
    views = recorded(learner, batch)
    assert views.weak.logits.equal(learner.raw.model(batch.weak[0])[0])
    assert (views.weak.logits - learner.raw.model.eval()(batch.weak[0])[0]).abs().max() > 1e-2


def test_a_joint_pass_has_the_statistics_of_all_images(make_learner, make_batch):
    learner, same = make_learner(Recorder, joint_pass=True), make_learner(Recorder)
    batch = make_batch(num_weak=2)
    views = recorded(learner, batch)
    logits, _ = same.raw.model(torch.cat([batch.labeled, *batch.strong, *batch.weak]))
    ours = [views.labeled, views.strong, views.weak, *views.further_weak]
    assert torch.cat([view.logits for view in ours]).equal(logits)
    for buffer, expected in zip(running(learner), running(same), strict=True):
        assert buffer.equal(expected)


def test_frozen_averages_are_thawed_when_something_fails(make_learner, make_batch):
    model = make_learner(FixMatch).raw.model
    norms = batch_norms(model)
    with pytest.raises(ZeroDivisionError), frozen_averages(norms):
        _ = 1 / 0
    assert all(norm.track_running_stats for norm in norms)

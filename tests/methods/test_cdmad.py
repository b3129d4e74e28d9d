import json
import math
from dataclasses import replace

import pytest
import torch
import yaml
from jobs import run
from torch import Tensor

from debias_ssl.methods import CDMAD, DebiasPL, FixMatch, Needs, View, Views
from debias_ssl.runs.trained import TrainedRun, load_run
from debias_ssl.training.learner import blank_pixel


def with_blank(views: Views, logits: Tensor, progress: float = 1.0) -> Views:
    return replace(views, blank=View(logits=logits, features=torch.zeros(1, 2)), progress=progress)


@pytest.mark.parametrize(("blank", "progress"), [(0.0, 1.0), (5.0, 0.19)])
def test_with_a_blank_of_zeros_or_before_the_warm_up_ends_it_is_fixmatch(blank, progress, make_problem, random_views):
    views = with_blank(random_views(4), torch.tensor([[blank, 0.0, 0.0, 0.0]]), progress)
    ours = CDMAD(make_problem(4), threshold=0.7, hard=True, unlabeled_weight=2.0)(views)
    theirs = FixMatch(make_problem(4), threshold=0.7, unlabeled_weight=2.0)(views)
    assert all(ours.losses[name].equal(loss) for name, loss in theirs.losses.items())
    assert ours.pseudo.target.equal(theirs.pseudo.target) and ours.pseudo.weight.equal(theirs.pseudo.weight)
    assert 0 < ours.pseudo.weight.mean() < 1


def test_targets_are_soft_and_without_what_the_blank_says(make_problem, make_views):
    # p = (.75, .25); without the blank's (log 3, log 2): (.6667, .3333).
    views = make_views(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2))
    views = with_blank(views, torch.tensor([[math.log(3), math.log(2)]]))
    step = CDMAD(make_problem(2))(views)
    assert step.pseudo.target.tolist() == [pytest.approx([2 / 3, 1 / 3])]
    assert step.losses["unlabeled"].item() == pytest.approx(math.log(2))
    assert step.pseudo.weight.tolist() == [1]
    assert CDMAD(make_problem(2), threshold=0.7)(views).pseudo.weight.tolist() == [0]
    early = CDMAD(make_problem(2), warm_up=1.0)(replace(views, progress=0.99))
    assert early.pseudo.target.tolist() == [pytest.approx([0.75, 0.25])]


def test_the_blank_is_taken_from_predictions(make_problem):
    view, blank = (View(logits=torch.tensor([each]), features=torch.zeros(1, 2)) for each in ([3.0, 2.0], [2.0, 0.5]))
    assert CDMAD(make_problem(2)).predict(view, blank).tolist() == [[1, 1.5]]


def test_the_blank_is_ones_or_white_also_below_debiaspl(make_problem):
    def white(problem):
        return CDMAD(problem, blank="white")

    assert CDMAD(make_problem(2)).needs == Needs(blank="ones", all_strong=None)
    needs = Needs(blank="white", all_strong=None)
    assert white(make_problem(2)).needs == DebiasPL(make_problem(2), base=white).needs == needs


@pytest.mark.parametrize(("kind", "value"), [("ones", 1.0), ("white", 2.0)])
def test_a_learner_shows_it_a_blank_image(kind, value, make_learner, make_batch):
    # White is (1 - .5) / .25 as the network takes it.
    learner = make_learner(CDMAD, blank=blank_pixel(kind, [0.5], [0.25]))
    step = learner(make_batch(), 1.0)
    assert all(loss.isfinite() for loss in step.losses.values())
    with torch.no_grad():
        learner.eval()
        images = make_batch().labeled
        logits, view = learner.raw.predict(images)
        torch.testing.assert_close(logits, view.logits - learner.raw.view(torch.full((1, 1, 8, 8), value)).logits)


def test_nothing_but_the_network_is_state(make_problem):
    assert not CDMAD(make_problem(3)).state_dict()


def loaded(path) -> TrainedRun:
    return load_run(path)


def test_a_saved_run_predicts_with_the_blank_that_it_was_trained_with(tmp_path):
    for kind, flags in (("ones", ()), ("white", ("--method.blank", "white"))):
        out = run(tmp_path / kind, "--method", "CDMAD", *flags)
        transform = json.loads((out / "model.json").read_text())["transform"]
        value = 1.0 if kind == "ones" else (1 - transform["mean"][0]) / transform["std"][0]
        assert loaded(out).predictor.pixel.tolist() == pytest.approx([value])
        assert yaml.safe_load((out / "config.yaml").read_text())["method"]["init_args"]["blank"] == kind

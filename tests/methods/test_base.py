"""What all methods that train strong views towards pseudo-labels share."""

import math
from dataclasses import replace
from functools import partial
from inspect import signature

import pytest
import torch
import torch.nn.functional as F
from jobs import settings_of
from torch import Tensor

from debias_ssl.contract import Needs
from debias_ssl.formulas.logits import weighted_cross_entropy
from debias_ssl.methods import (
    ABC,
    CCL,
    CDMAD,
    CPG,
    DASO,
    UDA,
    AdaMatch,
    DebiasPL,
    FineSSL,
    FixMatch,
    FlexMatch,
    FreeMatch,
    Problem,
    PseudoLabel,
    PseudoLabels,
    SimPro,
    SoftMatch,
    Supervised,
    View,
)
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.system.errors import InputError
from debias_ssl.training.choices import BASES, METHODS
from debias_ssl.training.saved import config_from

POLICIES = [*BASES.values()]


@pytest.fixture
def make_policy_views(random_views):
    """Views of every kind that a policy reads, in the middle of a run."""

    def make(seed: int = 0, **settings):
        views = random_views(4, seed=seed, **settings)
        others = random_views(4, seed=seed + 100)
        blank = View(logits=others.weak.logits[:1], features=others.weak.features[:1])
        index = torch.arange(len(views.index))
        return replace(views, progress=0.7, strong_labeled=others.labeled, blank=blank, index=index)

    return make


@pytest.fixture
def problem(make_problem):
    return replace(make_problem(4), num_unlabeled=30)


def results(method, views):
    """Losses, pseudo-labels and gradients of a step."""
    step = method(views)
    torch.stack([*step.losses.values()]).sum().backward()
    logits = [views.labeled.logits, views.strong.logits, *[view.logits for view in views.further_strong]]
    return [step.losses, step.pseudo.target, step.pseudo.weight, [each.grad for each in logits]]


def equal(a, b) -> bool:
    try:
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    except AssertionError:
        return False
    return True


class Constant(PseudoLabeling):
    """The first class for all, half as important."""

    def pseudo_labels(self, logits, views):
        return PseudoLabels(target=torch.zeros_like(views.index), weight=torch.full((len(logits),), 0.5))

    def further_losses(self, logits, pseudo):
        return {"size": logits.square().mean()}


def test_a_policy_is_its_pseudo_labels_and_further_losses(problem, make_policy_views):
    views = make_policy_views()
    step = Constant(problem, unlabeled_weight=4.0)(views)
    assert list(step.losses) == ["labeled", "unlabeled", "size"]
    expected = F.cross_entropy(views.strong.logits, torch.zeros(30, dtype=torch.long))
    torch.testing.assert_close(step.losses["unlabeled"], 2 * expected)


@pytest.mark.parametrize("method", [Supervised, DebiasPL, *POLICIES])
def test_the_labeled_loss_is_that_of_the_problem(method, problem, make_policy_views):
    given = []

    def loss(logits, labels, progress):
        given.append((logits, labels, progress))
        return logits.sum() * 0 + 3

    views = make_policy_views()
    step = method(replace(problem, labeled_loss=loss))(views)
    assert step.losses["labeled"].item() == 3 * len(given)
    assert given[0][0] is views.labeled.logits and given[0][1] is views.labels and given[0][2] == 0.7


@pytest.mark.parametrize("policy", POLICIES)
def test_weights_are_shares_and_targets_carry_no_gradient(policy, problem, make_policy_views):
    method = policy(problem)
    for seed in range(3):
        step = method(make_policy_views(seed))
        assert ((step.pseudo.weight >= 0) & (step.pseudo.weight <= 1)).all()
        assert not step.pseudo.target.requires_grad and not step.pseudo.weight.requires_grad
        assert step.losses["unlabeled"].isfinite() and step.losses["unlabeled"].requires_grad


@pytest.mark.parametrize("policy", POLICIES)
def test_pseudo_labels_get_no_gradient_from_labeled_images(policy, problem, make_policy_views):
    views = make_policy_views()
    policy(problem)(views).losses["unlabeled"].backward()
    assert views.labeled.logits.grad is None and views.strong_labeled.logits.grad is None


@pytest.mark.parametrize("policy", POLICIES)
def test_state_is_restored(policy, problem, make_policy_views):
    method, other = policy(problem), policy(problem)
    method(make_policy_views(0))
    other.load_state_dict(method.state_dict())
    assert equal(results(method, make_policy_views(1)), results(other, make_policy_views(1)))
    assert all(value.dtype in (torch.float32, torch.int32) for value in method.state_dict().values())


# -- DebiasPL over each of them


def test_debiaspl_goes_over_methods_with_the_common_step_alone(make_problem):
    own = [method for name, method in METHODS.items() if issubclass(method, PseudoLabeling) and name not in BASES]
    names = ["ABC", "CCL", "CPG", "CSST", "DASO", "SCAD", "DebiasPL", "DyTrim", "EvenMatch", "FineSSL"]
    names += ["SelfTraining", "SimPro"]
    assert [method.__name__ for method in own] == names
    for method in own:
        with pytest.raises(InputError, match=f"method.base is {method.__name__}, which has its own order of a step"):
            DebiasPL(make_problem(4), base=method)


@pytest.mark.parametrize("policy", POLICIES)
def test_strength_zero_is_the_base_bit_for_bit(policy, problem, make_policy_views):
    base = policy(problem, unlabeled_weight=2.0)
    debiased = DebiasPL(problem, strength=0.0, base=lambda problem: policy(problem, unlabeled_weight=2.0))
    for seed in range(3):
        assert equal(results(base, make_policy_views(seed)), results(debiased, make_policy_views(seed)))
    assert debiased.base is not None
    assert equal(base.state_dict(), debiased.base.state_dict())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_strength_changes_the_base(policy, problem, make_policy_views):
    views = make_policy_views()
    base, debiased = policy(problem), DebiasPL(problem, strength=1.0, momentum=0.0, base=policy)
    assert not equal(results(base, views), results(debiased, views))


def test_the_threshold_as_a_base_is_the_default(problem, make_policy_views):
    def confident(problem):
        return FixMatch(problem, threshold=0.6, unlabeled_weight=3.0)

    plain = DebiasPL(problem, threshold=0.6, momentum=0.5, unlabeled_weight=3.0, num_views=2)
    over = DebiasPL(problem, momentum=0.5, num_views=2, base=confident)
    for seed in range(3):
        first, second = make_policy_views(seed, num_views=2), make_policy_views(seed, num_views=2)
        assert equal(results(plain, first), results(over, second))


def test_the_base_is_given_debiased_logits_and_strong_ones_with_the_margin(problem, make_policy_views):
    views = make_policy_views()
    method = DebiasPL(problem, strength=1.0, momentum=1.0, base=UDA)
    marginal = torch.tensor([0.4, 0.3, 0.2, 0.1])
    method.marginal.value.copy_(marginal)
    step = method(views)
    target = ((views.weak.logits - marginal.log()) / 0.4).softmax(-1)
    torch.testing.assert_close(step.pseudo.target, target)
    expected = weighted_cross_entropy(views.strong.logits + marginal.log(), target, step.pseudo.weight)
    torch.testing.assert_close(step.losses["unlabeled"], expected)


def test_fairness_of_freematch_compares_strong_views_with_its_state_of_debiased_weak_ones(make_views):
    def logits(*odds):
        return torch.tensor([[each, 1.0] for each in odds]).log()

    views = make_views(torch.zeros(1, 2), torch.tensor([0]), logits(4, 0.5), logits(6, 1))
    problem = Problem(num_classes=2, num_features=2, labeled_counts=(1, 1), num_unlabeled=2)
    method = DebiasPL(problem, strength=0.5, momentum=0.5, base=partial(FreeMatch, momentum=0.0, fairness_weight=1.0))
    method.marginal.value.copy_(torch.tensor([0.8, 0.2]))
    step = method(views)
    # sqrt(.8 / .2) = 2 divides the odds. Weak: 2 and 1 / 4, so that p is (2/3, 1/3) and (.2, .8).
    assert isinstance(method.base, FreeMatch)
    assert method.base.marginal.value.tolist() == pytest.approx([13 / 30, 17 / 30])
    assert method.base.histogram.value.tolist() == [0.5, 0.5] and step.pseudo.weight.tolist() == [1, 1]
    # Strong: 3 and 1 / 2, so that p is (.75, .25) and (1/3, 2/3), of mean (13/24, 11/24).
    fairness = 13 / 30 * math.log(13 / 24) + 17 / 30 * math.log(11 / 24)
    assert step.losses["fairness"].item() == pytest.approx(fairness, rel=1e-5)
    # The margin is that of the new q, of which (.8, .2) is one half and the mean of (.8, .2) and (1/3, 2/3) the other.
    ratio = math.sqrt((0.8 + 17 / 30) / (0.2 + 13 / 30))
    unlabeled = (math.log(1 + 1 / (6 * ratio)) + math.log(1 + ratio)) / 2
    assert step.losses["unlabeled"].item() == pytest.approx(unlabeled, rel=1e-5)


class Counting(Constant):
    """Counts its updates."""

    def __init__(self, problem):
        super().__init__(problem)
        self.updates: list[Tensor] = []

    def update(self, logits, views):
        self.updates.append(logits)


def test_several_views_update_the_base_once_with_their_mean(problem, make_policy_views):
    views = make_policy_views(num_views=2)
    method = DebiasPL(problem, num_views=2, strength=0.0, base=Counting)
    step = method(views)
    assert isinstance(method.base, Counting)
    (updated,) = method.base.updates
    torch.testing.assert_close(updated, (views.weak.logits + views.further_weak[0].logits) / 2)
    # Three pseudo-labels for each of two strong views.
    sizes = [view.logits.square().mean() for view in (views.strong, *views.further_strong)]
    torch.testing.assert_close(step.losses["size"], torch.stack(sizes).mean())


def test_a_base_asks_for_its_views(problem):
    assert DebiasPL(problem, base=AdaMatch).needs == AdaMatch.needs
    over = DebiasPL(problem, base=PseudoLabel, num_views=2, assist_threshold=0.5)
    assert over.needs == Needs(num_weak=2, num_strong=0, weak_gradient=True, teacher_probs=True)
    assert DebiasPL(problem).needs == Needs(all_strong=None)


class Curious(Constant):
    """Asks for all there is, and predicts in its own way."""

    needs = Needs(blank="ones", teacher_probs=True, labeled_teacher_probs=True, mixup_alpha=0.5, validation=True)

    def __init__(self, problem):
        super().__init__(problem)
        self.confusions: list[Tensor] = []

    def predict(self, view, blank=None):
        assert blank is not None
        return view.logits - blank.logits

    def on_evaluation(self, confusion):
        self.confusions.append(confusion)


def test_a_base_gets_all_that_it_asks_for(problem, make_policy_views):
    method = DebiasPL(problem, base=Curious)
    assert method.needs == Curious.needs
    views = make_policy_views()
    view, blank = views.weak, views.blank
    assert method.predict(view, blank).equal(view.logits - blank.logits)
    confusion = torch.eye(4, dtype=torch.long)
    method.on_evaluation(confusion)
    assert isinstance(method.base, Curious) and method.base.confusions == [confusion]
    assert DebiasPL(problem).predict(view) is view.logits


def soft_match(problem):
    return SoftMatch(problem, momentum=0.0)


def test_labels_from_outside_help_as_far_as_soft_weights_do_not_count(problem, make_policy_views):
    given = torch.tensor([[0.0, 0.9, 0.1, 0.0]]).expand(30, 4)
    views = replace(make_policy_views(), teacher_probs=given)
    own = DebiasPL(problem, base=soft_match)(views)
    step = DebiasPL(problem, base=soft_match, assist_threshold=0.4)(views)
    torch.testing.assert_close(step.pseudo.weight, torch.ones(30))
    assert step.pseudo.target.equal(torch.where(own.pseudo.weight < 0.5, 1, own.pseudo.target))
    helped = (own.pseudo.weight < 1) & (own.pseudo.target != 1)
    assert (own.pseudo.weight[helped] < 0.5).any() and (own.pseudo.weight[helped] > 0.5).any()
    soft = DebiasPL(problem, base=UDA, assist_threshold=0.4)(views)
    assert soft.pseudo.target.shape == (30,)


def test_a_base_is_set_by_flags_and_by_what_they_were_saved_as(problem):
    flags = ("--method", "DebiasPL", "--method.base", "FlexMatch", "--method.base.threshold", "0.8")
    config, resolved = settings_of(*flags)
    saved = {"threshold": 0.8, "warm_up": True, "unlabeled_weight": 1.0}
    assert resolved["method"]["init_args"]["base"] == {"class_path": "FlexMatch", "init_args": saved}
    for each in (config, config_from(resolved)):
        method = each.method(problem)
        assert isinstance(method, DebiasPL) and isinstance(method.base, FlexMatch)
        assert (method.base.threshold, method.threshold) == (0.8, 0.95)
    assert settings_of("--method.base", "null")[1]["method"]["init_args"]["base"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--method.base", "Supervised"],
            "no base 'Supervised'; DebiasPL goes over .*FixMatch, FlexMatch.*, DyTrim also over CCL, SCAD",
        ),
        (
            ["--method.base", "FlexMatch", "--method.base.thresh", "1"],
            r"'thresh' is not accepted; near it: threshold [^;]*$",
        ),
        (["--method", "AdaMatch", "--method.prior", "equal"], r"\"prior\": expected one of 'labeled', 'uniform'"),
    ],
)
def test_wrong_settings_are_refused_in_a_line(flags, message):
    with pytest.raises(InputError, match=message) as refused:
        settings_of(*flags)
    assert "Union" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("policy", POLICIES)
def test_another_method_has_its_own_defaults(policy):
    init_args = settings_of("--method", policy.__name__)[1]["method"]["init_args"]
    own = {name: parameter.default for name, parameter in signature(policy).parameters.items() if name != "problem"}
    assert init_args == own


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_no_number_of_a_method_may_be_negative(method, problem):
    for name, parameter in signature(method).parameters.items():
        # FixMatch's is there for a prior alone.
        if isinstance(parameter.default, float) and name != "prior_momentum":
            with pytest.raises(InputError, match=r"is -1\.0, must be "):
                method(problem, **{name: -1.0})


@pytest.mark.parametrize(
    "method", [ABC, CCL, CDMAD, CPG, DASO, DebiasPL, FineSSL, SimPro, UDA, FixMatch, FlexMatch, AdaMatch, PseudoLabel]
)
def test_a_threshold_in_percent_is_refused(method, problem):
    with pytest.raises(InputError, match=r"method\.threshold is 95, must be in \[0, 1\]"):
        method(problem, threshold=95)


def test_debiasing_twice_is_refused(problem):
    with pytest.raises(ValueError, match=r"method\.base is DebiasPL"):
        DebiasPL(problem, base=DebiasPL)

"""Losses of labeled images: which are which at which setting, worked numbers, and what stays finite."""

import copy
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from jobs import settings_of
from launched import DIGITS

from debias_ssl import train
from debias_ssl.contract import Problem
from debias_ssl.methods.labeled_loss import (
    AdaptiveMargin,
    Balanced,
    CrossEntropy,
    Equalized,
    LabelAwareSmoothing,
    LabeledLoss,
    LabelSmoothing,
    LogitAdjusted,
)
from debias_ssl.runs.folder import RunFolder
from debias_ssl.system.errors import InputError
from debias_ssl.training.choices import LABELED_LOSSES
from debias_ssl.training.saved import config_from

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 2 * torch.randn(40, 4, generator=GENERATOR)
LABELS = torch.randint(4, (40,), generator=GENERATOR)
LONG_TAIL = (80, 15, 4, 1)


def of(counts: tuple[int, ...], **settings: Any) -> Problem:
    return Problem(num_classes=len(counts), num_features=2, labeled_counts=counts, num_unlabeled=10, **settings)


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(of(LONG_TAIL)),
        Balanced(of((7, 7, 7, 7))),
        LogitAdjusted(of((7, 7, 7, 7))),
        LogitAdjusted(of(LONG_TAIL), strength=0.0),
        AdaptiveMargin(of(LONG_TAIL), max_margin=0.0, reweight_from=1.0),
        AdaptiveMargin(of((7, 7, 7, 7)), max_margin=0.0, reweight_from=0.0),
        Equalized(of((7, 7, 7, 7))),
        Equalized(of(LONG_TAIL), drop=0.0),
        LabelSmoothing(of(LONG_TAIL), smoothing=0.0),
        LabelAwareSmoothing(of(LONG_TAIL), head=0.0, tail=0.0),
        LabelAwareSmoothing(of((7, 7, 7, 7))),
    ],
    ids=repr,
)
def test_what_reduces_to_cross_entropy_does(loss):
    torch.testing.assert_close(loss(LOGITS, LABELS, 0.5), F.cross_entropy(LOGITS, LABELS))


def test_the_default_is_cross_entropy_bit_for_bit():
    assert CrossEntropy(of(LONG_TAIL))(LOGITS, LABELS, 0.0).equal(F.cross_entropy(LOGITS, LABELS))


def test_logit_adjustment_adds_the_log_of_the_prior():
    expected = F.cross_entropy(LOGITS + 1.5 * torch.tensor([0.8, 0.15, 0.04, 0.01]).log(), LABELS)
    torch.testing.assert_close(LogitAdjusted(of(LONG_TAIL), strength=1.5)(LOGITS, LABELS, 0.0), expected)


def test_balanced_counts_every_class_the_same():
    # As often as they are labeled, with the loss log 2 for the first class and log 4 for the second: the mean of both.
    logits, labels = torch.tensor([[0.0, 0.0]] * 3 + [[math.log(3), 0.0]]), torch.tensor([0, 0, 0, 1])
    assert Balanced(of((30, 10)))(logits, labels, 0.0).item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_adaptive_margins_fall_with_the_fourth_root_of_the_count():
    # Margins .5 for one image, .25 for 16; equal logits cost log(1 + e^margin).
    loss = AdaptiveMargin(of((16, 1)))
    for label, margin in ((0, 0.25), (1, 0.5)):
        value = loss(torch.zeros(1, 2), torch.tensor([label]), 0.0).item()
        assert value == pytest.approx(math.log(1 + math.exp(margin)))
    scaled = AdaptiveMargin(of((16, 1)), scale=30.0)(torch.tensor([[0.6, 0.1]]), torch.tensor([0]), 0.0)
    assert scaled.item() == pytest.approx(math.log(1 + math.exp(-30 * (0.5 - 0.25))), rel=1e-4)


def test_rare_classes_weigh_more_from_a_share_of_the_run_on():
    # beta = .5: 3 images and 1 make the effective numbers 1.75 and 1; the mean weight over all four images is 1.
    loss = AdaptiveMargin(of((3, 1)), max_margin=0.0, reweight_from=0.6, beta=0.5)
    weights = [1 / 1.75 / ((3 / 1.75 + 1) / 4), 1 / ((3 / 1.75 + 1) / 4)]
    for label in (0, 1):
        before, after = (loss(torch.zeros(1, 2), torch.tensor([label]), t).item() for t in (0.59, 0.6))
        assert before == pytest.approx(math.log(2))
        assert after == pytest.approx(weights[label] * math.log(2))


def test_rare_wrong_classes_are_dropped_and_rare_labels_are_not():
    # The mean is 40 images: the second class, of 10, is rare, and with drop 1 it is never a wrong answer.
    loss = Equalized(of((70, 10)), drop=1.0)
    assert loss(torch.tensor([[0.0, 5.0]]), torch.tensor([0]), 0.0).item() == 0
    assert loss(torch.zeros(1, 2), torch.tensor([1]), 0.0).item() == pytest.approx(math.log(2))


def test_classes_are_dropped_with_the_probability_asked_for():
    torch.manual_seed(0)
    many = Equalized(of((70, 10)), drop=0.75)(torch.zeros(4000, 2), torch.zeros(4000, dtype=torch.long), 0.0)
    assert many.item() == pytest.approx(0.25 * math.log(2), rel=0.1)


def test_frequent_classes_are_smoothed_more():
    # Half way between the counts, the sine is that of 45 degrees.
    loss = LabelAwareSmoothing(of((21, 11, 1)), head=0.3, tail=0.1)
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    for label, smoothing in ((0, 0.3), (1, 0.1 + 0.2 * math.sqrt(0.5)), (2, 0.1)):
        expected = F.cross_entropy(logits, torch.tensor([label]), label_smoothing=smoothing)
        torch.testing.assert_close(loss(logits, torch.tensor([label]), 0.0), expected)


@pytest.mark.parametrize("counts", [(5, 3, 0, 0), (1, 1, 1, 1), (10**6, 1, 1, 0)])
@pytest.mark.parametrize("kind", LABELED_LOSSES.values())
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_losses_and_gradients_are_finite(kind, counts, scale):
    logits = (scale * LOGITS).requires_grad_()
    labels = LABELS % sum(count > 0 for count in counts)
    value = kind(of(counts))(logits, labels, 0.9)
    value.backward()
    assert value.isfinite() and value >= 0
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", LABELED_LOSSES.values())
def test_a_loss_follows_copies_and_devices_and_leaves_no_state(kind):
    loss = copy.deepcopy(kind(of(LONG_TAIL))).to("meta")
    assert loss.counts.device.type == "meta" and not loss.state_dict() and not [*loss.parameters()]


# -- the setting


def test_a_flag_names_a_loss_and_its_settings():
    config, plain = settings_of("--labeled_loss", "LogitAdjusted", "--labeled_loss.strength", "2")
    assert plain["labeled_loss"] == {"class_path": "LogitAdjusted", "init_args": {"strength": 2.0}}
    for each in (config, config_from(yaml.safe_load(yaml.safe_dump(plain)))):
        loss = each.labeled_loss(of(LONG_TAIL))
        assert isinstance(loss, LogitAdjusted) and loss.strength == 2 and loss.counts.tolist() == [*LONG_TAIL]


def test_settings_from_before_there_were_losses_still_load():
    plain = settings_of()[1]
    del plain["labeled_loss"]
    assert isinstance(config_from(plain).labeled_loss(of(LONG_TAIL)), CrossEntropy)


@pytest.mark.parametrize("name", LABELED_LOSSES)
def test_every_loss_can_be_named_and_explains_its_settings(name):
    loss = settings_of("--labeled_loss", name)[0].labeled_loss(of(LONG_TAIL))
    assert type(loss) is LABELED_LOSSES[name]
    settings = [*inspect.signature(type(loss).__init__).parameters][2:]
    assert all(f"        {setting}: " in (type(loss).__doc__ or "") for setting in settings)


@pytest.mark.parametrize("name", ["Nope", "FixMatch", "os.getcwd"])
@pytest.mark.filterwarnings("ignore:")
def test_what_is_no_loss_is_refused_with_the_list_of_losses(name):
    with pytest.raises(InputError, match=r"labeled_loss.*CrossEntropy, Balanced, LogitAdjusted"):
        settings_of("--labeled_loss", name)


def test_a_loss_outside_the_package_is_named_by_its_module():
    config, plain = settings_of("--labeled_loss", f"{__name__}.Halved")
    assert plain["labeled_loss"]["class_path"] == f"{__name__}.Halved"
    assert isinstance(config.labeled_loss(of(LONG_TAIL)), Halved)


class Halved(LabeledLoss):
    """Half the cross-entropy."""

    def forward(self, logits, labels, progress):
        return F.cross_entropy(logits, labels) / 2


def test_a_run_that_is_older_than_the_setting_is_resumed(tmp_path: Path):
    plain = settings_of("--config", str(DIGITS))[1]
    older = {key: value for key, value in plain.items() if key != "labeled_loss"}
    folder = RunFolder(tmp_path)
    folder.write_config(older)
    folder.check(plain, resume=True, overwrite=False)
    other = settings_of("--config", str(DIGITS), "--labeled_loss", "Balanced")[1]
    with pytest.raises(InputError, match=r"labeled_loss\.class_path was CrossEntropy, now it is Balanced"):
        folder.check(other, resume=True, overwrite=False)


def test_fixmatch_trains_by_the_loss_it_is_given(tmp_path: Path, capsys):
    data = ["--data.labels_per_class", "20", "--data.labeled_imbalance", "10"]
    first = {}
    for loss in ("CrossEntropy", "LogitAdjusted"):
        steps = ["--steps", "1", "--log_every", "1", "--eval_every", "1", "--checkpoint_every", "1"]
        flags = ["--method", "FixMatch", "--labeled_loss", loss, *data]
        train.main(["--config", str(DIGITS), *steps, *flags, "--out", str(tmp_path / loss)])
        first[loss] = yaml.safe_load((tmp_path / loss / "metrics.jsonl").read_text().splitlines()[0])["loss"]["labeled"]
    assert abs(first["LogitAdjusted"] - first["CrossEntropy"]) > 0.01

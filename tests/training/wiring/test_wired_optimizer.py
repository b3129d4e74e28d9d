"""Every setting of the optimizer reaches it: short runs of the job, and what they leave behind.

A line of the wiring that is left out or mixed up fails a test in this folder. `scripts/checks/mutate.py` breaks each of
them.
"""

import math

import pytest
import torch
from jobs import same
from safetensors.torch import load_file
from watched_runs import PLAIN, RISING, STEPS, STILL, WATCH, close, norm


def test_the_learning_rate_follows_its_schedule(made):
    rates = [record["learning_rate"] for record in made(*RISING, "--optim.lr", "0.1").records()]
    # Progress is 0, .25, .5 and .75: half of the run rises, the rest falls by the cosine.
    assert rates == pytest.approx([0, 0.05, 0.1, 0.05])


def test_weights_move_by_the_learning_rate(made):
    one, half = made(*RISING, "--optim.lr", "0.1"), made(*RISING, "--optim.lr", "0.05")
    still = made(*STILL)
    # The first step of a warm-up has no rate.
    for each in (one, half):
        close(each.trained(1), still.trained(1), relative=0, absolute=1e-20)
    assert norm(one.update(2)) > 1e-2
    close(one.update(2), {key: 2 * value for key, value in half.update(2).items()})


def test_a_step_follows_the_gradient_of_the_sum_of_its_losses(made):
    watch = made(*WATCH, *PLAIN, "--optim.lr", "0.01")
    for step in range(1, STEPS):
        batch, model = watch.batches[step], watch.model(step).train()
        labeled, strong = model(torch.cat([batch.labeled, *batch.strong]))[0].split([8, 16])
        (torch.nn.functional.cross_entropy(labeled, batch.labels) + strong.logsumexp(-1).mean()).backward()
        expected = {key.removeprefix("net."): -0.01 * value.grad for key, value in model.named_parameters()}
        close(watch.update(step + 1), expected)


def test_the_default_schedule_is_fixmatchs(made):
    rates = [record["learning_rate"] for record in made("--optim.lr", "0.2").records()]
    assert rates == pytest.approx([0.2 * math.cos(7 / 16 * math.pi * k / STEPS) for k in range(STEPS)])


def test_a_long_gradient_is_clipped(made):
    free, clipped = made(*PLAIN, "--optim.lr", "0.5"), made(*PLAIN, "--optim.lr", "0.5", "--optim.clip", "0.01")
    for step in range(2, STEPS + 1):
        assert norm(clipped.update(step)) == pytest.approx(0.5 * 0.01, rel=1e-3)
        assert norm(free.update(step)) > 2 * 0.5 * 0.01


def test_a_short_gradient_is_not_clipped(made):
    free, clipped = made(*PLAIN, "--optim.lr", "0.01"), made(*PLAIN, "--optim.lr", "0.01", "--optim.clip", "1e6")
    close(clipped.update(2), free.update(2))


def test_kernels_decay_by_the_weight_decay(made):
    still, free = made(*STILL), made(*PLAIN, "--optim.lr", "0.1")
    decayed = made(*PLAIN, "--optim.lr", "0.1", "--optim.weight_decay", "0.5")
    for key, start in still.trained(1).items():
        expected = -0.1 * 0.5 * start if start.ndim > 1 else torch.zeros_like(start)
        torch.testing.assert_close(decayed.trained(1)[key] - free.trained(1)[key], expected, rtol=1e-3, atol=1e-6)


def test_momentum_adds_a_part_of_the_step_before(made):
    constant = ["--optim.weight_decay", "0", "--optim.schedule", "constant", "--optim.lr", "0.01"]
    still, free = made(*STILL), made(*PLAIN, "--optim.lr", "0.01")
    heavy = made(*constant, "--optim.args.momentum", "0.5", "--optim.args.nesterov", "false")
    first = {key: value - still.trained(1)[key] for key, value in free.trained(1).items()}
    assert same(heavy.trained(1), free.trained(1))
    # From the same weights, so that both have the same gradient.
    close(heavy.update(2), {key: value + 0.5 * first[key] for key, value in free.update(2).items()})


def test_nesterovs_first_step_is_longer(made):
    constant = ["--optim.weight_decay", "0", "--optim.schedule", "constant", "--optim.lr", "0.01"]
    start, free = made(*STILL).trained(1), made(*PLAIN, "--optim.lr", "0.01").trained(1)
    ahead = made(*constant, "--optim.args.momentum", "0.5").trained(1)
    for key, value in start.items():
        torch.testing.assert_close(ahead[key] - value, 1.5 * (free[key] - value), rtol=1e-3, atol=1e-6)


def test_adamw_is_another_optimizer(made):
    out = made("--optim.name", "adamw", "--optim.lr", "0.001").out
    saved = load_file(out / "checkpoints" / f"step_{STEPS:08d}" / "optimizer.safetensors")
    assert {key.rpartition(".")[2] for key in saved} == {"step", "exp_avg", "exp_avg_sq"}


def test_layers_far_from_the_classifier_learn_more_slowly(made):
    net = ["--model.name", "test_resnet", "--steps", "1", *PLAIN]
    still, equal, layered = (
        made(*net, "--optim.lr", lr, *decay).trained(1)
        for lr, decay in (("1e-30", []), ("0.01", []), ("0.01", ["--optim.layer_decay", "0.5"]))
    )
    ratios = {key: ((layered[key] - value).norm() / (equal[key] - value).norm()).item() for key, value in still.items()}
    assert ratios["fc.weight"] == pytest.approx(1, rel=1e-2)
    # The first layer is the farthest.
    assert min(ratios.values()) == pytest.approx(ratios["conv1.0.weight"], rel=1e-2)
    assert math.log2(ratios["conv1.0.weight"]) == pytest.approx(round(math.log2(ratios["conv1.0.weight"])), abs=0.02)
    assert ratios["conv1.0.weight"] < 0.2

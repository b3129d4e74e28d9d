"""Compares our methods with the formulas in the code of their authors or of a peer, written again in NumPy.

Both get the same random logits for some steps. A line for each method says the largest difference of its losses, of the
weights and targets of its pseudo-labels, and of its state, relative where a value is above 1. Where ours departs on
purpose, the peer's formula is computed with our value, and a line below says what both values give.

    python scripts/peers/peers.py
"""

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from peers_rivals import ccl, cpg, dytrim, scad
from peers_steps import (
    KINDS,
    NUM,
    PROBLEM,
    UNIFORM,
    C,
    Comparison,
    M,
    entropy,
    normalized,
    one_hot,
    softmax,
    steps,
)
from peers_uneven import abc, cdmad, daso, debiaspl, finessl, logit_adjustment, simpro

from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.formulas.logits import align, gaussian_weights
from debias_ssl.methods import AdaMatch, FixMatch, FlexMatch, FreeMatch, SoftMatch
from debias_ssl.system.errors import InputError


def fixmatch(num: int) -> Comparison:
    found = Comparison(source="kekmodel/FixMatch-pytorch train.py 040be3b")
    method = FixMatch(PROBLEM)
    for views, x in steps(num):
        weight, target = x.p.max(1) >= 0.95, x.p.argmax(1)
        unlabeled = (weight * entropy(x.strong[0], target)).mean()
        found.see_step(method(views), x.labeled_entropy, unlabeled, weight, target)
    return found


def flexmatch(num: int) -> Comparison:
    found = Comparison(source="microsoft/Semi-supervised-learning semilearn/algorithms/flexmatch/utils.py 1ef4cbe")
    method = FlexMatch(PROBLEM, threshold=0.8)
    selected, learned = np.full(NUM, -1), np.zeros(C)
    for views, x in steps(num):
        confidence, target = x.p.max(1), x.p.argmax(1)
        weight = confidence >= 0.8 * (learned / (2 - learned))[target]
        unlabeled = (weight * entropy(x.strong[0], target)).mean()
        found.see_step(method(views), x.labeled_entropy, unlabeled, weight, target)
        found.see("state", method.beta, learned)
        selected[views.index.numpy()[confidence >= 0.8]] = target[confidence >= 0.8]
        found.see("state", method.memory.value, selected)
        counts = np.bincount(selected + 1, minlength=C + 1)
        learned = counts[1:] / counts.max() if counts.max() < NUM else learned
    return found


def freematch(num: int) -> Comparison:
    found = Comparison(source="microsoft/Semi-supervised-learning semilearn/algorithms/freematch/ 1ef4cbe")
    method = FreeMatch(PROBLEM, momentum=M, fairness_weight=1.0)
    time_p, p_model, histogram = 1 / C, UNIFORM, UNIFORM
    for views, x in steps(num):
        confidence, target = x.p.max(1), x.p.argmax(1)
        time_p = M * time_p + (1 - M) * confidence.mean()
        p_model = M * p_model + (1 - M) * x.p.mean(0)
        histogram = M * histogram + (1 - M) * one_hot(target).mean(0)
        weight = confidence >= time_p * (p_model / p_model.max())[target]
        step, unlabeled = method(views), (weight * entropy(x.strong[0], target)).mean()
        found.see_step(step, x.labeled_entropy, unlabeled, weight, target)
        states = (method.confidence, time_p), (method.marginal, p_model), (method.histogram, histogram)
        for ours, theirs in states:
            found.see("state", ours.value, theirs)
        p = softmax(x.strong[0])[weight]
        predicted = one_hot(p.argmax(1)).mean(0)
        scaled = normalized(p.mean(0) * np.divide(1, predicted, out=np.zeros(C), where=predicted > 0))
        running = normalized(p_model / histogram)
        fairness = (running * np.log(np.maximum(scaled, 1e-8))).sum() if len(p) else 0.0
        found.see("losses", step.losses["fairness"], fairness)
        # The same where all strong views are of the first class.
        alone = method.further_losses(views.strong.logits + 50 * torch.eye(C)[0], step.pseudo)["fairness"]
        theirs = (running * np.log(np.eye(C)[0] + 1e-12)).sum()
        found.depart("fairness where one class alone is predicted: floor 1e-8, 1e-12", alone, theirs)
    return found


def softmatch(num: int) -> Comparison:
    found = Comparison(source="microsoft/Semi-supervised-learning semilearn/algorithms/softmatch/utils.py 1ef4cbe")
    method = SoftMatch(PROBLEM, momentum=M)
    q, mean, variance = UNIFORM, 1 / C, 1.0
    first, their_variance = None, 1.0
    for views, x in steps(num):
        q = M * q + (1 - M) * x.p.mean(0)
        confidence = normalized(x.p * UNIFORM / q).max(1)
        mean = M * mean + (1 - M) * confidence.mean()
        variance = M * variance + (1 - M) * ((confidence - confidence.mean()) ** 2).mean()
        their_variance = M * their_variance + (1 - M) * confidence.var(ddof=1)
        weight = np.exp(-(np.minimum(confidence - mean, 0) ** 2) / (2 * variance / 2**2))
        step, unlabeled = method(views), (weight * entropy(x.strong[0], x.p.argmax(1))).mean()
        found.see_step(step, x.labeled_entropy, unlabeled, weight, x.p.argmax(1))
        for ours, theirs in (
            (method.weights.marginal, q),
            (method.weights.mean, mean),
            (method.weights.variance, variance),
        ):
            found.see("state", ours.value, theirs)
        if first is None:
            first = x.p.mean(0)
            found.depart(
                "q of class 0 after a step: from uniform, of the first batch",
                method.weights.marginal.value[0],
                first[0],
            )
        found.depart("sigma^2 by the batch's size, by one less", method.weights.variance.value, their_variance)
    return found


def gaussian(num: int) -> Comparison:
    found = Comparison(source="microsoft/Semi-supervised-learning semilearn/algorithms/softmatch/utils.py 1ef4cbe")
    for _, x in steps(num):
        confidence = x.p.max(1)
        mean, variance = confidence.mean(), confidence.var()
        ours = gaussian_weights(torch.tensor(confidence), torch.tensor([mean]), torch.tensor([variance]), 2.0)
        found.see("weights", ours, np.exp(-(np.clip(confidence - mean, None, 0) ** 2) / (2 * variance / 4)))
    return found


def adamatch(num: int) -> Comparison:
    found = Comparison(source="google-research/adamatch semi_supervised/adamatch.py 7a0b40c")
    method = AdaMatch(PROBLEM, momentum=M)
    p_labeled, p_unlabeled, buffer = UNIFORM, UNIFORM, [UNIFORM] * 128
    for views, x in steps(num):
        p_labeled = M * p_labeled + (1 - M) * softmax(x.labeled).mean(0)
        p_unlabeled = M * p_unlabeled + (1 - M) * x.p.mean(0)
        buffer = [*buffer[1:], x.p.mean(0)]
        aligned = normalized(x.p * p_labeled / p_unlabeled)
        mask = aligned.max(1) >= 0.9 * softmax(x.labeled).max(1).mean()
        # Its ScheduleCosPhases rises from 0 to 1 over the first half and stays there.
        weight = mask * (0.5 - 0.5 * np.cos(np.pi * min(1.0, views.progress / 0.5)))
        halved = (x.labeled_entropy + entropy(x.strong_labeled, x.labels).mean()) / 2
        step, unlabeled = method(views), (weight * entropy(x.strong[0], aligned.argmax(1))).mean()
        found.see_step(step, 2 * halved, unlabeled, weight, aligned.argmax(1))
        found.see("state", method.marginal.value, p_unlabeled)
        found.see("state", method.prior.value, p_labeled)
        found.depart("labeled loss: sum, half of it", step.losses["labeled"], halved)
        found.depart("q of class 0: running mean, last 128 batches", method.marginal.value[0], np.mean(buffer, 0)[0])
    return found


def alignment(num: int) -> Comparison:
    found = Comparison(source="google-research/adamatch semi_supervised/adamatch.py 7a0b40c")
    q = UNIFORM
    for _, x in steps(num):
        q = M * q + (1 - M) * x.p.mean(0)
        found.see("weights", align(torch.tensor(x.p), torch.tensor(q), torch.tensor(UNIFORM)), normalized(x.p / q))
    # A class that is hardly ever predicted: ten times as probable here as on average.
    p, q = (np.array([rare, *[(1 - rare) / (C - 1)] * (C - 1)]) for rare in (1e-6, 1e-7))
    theirs = normalized(p * (UNIFORM + 1e-6) / (q + 1e-6))[0]
    ours = align(torch.tensor(p), torch.tensor(q), torch.tensor(UNIFORM))[0]
    found.depart("aligned p of a class with q 1e-7: q at least 1e-8, 1e-6 added (USB's SoftMatch too)", ours, theirs)
    return found


PEERS: dict[str, Callable[[int], Comparison]] = {
    "FixMatch": fixmatch,
    "FlexMatch": flexmatch,
    "FreeMatch": freematch,
    "SoftMatch": softmatch,
    "Gaussian weights": gaussian,
    "AdaMatch": adamatch,
    "alignment": alignment,
    "DebiasPL": debiaspl,
    "DebiasPL, two views": partial(debiaspl, num_views=2),
    "DASO": daso,
    "ABC": abc,
    "SimPro": simpro,
    "CDMAD": cdmad,
    "FineSSL": finessl,
    "CCL": ccl,
    "CPG": cpg,
    "SCAD": scad,
    "DyTrim": dytrim,
    "logit adjustment": logit_adjustment,
}


@entry_point
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Largest differences between our methods and their peers' formulas.")
    parser.add_argument("--steps", type=int, default=40, help="steps of random logits")
    parsed = parser.parse_args(arguments)
    if parsed.steps < 1:
        raise InputError(f"--steps is {parsed.steps}, must be at least 1")
    print(f"{'':<22}" + "".join(f"{kind:>10}" for kind in KINDS) + "  peer")
    for name, compare in PEERS.items():
        found = compare(parsed.steps)
        print(f"{name:<22}" + "".join(f"{found.largest[kind]:>10.1e}" for kind in KINDS) + f"  {found.source}")
        for what, (ours, theirs) in found.departures.items():
            print(f"  departs: {what}: ours {ours:.8g}, theirs {theirs:.8g}")


if __name__ == "__main__":
    main()

"""The formulas of methods for uneven classes from 2024 to 2026, after their authors' code, for peers.py."""

from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from peers_steps import (
    COUNTS,
    NUM,
    PROBLEM,
    UNIFORM,
    Array,
    C,
    Comparison,
    L,
    U,
    entropy,
    normalized,
    numbers,
    softmax,
    steps,
)
from torch import nn

from debias_ssl.contract import View
from debias_ssl.methods import CCL, CPG, SCAD, DyTrim, FixMatch
from debias_ssl.methods.dytrim import kept_labeled

# Of the windows of CCL and CPG, so that a few steps have several.
WINDOW = 0.25


def second_head(view: View, head: nn.Linear) -> Array:
    return numbers(view.features) @ numbers(head.weight).T + numbers(head.bias)


def is_new_window(i: int, num: int) -> bool:
    return i > 0 and int(i / num / WINDOW + 1e-9) > int((i - 1) / num / WINDOW + 1e-9)


def ccl(num: int) -> Comparison:
    found = Comparison(source="zhouzihao11/CCL train.py 0410cb1")
    torch.manual_seed(0)
    tau, least = 2.0, 4.0
    method = CCL(PROBLEM, threshold=0.8, negative_energy=least, warm_up=0.0, window=WINDOW)
    py_l, r = normalized(np.array(COUNTS)), U / (U + L)
    py_u, py_all, num_u, num_all = UNIFORM, py_l, np.ones(C), np.ones(C)
    for i, (views, x) in enumerate(steps(num)):
        if is_new_window(i, num):
            py_u, py_all = 0.5 * py_u + 0.5 * normalized(num_u), 0.5 * py_all + 0.5 * normalized(num_all)
            num_u, num_all = np.ones(C), np.ones(C)
        adjustment = np.log(py_u ** (1 + tau / 2) + 1e-12) - np.log((1 - r) * py_l + r * py_all + 1e-12)
        joint = (x.weak[0] + adjustment) / 2 + second_head(views.weak, method.head) / 2
        p, target = softmax(joint), joint.argmax(1)
        weight, energy = p.max(1) >= 0.8, -np.log(np.exp(joint).sum(1))
        strong = second_head(views.strong, method.head) + np.log(py_all**tau + 1e-12)
        labeled = second_head(views.labeled, method.head) + np.log(py_l**tau + 1e-12)
        step = method(views)
        unlabeled = 1.5 * (weight * entropy(x.strong[0], target)).mean()
        found.see_step(step, x.labeled_entropy, unlabeled, weight, target)
        found.see("losses", step.losses["balanced_labeled"], entropy(labeled, x.labels).mean())
        found.see("losses", step.losses["balanced_unlabeled"], 1.5 * (weight * entropy(strong, target)).mean())
        num_u, num_all = num_u + p[energy <= -least].sum(0), num_all + p[weight].sum(0)
        found.see("state", method.priors, np.stack([py_u, py_all]))
        of_two = 1.5 * np.mean([weight * entropy(f, target) for f in x.strong])
        found.depart("unlabeled loss: one strong view, mean of two", step.losses["unlabeled"], of_two)
    return found


def cpg(num: int) -> Comparison:
    """Votes and priors: the authors' loss is of steps drawn from both sets, ours has its expectation."""
    found = Comparison(source="Renaitre1111/diffusion, after yaxinhou/CPG, semilearn/imb_algorithms/cpg/cpg.py c734f3e")
    torch.manual_seed(0)
    method = CPG(PROBLEM, threshold=0.6, least=0.0, warm_up=0.0, window=WINDOW)
    counts, selected, votes = np.array(COUNTS, float), np.zeros(C), {}
    labels, seen = np.zeros((NUM, C)), set()
    for i, (views, x) in enumerate(steps(num)):
        if is_new_window(i, num):
            admitted = {}
            for image, given in votes.items():
                label, most = Counter(given).most_common(1)[0]
                if most > 0.8 * len(given):
                    admitted[image] = (label, np.bincount(given, minlength=C) / len(given))
            # Images that were not looked at stay what they are here.
            labels[[*seen]] = 0
            for image, (_, shares) in admitted.items():
                labels[image] = shares
            selected = np.bincount(labels[labels.any(1)].argmax(1), minlength=C).astype(float)
            votes, seen = {}, set()
        seen |= {*views.index.tolist()}
        refined = np.where(selected <= counts.min(), 0, selected)
        above = np.unique(refined)
        refined = np.ones(C) if len(above) == 1 else np.where(refined == 0, above[1], refined)
        weak, strong = (softmax(f + np.log(normalized(refined))) for f in (x.weak[0], x.strong[0]))
        mask = (weak.max(1) >= 0.6) & (strong.max(1) >= 0.6) & (weak.argmax(1) == strong.argmax(1))
        step = method(views)
        own = numbers(method.labels)
        found.see("state", method.prior, normalized(counts + selected))
        found.see("state", torch.tensor(own / np.maximum(1, own.sum(1, keepdims=True))), labels)
        found.see("weights", step.pseudo.weight, labels[views.index].any(1))
        for image, label in zip(views.index[mask].tolist(), weak[mask].argmax(1).tolist(), strict=True):
            votes.setdefault(image, []).append(label)
        of_image = np.stack([np.bincount(votes.get(image, []), minlength=C) for image in range(NUM)])
        found.see("state", method.memory.votes, of_image)
    return found


def scad(num: int) -> Comparison:
    found = Comparison(source="aitrics-tom/SCAD fixmatchSCAD.py 35ccdb1")
    torch.manual_seed(0)
    groups = [[0, 3], [1, 2, 4]]
    method = SCAD(PROBLEM, threshold=0.8, superclasses=["a", "b", "b", "a", "b"])
    py = normalized(np.array(COUNTS))
    delta = np.ones((2, C))
    for k, classes in enumerate(groups):
        delta[k, classes] = py[classes] / py[classes].max()
    coarse = np.array([0, 1, 1, 0, 1])
    for views, x in steps(num):
        weight, target = x.p.max(1) >= 0.8, x.p.argmax(1)
        step = method(views)
        found.see_step(step, x.labeled_entropy, (weight * entropy(x.strong[0], target)).mean(), weight, target)
        labeled, weak, strong = (second_head(v, method.head) for v in (views.labeled, views.weak, views.strong))

        def of_two(f: Array, target: Array) -> Array:
            return -np.log(softmax(f)[np.arange(len(f)), target])

        mask = softmax(weak).max(1) >= 0.8
        found.see("losses", step.losses["superclass_labeled"], of_two(labeled, coarse[x.labels]).mean())
        found.see("losses", step.losses["superclass_unlabeled"], (mask * of_two(strong, weak.argmax(1))).mean())
        adjusted = x.labeled - np.log(py + 1e-12) - softmax(labeled) @ delta
        found.see("weights", method.predict(views.labeled), adjusted)
    return found


def dytrim(num: int) -> Comparison:
    """Which images of a step are kept, if it is all there is; the authors keep exactly int(0.3 n) of n at random."""
    found = Comparison(source="Jiajun0425/DyTrim dytrim.py, train.py 5be3764")
    method = DyTrim(PROBLEM, base=partial(FixMatch, threshold=0.0), warm_up=0.0)
    for views, x in steps(num):
        views = replace(views, draws=torch.zeros(U))
        degree, scores = softmax(x.blank)[0], entropy(x.labeled, x.labels)
        kept = np.zeros(L)
        for k in range(C):
            indices = np.where(x.labels == k)[0]
            # int() of what is kept there, of what is left out here: of few images, none.
            size = len(indices) - int(degree[k] * len(indices))
            kept[indices[np.argsort(-scores[indices])[:size]]] = 1
        found.see("weights", method.labeled_shares(views), degree)
        found.see("weights", kept_labeled(views.labeled.logits, views.labels, method.labeled_shares(views)), kept)
        loss = entropy(x.strong[0], x.p.argmax(1))
        weights = np.where((loss < loss.mean()) & (views.progress < 0.875), 1 / 0.3, 1)
        found.see("losses", method(views).losses["unlabeled"], (weights * loss).mean())
    return found

"""The formulas of methods for uneven classes, after their authors' code, for scripts/peers/peers.py."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from peers_steps import (
    COUNTS,
    NUM,
    PROBLEM,
    UNIFORM,
    Array,
    C,
    Comparison,
    D,
    M,
    U,
    entropy,
    normalized,
    numbers,
    one_hot,
    softmax,
    steps,
)

from debias_ssl.contract import View
from debias_ssl.formulas.logits import adjust
from debias_ssl.methods import ABC, CDMAD, DASO, DebiasPL, FineSSL, SimPro
from debias_ssl.methods.labeled_loss import LogitAdjusted
from debias_ssl.training.learner import blank_pixel


def debiaspl(num: int, num_views: int = 1) -> Comparison:
    found = Comparison(source="frank-xwang/debiased-pseudo-labeling main_DebiasPL.py 3d68ccb")
    tau, method = 0.5, DebiasPL(PROBLEM, threshold=0.8, momentum=M, num_views=num_views)
    qhat = UNIFORM
    for views, x in steps(num):
        if num_views == 1:
            views = replace(views, further_weak=(), further_strong=())
        mean = np.mean(x.weak[:num_views], 0)
        sources = [softmax(f - tau * np.log(qhat)) for f in ([mean] if num_views == 1 else [mean, *x.weak])]
        qhat = M * qhat + (1 - M) * softmax(mean).mean(0)
        strong = [f + tau * np.log(qhat) for f in x.strong[:num_views]]
        unlabeled = np.mean([(p.max(1) >= 0.8) * entropy(f, p.argmax(1)) for p in sources for f in strong])
        weight, target = sources[0].max(1) >= 0.8, sources[0].argmax(1)
        found.see_step(method(views), x.labeled_entropy, unlabeled, weight, target)
        found.see("state", method.marginal.value, qhat)
    return found


def cosines(z: Float[Array, "N D"], prototypes: Float[Array, "C D"]) -> Float[Array, "N C"]:
    norms = np.linalg.norm(z, axis=1)[:, None] * np.linalg.norm(prototypes, axis=1)
    return z @ prototypes.T / np.maximum(norms, 1e-12)


def daso(num: int) -> Comparison:
    found = Comparison(source="ytaek-oh/daso lib/models/daso_model.py, feature_queue.py 3541a6c")
    method = DASO(PROBLEM, threshold=0.8, momentum=M, warm_up=0.2)
    m, prototypes, counts = UNIFORM, np.zeros((C, D)), np.zeros(C)
    queues = [np.zeros((0, D))] * C
    for views, x in steps(num):
        z, labeled = numbers(views.weak.features), numbers(views.labeled.features)
        semantic = softmax(cosines(z, prototypes) / 0.05)
        align = entropy(cosines(numbers(views.strong.features), prototypes) / 0.05, semantic).mean()
        share = (m ** (1 / 1.5) / (m ** (1 / 1.5)).max())[x.p.argmax(1)][:, None]
        is_blended = views.progress >= 0.2
        p = (1 - share) * x.p + share * semantic if is_blended else x.p
        weight = p.max(1) >= 0.8
        step, unlabeled = method(views), (weight * entropy(x.strong[0], p.argmax(1))).mean()
        found.see_step(step, x.labeled_entropy, unlabeled, weight, p.argmax(1))
        found.see("losses", step.losses["align"], align if is_blended else 0.0)
        m, counts = M * m + (1 - M) * p.mean(0), counts + one_hot(p.argmax(1)).sum(0)
        for k in set(x.labels.tolist()):
            of_class = labeled[x.labels == k]
            prototypes[k] = M * prototypes[k] + (1 - M) * of_class.mean(0)
            queues[k] = np.concatenate([queues[k], of_class])[-256:]
        found.see("state", method.distribution.value, m)
        found.see("state", method.prototypes, prototypes)
        found.depart("m of class 0: soft, argmax", method.distribution.value[0], normalized(counts)[0])
        k = int(x.labels[0])
        ours, theirs = torch.nn.functional.normalize(method.prototypes)[k, 0], queues[k].mean(0)
        theirs = theirs[0] / np.linalg.norm(theirs)
        found.depart("first number of a prototype: running mean, mean of a queue", ours, theirs)
    return found


def abc(num: int) -> Comparison:
    found = Comparison(source="LeeHyuck/ABC ABCcode0920/ABCfix.py f70e926")
    torch.manual_seed(0)
    method = ABC(PROBLEM, threshold=0.8)
    with torch.no_grad():
        # Sure of itself, without training.
        method.head.weight.mul_(10)
    keep = COUNTS[-1] / np.array(COUNTS)
    for views, x in steps(num):

        def auxiliary(view: View) -> Array:
            return numbers(view.features) @ numbers(method.head.weight).T + numbers(method.head.bias)

        own = softmax(auxiliary(views.weak))
        kept = 1 - views.progress * (1 - keep[own.argmax(1)])
        state = torch.random.get_rng_state()
        step = method(views)
        # The same draws again.
        torch.random.set_rng_state(state)
        of_labeled = numbers(torch.bernoulli(torch.tensor(keep[x.labels], dtype=torch.float32)))
        of_unlabeled = numbers(torch.bernoulli(torch.tensor(kept, dtype=torch.float32)))
        weight, target = x.p.max(1) >= 0.8, x.p.argmax(1)
        found.see_step(step, x.labeled_entropy, (weight * entropy(x.strong[0], target)).mean(), weight, target)
        found.see("losses", step.losses["auxiliary"], (of_labeled * entropy(auxiliary(views.labeled), x.labels)).mean())
        mask = (own.max(1) >= 0.8) * of_unlabeled
        consistency = [(mask * entropy(auxiliary(view), own)).mean() for view in (views.strong, *views.further_strong)]
        found.see("losses", step.losses["consistency"], consistency[0])
        found.depart("consistency: one strong view, two", step.losses["consistency"], sum(consistency))
    return found


def simpro(num: int) -> Comparison:
    found = Comparison(source="LeapLabTHU/SimPro SimPro/train.py aa2425d")
    tau, method = 1.0, SimPro(PROBLEM, threshold=0.8, strength=1.0, momentum=M)
    shares, confident, pi_u = normalized(np.array(COUNTS)), UNIFORM, UNIFORM
    counts, labels = np.zeros(C), np.zeros(C)
    found.depart("pi of class 0 at first: over all images, the labels'", method.prior[0], shares[0])
    for views, x in steps(num):
        target = softmax(x.weak[0] + np.log(pi_u**tau + 1e-12))
        weight = target.max(1) >= 0.8
        confident = M * confident + (1 - M) * (weight[:, None] * target).mean(0)
        pi_u = normalized(confident)
        pi = normalized(np.array(COUNTS) + NUM * pi_u)
        counts, labels = counts + target[weight].sum(0), labels + one_hot(x.labels).sum(0)
        labeled = entropy(x.labeled + np.log(pi**tau + 1e-12), x.labels).mean()
        unlabeled = (weight * entropy(x.strong[0] + np.log(pi**tau + 1e-12), target)).mean()
        found.see_step(method(views), labeled, unlabeled, weight, target)
        found.see("state", method.unlabeled_prior, pi_u)
        found.see("state", method.prior, pi)
        # As if the steps until here were an epoch, after which each moves by a tenth.
        theirs = 0.9 * UNIFORM + 0.1 * counts / (counts.sum() + 1)
        found.depart("pi_u of class 0 in the end: each step, a tenth an epoch", method.unlabeled_prior[0], theirs[0])
        found.depart("pi of class 0 in the end", method.prior[0], (0.9 * shares + 0.1 * normalized(labels + counts))[0])
    return found


def cdmad(num: int) -> Comparison:
    found = Comparison(source="LeeHyuck/CDMAD fixmatchcdmad.py 7cd732b")
    method = CDMAD(PROBLEM, warm_up=0.2)
    # Its torch.ones((1, 3, 32, 32)) is beside images that are normalized.
    found.see(
        "state", torch.tensor(blank_pixel(method.needs.blank, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))), np.ones(3)
    )
    for views, x in steps(num):
        target = softmax(x.weak[0] - x.blank if views.progress >= 0.2 else x.weak[0])
        unlabeled = entropy(x.strong[0], target).mean()
        step = method(views)
        found.see_step(step, x.labeled_entropy, unlabeled, np.ones(U), target)
        found.see("weights", method.predict(views.labeled, views.blank), x.labeled - x.blank)
        of_two = np.mean([entropy(f, target) for f in x.strong])
        found.depart("unlabeled loss: one strong view, mean of two", step.losses["unlabeled"], of_two)
    return found


def finessl(num: int) -> Comparison:
    found = Comparison(source="Gank0078/FineSSL trainer.py 236fa27")
    torch.manual_seed(0)
    method = FineSSL(PROBLEM)
    with torch.no_grad():
        method.head.weight.mul_(10)
    selected = np.full(NUM, -1)

    def second(view: View) -> Array:
        return numbers(view.features) @ numbers(method.head.weight).T + numbers(method.head.bias)

    for views, x in steps(num):
        counts = np.bincount(selected + 1, minlength=C + 1)[1:]
        learned = counts / max(1, counts.max())
        alpha = 8 * (1 - learned) / (1 + learned) * (learned.max() - learned.min())
        target, confidence = x.p.argmax(1), softmax(second(views.weak)).max(1)

        def loss(f: Array, y: Array, alpha: Array = alpha) -> Array:
            return entropy(f + alpha[y][:, None] * (1 - one_hot(y)), y)

        found.see("state", method.margins, alpha)
        step, is_sure = method(views), x.p.max(1) >= 0.7
        unlabeled = [3 * (confidence * loss(f, target)).mean() for f in x.strong]
        found.see_step(step, loss(x.labeled, x.labels).mean(), unlabeled[0], confidence, target)
        found.see("losses", step.losses["confidence_labeled"], entropy(second(views.labeled), x.labels).mean())
        smoothed = 0.5 * one_hot(target) + 0.5 / (C - 1) * (1 - one_hot(target))
        of_second = entropy(second(views.strong), smoothed)
        found.see("losses", step.losses["confidence_unlabeled"], (is_sure * of_second).mean())
        found.depart("unlabeled loss: one strong view, mean of two", step.losses["unlabeled"], np.mean(unlabeled))
        if is_sure.any() and not is_sure.all():
            ours = step.losses["confidence_unlabeled"]
            found.depart(
                "loss of the second head: over all images, over confident ones", ours, of_second[is_sure].mean()
            )
        selected[views.index.numpy()[is_sure]] = target[is_sure]
    return found


def logit_adjustment(num: int) -> Comparison:
    found = Comparison(source="google-research/google-research logit_adjustment/utils.py, main.py 1d4d2f1")
    method, base_probs = LogitAdjusted(PROBLEM), normalized(np.array(COUNTS))
    for views, x in steps(num):
        loss = entropy(x.labeled + np.log(base_probs**1.0 + 1e-12), x.labels).mean()
        found.see("losses", method(views.labeled.logits, views.labels, views.progress), loss)
        after = adjust(views.weak.logits, torch.tensor(base_probs).float(), -1.0)
        found.see("weights", after, x.weak[0] - np.log(base_probs**1.0 + 1e-12))
    return found

"""SCAD: a second head for groups of similar classes finds frequent classes that suppress similar rare ones."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from debias_ssl.contract import Needs, Problem, PseudoLabels, Step, View, Views
from debias_ssl.formulas.logits import confident_labels, debias, weighted_cross_entropy
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.system.errors import InputError
from debias_ssl.system.ranges import Fraction, NotNegative, check_ranges


class SCAD(PseudoLabeling):
    """Super-class-aware debiasing (ICLR 2026, aitrics-tom/SCAD) of FixMatch.

    With g a head for superclasses on the features of f, s(y) the superclass of class y, q = softmax(g(weak(u))), and
    pi_l the shares of the classes among the labeled images of steps:

    L = L_FixMatch(f) + lambda_s * [CE(g(weak(x)), s(y)) + mean_u 1[max q >= threshold] CE(g(strong(u)), argmax q)]

    At test time f - tau [log pi_l + sum_k q_k Delta_k] predicts. Delta_kc is 1 if class c is not of superclass k. Else
    it is pi_l(c), divided by the largest pi_l of the classes of k.

    If g is sure of the superclass of an image, its rare classes gain up to tau on its most frequent class, beyond logit
    adjustment. If each class has its own superclass, or if all classes have equally many labels, Delta is 1 for all
    classes. The prediction is then logit adjustment after training (arXiv 2007.07314). superclass_weight = 0 trains the
    network of FixMatch. With strength = 0, f predicts.

    The authors' best figures are for ACR instead of FixMatch, with the same terms subtracted from the logits of ACR's
    pseudo-labels.

    Args:
        problem: what is fixed before training.
        superclasses: the name of the superclass of each class, in the order of classes.
            `scripts/studies/superclasses.py` makes the list from a file or from CLIP's text vectors. Null gives each
            class its own superclass.
        threshold: confidence from which a pseudo-label counts, for both heads.
        unlabeled_weight: lambda_u of FixMatch's loss.
        superclass_weight: lambda_s.
        strength: tau.
    """

    needs = Needs(all_strong=None)
    superclass_of: Int[Tensor, " C"]
    """s, the number of the superclass of each class."""
    penalty: Float[Tensor, "S C"]
    """Delta."""
    labeled_prior: Float[Tensor, " C"]

    def __init__(
        self,
        problem: Problem,
        *,
        superclasses: list[str] | None = None,
        threshold: Fraction = 0.95,
        unlabeled_weight: NotNegative = 1.0,
        superclass_weight: NotNegative = 1.0,
        strength: NotNegative = 1.0,
    ):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        names = superclasses or [str(number) for number in range(problem.num_classes)]
        if len(names) != problem.num_classes:
            raise InputError(
                f"method.superclasses has {len(names)} names, must have one for each of {problem.num_classes} classes"
            )
        self.threshold = threshold
        self.superclass_weight = superclass_weight
        self.strength = strength
        check_ranges(self, "method.")
        distinct = sorted(set(names))
        superclass_of = torch.tensor([distinct.index(name) for name in names])
        prior = torch.tensor(problem.labeled_prior)
        is_of = F.one_hot(superclass_of).T.bool()
        largest = (is_of * prior).amax(1, keepdim=True)
        self.head = nn.Linear(problem.num_features, len(distinct))
        self.register_buffer("superclass_of", superclass_of, persistent=False)
        self.register_buffer("labeled_prior", prior, persistent=False)
        penalty = torch.where(is_of & (largest > 0), prior / largest, 1.0)
        self.register_buffer("penalty", penalty, persistent=False)

    def pseudo_labels(self, logits: Float[Tensor, "U C"], views: Views) -> PseudoLabels:
        target, weight = confident_labels(logits, self.threshold)
        return PseudoLabels(target=target, weight=weight)

    def step(self, views: Views, pseudo: PseudoLabels) -> Step:
        with torch.no_grad():
            target, weight = confident_labels(self.head(views.weak.features), self.threshold)
        views = views.counted(torch.maximum(pseudo.weight, weight))
        step = super().step(views, pseudo)
        labeled = F.cross_entropy(self.head(views.labeled.features), self.superclass_of[views.labels])
        unlabeled = weighted_cross_entropy(self.head(views.strong.features), target, weight)
        further = {
            "superclass_labeled": self.superclass_weight * labeled,
            "superclass_unlabeled": self.superclass_weight * unlabeled,
        }
        return replace(step, losses=step.losses | further)

    def predict(self, view: View, blank: View | None = None) -> Float[Tensor, "N C"]:
        suppressed = self.head(view.features).softmax(-1) @ self.penalty
        return debias(view.logits, self.labeled_prior, self.strength) - self.strength * suppressed

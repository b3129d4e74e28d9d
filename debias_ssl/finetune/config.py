"""The methods of stage two by name, and the settings of `debias-ssl finetune`."""

from dataclasses import dataclass, field

from debias_ssl.finetune.post_hoc import BiasSearch, LogitAdjustment, TauNormalization
from debias_ssl.finetune.retraining import MiSLAS, Retraining
from debias_ssl.finetune.selmix import BalancedMixup, Mixup, SelMix
from debias_ssl.finetune.stage import StageTwo
from debias_ssl.system.ranges import Natural, Share, check_ranges

METHODS: dict[str, type[StageTwo]] = {
    method.__name__: method
    for method in (BalancedMixup, BiasSearch, LogitAdjustment, MiSLAS, Mixup, Retraining, SelMix, TauNormalization)
}


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Changes the classifier of a trained run for an objective, measured on its validation images.

    Args:
        method: how the classifier changes; the settings of a method follow as --method.NAME.
        objective: mean_recall, min_recall, h_mean, g_mean, head_tail_min, f1_macro, or package.module.function: a
            function of the confusion matrix, whose rows sum to 1 / C, to maximize.
        coverage: each class must get at least this part of 1 / C of the predictions (0.95 in the paper); null is no
            constraint.
        seed: of the drawn batches.
    """

    method: StageTwo = field(default_factory=SelMix)
    objective: str = "mean_recall"
    coverage: Share | None = None
    seed: Natural = 0

    def __post_init__(self):
        check_ranges(self, "")

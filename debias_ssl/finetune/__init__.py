"""Stage two: methods that change the linear classifier of a trained run for an objective."""

from debias_ssl.finetune.post_hoc import BiasSearch, LogitAdjustment, TauNormalization
from debias_ssl.finetune.retraining import MiSLAS, Retraining
from debias_ssl.finetune.selmix import BalancedMixup, Mixup, SelMix
from debias_ssl.finetune.stage import StageTwo

__all__ = [
    "BalancedMixup",
    "BiasSearch",
    "LogitAdjustment",
    "MiSLAS",
    "Mixup",
    "Retraining",
    "SelMix",
    "StageTwo",
    "TauNormalization",
]

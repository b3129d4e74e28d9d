"""The settings of weak and strong views."""

from dataclasses import dataclass

from debias_ssl.system.errors import check_settings, fraction, not_negative


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Weak and strong views as in FixMatch (arXiv 2001.07685).

    Args:
        flip: Mirror left and right with probability one half.
        shift: Largest shift as a fraction of the side; the border is filled by reflection.
        num_ops: RandAugment operations per strong view (arXiv 1909.13719).
        op_probability: Probability with which each drawn operation is applied.
        magnitude: The magnitude of an operation is uniform on 1..magnitude-1, out of 10.
        cutout: Side of the gray square as a fraction of the image's side (arXiv 1708.04552); 0 turns it off.
        feature_noise: Where images are given as features: deviation of the noise that a strong view adds to each
            feature, in units of the feature's own deviation over images. A weak view is the features as they are.
        feature_dropout: Probability with which a strong view replaces a feature by its mean.
    """

    flip: bool = True
    shift: float = 0.125
    num_ops: int = 2
    op_probability: float = 0.5
    magnitude: int = 10
    cutout: float = 0.5
    feature_noise: float = 0.5
    feature_dropout: float = 0.2

    def __post_init__(self):
        check_settings(
            self,
            "data.augment.",
            shift=(0 <= self.shift < 1, "in [0, 1)"),
            num_ops=not_negative,
            op_probability=fraction,
            magnitude=(2 <= self.magnitude <= 11, "from 2 to 11"),
            cutout=(0 <= self.cutout <= 2, "in [0, 2]"),
            feature_noise=not_negative,
            feature_dropout=(0 <= self.feature_dropout < 1, "in [0, 1)"),
        )

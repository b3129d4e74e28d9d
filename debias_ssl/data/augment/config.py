"""The settings of weak and strong views."""

from dataclasses import dataclass

from debias_ssl.data.augment.color import COLOR
from debias_ssl.data.augment.geometry import GEOMETRIC
from debias_ssl.system.errors import InputError, check_settings, fraction, not_negative
from debias_ssl.system.imports import near

# All that have a name here. A new one goes to COLOR, and not into FIXMATCH_OPS, which would change the draws of all.
OPERATIONS = (*COLOR, "identity", *GEOMETRIC)
# In an order that must not change: the random number of an image says a position in it.
FIXMATCH_OPS = (
    *("autocontrast", "brightness", "color", "contrast", "equalize", "posterize", "sharpness", "solarize", "identity"),
    *("rotate", "shear-x", "shear-y", "translate-x", "translate-y"),
)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Weak and strong views as in FixMatch (arXiv 2001.07685).

    Args:
        flip: Mirror left and right with probability one half; null leaves it to the data set: digits and SVHN are not
            mirrored, all others are.
        shift: Largest shift as a fraction of the side; the border is filled by reflection.
        num_ops: RandAugment operations per strong view (arXiv 1909.13719).
        ops: The operations that they are drawn from, each as probable as the others: names of the default's, or
            package.module.function of your own, of uint8 images N x H x W x K and int64 magnitudes N.
        op_probability: Probability with which each drawn operation is applied.
        magnitude: The magnitude of an operation is uniform on 1..magnitude-1, out of 10.
        cutout: Side of the gray square as a fraction of the image's side (arXiv 1708.04552); 0 turns it off.
        feature_noise: Where images are given as features: deviation of the noise that a strong view adds to each
            feature, in units of the feature's own deviation over images. A weak view is the features as they are.
        feature_dropout: Probability with which a strong view replaces a feature by its mean.
    """

    flip: bool | None = None
    shift: float = 0.125
    num_ops: int = 2
    ops: tuple[str, ...] = FIXMATCH_OPS
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
        if not self.ops:
            raise InputError("data.augment.ops is empty: name an operation, or set data.augment.num_ops to 0")
        for name in self.ops:
            if "." not in name and name not in OPERATIONS:
                raise InputError(
                    f"data.augment.ops: there is no operation {name!r}; the operations are {', '.join(OPERATIONS)}, "
                    f"or package.module.function of your own{near(name, OPERATIONS)}"
                )

    @property
    def own_ops(self) -> tuple[str, ...]:
        """The names in `ops` that are functions of the user's own."""
        return tuple(name for name in dict.fromkeys(self.ops) if "." in name)

"""The settings of weak and strong views."""

from dataclasses import dataclass
from typing import Annotated

from debias_ssl.data.augment.color import COLOR
from debias_ssl.data.augment.geometry import GEOMETRIC
from debias_ssl.system.errors import InputError
from debias_ssl.system.imports import near
from debias_ssl.system.ranges import BelowOne, Fraction, Natural, NotNegative, Range, check_ranges

# All operations with a name. Add new ones to COLOR, not to FIXMATCH_OPS: that would change the draws of all runs.
OPERATIONS = (*COLOR, "identity", *GEOMETRIC)
# The order must not change: the random number of an image is a position in this list.
FIXMATCH_OPS = (
    *("autocontrast", "brightness", "color", "contrast", "equalize", "posterize", "sharpness", "solarize", "identity"),
    *("rotate", "shear-x", "shear-y", "translate-x", "translate-y"),
)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Weak and strong views as in FixMatch (arXiv 2001.07685).

    Args:
        flip: Mirror left and right with probability 0.5; null mirrors all data sets but digits and SVHN.
        shift: Largest shift as a fraction of the side; the border is filled by reflection.
        num_ops: RandAugment operations per strong view (arXiv 1909.13719).
        ops: The operations to draw from, all with the same probability: names as in the default, or
            package.module.function of your own, which takes uint8 images N x H x W x K and int64 magnitudes N.
        op_probability: Probability with which each drawn operation is applied.
        magnitude: The magnitude of an operation is drawn uniformly from 1..magnitude-1, out of 10.
        cutout: Side of the gray square as a fraction of the image's side (arXiv 1708.04552); 0 turns it off.
        feature_noise: For images given as features: standard deviation of the noise that a strong view adds to each
            feature, in units of the feature's own standard deviation over images. A weak view has no noise.
        feature_dropout: Probability with which a strong view replaces a feature by its mean.
    """

    flip: bool | None = None
    shift: BelowOne = 0.125
    num_ops: Natural = 2
    ops: tuple[str, ...] = FIXMATCH_OPS
    op_probability: Fraction = 0.5
    magnitude: Annotated[int, Range(2, 11, below=False)] = 10
    cutout: Annotated[float, Range(0, 2, below=False)] = 0.5
    feature_noise: NotNegative = 0.5
    feature_dropout: BelowOne = 0.2

    def __post_init__(self):
        check_ranges(self, "data.augment.")
        if not self.ops:
            raise InputError("data.augment.ops is empty: name an operation, or set data.augment.num_ops to 0")
        for name in self.ops:
            if "." not in name and name not in OPERATIONS:
                raise InputError(
                    f"data.augment.ops: unknown operation {name!r}; the operations are {', '.join(OPERATIONS)}, "
                    f"or package.module.function of your own{near(name, OPERATIONS)}"
                )

    @property
    def own_ops(self) -> tuple[str, ...]:
        """The names in `ops` that are functions of the user."""
        return tuple(name for name in dict.fromkeys(self.ops) if "." in name)

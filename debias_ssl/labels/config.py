"""The settings of labels: which class prior is removed from predictions, and which rows get a label."""

from dataclasses import dataclass
from typing import Literal, get_args

from debias_ssl.labels.abstention import AbstentionConfig
from debias_ssl.labels.estimates import PriorName
from debias_ssl.system.errors import InputError, check_settings
from debias_ssl.system.ranges import BelowOne, NotNegative, Positive, Share, check_ranges

EstimateName = Literal["auto"] | PriorName
NAMES = ("auto", *get_args(PriorName))
Refine = Literal["none", "mixture"]
# The settings that may name files.
LABEL_FILES = ("truth", "tune_on", "target_prior", "reference")


@dataclass(frozen=True, kw_only=True)
class DebiasConfig(AbstentionConfig):
    """Which class prior is removed from predictions, and how; and which rows get a label.

    Args:
        prior: what the classifier prefers: `marginal` is the mean of its probabilities, `fixed_point` and `transport`
            are what must be removed for the probabilities, or the counts, to follow `target_prior`, `momentum` is the
            running mean over batches, `confidence` the mean with sure rows counting more, `stationary` of the chain
            from predicted class to probabilities, `centering` of the mean logits, `content_free` of blank images, and
            `none` removes nothing; `auto` is `fixed_point` with a reference, else `stationary`.
        reference: other rows that the prior is measured on, in which all classes are about equally frequent; or a
            preference.json that was measured before, or the folder of labels of such rows.
        strength: tau, how much of it is removed; null is 1, or is chosen on `tune_on`, and less of a prior that is
            estimated from fewer than ten rows a class.
        temperature: logits are divided by it first; null is 1, or is fitted on `tune_on` together with the strength.
        target_prior: shares of the classes that the rows truly have: `uniform`, `em` to estimate them, `present` for
            equal shares of the classes that are found among them, or a JSON or CSV file of class and weight; `auto` is
            `em` with a reference, else `uniform` as far as the rows look like it.
        momentum: of the prior `momentum`, for each batch of 64 rows.
        truth: for figures only: CSV of path,label or row,label, or .npy of class numbers.
        tune_on: labels of a few rows in the same formats, to choose strength and temperature; those rows are left out
            of all figures.
        floor: each row gets the deepest name, of a class or of what is above it in `classes`, whose probability is at
            least this, in the columns name and name_confidence; null gives none.
        refine: `mixture` lets rows that lie close to each other among all, by their features, agree on their classes
            after debiasing (StatA, CVPR 2025, and MOON, 2026); `none` labels each row by itself.
    """

    prior: EstimateName = "auto"
    reference: str | None = None
    strength: NotNegative | None = None
    temperature: Positive | None = None
    target_prior: str = "auto"
    momentum: BelowOne = 0.99
    truth: str | None = None
    tune_on: str | None = None
    floor: Share | None = None
    refine: Refine = "none"

    def __post_init__(self):
        check_settings(
            self,
            "",
            prior=(self.prior in NAMES, f"one of {', '.join(NAMES)}"),
            refine=(self.refine in get_args(Refine), f"one of {', '.join(get_args(Refine))}"),
        )
        check_ranges(self, "")
        super().__post_init__()
        if self.min_precision is not None and self.tune_on is None:
            raise InputError("--min_precision needs the labels of some rows: pass them with --tune_on FILE")

    @property
    def estimate(self) -> PriorName:
        """The prior that is meant."""
        if self.prior == "auto":
            return "stationary" if self.reference is None else "fixed_point"
        return self.prior

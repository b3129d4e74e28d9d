"""The settings of labels: which class prior is removed from predictions, and which rows get a label."""

from dataclasses import dataclass
from typing import Literal, get_args

from debias_ssl.labels.debiasing.abstention import AbstentionConfig
from debias_ssl.labels.debiasing.estimates import PriorName
from debias_ssl.system.errors import InputError, check_settings
from debias_ssl.system.ranges import BelowOne, NotNegative, Positive, Share, check_ranges

EstimateName = Literal["auto", PriorName]
NAMES = ("auto", *get_args(PriorName))
Refine = Literal["none", "mixture"]
# Settings that may name files.
LABEL_FILES = ("truth", "tune_on", "target_prior", "reference")


@dataclass(frozen=True, kw_only=True)
class DebiasConfig(AbstentionConfig):
    """How the class prior is removed from predictions, and which rows get a label.

    Args:
        prior: the estimate of the class prior to remove. `marginal` is the mean probability. `fixed_point` makes the
            mean probabilities follow `target_prior`, and `transport` the counts of labels. `momentum` is the running
            mean over batches. `confidence` is the mean weighted by confidence. `stationary` is the stationary vector of
            the chain from predicted class to probabilities. `centering` uses the mean logits. `content_free` uses blank
            images. `none` removes nothing. `auto` is `fixed_point` with a reference, else `stationary`.
        reference: other rows, in which all classes are about equally frequent, to measure the prior on; or a
            preference.json of an earlier measurement, or the folder of labels of such rows.
        strength: tau, how much of the prior to remove; null is 1, or is chosen on `tune_on`. It is less for a prior
            that is estimated from fewer than ten rows a class.
        temperature: divides the logits first; null is 1, or is fitted on `tune_on` together with the strength.
        target_prior: the true class shares of the rows. `uniform` is equal shares. `em` estimates them. `present` is
            equal shares of the classes that occur. A JSON or CSV file has classes and weights. `auto` is `em` with a
            reference, else `uniform`, but removes less of the prior if classes seem to be missing.
        momentum: momentum of the prior `momentum`, for each batch of 64 rows.
        truth: true labels, for figures only: CSV with path,label or row,label, or .npy of class numbers.
        tune_on: labels of a few rows in the same formats, to choose strength and temperature; all figures leave out
            these rows.
        floor: each row gets the deepest name with at least this probability, of a class or of a name above it in
            `classes`, in the columns name and name_confidence; null adds no such columns.
        refine: `mixture` makes rows with similar features agree on their classes, after debiasing (StatA, CVPR 2025,
            and MOON, 2026); `none` labels each row separately.
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
        """The prior that is removed, with `auto` resolved."""
        if self.prior == "auto":
            return "stationary" if self.reference is None else "fixed_point"
        return self.prior

"""Classes that settings choose by name: methods and losses of labeled images."""

from debias_ssl import methods
from debias_ssl.methods import Method, labeled_loss
from debias_ssl.methods.base import PseudoLabeling, has_common_step
from debias_ssl.methods.labeled_loss import LabeledLoss

METHODS = {
    name: value
    for name in methods.__all__
    if isinstance(value := getattr(methods, name), type) and issubclass(value, Method) and value is not Method
}
# Methods that DebiasPL can use as a base.
BASES = {name: value for name, value in METHODS.items() if issubclass(value, PseudoLabeling) and has_common_step(value)}
# Further methods that DyTrim can use as a base.
TRIMMED = {
    name: value
    for name, value in METHODS.items()
    if issubclass(value, PseudoLabeling) and value.forward is PseudoLabeling.forward and name not in BASES
}
LABELED_LOSSES = {
    name: value
    for name, value in vars(labeled_loss).items()
    if isinstance(value, type) and issubclass(value, LabeledLoss) and value is not LabeledLoss
}
# Settings that name a class: its base class, the package's classes by name, and the words for one and for several.
CHOICES = {
    "method": (Method, METHODS, ("method", "methods")),
    "labeled_loss": (LabeledLoss, LABELED_LOSSES, ("loss", "losses")),
}

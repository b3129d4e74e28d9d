"""Methods, one small class per paper."""

from debias_ssl.methods.base import Method, Problem, PseudoLabels, Step, View, Views
from debias_ssl.methods.debiaspl import DebiasPL
from debias_ssl.methods.fixmatch import FixMatch
from debias_ssl.methods.supervised import Supervised

__all__ = [
    "DebiasPL",
    "FixMatch",
    "Method",
    "Problem",
    "PseudoLabels",
    "Step",
    "Supervised",
    "View",
    "Views",
]

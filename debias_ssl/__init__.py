"""Semi-supervised image classification with the bias of pseudo-labels removed.

The names in `__all__` are the public API. Each is loaded when it is first used. Everything else may change.
"""

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from debias_ssl.contract import Problem as Problem
    from debias_ssl.formulas.calibration import fit_temperature as fit_temperature
    from debias_ssl.formulas.logits import adjust as adjust
    from debias_ssl.formulas.logits import debias as debias
    from debias_ssl.formulas.priors import balancing as balancing
    from debias_ssl.formulas.priors import centering as centering
    from debias_ssl.formulas.priors import confidence_weighted as confidence_weighted
    from debias_ssl.formulas.priors import content_free as content_free
    from debias_ssl.formulas.priors import expectation_maximization as expectation_maximization
    from debias_ssl.formulas.priors import mean_probs as mean_probs
    from debias_ssl.formulas.priors import running_mean as running_mean
    from debias_ssl.formulas.priors import stationary as stationary
    from debias_ssl.formulas.priors import transport as transport
    from debias_ssl.labels.in_memory import debias_matrix as debias_matrix
    from debias_ssl.labels.in_memory import label_images as label_images
    from debias_ssl.methods import ABC as ABC
    from debias_ssl.methods import CCL as CCL
    from debias_ssl.methods import CDMAD as CDMAD
    from debias_ssl.methods import CPG as CPG
    from debias_ssl.methods import CSST as CSST
    from debias_ssl.methods import DASO as DASO
    from debias_ssl.methods import SCAD as SCAD
    from debias_ssl.methods import UDA as UDA
    from debias_ssl.methods import AdaMatch as AdaMatch
    from debias_ssl.methods import DebiasPL as DebiasPL
    from debias_ssl.methods import Distillation as Distillation
    from debias_ssl.methods import DyTrim as DyTrim
    from debias_ssl.methods import EvenMatch as EvenMatch
    from debias_ssl.methods import FineSSL as FineSSL
    from debias_ssl.methods import FixMatch as FixMatch
    from debias_ssl.methods import FlexMatch as FlexMatch
    from debias_ssl.methods import FreeMatch as FreeMatch
    from debias_ssl.methods import Method as Method
    from debias_ssl.methods import PseudoLabel as PseudoLabel
    from debias_ssl.methods import SelfTraining as SelfTraining
    from debias_ssl.methods import SimPro as SimPro
    from debias_ssl.methods import SoftMatch as SoftMatch
    from debias_ssl.methods import Supervised as Supervised
    from debias_ssl.models import build as build
    from debias_ssl.runs.trained import load_run as load_run
    from debias_ssl.training.learner import Learner as Learner

__version__ = "0.1.0"

# OpenMP's threads wait for each other in a busy loop. If other programs run, a step then takes many times as long.
# GNU's OpenMP, which torch uses, reads this when torch is imported; its threads then sleep after 1,000 iterations.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# When a process is killed, torch's C++ code may print a trace of about thirty lines in addition to our one line.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

# The public names by module. Editors and type checkers read the imports above; a test compares the two.
_NAMES = {
    "contract": "Problem",
    "formulas.calibration": "fit_temperature",
    "formulas.logits": "adjust debias",
    "formulas.priors": "balancing centering confidence_weighted content_free expectation_maximization mean_probs "
    "running_mean stationary transport",
    "labels.in_memory": "debias_matrix label_images",
    "methods": "ABC CCL CDMAD CPG CSST DASO SCAD UDA AdaMatch DebiasPL Distillation DyTrim EvenMatch FineSSL "
    "FixMatch FlexMatch FreeMatch Method PseudoLabel SelfTraining SimPro SoftMatch Supervised",
    "models": "build",
    "runs.trained": "load_run",
    "training.learner": "Learner",
}
_MODULES = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names.split()}

__all__ = ["__version__", *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Stored, so that it is looked up once.
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """A package in which a public name never means a module.

    `debias` is a function, and also the module of a job. When Python imports a module, it sets the attribute of the
    package. Without this class, `debias_ssl.debias` would then depend on the earlier imports.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

"""Semi-supervised methods: one small class for each paper."""

from debias_ssl.contract import Needs, Problem, PseudoLabels, Step, View, Views
from debias_ssl.methods.abc import ABC
from debias_ssl.methods.adamatch import AdaMatch
from debias_ssl.methods.base import Method
from debias_ssl.methods.ccl import CCL
from debias_ssl.methods.cdmad import CDMAD
from debias_ssl.methods.cpg import CPG
from debias_ssl.methods.csst import CSST
from debias_ssl.methods.daso import DASO
from debias_ssl.methods.debiaspl import DebiasPL
from debias_ssl.methods.distillation import Distillation
from debias_ssl.methods.dytrim import DyTrim
from debias_ssl.methods.evenmatch import EvenMatch
from debias_ssl.methods.finessl import FineSSL
from debias_ssl.methods.fixmatch import FixMatch
from debias_ssl.methods.flexmatch import FlexMatch
from debias_ssl.methods.freematch import FreeMatch
from debias_ssl.methods.pseudo_label import PseudoLabel
from debias_ssl.methods.scad import SCAD
from debias_ssl.methods.self_training import SelfTraining
from debias_ssl.methods.simpro import SimPro
from debias_ssl.methods.softmatch import SoftMatch
from debias_ssl.methods.supervised import Supervised
from debias_ssl.methods.uda import UDA

__all__ = [
    "ABC",
    "CCL",
    "CDMAD",
    "CPG",
    "CSST",
    "DASO",
    "SCAD",
    "UDA",
    "AdaMatch",
    "DebiasPL",
    "Distillation",
    "DyTrim",
    "EvenMatch",
    "FineSSL",
    "FixMatch",
    "FlexMatch",
    "FreeMatch",
    "Method",
    "Needs",
    "Problem",
    "PseudoLabel",
    "PseudoLabels",
    "SelfTraining",
    "SimPro",
    "SoftMatch",
    "Step",
    "Supervised",
    "View",
    "Views",
]

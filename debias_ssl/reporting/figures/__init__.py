"""Figures as SVG text: functions of arrays, names of classes and a description (`alt`)."""

from debias_ssl.reporting.figures.bars import class_shares, recall_bars
from debias_ssl.reporting.figures.canvas import NAMED, NUM_COLORS, printable, truncated
from debias_ssl.reporting.figures.curves import Series, lines, marginals
from debias_ssl.reporting.figures.dots import class_dots, class_intervals, class_scatter, clusters, reliability
from debias_ssl.reporting.figures.gains import Gain, gains
from debias_ssl.reporting.figures.heat_maps import heat_map, neighbors

__all__ = [
    "NAMED",
    "NUM_COLORS",
    "Gain",
    "Series",
    "class_dots",
    "class_intervals",
    "class_scatter",
    "class_shares",
    "clusters",
    "gains",
    "heat_map",
    "lines",
    "marginals",
    "neighbors",
    "printable",
    "recall_bars",
    "reliability",
    "truncated",
]

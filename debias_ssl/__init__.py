"""Semi-supervised image classification with the bias of pseudo-labels removed."""

__version__ = "0.1.0"

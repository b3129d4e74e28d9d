"""Data sets: each gives lists of images with labels; the names here are what a data set of one's own needs."""

from debias_ssl.data.sources.config import SourceConfig
from debias_ssl.data.sources.images import UNKNOWN, Data, Images

__all__ = ["UNKNOWN", "Data", "Images", "SourceConfig"]

"""Sources: data sets, as functions that return lists of images with labels. Your own data set needs these names."""

from debias_ssl.data.sources.config import SourceConfig
from debias_ssl.data.sources.images import UNKNOWN, Data, Images

__all__ = ["UNKNOWN", "Data", "Images", "SourceConfig"]

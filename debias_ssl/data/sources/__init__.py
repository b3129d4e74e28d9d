"""Sources: data sets, each of which returns lists of images with labels. A data set of your own needs these names."""

from debias_ssl.data.sources.config import SourceConfig
from debias_ssl.data.sources.images import UNKNOWN, Data, Images

__all__ = ["UNKNOWN", "Data", "Images", "SourceConfig"]

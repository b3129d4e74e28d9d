"""`DataConfig`: the settings of the data, joined from those of source, split, reading and augmentation."""

from dataclasses import dataclass

from debias_ssl.data.reading.config import ReadingConfig
from debias_ssl.data.sources.config import SourceConfig
from debias_ssl.data.sources.load import check_name
from debias_ssl.data.splits import SplitConfig
from debias_ssl.data.streams import StreamConfig
from debias_ssl.system.errors import InputError


@dataclass(frozen=True, kw_only=True)
class DataConfig(StreamConfig, ReadingConfig, SplitConfig, SourceConfig):
    """The images of a run, and how they are split, read and augmented. Each stage of `data/` gets its own part."""

    def __post_init__(self):
        for stage in (SourceConfig, SplitConfig, ReadingConfig, StreamConfig):
            stage.__post_init__(self)
        check_name(self.name)
        if self.is_own or self.name == "folder":
            return
        of_files = ["features"] if self.features and self.name != "hf" else []
        of_files += [each for each in ("min_confidence", "probs", "seeds_per_class") if getattr(self, each) is not None]
        if of_files:
            raise InputError(
                f"data.{of_files[0]} works with image files only: set data.name to folder, and set data.labeled "
                "and data.test"
            )

"""Decides by the suffix which files are images, and counts the entries of a folder or tar file that are left out."""

import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from PIL import features

HEIF = "pillow_heif"
# Suffixes that every build of Pillow reads. Other suffixes need a library or a package.
OF_PILLOW = {".apng", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm"}
OF_PILLOW |= {".ppm", ".qoi", ".tga", ".tif", ".tiff"}
OF_OTHERS = (
    (features.check("webp"), "a Pillow with WebP", {".webp"}),
    (features.check("avif"), "a Pillow with AVIF", {".avif"}),
    (features.check("jpg_2000"), "a Pillow with JPEG 2000", {".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx"}),
    (importlib.util.find_spec(HEIF) is not None, "the package pillow-heif", {".heic", ".heif", ".hif"}),
)
EXTENSIONS = frozenset(OF_PILLOW.union(*(suffixes for is_there, _, suffixes in OF_OTHERS if is_there)))
NEEDED = {suffix: needs for is_there, needs, suffixes in OF_OTHERS if not is_there for suffix in suffixes}
# These are obviously not images, so no note mentions them.
NO_IMAGES = {".cls", ".csv", ".db", ".htm", ".html", ".ini", ".ipynb", ".json", ".jsonl", ".log", ".md", ".npy", ".npz"}
NO_IMAGES |= {".parquet", ".pkl", ".pt", ".py", ".rst", ".sh", ".tsv", ".txt", ".xml", ".yaml", ".yml"}

# Reasons other than suffixes.
HIDDEN, HIDDEN_IMAGES, HIDDEN_FOLDERS = "hidden files", "hidden images", "hidden folders"
NOWHERE, TO_FOLDERS = "links to nothing", "links to folders"
CLOSED, UNSEEN, NO_FILES = "folders without permission to read", "files without permission to read", "no regular files"
NO_SUFFIX, OTHER_SUFFIXES = "without a suffix", "of other suffixes"
# Reasons in a folder with a folder for each class, and in tar files.
BESIDE, LINKS, SPARSE = "images beside the folders of the classes", "links, devices and the like", "files with holes"
# Names like "scan.1", "scan.2" have different suffixes: up to this number are counted separately, others together.
MOST_SUFFIXES, LONGEST_SUFFIX = 500, 10
# Largest number of reasons in a note.
SHOWN = 5


@dataclass(kw_only=True)
class Tally:
    """Counts the entries of a folder or tar file that are left out, by reason; it stores no names."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str) -> None:
        if reason not in self.counts and len(self.counts) >= MOST_SUFFIXES:
            reason = OTHER_SUFFIXES
        self.counts[reason] = self.counts.get(reason, 0) + 1


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """The entries of a folder or tar file that are left out."""

    where: str
    """The folder or the tar files."""
    number: int
    """The number of images."""
    counts: Mapping[str, int]
    """The number of other entries, by reason."""

    @property
    def note(self) -> str | None:
        """A note for users; None if all entries are obviously not images."""
        if not any(map(is_worth_a_note, self.counts)):
            return None
        others = sum(self.counts.values())
        return f"{self.where}: {others:,} of {self.number + others:,} entries are left out: {reasons_told(self.counts)}"


def summed(several: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The counts of several folders or tar files together."""
    total: dict[str, int] = {}
    for counts in several:
        for reason, number in counts.items():
            total[reason] = total.get(reason, 0) + number
    return total


def suffix_of(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def hidden(name: str) -> str:
    """The reason why a file is left out whose name begins with a dot."""
    # macOS writes `._x.jpg` beside `x.jpg`; it is not an image.
    is_image = suffix_of(name) in EXTENSIONS.union(NEEDED) and not name.startswith("._")
    return HIDDEN_IMAGES if is_image else HIDDEN


def by_suffix(name: str) -> str:
    """The reason why a file is left out whose suffix is not that of an image."""
    suffix = suffix_of(name)
    if not suffix:
        return NO_SUFFIX
    return suffix if len(suffix) <= LONGEST_SUFFIX and suffix[1:].isalnum() else OTHER_SUFFIXES


def explained(reason: str) -> str:
    """A reason, with the name of the missing package if there is one."""
    return f"{reason} (needs {NEEDED[reason]})" if reason in NEEDED else reason


def is_worth_a_note(reason: str) -> bool:
    return reason not in NO_IMAGES and reason != HIDDEN


def reasons_told(left_out: Mapping[str, int], told: Callable[[str], bool] = is_worth_a_note) -> str:
    """The most frequent reasons with their numbers, such as "40 .heic (needs the package pillow-heif), 3 others".

    Args:
        left_out: how many entries each reason has.
        told: whether a reason is named.
    """
    named = sorted((reason for reason in left_out if told(reason)), key=lambda each: (-left_out[each], each))[:SHOWN]
    texts = [f"{left_out[reason]:,} {explained(reason)}" for reason in named]
    others = sum(left_out.values()) - sum(left_out[reason] for reason in named)
    return ", ".join([*texts, *([f"{others:,} others"] if others else [])])


def none_told(left_out: Mapping[str, int]) -> str:
    """An addition to the message that there are no images; empty if there are no other entries."""
    return f" (left out: {reasons_told(left_out, lambda _: True)})" if left_out else ""

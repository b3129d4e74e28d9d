"""`NamesBelow`: names of files relative to a folder, computed on access."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from debias_ssl.data.sources.listing import FileNames


@dataclass(frozen=True, kw_only=True)
class NamesBelow(Sequence[str]):
    """Paths of files relative to a folder, which take no memory."""

    files: Sequence[str]
    root: Path

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> list[str]: ...
    def __getitem__(self, key: int | slice) -> str | list[str]:
        if isinstance(key, slice):
            return [os.path.relpath(file, self.root) for file in self.files[key]]
        return os.path.relpath(self.files[key], self.root)


def names_below(files: Sequence[str], root: Path) -> Sequence[str]:
    """The paths of files relative to a folder."""
    below = files.below(str(root)) if isinstance(files, FileNames) else None
    return NamesBelow(files=files, root=root) if below is None else below

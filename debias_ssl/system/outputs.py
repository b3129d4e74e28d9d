"""Output folders: files that are in the way, files that a job wrote and may remove, and results that it uses again."""

import fnmatch
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debias_ssl.system.errors import InputError, shortened
from debias_ssl.system.files import write_aside, writes

MANIFEST = "written.json"
# Of a run or of labels: the last file of figures that is written, and the first that is removed.
SUMMARY = "summary.json"
Given = str | Path | Sequence[str] | Sequence[Path] | None


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files that jobs of one kind write into a folder; a manifest lists the files that they wrote.

    A name that is there and not in the manifest is foreign: it is refused, and never replaced or removed. What the
    manifest names is an earlier output of the same kind.
    """

    folder: Path
    kind: str
    """What is written, for messages and the manifest: "a run", "labels", "a comparison"."""
    names: tuple[str, ...]
    """In the order in which they are removed. `NAME/PATTERN` is a folder and what is written into it."""

    def check_foreign(self, names: Sequence[str] | None = None) -> None:
        """Before anything is computed.

        Args:
            names: those that are to be written; None is all of them.

        Raises:
            InputError: something of these names is there that no job of this kind wrote.
        """
        claimed = self._claimed()
        foreign = [
            name for name in _tops(names or self.names) if name not in claimed and os.path.lexists(self.folder / name)
        ]
        if foreign:
            raise InputError(
                f"{str(self.folder)!r} holds {shortened(foreign)}, which is not listed in its {MANIFEST} as "
                f"written for {self.kind}: choose another --out, or move it away"
            )

    def held(self) -> list[str]:
        """The earlier outputs that are there."""
        claimed = self._claimed()
        return [name for name in _tops(self.names) if name in claimed and os.path.lexists(self.folder / name)]

    def check_replaceable(self, overwrite: bool) -> None:
        """Before anything is computed; what a job that was interrupted has left is replaced: the same command goes on.

        Raises:
            InputError: something is there that no job of this kind wrote, or that is to be kept.
        """
        self.check_foreign()
        if not overwrite and not self.is_incomplete() and (held := self.held()):
            raise InputError(
                f"{str(self.folder)!r} holds {held[0]}: choose another --out, or pass --overwrite to replace it"
            )

    def is_incomplete(self) -> bool:
        """Whether a job ended while it was removing what is there, or while it was putting new files there."""
        return self._own().get("is_incomplete", False)

    def check_complete(self) -> None:
        """Raises InputError where an earlier job ended while it was replacing what is there."""
        if self.is_incomplete():
            raise InputError(
                f"{str(self.folder)!r} holds parts of {self.kind}, because a job that replaced it was "
                "interrupted: pass --overwrite to start again"
            )

    def claim(self, *names: str) -> None:
        """Lists in the manifest the files that are written next.

        Raises:
            InputError: something of a name is there that no job of this kind wrote.
            WriteError: the manifest cannot be written.
        """
        claimed = self._claimed()
        if new := [name for name in names if name not in claimed]:
            self.check_foreign(new)
            self._record([*claimed, *new], self.is_incomplete())

    def clear(self) -> None:
        """Removes the written files, and nothing else. A job that is killed meanwhile leaves them marked as incomplete.

        Raises:
            WriteError: something cannot be removed.
        """
        if self._own():
            self.begin_replacing()
            self.complete()

    def mark_incomplete(self) -> None:
        """Marks the files as incomplete, until `complete` or `clear` is called."""
        self._record(self._claimed(), True)

    def begin_replacing(self) -> None:
        """Removes the written files, and marks the folder as incomplete until `complete` is called.

        Raises:
            WriteError: something cannot be removed.
        """
        claimed = self._claimed()
        self.mark_incomplete()
        with writes(self.folder):
            for name in self.names:
                if name.split("/")[0] in claimed:
                    _remove(self.folder, name)
        # A folder with other files in it stays.
        self._record([name for name in claimed if os.path.lexists(self.folder / name)], True)

    def complete(self) -> None:
        """Says that what was written is whole."""
        self._record(self._claimed(), False)

    def _record(self, names: Sequence[str], is_incomplete: bool) -> None:
        manifest = self._read()
        manifest.pop(self.kind, None)
        if names or is_incomplete:
            manifest[self.kind] = {"names": sorted(names)} | ({"is_incomplete": True} if is_incomplete else {})
        if manifest:
            write_aside(self.folder / MANIFEST, json.dumps(dict(sorted(manifest.items())), indent=1) + "\n")
        else:
            with writes(self.folder / MANIFEST):
                (self.folder / MANIFEST).unlink(missing_ok=True)

    def _own(self) -> dict[str, Any]:
        return self._read().get(self.kind, {})

    def _claimed(self) -> list[str]:
        return self._own().get("names", [])

    def _read(self) -> dict[str, dict[str, Any]]:
        """The contents of the manifest.

        Raises:
            InputError: it is damaged, or is a file of another program with the same name.
        """
        path = self.folder / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if all(isinstance(name, str) for of_kind in manifest.values() for name in of_kind["names"]):
                return manifest
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        raise InputError(f"{str(path)!r} does not list what was written there: choose another --out, or move it away")


def check_whole(path: Path) -> None:
    """Before a file is read that a job of this package may have written.

    Raises:
        InputError: the job has not come to its end, so that the files beside this one may be of another, or missing.
    """
    try:
        manifest = json.loads((path.parent / MANIFEST).read_text(encoding="utf-8"))
        kinds = [kind for kind, of_kind in manifest.items() if of_kind.get("is_incomplete")]
        known = [name for kind in kinds for name in manifest[kind]["names"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # There is none, or it is another program's.
        return
    if kinds and not (path.parent / SUMMARY).exists() and (path.name in known or not path.exists()):
        raise InputError(
            f"{str(path.parent)!r} holds parts of {kinds[0]}, because the job that wrote them was interrupted: "
            "run it again"
        )


def _tops(names: Sequence[str]) -> list[str]:
    """The names in the folder itself."""
    return list(dict.fromkeys(name.split("/")[0] for name in names))


def _remove(folder: Path, name: str) -> None:
    """Removes a file, or what matches a pattern in a folder and then that folder, if it is empty."""
    top, _, pattern = name.partition("/")
    path = folder / top
    if not pattern:
        path.unlink(missing_ok=True)
    elif path.is_dir():
        for inner in sorted(path.iterdir()):
            if fnmatch.fnmatch(inner.name, pattern):
                shutil.rmtree(inner) if inner.is_dir() and not inner.is_symlink() else inner.unlink()
        if not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()


def _paths(given: Given) -> Iterator[Path]:
    for each in [given] if isinstance(given, str | Path) else given or []:
        if os.path.exists(each):
            yield Path(each)


def check_apart(out: str | Path, flag: str, inputs: Mapping[str, Given]) -> None:
    """Before anything is computed: no output is an input, lies in one or contains one, links resolved.

    Args:
        out: a file or folder that is to be written.
        flag: what names it.
        inputs: what is read, by what names it; what is not there is no file.

    Raises:
        InputError: it is.
    """
    place = Path(out).resolve()
    for name, given in inputs.items():
        for path in _paths(given):
            read = path.resolve()
            if place == read or (os.path.exists(place) and os.path.samefile(place, read)):
                raise InputError(f"{flag} {str(out)!r} is {name} itself: choose another {flag}")
            if place.is_relative_to(read) or read.is_relative_to(place):
                how = "lies in" if place.is_relative_to(read) else "contains"
                raise InputError(f"{flag} {str(out)!r} {how} {name} {str(path)!r}: choose another {flag}")

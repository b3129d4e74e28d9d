"""`Outputs`: the files of a job in its output folder, foreign files there, and a manifest of what may be replaced."""

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
# The summary of a run or of labels: of all figures, it is written last and removed first.
SUMMARY = "summary.json"
Given = str | Path | Sequence[str] | Sequence[Path] | None


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files that jobs of one kind write into a folder; a manifest lists the files that they wrote.

    A file that exists but is not in the manifest is foreign: it is an error, and is never replaced or removed. A file
    in the manifest is an earlier output of the same kind.
    """

    folder: Path
    kind: str
    """The kind of the outputs, for messages and the manifest: "a run", "labels", "a comparison"."""
    names: tuple[str, ...]
    """Names in the order of removal. `NAME/PATTERN` is a folder and the files that are written into it."""

    def check_foreign(self, names: Sequence[str] | None = None) -> None:
        """Checks for foreign files before anything is computed.

        Args:
            names: the names to write; None is all names.

        Raises:
            InputError: a file with one of these names exists that no job of this kind wrote.
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
        """The earlier outputs that exist."""
        claimed = self._claimed()
        return [name for name in _tops(self.names) if name in claimed and os.path.lexists(self.folder / name)]

    def check_replaceable(self, overwrite: bool) -> None:
        """Checks before anything is computed whether files may be replaced. Files of an interrupted job may.

        Raises:
            InputError: a foreign file exists, or an earlier output that must be kept.
        """
        self.check_foreign()
        if not overwrite and not self.is_incomplete() and (held := self.held()):
            raise InputError(
                f"{str(self.folder)!r} holds {held[0]}: choose another --out, or pass --overwrite to replace it"
            )

    def is_incomplete(self) -> bool:
        """Whether a job ended while it was removing old files or writing new ones."""
        return self._own().get("is_incomplete", False)

    def check_complete(self) -> None:
        """Raises InputError if an earlier job ended while it was replacing files."""
        if self.is_incomplete():
            raise InputError(
                f"{str(self.folder)!r} holds parts of {self.kind}, because a job that replaced it was "
                "interrupted: pass --overwrite to start again"
            )

    def claim(self, *names: str) -> None:
        """Adds the files that are written next to the manifest.

        Raises:
            InputError: a file with one of these names exists that no job of this kind wrote.
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
        """Marks the written files as complete."""
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
    """Checks a file before it is read, if a job of this package wrote it.

    Raises:
        InputError: the job was not finished, so that files beside this one may be missing, or be those of another job.
    """
    try:
        manifest = json.loads((path.parent / MANIFEST).read_text(encoding="utf-8"))
        kinds = [kind for kind, of_kind in manifest.items() if of_kind.get("is_incomplete")]
        known = [name for kind in kinds for name in manifest[kind]["names"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # There is no manifest, or it belongs to another program.
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
    """Removes a file; or the files in a folder that match a pattern, and then the folder, if it is empty."""
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
    """Checks before anything is computed that no output is an input, lies in one or contains one; links are resolved.

    Args:
        out: a file or folder to write.
        flag: the flag that names it.
        inputs: the inputs, by their flags; those that do not exist are ignored.

    Raises:
        InputError: output and input overlap.
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

"""Spellings of a file's name, as other systems and programs write it."""

import os.path
from collections.abc import Iterator
from unicodedata import normalize
from urllib.parse import unquote


def spellings(name: str) -> Iterator[str]:
    """A name as it stands, then as it may be meant, each change upon those before.

    Blanks around it are not meant, `%20` and `file://` are a URL's, backslashes are Windows' slashes, and letters with
    accents are one character (NFC) or, on macOS, two (NFD).
    """
    yield name
    for changed in (name.strip(), _of_url(name.strip()), _plain(name)):
        if changed != name:
            yield (name := changed)
    yield from (other for form in ("NFC", "NFD") if (other := normalize(form, name)) != name)


def canonical(name: str) -> str:
    """What all spellings of a name have in common; `./` and `a/../` are no part of it."""
    plain = normalize("NFC", _plain(name))
    return os.path.normpath(plain) if plain else plain


def _plain(name: str) -> str:
    return _of_url(name.strip()).replace("\\", "/")


def _of_url(name: str) -> str:
    return unquote(name.removeprefix("file://"), errors="surrogateescape")

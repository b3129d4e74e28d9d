"""Spellings of a file's name, as other systems and programs write it."""

import os.path
from collections.abc import Iterator
from unicodedata import normalize
from urllib.parse import unquote


def spellings(name: str) -> Iterator[str]:
    """A name as it is, and then other spellings of it; each change is added to the earlier ones.

    Spaces around the name are removed, `%20` and `file://` of URLs are decoded, and backslashes of Windows become
    slashes. Letters with accents become one character (NFC) or, as on macOS, two (NFD).
    """
    yield name
    for changed in (name.strip(), _of_url(name.strip()), _plain(name)):
        if changed != name:
            yield (name := changed)
    yield from (other for form in ("NFC", "NFD") if (other := normalize(form, name)) != name)


def canonical(name: str) -> str:
    """One form for all spellings of a name, without `./` and `a/../`."""
    plain = normalize("NFC", _plain(name))
    return os.path.normpath(plain) if plain else plain


def _plain(name: str) -> str:
    return _of_url(name.strip()).replace("\\", "/")


def _of_url(name: str) -> str:
    return unquote(name.removeprefix("file://"), errors="surrogateescape")

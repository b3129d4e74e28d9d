"""Names of files as Windows, macOS, URLs and spreadsheets spell them."""

from unicodedata import normalize

import pytest

from debias_ssl.data.sources.spellings import canonical, spellings

NFC, NFD = normalize("NFC", "é.png"), normalize("NFD", "é.png")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("a\\b.png", "a/b.png"),
        ("a%20b.png", "a b.png"),
        ("file:///x/a%20b.png", "/x/a b.png"),
        (" a.png ", "a.png"),
        (NFC, NFD),
        (NFD, NFC),
        (" caf%C3%A9\\b.png", "café/b.png"),
        ("%FF.png", "\udcff.png"),
    ],
)
def test_a_name_may_be_spelled_otherwise(name, meant):
    assert meant in [*spellings(name)][1:]
    assert canonical(name) == canonical(meant)


@pytest.mark.parametrize("name", ["a.png", "a b.png", "100%.png", "x\udcff.png"])
def test_a_name_comes_first_as_it_stands(name):
    assert next(spellings(name)) == name


def test_plain_names_have_one_spelling():
    assert [*spellings("a/b.png")] == ["a/b.png"]


def test_dots_are_no_part_of_a_name():
    assert canonical("./a/../b.png") == "b.png"
    assert canonical("  ") == ""

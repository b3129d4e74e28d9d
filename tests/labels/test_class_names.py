"""Lists of classes as people have them."""

import pytest

from debias_ssl.labels.class_names import read_class_list
from debias_ssl.system.errors import InputError


def names_of(folder, data: str | bytes, name: str = "classes.txt") -> tuple[str, ...]:
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_class_list(folder / name).names


@pytest.mark.parametrize(
    "text",
    [
        "cat\nmaine coon\ndog\n",
        "cat\r\nmaine coon\r\ndog\r\n\r\n",
        "# animals\ncat \nmaine coon\n# the last one\n dog",
        "0,cat\n1,maine coon\n2,dog\n",
        "1: cat\n2: maine coon\n3: dog\n",
        "0 cat\n1 maine coon\n2 dog\n",
        "id,name\n0,cat\n1,maine coon\n2,dog\n",
        "class_id;class name\n2;dog\n0;cat\n1;maine coon\n",
        '0,"cat"\n1,"maine coon"\n2,dog\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_are_read_as_they_are_meant(tmp_path, text, encoding):
    assert names_of(tmp_path, text.encode(encoding)) == ("cat", "maine coon", "dog")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("tench, Tinca tinca\n3D model\n", ("tench, Tinca tinca", "3D model")),
        ("1 euro\n2 euro\n5 euro\n", ("1 euro", "2 euro", "5 euro")),
        ("0\n1\n2\n", ("0", "1", "2")),
        ("0\tcat\n1\tdog\n", ("0", "1")),
        ('"big, red"\n"say ""hi"""\n', ("big, red", 'say "hi"')),
        ("737-300\nA380\n", ("737-300", "A380")),
    ],
)
def test_names_with_numbers_and_commas_stay_names(tmp_path, text, names):
    assert names_of(tmp_path, text) == names


def test_numbers_that_leave_some_out_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"begins with a number, and these are not 0 to 2: write a name a line"):
        names_of(tmp_path, "1,cat\n2,dog\n4,eel\n")


def test_lines_are_counted_with_comments(tmp_path):
    with pytest.raises(InputError, match="lines 2 and 4 are both 'cat'"):
        names_of(tmp_path, "# animals\ncat\ndog\ncat\n")


@pytest.mark.parametrize(("name", "where"), [("classes.txt", ", line 2"), ("classes.json", "")])
def test_names_that_are_no_text_are_refused(tmp_path, name, where):
    data = b'["cat",\n"K\xe4fer"]' if name.endswith("json") else b"cat\nK\xe4fer\n"
    with pytest.raises(InputError, match=rf"{name}{where}: b'K\\xe4fer' is not UTF-8 text: save the file as UTF-8"):
        names_of(tmp_path, data, name)

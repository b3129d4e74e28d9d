"""Lists of classes as people have them."""

import json

import numpy as np
import pytest

from debias_ssl.labels.names.class_list import ClassList, given_classes
from debias_ssl.labels.names.class_names import class_list, read_class_list
from debias_ssl.system.errors import InputError


def read(folder, data: str | bytes, name: str = "classes.txt") -> ClassList:
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_class_list(folder / name)


def names_of(folder, data: str | bytes, name: str = "classes.txt") -> tuple[str, ...]:
    return read(folder, data, name).names


def texts(listed: ClassList) -> list[list[str]]:
    """The prompts, of which sentences stand in quotes."""
    return [[repr(p.text) if p.is_sentence else p.text for p in prompts] for prompts in listed.prompts]


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
    "content",
    [
        ["cat", "maine coon", "dog"],
        {"0": "cat", "1": "maine coon", "2": "dog"},
        {"2": "dog", "0": "cat", "1": "maine coon"},
        {"dog": 2, "cat": 0, "maine coon": 1},
        {"architectures": ["ViT"], "id2label": {"1": "maine coon", "0": "cat", "2": "dog"}, "label2id": {"cat": 0}},
        {"cat": ["cat"], "maine coon": "maine coon", "dog": "dog"},
    ],
)
def test_json_is_read_as_it_is_meant(tmp_path, content):
    listed = read(tmp_path, json.dumps(content), "config.json")
    assert listed.names == ("cat", "maine coon", "dog")
    assert texts(listed) == [["cat"], ["maine coon"], ["dog"]] and not listed.parents


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("tench, Tinca tinca\n3D model\n", ("tench, Tinca tinca", "3D model")),
        ("1 euro\n2 euro\n5 euro\n", ("1 euro", "2 euro", "5 euro")),
        ("1 euro\n2 euro\n5 euro\nbanknote", ("1 euro", "2 euro", "5 euro", "banknote")),
        ("0\n1\n2\n", ("0", "1", "2")),
        ("0\tcat\n1\tdog\n", ("0", "1")),
        ('"big, red"\n"say ""hi"""\n', ("big, red", 'say "hi"')),
        ("737-300\nA380\n", ("737-300", "A380")),
        # No names above them: no blank on both sides of the <.
        ("<5 years\n< 5 km\na<b\na <b\na< b\n5 <\n", ("<5 years", "< 5 km", "a<b", "a <b", "a< b", "5 <")),
        ("C#\n#1 fan\nsize #5\n", ("C#", "size #5")),
        ("name\nlabel\n", ("name", "label")),
    ],
)
def test_names_with_numbers_and_signs_stay_names(tmp_path, text, names):
    listed = read(tmp_path, text)
    assert listed.names == names and not listed.parents


def test_json_lists_and_arrays_have_names_as_they_are(tmp_path):
    names = ("a < b", "c # d", "e,f,", "0,g", "h\ti", "Dr. A.")
    assert names_of(tmp_path, json.dumps(names), "classes.json") == names
    np.save(tmp_path / "classes.npy", np.array(names))
    for listed in (read_class_list(tmp_path / "classes.npy"), given_classes(names)):
        assert listed.names == names and not listed.parents
        assert texts(listed) == [[name] for name in names]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("cat\tcat\tkitten\nmaine coon < cats < animal\ndog < animal\tpuppy\tA dog barks.\n", "c.txt"),
        (
            "cat\tcat\tkitten\tcat\t\t\nmaine coon  <  cats < animal\t\tmaine coon\ndog < animal\tpuppy\tA dog barks.",
            "c.tsv",
        ),
        ("2: dog < animal\tpuppy\tA dog barks.\n0: cat\tcat\tkitten\n1: maine coon < cats < animal\n", "c.txt"),
        (
            '{"cat": ["cat", "kitten"], "maine coon < cats < animal": "maine coon",'
            ' "dog < animal": ["puppy", "A dog barks."]}',
            "c.json",
        ),
    ],
)
def test_prompts_and_names_above_are_the_same_in_all_formats(tmp_path, data, name):
    listed = read(tmp_path, data, name)
    assert listed.names == ("cat", "maine coon", "dog")
    assert texts(listed) == [["cat", "kitten"], ["maine coon"], ["puppy", "'A dog barks.'"]]
    assert listed.parents == {"maine coon": "cats", "cats": "animal", "dog": "animal"}
    given = {"cat": ["cat", "kitten"], "maine coon < cats < animal": "maine coon"}
    assert given_classes(given | {"dog < animal": ["puppy", "A dog barks."]}) == listed
    assert listed.said == (
        "2 of 3 classes have names above them, such as maine coon < cats < animal",
        "note: 1 of 5 prompts end with a period: they are used as sentences, without templates; the first one is "
        "'A dog barks.'",
    )


def test_the_name_of_a_class_is_no_sentence(tmp_path):
    listed = read(tmp_path, "Washington D.C.\nSt. Louis\tSt. Louis\nJr.\tJr.\ta boy\n")
    assert texts(listed) == [["Washington D.C."], ["St. Louis"], ["Jr.", "a boy"]] and not listed.said


def test_digits_may_have_prompts_in_lists(tmp_path):
    listed = read(tmp_path, '{"1": ["one"], "0": ["zero", "nought"]}', "c.json")
    assert listed.names == ("1", "0") and texts(listed) == [["one"], ["zero", "nought"]]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("c.txt", "1,cat\n2,dog\n4,eel\n", "begins with a number, and these are not 0 to 2: write a name a line"),
        ("c.txt", "names:\n 0: cat\n 1: dog\n", "line 1: 'names:' does not begin with a number, as most lines do"),
        ("c.csv", "id,name,group\n0,cat,a\n1,dog,a\n", "line 1: 'id,name,group' does not begin with a number"),
        ("c.yaml", "names:\n- cat\n- dog\n", "is YAML: save the names as text"),
        ("c.csv", "cat,animal\ndog,animal\n", "line 1: 'cat,animal' has a comma"),
        ("c.csv", "Label\ncat\ndog\n", "line 1: 'Label' seems to name the column"),
        ("c.tsv", "name\tprompt\ncat\tkitten\n", "line 1: 'name prompt' seems to name the column"),
        ("c.txt", "[\n'cat',\n'dog',\n]\n", """line 2: "'cat'," has a comma"""),
        (
            "c.txt",
            "cat\ndog # the pet\n",
            "line 2: 'dog # the pet' has a # in it: write comments on separate lines",
        ),
        ("c.txt", "cat\na <  < b\n", "line 2: 'a <  < b' has no name on one side of a <"),
        ("c.txt", "# pets\ncat < a\ndog < b < a\nb < a", "'b' is a class in line 4 and stands above 'dog' in line 3"),
        ("c.txt", "cat < a\ncat < b\n", "lines 1 and 2 are both 'cat'"),
        ("c.json", '{"cat": "x", "dog": "y", "cat": "z"}', "entries 1 and 3 are both 'cat'"),
        ("c.json", '{"0": "cat", "2": "dog"}', "has no class with the number 1: 2 classes need the numbers 0 to 1"),
        ("c.json", '{"1": "cat", "2": "dog"}', "has no class with the number 0"),
        ("c.json", '{"0": "cat", "00": "dog"}', "has twice the number 0"),
        ("c.json", '{"cat": 0, "dog": 0}', "has twice the number 0"),
        ("c.json", '{"id2label": {"0": "cat", "one": "dog"}}', "id2label of .*json must be numbers and names"),
        ("c.json", '{"hidden_size": 768, "layers": [1, 2]}', "must be a list of class names, or names and prompts"),
        ("c.json", '{"animal": {"cat": "x", "dog": "y"}}', "must be a list of class names, or names and prompts"),
        ("c.json", '{"cat": [], "dog": "dog"}', "must be a list of class names, or names and prompts"),
        ("c.json", '{"cat": ["cat", " "], "dog": "dog"}', "a prompt of 'cat' is blank"),
        ("c.json", '{"0": ["n01440764", "tench"], "1": ["n01443537", "x"]}', "pass --classes imagenet"),
        ("c.json", "{}", "has no class names"),
        ("c.json", '"cat"', "must be a list of class names"),
        ("c.json", "[" * 10_000, "is not JSON"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path, name, data, message):
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, data, name)
    assert "c." in str(error.value) and str(error.value).count("\n") <= 1


def test_a_missing_file_is_told_with_its_setting(tmp_path):
    with pytest.raises(InputError, match="--negatives is 'nowhere': there is no such file"):
        class_list("nowhere", "--negatives")


def test_lines_are_counted_with_comments(tmp_path):
    with pytest.raises(InputError, match="lines 2 and 4 are both 'cat'"):
        names_of(tmp_path, "# animals\ncat\ndog\ncat\n")


@pytest.mark.parametrize(
    ("name", "data", "where"),
    [
        ("classes.txt", b"cat\nK\xe4fer\n", ", line 2"),
        ("classes.json", b'["cat",\n"K\xe4fer"]', ""),
        ("classes.json", b'{"0": "K\xe4fer"}', ""),
        ("classes.json", b'{"cat": ["cat", "K\xe4fer"]}', ""),
        ("classes.json", b'{"cat < K\xe4fer": "cat"}', ""),
    ],
)
def test_names_that_are_no_text_are_refused(tmp_path, name, data, where):
    with pytest.raises(InputError, match=rf"{name}{where}: b'K\\xe4fer' is not UTF-8 text: save the file as UTF-8"):
        names_of(tmp_path, data, name)

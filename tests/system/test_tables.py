"""CSV and TSV files as programs and spreadsheets write them."""

import csv
import io
import tracemalloc

import pyarrow as pa
import pytest
from pyarrow import parquet

from debias_ssl.system.errors import InputError
from debias_ssl.system.tables import LABELS, PATHS, is_text, read_table, read_text

ROWS = [
    ["path", "label"],
    ["a b.jpg", "cat"],
    ['say "x".jpg', "dog, big"],
    ["ü.jpg", "dog;old"],
    ["two\nlines.jpg", "cat"],
]


def written(delimiter: str = ",", end: str = "\r\n") -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(ROWS)
    return text.getvalue()


def table_of(folder, data: str | bytes, name: str = "table.csv"):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape"))
    return read_table(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_line_ends_and_encodings_are_found(tmp_path, delimiter, end, encoding):
    table = table_of(tmp_path, written(delimiter, end).encode(encoding))
    assert (table.delimiter, table.header) == (delimiter, ("path", "label"))
    assert [cells for _, cells in table] == ROWS[1:]
    assert [number for number, _ in table] == [2, 3, 4, 6]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_spreadsheet_may_name_its_delimiter(tmp_path, delimiter):
    table = table_of(tmp_path, f"sep={delimiter}\r\n" + written(delimiter))
    assert [cells for _, cells in table] == ROWS[1:]
    assert next(iter(table))[0] == 3


def test_blanks_after_delimiters_are_no_part_of_a_cell(tmp_path):
    table = table_of(tmp_path, 'path, label\nx.jpg, "cat, big"\n')
    assert (table.header, [*table]) == (("path", "label"), [(2, ["x.jpg", "cat, big"])])


def test_names_may_begin_and_end_with_blanks(tmp_path):
    assert [*table_of(tmp_path, "path,label\n x.jpg ,cat\n")] == [(2, [" x.jpg ", "cat"])]


def test_empty_rows_are_left_out_and_counted(tmp_path):
    table = table_of(tmp_path, "path,label\nx.jpg,cat\n\n,\n , \ny.jpg\n")
    assert [*table] == [(2, ["x.jpg", "cat"]), (6, ["y.jpg", ""])]
    assert table.num_empty == 2


def test_columns_that_a_spreadsheet_left_empty_are_none(tmp_path):
    assert table_of(tmp_path, "path,label,,\nx.jpg,cat,,\n").header == ("path", "label")


def test_a_cell_too_many_is_told_with_its_line(tmp_path):
    with pytest.raises(InputError, match="line 3: 3 cells for 2 columns; put cells that contain a comma"):
        list(table_of(tmp_path, "path,label\nx.jpg,cat\ny, z.jpg,cat\n"))


@pytest.mark.parametrize("number", [1, 20_000])
def test_a_quote_that_does_not_end_is_told(tmp_path, number):
    with pytest.raises(InputError, match="line 2 or below"):
        list(table_of(tmp_path, 'path,label\n"x.jpg,cat\n' + "y.jpg,cat\n" * number))


def test_bytes_that_are_no_text_stay_in_names(tmp_path):
    table = table_of(tmp_path, b"path,label\nx\xff.jpg,cat\n")
    assert [cells for _, cells in table] == [["x\udcff.jpg", "cat"]]
    assert not is_text("x\udcff.jpg")
    assert is_text("ü.jpg")


@pytest.mark.parametrize("data", [b"", b"\n", b",,\n", "path,label\n".encode("utf-16-le"), b"\xff\xfe\x00"])
def test_what_is_no_table_is_refused(tmp_path, data):
    with pytest.raises(InputError, match=r"table\.csv"):
        table_of(tmp_path, data)


@pytest.mark.parametrize("name", ["file", "File", "IMAGE"])
def test_columns_are_found_by_usual_names(tmp_path, name):
    table = table_of(tmp_path, f"id,{name}\n1,x.jpg\n")
    assert (table.column(("path", "file", "image")), table.column(("label",))) == (1, None)


def test_the_more_exact_of_several_columns_is_taken_and_told(tmp_path):
    table = table_of(tmp_path, "id,Image Path,name,label\n1,x.jpg,y,cat\n,,,\n")
    assert table.header[table.column(PATHS) or 0] == "Image Path"
    told = "of the columns 'id', 'Image Path', 'name', 'Image Path' is used as the path"
    assert table.notes(PATHS, LABELS) == [f"{table.path}: {told}", f"{table.path}: 1 empty rows are left out"]


@pytest.mark.parametrize(
    ("delimiter", "cell", "number"), [(";", "0,5", 0.5), (";", "0.5", 0.5), (",", "0.5", 0.5), ("\t", " 1e-3", 1e-3)]
)
def test_numbers_may_have_decimal_commas_where_these_divide_no_cells(tmp_path, delimiter, cell, number):
    assert table_of(tmp_path, f"a{delimiter}b\n").number(cell) == number


@pytest.mark.parametrize(("delimiter", "cell"), [(",", "1,234"), (";", "1.234,5"), (";", "5 %"), (",", "")])
def test_what_may_be_another_number_is_none(tmp_path, delimiter, cell):
    with pytest.raises(ValueError, match="float"):
        table_of(tmp_path, f"a{delimiter}b\n").number(cell)


def test_a_workbook_is_told_how_to_be_saved(tmp_path):
    with pytest.raises(InputError, match="a spreadsheet saves text as CSV UTF-8"):
        table_of(tmp_path, b"PK\3\4\0\0\x14\0")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_of_a_long_file_the_whole_lines_of_its_beginning_can_be_had(tmp_path, encoding):
    path = tmp_path / "long.csv"
    path.write_bytes("path,label\nü1.jpg,cat\nü2.jpg,dog\n".encode(encoding))
    size = path.stat().st_size
    for most in range(30 * size // 40, size):
        assert read_text(path, most) == "path,label\nü1.jpg,cat\n"
    assert read_text(path, size + 1) == read_text(path) and len(list(read_table(path, size + 1))) == 2
    assert [*read_table(path).cells()] == [["path", "label"], ["ü1.jpg", "cat"], ["ü2.jpg", "dog"]]


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_no_row_of_a_table_stays_in_memory(tmp_path, name):
    """The file has 400 KB, and its reader a buffer of some."""
    number = 10_000
    if name.endswith(".csv"):
        (tmp_path / name).write_text(
            "path,label\n" + "".join(f"folder/image_{i:012d}.png,cat\n" for i in range(number))
        )
    else:
        columns = {"path": [f"folder/image_{i:012d}.png" for i in range(number)], "label": ["cat"] * number}
        parquet.write_table(pa.table(columns), tmp_path / name, row_group_size=1000)
    table = read_table(tmp_path / name)
    tracemalloc.start()
    table = read_table(tmp_path / name)
    assert sum(1 for _ in table) == number and table.num_empty == 0
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**19


def test_a_byte_of_value_0_far_down_is_told(tmp_path):
    data = b"path,label\n" + b"a.jpg,cat\n" * 20_000
    assert len([*table_of(tmp_path, data)]) == 20_000
    with pytest.raises(InputError, match="is not text: it has bytes of value 0"):
        list(table_of(tmp_path, data + b"a.jpg,\0\n"))

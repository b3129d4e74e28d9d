"""Notebooks as pages of the site: executed while it is built, with what they print and draw."""

import base64
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

SECONDS = 300
"""After which a cell is given up, on a machine that does other work too."""


def executed(path: Path) -> nbformat.NotebookNode:
    """A notebook with its outputs, run in an empty folder.

    Raises:
        RuntimeError: a cell fails; the message has what all cells printed.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": folder}})
        try:
            client.execute()
        except CellExecutionError as error:
            raise RuntimeError(f"{path.name}: {printed(notebook)}") from error
    # A shell command that fails does not fail its cell.
    if re.search(r"^error: ", printed(notebook), re.MULTILINE):
        raise RuntimeError(f"{path.name}: {printed(notebook)}")
    return notebook


def printed(notebook: nbformat.NotebookNode) -> str:
    """What all cells print."""
    return "\n".join(page_text(cell) for cell in notebook.cells if cell.cell_type == "code")


def page_text(cell: nbformat.NotebookNode) -> str:
    """What a cell prints, without the steps of progress bars."""
    streams = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
    values = [
        output.data["text/plain"]
        for output in cell.outputs
        if output.output_type == "execute_result" and "image/png" not in output.data
    ]
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", "\n".join([streams, *values]).replace("\r\n", "\n"))
    last = re.sub(r"[^\n]*\r", "", text)
    return re.sub(r"^ *\d+%\|.*\n", "", last, flags=re.MULTILINE).strip("\n")


def pages(folder: Path) -> Iterator[tuple[str, str | bytes]]:
    """Path on the site and content of each notebook's page, and of its pictures."""
    for path in sorted(folder.glob("*.ipynb")):
        parts, number = [], 0
        for cell in executed(path).cells:
            if cell.cell_type == "markdown":
                parts.append(cell.source)
                continue
            parts.append(f"```python\n{cell.source}\n```")
            if text := page_text(cell):
                parts.append(f"```text\n{text}\n```")
            for output in cell.outputs:
                if picture := output.get("data", {}).get("image/png"):
                    number += 1
                    name = f"{path.stem}-{number}.png"
                    yield f"notebooks/{name}", base64.b64decode(picture)
                    parts.append(f"![{described(cell.source)}]({name})")
        link = f"[{path.name}](../files/docs/notebooks/{path.name})"
        note = f"This page is the notebook {link}, executed while the site was built."
        yield f"notebooks/{path.stem}.md", "\n\n".join([parts[0], note, *parts[1:]]) + "\n"
        yield f"files/docs/notebooks/{path.name}", path.read_bytes()


def drafts(docs: Path) -> Iterator[tuple[str, str | bytes]]:
    """The pages with their texts alone, for a site that is built in seconds."""
    for path in sorted((docs / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        yield f"notebooks/{path.stem}.md", text
        yield f"files/docs/notebooks/{path.name}", path.read_bytes()


def described(source: str) -> str:
    """The titles of a cell's drawings, for those who do not see them."""
    return "; ".join(re.findall(r"title[=(]\"([^\"]+)\"", source)) or "Figure of the cell above"

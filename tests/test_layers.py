"""The folders of the package are its layers: imports go down only, as docs/architecture.md draws them."""

import ast
from pathlib import Path

import pytest

import debias_ssl
from debias_ssl.cli import JOBS

# A folder (or the module `contract`), and the layers that it may import.
LAYERS = {
    "system": "",
    "contract": "",
    "formulas": "system",
    "distributed": "system contract",
    "methods": "system contract formulas distributed",
    "models": "system",
    "data": "system contract formulas distributed methods",
    "features": "system contract formulas distributed models data",
    "training": "system contract formulas distributed methods models data",
    "runs": "system contract formulas distributed methods models data training",
    "deployment": "system contract data models runs",
    "labels": "system contract formulas distributed models data features training runs",
    "finetune": "system contract formulas distributed data training runs",
    "reporting": "system contract formulas distributed data training runs labels",
}
# Jobs import all layers, and are imported by the command alone; one of them, distill, is train with other defaults.
JOB_MODULES = {module.removeprefix("debias_ssl.") for module, _ in JOBS.values()}
PACKAGE = Path(debias_ssl.__file__).parent
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def layer_of(module: str) -> str:
    """The layer of a module: its folder, `contract`, or `job`."""
    if module in JOB_MODULES:
        return "job"
    return module.split(".")[0]


def imports(source: str) -> set[str]:
    """Modules of the package that a source imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: name the whole module"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {name for name in inner if name.removeprefix("debias_ssl.") in FILES}
            found |= known or {str(node.module)}
    return {name.removeprefix("debias_ssl.") for name in found if name.startswith("debias_ssl.")}


def forbidden(module: str, source: str) -> set[str]:
    """What a module of this source imports although it may not."""
    layer = layer_of(module)
    if layer == "job":
        allowed = {*LAYERS, "job"} if module == "distill" else {*LAYERS}
    else:
        allowed = {layer, *LAYERS[layer].split()}
    return {name for name in imports(source) if layer_of(name) not in allowed}


@pytest.mark.parametrize("module", [module for module in FILES if layer_of(module) in {*LAYERS, "job"}])
def test_imports_go_down_only(module):
    assert not forbidden(module, FILES[module].read_text())


def test_a_layer_imports_layers_above_its_line_only():
    order = [*LAYERS]
    for layer, allowed in LAYERS.items():
        assert all(order.index(name) < order.index(layer) for name in allowed.split()), layer


def circles(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """What is left of a graph when all that no circle needs is removed."""
    graph = dict(graph)
    while removable := [node for node, targets in graph.items() if not targets & graph.keys()]:
        for node in removable:
            del graph[node]
    return graph


def test_modules_of_a_folder_do_not_import_each_other_in_a_circle():
    assert not circles({module: imports(path.read_text()) - {module} for module, path in FILES.items()})


def test_folders_of_a_layer_do_not_import_each_other_in_a_circle():
    inner = {module: ".".join(module.split(".")[:2]) for module in FILES if module.count(".") > 1}
    graph: dict[str, set[str]] = {folder: set() for folder in inner.values()}
    for module, folder in inner.items():
        names = imports(FILES[module].read_text())
        graph[folder] |= {inner[name] for name in names if name in inner} - {folder}
    assert {"labels.names", "data.sources"} <= graph.keys() and not circles(graph)


def test_the_package_shows_its_layers_and_jobs():
    shown = {path.stem for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed")}
    assert shown == {*LAYERS, *(job.replace("-", "_") for job in JOBS), "cli", "__init__", "__main__"}


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_modules_and_functions_are_short(path):
    source = path.read_text()
    assert source.count("\n") <= 350
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None and node.end_lineno - node.lineno < 60, node.name


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("methods.debiaspl", "from debias_ssl.training.learner import Learner", {"training.learner"}),
        ("methods.debiaspl", "from debias_ssl.methods.fixmatch import FixMatch", set()),
        ("methods.new", "import debias_ssl.models", {"models"}),
        ("formulas.new", "def f():\n    from debias_ssl.distributed import collectives", {"distributed.collectives"}),
        ("data.task", "from debias_ssl.data.__main__ import main", {"data.__main__"}),
        ("evaluate", "from debias_ssl.train import main", {"train"}),
        ("training.loop", "from debias_ssl import cli, __version__", {"cli"}),
        ("runs.run", "import torch\nfrom debias_ssl.models import build", set()),
    ],
)
def test_wrong_imports_are_found(module, source, found):
    assert forbidden(module, source) == found

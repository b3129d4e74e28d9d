"""The package's imports go one way, as docs/architecture.md says."""

import ast
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import debias_ssl
from debias_ssl.cli import JOBS

# Modules, and what of the package they may import: modules of lines above, or of their own line where it is named.
LAYERS = {
    # Errors that people see, and files that are whole.
    "errors processes": "",
    "files": "errors",
    "locking": "errors files",
    # Pure functions of tensors and numbers.
    "functional metrics calibration schedules": "",
    "priors": "functional",
    "rescaling": "calibration",
    "objectives": "errors metrics",
    # Methods, which know of nothing but formulas and trackers, and not of each other.
    "trackers": "errors",
    "signals": "trackers",
    "methods.base": "errors functional",
    "methods.*": "errors functional trackers methods.base",
    "methods": "methods.*",
    "labeled_loss": "functional",
    # Networks, and images; a data set tells a method what is fixed before training.
    "models models.*": "errors models.*",
    "data data.*": "errors files signals methods.base data.*",
    "features": "errors files trackers models.clip data.*",
    # Stage two: features and a head, whatever made them.
    "finetune finetune.*": "errors functional schedules objectives finetune.*",
    # Learning.
    "learner": "schedules trackers methods.base models data.streams",
    "optim": "errors schedules",
    # What a run leaves behind, and what is said of it.
    "checkpoint": "errors trackers",
    "journal": "trackers methods.base",
    "evaluation": "functional metrics calibration trackers data.streams",
    # The machine, and the settings of all of the above.
    "runtime": "errors processes data.streams",
    "config": "errors methods.base methods labeled_loss models data.datasets learner optim runtime",
    "run_folder": "errors files methods.base models data.datasets data.reading data.streams learner checkpoint config",
    "given": "errors methods.base learner data.streams data.task run_folder",
    # What runs say together, and what is compared.
    "run_summary": "",
    "results": "files journal config",
    "variants": "errors config run_folder",
    # Labels without a class prior, of any matrix.
    "row_labels": "errors files data.datasets data.label_files",
    "labeling": "errors files functional calibration priors data.datasets row_labels",
    "label_folder": "errors files functional metrics calibration labeling",
    "predictions": "errors files functional data.label_files row_labels labeling",
    # Pages: figures, what they show, and how they are put together.
    "reporting": "",
    "reporting.figures": "",
    "reporting.page": "reporting.figures",
    "reporting.parts": "calibration reporting reporting.figures reporting.page",
    "reporting.inspection": "errors files functional data.* journal evaluation config run_folder",
    "reporting.run_page": (
        "errors functional reporting reporting.figures reporting.page reporting.parts reporting.inspection"
    ),
    "reporting.labels_page": (
        "functional labeling label_folder reporting reporting.figures reporting.page reporting.parts"
    ),
    "reporting.calibration_page": "rescaling reporting reporting.page reporting.parts",
    "reporting.comparison_page": "errors config results reporting reporting.*",
    "report": "errors files config runtime reporting.*",
    # Jobs, one of which starts others, and the command that finds them by their names.
    "train predict data.__main__": (
        "errors files processes locking schedules signals methods.base models data.* learner optim checkpoint journal "
        "evaluation runtime config run_folder run_summary given"
    ),
    "distill": "errors runtime config run_folder train",
    "finetune.__main__": (
        "errors files locking methods.base data.* objectives finetune finetune.* journal evaluation runtime config "
        "run_folder"
    ),
    "compare": "errors files processes locking signals journal config run_folder runtime results report variants train",
    "label": (
        "errors files processes locking models.clip data.* features runtime config row_labels labeling label_folder "
        "predictions reporting.*"
    ),
    "debias": (
        "errors processes config runtime row_labels labeling label_folder predictions reporting.labels_page "
        "reporting.page"
    ),
    "evaluate": (
        "errors files processes rescaling data.* evaluation runtime config run_folder row_labels predictions "
        "reporting.calibration_page reporting.page"
    ),
    "cli": "",
    "__main__": "cli",
}
ENTRY_POINTS = {
    "train",
    "distill",
    "compare",
    "evaluate",
    "predict",
    "data.__main__",
    "label",
    "debias",
    "finetune.__main__",
}
# A job that others may call, since it is a function of folders.
LIBRARY_JOBS = {"report"}
MAY_IMPORT_ACCELERATE = {"runtime"} | ENTRY_POINTS

PACKAGE = Path(debias_ssl.__file__).parent
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in PACKAGE.rglob("*.py")
}
MODULES = sorted(FILES)
ROOT = ""


def imports(source: str, module: str = ROOT) -> set[str]:
    """Full names of what a module's source imports, wherever in it; of names in modules, the modules."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import in line {node.lineno}: name the whole module"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner.removeprefix("debias_ssl.") in FILES else str(node.module))
    return found


def own_imports(source: str) -> set[str]:
    """Modules of the package that a source imports; the package itself holds its version only."""
    names = {name.removeprefix("debias_ssl").lstrip(".") for name in imports(source) if name.startswith("debias_ssl")}
    return names - {ROOT}


def matches(module: str, patterns: str) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns.split())


def layer_of(module: str) -> str | None:
    """The line of the table for a module: the one that has its name, else the one with a pattern that fits."""
    lines = [line for line in LAYERS if module in line.split()] or [line for line in LAYERS if matches(module, line)]
    return lines[0] if lines else None


def forbidden(module: str, source: str) -> set[str]:
    """What a module of this source imports although it may not."""
    line = layer_of(module)
    assert line is not None
    return {
        name
        for name in own_imports(source)
        if not matches(name, LAYERS[line])
        # A pattern does not allow a job, its name does.
        or (name in ENTRY_POINTS and name not in LAYERS[line].split())
        or (name == "cli" and module != "__main__")
    }


@pytest.mark.parametrize("module", [module for module in MODULES if module != ROOT])
def test_modules_import_from_their_layers_only(module):
    assert layer_of(module), f"debias_ssl.{module} is new: give it a line in LAYERS of {__file__}"
    wrong = forbidden(module, FILES[module].read_text())
    assert not wrong, f"debias_ssl.{module} may import {LAYERS[str(layer_of(module))] or 'nothing'}, not {wrong}"


def test_the_package_itself_imports_nothing_but_the_environment():
    assert imports(FILES[ROOT].read_text()) == {"os"}


def test_lines_of_the_table_import_from_lines_above_them():
    order = list(LAYERS)
    for line, allowed in LAYERS.items():
        for name in MODULES:
            if matches(name, allowed) and name not in ENTRY_POINTS:
                assert order.index(str(layer_of(name))) <= order.index(line), f"{line!r} may not come before {name!r}"


def test_the_table_names_no_module_that_is_gone():
    patterns = {pattern for pair in LAYERS.items() for part in pair for pattern in part.split()}
    assert not {pattern for pattern in patterns if not any(fnmatchcase(module, pattern) for module in MODULES)}


@pytest.mark.parametrize("module", MODULES)
def test_accelerate_is_for_jobs_alone(module):
    uses = any(name.split(".")[0] == "accelerate" for name in imports(FILES[module].read_text()))
    assert not uses or module in MAY_IMPORT_ACCELERATE


def test_the_command_knows_the_jobs_by_name():
    assert {module for module, _ in JOBS.values()} == {f"debias_ssl.{name}" for name in ENTRY_POINTS | LIBRARY_JOBS}


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("methods.debiaspl", "from debias_ssl.methods.fixmatch import FixMatch", {"methods.fixmatch"}),
        ("methods.debiaspl", "from debias_ssl.methods import FixMatch", {"methods"}),
        ("methods.debiaspl", "from debias_ssl import functional, learner", {"learner"}),
        ("methods.new", "import debias_ssl.models", {"models"}),
        ("functional", "def f():\n    from debias_ssl.trackers import all_sum_", {"trackers"}),
        ("data.new", "from debias_ssl.learner import Learner", {"learner"}),
        ("data.task", "from debias_ssl.data.__main__ import main", {"data.__main__"}),
        ("evaluate", "from debias_ssl.train import train", {"train"}),
        ("compare", "from debias_ssl.train import train", set()),
        ("cli", "from debias_ssl import train, __version__", {"train"}),
        ("journal", "from debias_ssl import cli", {"cli"}),
        ("learner", "import torch\nfrom debias_ssl.models import build", set()),
    ],
)
def test_wrong_imports_are_found(module, source, found):
    assert forbidden(module, source) == found

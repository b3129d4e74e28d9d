"""Runs that the tests of the wiring share."""

import json
from collections.abc import Callable

import pytest
from jobs import run
from watched_runs import TINY, Run, watched


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """A short run with these flags; the same flags give the same run, which is made once."""
    runs: dict[tuple[str, ...], Run] = {}

    def make(*flags: str) -> Run:
        if flags not in runs:
            runs[flags] = Run(tmp_path_factory.mktemp("runs") / "run")
            with watched(runs[flags]):
                run(runs[flags].out, *TINY, *flags)
        return runs[flags]

    return make


@pytest.fixture(scope="module")
def alone(made, tmp_path_factory) -> str:
    """A split of one labeled and one unlabeled image."""
    path = tmp_path_factory.mktemp("split") / "split.json"
    path.write_text(json.dumps(made().split() | {"labeled": [3], "unlabeled": [7], "validation": []}))
    return str(path)

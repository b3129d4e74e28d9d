"""Comparisons that the tests of `debias-ssl compare` share."""

from pathlib import Path

import pytest
from short_comparisons import TWO, run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("compare") / "a", *TWO, "--seeds", "0,1", "--report=true")

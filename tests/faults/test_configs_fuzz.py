"""Every file in configs/, broken at random: it is a config, or told in two lines; never a traceback."""

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from debias_ssl.system.errors import InputError
from debias_ssl.training.config import Config
from debias_ssl.training.parser import make_parser, resolve

pytestmark = pytest.mark.slow

CONFIGS = [yaml.safe_load(path.read_text()) for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))]
CASES = 2400

EXTREMES = st.sampled_from(
    [
        None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.0, 1e-300, 1e308, float("inf"),
        float("-inf"), float("nan"), "", " ", "null", "nan", "1e5", "0x10", "yes", "~", "a" * 5000, "two\nlines",
        "\0", "ü", "../..",
        "/dev/null", "os.system", "builtins.eval", "DebiasPL", "FixMatch", "torch.optim.SGD", [], [[]], {}, {"a": 1},
        {"class_path": "os.system"}, {"class_path": "DebiasPL"}, {"class_path": None, "init_args": 3},
        [1, "a", None], [0.5, 0.1],
    ]
)  # fmt: skip
VALUES = EXTREMES | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.integers(), max_size=4)
KEYS = st.sampled_from(
    ["", "stepz", "method", "init_args", "class_path", "data", "__class__", "config", "seed"]
) | st.text(max_size=12)


def places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The settings of a config, and the sections that hold them."""
    found = [path] if path else []
    return (
        found + [each for key, item in value.items() for each in places(item, (*path, key))]
        if isinstance(value, dict)
        else found
    )


@st.composite
def broken(draw: st.DrawFn) -> dict[str, Any]:
    config = copy.deepcopy(draw(st.sampled_from(CONFIGS)))
    for _ in range(draw(st.integers(1, 3))):
        found = places(config)
        if not found:
            break
        *parents, key = draw(st.sampled_from(found))
        section = config
        for parent in parents:
            section = section[parent]
        match draw(st.sampled_from(["drop", "add", "rename", "replace", "replace"])):
            case "drop":
                del section[key]
            case "add":
                section[draw(KEYS)] = draw(VALUES)
            case "rename":
                section[draw(KEYS)] = section.pop(key)
            case "replace":
                section[key] = draw(VALUES)
    return config


def test_a_broken_config_is_a_config_or_told_in_two_lines(tmp_path: Path):
    counts = {"parsed": 0, "refused": 0}
    parser, path = make_parser("train", Config), tmp_path / "broken.yaml"

    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        phases=[Phase.generate],
    )
    @given(broken())
    def check(config: dict[str, Any]) -> None:
        path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
        try:
            resolve(parser, parser.read_arguments(["--config", str(path)]))
            counts["parsed"] += 1
        except InputError as error:
            counts["refused"] += 1
            assert 1 <= len(str(error).splitlines()) <= 2, str(error)

    started = time.monotonic()
    check()
    print(f"\n{counts} in {time.monotonic() - started:.0f} s")
    assert sum(counts.values()) >= 2000 and counts["refused"] > 1000

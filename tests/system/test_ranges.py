"""Every number that can be set has a range, and what is outside is refused by its name before anything else happens."""

import math
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest
from jobs import settings_of

from debias_ssl import train
from debias_ssl.contract import Problem
from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.config import DataConfig
from debias_ssl.finetune.config import METHODS as STAGE_TWO
from debias_ssl.finetune.config import FinetuneConfig
from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.methods import UDA, DebiasPL, FixMatch
from debias_ssl.models import ModelConfig
from debias_ssl.system.errors import InputError
from debias_ssl.system.ranges import Range, declared, ranges_of
from debias_ssl.training.choices import LABELED_LOSSES, METHODS
from debias_ssl.training.config import Config
from debias_ssl.training.journal import threshold_flag
from debias_ssl.training.optim import OptimConfig

PROBLEM = Problem(num_classes=3, num_features=2, labeled_counts=(5, 3, 2), num_unlabeled=10)
SECTIONS: dict[str, type] = {
    "Config": Config,
    "DataConfig": DataConfig,
    "AugmentConfig": AugmentConfig,
    "ModelConfig": ModelConfig,
    "OptimConfig": OptimConfig,
    "FinetuneConfig": FinetuneConfig,
    "DebiasConfig": DebiasConfig,
    **STAGE_TWO,
    **METHODS,
    **LABELED_LOSSES,
}
each_section = pytest.mark.parametrize("name", SECTIONS)


def hints_of(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind if is_dataclass(kind) else kind.__init__, include_extras=True)
    return {name: hint for name, hint in hints.items() if name not in ("return", "problem")}


def is_number(hint: Any) -> bool:
    """Whether a setting of this type is a number, or several."""
    if hint in (int, float):
        return True
    inside = get_origin(hint) in (Annotated, UnionType, Union, tuple, list)
    return inside and any(is_number(inner) for inner in get_args(hint))


def made(kind: type, **settings: Any) -> Any:
    return kind(**settings) if is_dataclass(kind) else kind(PROBLEM, **settings)


def refusal(kind: type, name: str, value: Any) -> str:
    """The message about the setting, or nothing; other settings may have to be set with it."""
    try:
        made(kind, **{name: value})
    except InputError as error:
        told = (f"{name} is {value}, must be ", f"momentum of a running mean is {value}, must be ", f"{name} must be ")
        return str(error) if any(each in str(error) for each in told) else ""
    return ""


def as_set(hint: Any, number: float) -> Any:
    """The setting of one number, or of as many as it has."""
    for inner in [hint, *get_args(hint)]:
        if get_origin(inner) is list:
            return [number] * 3
        if get_origin(inner) is tuple:
            return (number,) * (2 if len(get_args(inner)) == 2 and ... not in get_args(inner) else 3)
    return number


def is_whole(hint: Any) -> bool:
    return hint is int or any(is_whole(inner) for inner in get_args(hint))


def numbers(allowed: Range, whole: bool) -> tuple[list[float], list[float]]:
    """Numbers just inside a range, and just outside."""

    def after(number: float, towards: float) -> float:
        return int(number) + (1 if towards > number else -1) if whole else math.nextafter(number, towards)

    inside, outside = [], [math.nan] * (not whole)
    for edge, is_open, out in (
        (allowed.smallest, allowed.above, -math.inf),
        (allowed.largest, allowed.below, math.inf),
    ):
        if math.isinf(edge):
            (outside if is_open or edge < 0 else inside).append(edge)
        else:
            inside.append(after(edge, -out) if is_open else edge)
            outside.append(edge if is_open else after(edge, out))
    return inside, [number for number in outside if not (whole and math.isinf(number))]


@each_section
def test_every_number_has_a_range(name: str):
    without = [
        setting for setting, hint in hints_of(SECTIONS[name]).items() if is_number(hint) and not [*ranges_of(hint)]
    ]
    assert not without, f"declare the ranges of {without} in their types: system/ranges.py"


@each_section
def test_what_is_just_outside_is_refused_and_the_edges_are_taken(name: str):
    kind = SECTIONS[name]
    for setting, allowed in declared(kind).items():
        hint = hints_of(kind)[setting]
        inside, outside = numbers(allowed, is_whole(hint))
        assert outside or math.isinf(allowed.smallest)
        for number in inside:
            value = as_set(hint, number)
            # Shares must not all be 0.
            assert not refusal(kind, setting, [*value[1:], 1] if isinstance(value, list) else value), (setting, number)
        for number in outside:
            assert refusal(kind, setting, as_set(hint, number)), (setting, number)


def cases(classes: dict[str, type]) -> Iterator[tuple[str, str, float]]:
    for name, kind in classes.items():
        for setting, allowed in declared(kind).items():
            for number in (allowed.smallest - (not allowed.above), allowed.largest + (not allowed.below)):
                if math.isfinite(number):
                    yield name, setting, as_set(hints_of(kind)[setting], number)


@pytest.mark.parametrize(("name", "setting", "value"), [*cases(METHODS)])
def test_settings_of_methods_are_refused_where_they_are_read(name: str, setting: str, value: Any):
    with pytest.raises(InputError, match=rf"method\.{setting} is .*, must be "):
        settings_of("--method", name, f"--method.{setting}={value}")


@pytest.mark.parametrize(("name", "setting", "value"), [*cases(LABELED_LOSSES)])
def test_settings_of_losses_are_refused_where_they_are_read(name: str, setting: str, value: Any):
    with pytest.raises(InputError, match=rf"labeled_loss\.{setting} is .*, must be "):
        settings_of("--labeled_loss", name, f"--labeled_loss.{setting}={value}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method.num_views", "0"], "method.num_views is 0, must be at least 1"),
        (["--method.num_views", "-1"], "method.num_views is -1, must be at least 1"),
        (["--labeled_loss", "LabelSmoothing", "--labeled_loss.smoothing", "2"], "smoothing is 2.0, must be in [0, 1)"),
        (["--labeled_loss", "AdaptiveMargin", "--labeled_loss.beta", "1"], "beta is 1.0, must be in [0, 1)"),
        (["--labeled_loss", "Equalized", "--labeled_loss.drop", "1.5"], "drop is 1.5, must be in [0, 1]"),
        (["--model.batch_norm_momentum", "7"], "model.batch_norm_momentum is 7.0, must be in [0, 1]"),
        (["--model.drop_rate", "1"], "model.drop_rate is 1.0, must be in [0, 1)"),
        (
            ["--method.base", "UDA", "--method.base.init_args.temperature", "0"],
            "temperature is 0.0, must be",
        ),
    ],
)
def test_a_job_says_so_before_it_makes_anything(flags: list[str], message: str, tmp_path, capsys):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as ended:
        train.main(["--steps", "1", *flags, "--out", str(out)])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said and "Traceback" not in said and not out.exists()


def test_help_says_the_ranges(capsys):
    with pytest.raises(SystemExit):
        train.main(["--method.help", "FixMatch"])
    said = " ".join(capsys.readouterr().out.split())
    assert "float in [0, 1], default: 0.95" in said and "list[float at least 0]" in said and "Annotated" not in said


# A setting that would do nothing.


@pytest.mark.parametrize(("name", "value"), [("threshold", 0.8), ("unlabeled_weight", 2.0)])
def test_debiaspl_does_not_ignore_a_setting_beside_a_base(name: str, value: float):
    with pytest.raises(InputError, match=rf"method\.{name} is {value}.*set --method\.base\.init_args\.{name}"):
        made(DebiasPL, base=FixMatch, **{name: value})
    assert made(DebiasPL, **{name: value}).base is None


def test_a_warning_names_the_threshold_that_there_is():
    def over(base: Callable) -> DebiasPL:
        return DebiasPL(PROBLEM, base=base)

    assert threshold_flag(DebiasPL(PROBLEM)) == threshold_flag(FixMatch(PROBLEM)) == "--method.threshold"
    assert threshold_flag(over(UDA)) == "--method.base.init_args.threshold"
    assert threshold_flag(over(METHODS["SoftMatch"])) is None and threshold_flag(METHODS["SoftMatch"](PROBLEM)) is None

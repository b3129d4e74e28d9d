"""The plan of a comparison, its variants and seeds: from a command line, or from the file of an earlier comparison."""

import argparse
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from debias_ssl.runs.folder import difference
from debias_ssl.runs.pairing import find_floors, inside
from debias_ssl.runs.taught_variants import teachers_first
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_yaml
from debias_ssl.training.choices import METHODS
from debias_ssl.training.config import Config
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import make_parser, resolve
from debias_ssl.training.saved import completed, config_from, switched_method
from debias_ssl.training.shipped import found_config


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """The content of `compare.yaml`: the settings of each variant without their seed, and the seeds."""

    base: dict[str, Any]
    """Settings that all variants start from."""
    variants: dict[str, dict[str, Any]]
    """Settings by name; with several settings of data or training, the name is SETTING/VARIANT."""
    seeds: tuple[int, ...]
    choose_among: tuple[str, ...] = ()
    """Variants for the choice of one of them on validation images, in each setting."""
    floors: dict[str, str] = field(default_factory=dict)
    """For each variant, the labels-only variant that it should exceed."""


def read_plan(path: Path) -> ComparisonPlan | None:
    """The plan in a `compare.yaml`; None if there is no such file.

    Raises:
        InputError: the file is not the plan of a comparison.
    """
    if not path.exists():
        return None
    try:
        saved = read_yaml(path)
        return ComparisonPlan(
            base=_with_new_defaults(saved["base"]),
            variants={name: _with_new_defaults(settings) for name, settings in dict(saved["variants"]).items()},
            seeds=tuple(saved["seeds"]),
            choose_among=tuple(saved["choose_among"]),
            floors=dict(saved.get("floors", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not the record of a comparison: {reason(error)}") from error


def _with_new_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Saved settings without the seed, with defaults for settings that did not exist when they were saved."""
    return {name: value for name, value in completed(settings).items() if name != "seed"}


def flags_of(overrides: dict[str, Any], prefix: str = "--") -> list[str]:
    """Nested settings as flags, which override all flags before them; a method comes before its own settings."""
    flags = []
    for key, value in overrides.items():
        if key == "help":
            raise InputError(f"there is no setting '{prefix.removeprefix('--')}help'")
        if isinstance(value, dict):
            flags += flags_of(value, f"{prefix}{key}.")
        elif key == "class_path":
            flags.insert(0, f"{prefix.removesuffix('.')}={value}")
        else:
            flags.append(f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value, default=str)}")
    return flags


def grid_of(text: str) -> dict[str, dict[str, Any]]:
    """The variants of --grid, by name: `method.strength=0,0.25` gives `strength=0` and `strength=0.25`."""
    field, _, values = text.partition("=")
    if not field or not all(value.strip() for value in values.split(",")):
        raise InputError(f"--grid {text!r} must be a field and its values, such as method.strength=0,0.25,0.5,1")
    *parents, last = field.strip().split(".")
    found = {}
    for value in values.split(","):
        name = f"{last}={_plain_number(value.strip())}"
        if name in found:
            raise InputError(f"--grid {text!r} has the value {value.strip()} twice")
        found[name] = {last: value.strip()}
        for parent in reversed(parents):
            found[name] = {parent: found[name]}
    return found


def _plain_number(value: str) -> str:
    try:
        return f"{float(value):.12g}"
    except ValueError:
        return value


def _requested_variants(parsed: Any) -> dict[str, dict[str, Any]]:
    """The variants of a command line: for each name, the settings in which it differs from the base.

    Raises:
        InputError: a name is given twice or cannot name a folder, or its settings do not exist.
    """
    methods = [name.strip() for name in (parsed.methods or "").split(",") if name.strip()]
    requested: list[tuple[str, Any]] = [(name, {"method": name}) for name in methods]
    if parsed.variants:
        requested += [
            (str(name), value) for name, value in read_yaml(found_config(parsed.variants, "--variants")).items()
        ]
    if parsed.grid:
        requested += grid_of(parsed.grid).items()
    return _checked("variant", requested)


def _requested_settings(parsed: Any) -> dict[str, dict[str, Any]]:
    """The changes of each setting of --settings; without the flag, one setting without a name and changes."""
    if not parsed.settings:
        return {"": {}}
    return _checked(
        "setting",
        [(str(name), value) for name, value in read_yaml(found_config(parsed.settings, "--settings")).items()],
    )


def _checked(kind: str, requested: list[tuple[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, overrides in requested:
        if name in found:
            raise InputError(f"two {kind}s are called {name!r}")
        if not name.strip() or name.startswith((".", "compare.", "report.")) or set(name) & set('/\\\0\n\r\t"<>|?*:'):
            raise InputError(f"{kind} {name!r} cannot be the name of a folder")
        found[name] = {} if overrides is None else overrides
        _check_overrides(f"{kind} {name!r}", found[name])
    return found


def _check_overrides(where: str, overrides: Any) -> None:
    if not isinstance(overrides, dict):
        raise InputError(f"{where}: {overrides!r} is not a mapping of settings")
    settings = [field.name for field in fields(Config)]
    for key in overrides:
        if key == "seed":
            raise InputError(f"{where} sets seed: seeds are given by --seeds")
        if key not in settings:
            raise InputError(f"{where}: there is no setting {key!r}; the settings are {', '.join(settings)}")


def _resolved_settings(arguments: list[str], where: str = "") -> tuple[dict[str, Any], str | None]:
    """Resolved settings of flags of train without a seed, and a note if a method other than the config's drops some.

    Args:
        arguments: the flags.
        where: the name of their source in errors.
    """
    parser = make_parser("compare", Config)
    with adding_method_names(f"{where}: " if where else ""):
        parsed = parser.read_arguments(arguments)
        resolved = resolve(parser, parsed)[1]
    note = switched_method(resolved, [Path(str(file)) for file in parsed.config or []])
    return {name: value for name, value in resolved.items() if name != "seed"}, note


def parse_with_settings(
    job: str, said: JobHelp, add_flags: Callable[[argparse.ArgumentParser], None], arguments: list[str]
) -> tuple[Any, list[str]]:
    """The command line of a job that has the settings of train and its own flags.

    Args:
        job: the name of the job.
        said: the beginning of its help.
        add_flags: adds its own flags to a parser.
        arguments: the command line.

    Returns:
        The values of all flags, and the arguments that are flags of train.
    """
    parser, own = make_parser(job, Config, said), argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_flags(parser)
    add_flags(own)
    with adding_method_names():
        parsed = parser.read_arguments(arguments)
    return parsed, own.parse_known_args(arguments)[1]


@contextmanager
def adding_method_names(where: str = "") -> Iterator[None]:
    """Puts `where` before the message of an InputError, and lists the methods if the message does not."""
    try:
        yield
    except InputError as error:
        if several := re.search(r"there is no method '([^',]+,[^']+)'", str(error)):
            raise InputError(f"{where}--method takes one method: for several, pass --methods {several[1]}") from error
        methods = ", ".join(METHODS)
        hint = f"; the methods are {methods}" if 'setting "method' in str(error) and methods not in str(error) else ""
        raise InputError(f"{where}{error}{hint}") from error


def seeds_of(text: str) -> tuple[int, ...]:
    """The seeds of a flag such as 0,1,2."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len({int(part) for part in parts}) < len(parts):
        raise InputError(f"--seeds {text!r} must be different whole numbers, separated by commas, such as 0,1,2")
    return tuple(int(part) for part in parts)


def requested_plan(
    parsed: Any, settings: list[str], recorded: ComparisonPlan | None, out: Path
) -> tuple[ComparisonPlan, list[str]]:
    """The plan of a command line, merged with an earlier one, and notes to print.

    Args:
        parsed: values of the flags of compare.
        settings: flags of train.
        recorded: the plan in `out` if the command resumes it.
        out: folder of the comparison, for errors.

    Raises:
        InputError: a setting is wrong, or differs from the recorded plan.
    """
    variants, settings_of = _requested_variants(parsed), _requested_settings(parsed)
    if parsed.choose_on and not parsed.grid:
        raise InputError("--choose_on chooses among the values of --grid: pass --grid too")
    if recorded and not variants and not settings and not parsed.settings:
        for resolved in recorded.variants.values():
            config_from({**resolved, "seed": recorded.seeds[0]})
        added = seeds_of(parsed.seeds) if parsed.seeds else ()
        return replace(recorded, seeds=tuple(dict.fromkeys((*recorded.seeds, *added)))), []
    if not variants and (not recorded or parsed.settings):
        raise InputError("there is nothing to compare: pass --methods, --variants or --grid")
    base, _ = _resolved_settings(settings)
    bases = {
        setting: (_resolved_settings([*settings, *flags_of(own)], f"setting {setting!r}")[0] if own else base)
        for setting, own in {"": {}, **settings_of}.items()
    }
    resolved, notes = _resolved_variants(settings, settings_of, variants)
    chosen = (
        [inside(setting, name) for setting in settings_of for name in grid_of(parsed.grid)] if parsed.choose_on else []
    )
    for name in chosen:
        if not resolved[name]["data"]["validation_per_class"]:
            raise InputError("--choose_on validation needs validation images: pass --data.validation_per_class")
    requested = ComparisonPlan(
        base=base,
        variants=resolved,
        seeds=seeds_of(parsed.seeds) if parsed.seeds else recorded.seeds if recorded else (parsed.seed,),
        choose_among=tuple(chosen) or (recorded.choose_among if recorded else ()),
    )
    plan = _merged(recorded, requested, out) if recorded else requested
    complete, floors = find_floors(
        plan.variants, {setting: each["labeled_loss"] for setting, each in bases.items()}, add=parsed.floor
    )
    teachers_first(complete)
    return replace(plan, variants=complete, floors=floors), [*notes, *_split_notes(base)]


def _resolved_variants(
    flags: list[str], settings_of: dict[str, dict[str, Any]], variants: dict[str, dict[str, Any]]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The settings of each variant in each setting, and notes for users about them."""
    resolved, notes = {}, {}
    for setting, own in settings_of.items():
        for name, each in variants.items():
            whole = inside(setting, name)
            resolved[whole], note = _resolved_settings([*flags, *flags_of(own), *flags_of(each)], f"variant {whole!r}")
            if note:
                notes.setdefault(name, f"variant {name!r}: {note}")
    return resolved, [*notes.values()]


def _split_notes(base: dict[str, Any]) -> list[str]:
    return [
        f"data.{name} is {base['data'][name]}: all seeds share one split"
        for name in ("split_seed", "split")
        if base["data"][name] is not None
    ]


def _merged(recorded: ComparisonPlan, requested: ComparisonPlan, out: Path) -> ComparisonPlan:
    """Both plans together.

    Raises:
        InputError: they differ in the base or in a variant of the same name.
    """
    shared = [name for name in requested.variants if name in recorded.variants]
    for title, was, now in (
        ("the base", recorded.base, requested.base),
        *((f"variant {name!r}", recorded.variants[name], requested.variants[name]) for name in shared),
    ):
        differs = difference(was, now)
        if differs:
            raise InputError(f"{str(out)!r} cannot be resumed: in {title}, {differs}")
    return replace(
        requested,
        variants={**recorded.variants, **requested.variants},
        seeds=tuple(dict.fromkeys((*recorded.seeds, *requested.seeds))),
    )

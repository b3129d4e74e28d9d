"""Reads the settings that were saved with a run."""

import json
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from debias_ssl.data.config import DataConfig
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import read_yaml
from debias_ssl.system.imports import near_beside
from debias_ssl.training.config import Config
from debias_ssl.training.parser import Parser, make_parser, refuse_misplaced, resolve
from debias_ssl.training.renamed import check_names, flat


def config_from(resolved: dict[str, Any]) -> Config:
    """The settings of a `config.yaml`.

    Raises:
        InputError: a setting is unknown or has a wrong value.
    """
    return _resolve_saved(resolved)[0]


def completed(saved: dict[str, Any]) -> dict[str, Any]:
    """The plain values of a `config.yaml`, with defaults for settings that are newer than it.

    Raises:
        InputError: a setting is unknown or has a wrong value.
    """
    return _resolve_saved(saved)[1]


def _resolve_saved(saved: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    parser = make_parser("train", Config)
    check_names(flat(saved).items(), "config.yaml")
    try:
        return resolve(parser, parser.parse_object(saved))
    except (TypeError, ValueError, ArgumentError) as error:
        raise InputError(" ".join(str(error).split())) from error


def switched_method(resolved: dict[str, Any], files: Sequence[Path]) -> str | None:
    """The settings that were kept and dropped when a flag switched the method; None if it was not switched."""
    chosen, own = resolved["method"]["class_path"], resolved["method"]["init_args"]
    others, settings = [], []
    for file in files:
        method = read_yaml(file).get("method")
        if isinstance(method, dict) and method.get("class_path") != chosen:
            others.append(f"{method.get('class_path')} in {file}")
            settings += [key for key in method.get("init_args") or {} if key not in settings]
    if not others:
        return None
    kept = [f"{key}={own[key]}" for key in settings if key in own]
    dropped = [key for key in settings if key not in own]
    return (
        f"method {chosen} instead of {', '.join(others)}: "
        f"kept {', '.join(kept) or 'nothing'}; dropped {', '.join(dropped) or 'nothing'}"
    )


def no_run_told(folder: Path) -> str:
    """What is wrong with a folder in which a run is looked for."""
    why = "it has no config.yaml" if folder.is_dir() else f"there is no such folder{near_beside(folder)}"
    return f"{str(folder)!r} holds no run: {why}"


def parse_data(
    parser: Parser, arguments: list[str], run_of: Callable[[Namespace], str] = lambda parsed: parsed.run
) -> tuple[Namespace, DataConfig]:
    """Parses a command line that names a run. Its data settings apply unless flags --data.NAME change them."""
    parser.add_class_arguments(DataConfig, "data")
    run = run_of(parser.read_arguments(arguments))
    if not (Path(run) / "config.yaml").exists():
        raise InputError(no_run_told(Path(run)))
    saved = read_yaml(Path(run) / "config.yaml")
    check_names(flat(saved).items(), str(Path(run) / "config.yaml"))
    if not isinstance(saved.get("data"), dict):
        raise InputError(f"{run!r} has no data settings in its config.yaml")
    parsed = parser.read_arguments(["--data", json.dumps(saved["data"]), *arguments])
    refuse_misplaced({"data": DataConfig}, parsed.as_dict())
    return parsed, parser.instantiate(parsed).data

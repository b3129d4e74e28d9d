"""Reads settings with jsonargparse: from defaults, then YAML files, then flags."""

import re
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from debias_ssl.system.errors import InputError
from debias_ssl.system.files import read_yaml
from debias_ssl.system.imports import near
from debias_ssl.system.ranges import check_values
from debias_ssl.training.choices import BASES, CHOICES, TRIMMED
from debias_ssl.training.config import Config
from debias_ssl.training.job_help import Formatter, JobHelp
from debias_ssl.training.messages import WORDING, near_setting
from debias_ssl.training.renamed import check_flags, check_names, flat
from debias_ssl.training.shipped import with_found_configs

# By default, jsonargparse imports modules of the standard library to warn of them, and turns a value with a class_path
# into an object even for a setting of any type. Both are turned off.
set_parsing_settings(import_path_denylist=[], instantiate_subclass_spec_in_any=False)


class Parser(ArgumentParser):
    """A parser that raises errors as an InputError with one line."""

    choices: dict[str, tuple[type, dict[str, Any], tuple[str, str]]] = CHOICES

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        hint = " (--help lists the settings)"
        text = " ".join(message.split()).replace(hint, "").replace("Parser key ", "setting ")
        text = re.sub(r"(\S{80})\S{80,}", r"\1...", text)
        for technical, plain in WORDING:
            text = re.sub(technical, plain, text)
        for setting, (_, named, (one, many)) in self.choices.items():
            if f'setting "{setting}' in text:
                text, is_class = re.subn(r"(no|not a) method", rf"\1 {one}", text)
                hint = f" (--{setting}.help CLASS lists its settings)"
                if is_class:
                    hint = f"; the {many} are {', '.join(named)}, or package.module.Class of your own (see PYTHONPATH)"
                if unknown := re.search(rf"no {one} '(\w+)'", text):
                    hint = near(unknown[1], [*named]) + hint
        flags = [flag.removeprefix("--") for action in self._actions for flag in action.option_strings]
        hint = near_setting(text, flags) + hint
        if 'setting "base"' in text:
            text = re.sub(r"(no|not a) method", r"\1 base", text)
            if re.search(r"(no|not a) base", text):
                hint = f"; DebiasPL goes over {', '.join(BASES)}, DyTrim also over {', '.join(TRIMMED)}"
        # `error` is called twice for an error in the settings of a class that a setting names.
        raise InputError(text.removesuffix(hint) + hint) from ex

    def format_help(self, **settings: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Shows a type and its range as "int at least 1" instead of "Annotated[int, at least 1]".
        return re.sub(
            r"Annotated\[(\w+),(\s+(?:in\s+[\[(][^\])]*[\])]|[^\]]*))\]", r"\1\2", super().format_help(**settings)
        )

    def parse_args(self, *arguments: Any, **settings: Any) -> Namespace:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return super().parse_args(*arguments, **settings)
        except ImportError as error:
            # jsonargparse imports the class_path of a section before its own checks, so this is not one of its errors.
            named = re.search(r"'([^']*)'", str(error))
            raise InputError(f"class_path {named[1] if named else None!r} is not a section of settings") from error

    def read_arguments(self, arguments: list[str]) -> Namespace:
        """Parses a command line. Errors name the config that has a wrong setting.

        Args:
            arguments: the command line; --config may name a config that comes with the package.
        """
        arguments = with_found_configs(arguments)
        files = []
        for before, argument in pairwise(["", *arguments]):
            name = argument if before == "--config" else argument.removeprefix("--config=")
            if (before == "--config" or name != argument) and Path(name).is_file():
                settings = read_yaml(Path(name))
                check_names(flat(settings).items(), name)
                if "config" in settings:
                    raise InputError(
                        f"{name}: 'config' is not a setting: a file cannot include another file, but --config can "
                        "be repeated"
                    )
                files.append(name)
        check_flags(arguments)
        try:
            parsed, given = self.parse_args(arguments), self.parse_args(arguments, defaults=False)
        except InputError as error:
            raise self._blamed(error, files) from error
        for setting in self.choices:
            # If a class replaces another one, jsonargparse passes the defaults of the old class on to it.
            if setting in given and (chosen := named_class(given[setting])):
                asked = given[setting].get("init_args", {})
                for name, parameter in signature(chosen).parameters.items():
                    if name not in asked and parameter.default is not parameter.empty:
                        parsed[setting].init_args[name] = parameter.default
        return parsed

    def _blamed(self, error: InputError, files: Sequence[str]) -> InputError:
        """The error, with the name of the file that causes it, if a file does."""
        for name in files:
            try:
                self.parse_args(["--config", name])
            except InputError as own:
                if str(own) == str(error):
                    return InputError(f"{name}: {error}")
        return error


def named_class(value: Any) -> type | None:
    """The class that a setting such as `method` names; None if it names another object."""
    module, _, name = getattr(value, "class_path", "").rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) else None


def job_parser(job: str, said: JobHelp, *, allow_abbrev: bool = True) -> Parser:
    """A parser without settings, whose help begins with the text of `said`."""
    return Parser(
        prog=f"debias-ssl {job}",
        usage=said.usage(job),
        description=said.description(),
        formatter_class=Formatter,
        allow_abbrev=allow_abbrev,
    )


def make_parser(job: str, settings: type, said: JobHelp | None = None) -> Parser:
    """A parser of the fields of a settings dataclass, from --config FILE and flags.

    Args:
        job: the name of the job.
        settings: the dataclass.
        said: the beginning of the job's help; None for a parser whose help is never shown.
    """
    parser = (
        job_parser(job, said, allow_abbrev=False)
        if said
        else Parser(prog=f"debias-ssl {job}", usage=f"debias-ssl {job}", allow_abbrev=False)
    )
    parser.add_argument(
        "--config",
        action="config",
        help="a YAML file of settings, or the name of one that debias-ssl configs lists; flags beat it",
    )
    parser.add_class_arguments(settings, as_group=False)
    return parser


def resolve(parser: Parser, arguments: Namespace) -> tuple[Config, dict[str, Any]]:
    """The settings of a command line, and the same as plain values for `config.yaml`."""
    names = [setting.name for setting in fields(Config)]
    plain = yaml.safe_load(parser.dump(arguments, skip_unset=False))
    resolved = {name: plain[name] for name in names}
    for setting, (kind, named, _) in CHOICES.items():
        # jsonargparse accepts any callable; only subclasses of `kind` are allowed.
        chosen = named_class(arguments[setting])
        if not (chosen and issubclass(chosen, kind)):
            raise InputError(f"{setting} is not one of {', '.join(named)}")
        _shorten(resolved[setting], named)
        refuse_misplaced(get_type_hints(chosen.__init__), resolved[setting].get("init_args", {}), f"{setting}.")
        check_chosen(arguments[setting], f"{setting}.")
    refuse_misplaced(get_type_hints(Config), resolved)
    settings = parser.instantiate(arguments)
    return Config(**{name: settings[name] for name in names}), resolved


def refuse_misplaced(hints: dict[str, Any], values: dict[str, Any], prefix: str = "") -> None:
    """Raises InputError for a null, or a value instead of a section, that jsonargparse accepts."""
    for name, value in values.items():
        hint = hints.get(name, Any)
        if value is None and hint is not Any and hint is not type(None) and type(None) not in get_args(hint):
            raise InputError(f"{prefix}{name} is null, which it must not be")
        if is_dataclass(hint):
            if not isinstance(value, dict):
                raise InputError(f"{prefix}{name} is {value!r}, must be a section of settings")
            refuse_misplaced(get_type_hints(hint), value, f"{prefix}{name}.")


def check_chosen(value: Any, prefix: str) -> None:
    """Checks the ranges of the settings of a class that a setting names, and of classes that its settings name.

    The class checks them too, but it is made after the data were read. This check comes before.

    Raises:
        InputError: a value is out of its range.
    """
    chosen, settings = named_class(value), dict(value.get("init_args") or {})
    if chosen is not None:
        check_values(chosen, settings, prefix)
    for name, inner in settings.items():
        if hasattr(inner, "class_path"):
            check_chosen(inner, f"{prefix}{name}.init_args.")


def _shorten(value: Any, named: dict[str, type]) -> None:
    """Replaces the paths of the package's classes by their names, in place: of a class and of those in its settings."""
    if isinstance(value, dict) and "class_path" in value:
        module, _, name = value["class_path"].rpartition(".")
        if name in named and getattr(sys.modules.get(module), name, None) is named[name]:
            value["class_path"] = name
        for inner in value.get("init_args", {}).values():
            _shorten(inner, named)

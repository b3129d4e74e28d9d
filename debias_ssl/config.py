"""The settings of a run, from defaults, a YAML file and flags, in this order."""

import json
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from debias_ssl import labeled_loss, methods
from debias_ssl.data.datasets import DataConfig
from debias_ssl.errors import InputError, check_settings
from debias_ssl.labeled_loss import CrossEntropy, LabeledLoss
from debias_ssl.learner import Teacher
from debias_ssl.methods import DebiasPL, Method, Problem
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.models import ModelConfig
from debias_ssl.optim import OptimConfig
from debias_ssl.runtime import Precision

METHODS = {
    name: value
    for name in methods.__all__
    if isinstance(value := getattr(methods, name), type) and issubclass(value, Method) and value is not Method
}
BASES = [name for name, value in METHODS.items() if issubclass(value, PseudoLabeling) and value is not DebiasPL]
LABELED_LOSSES = {
    name: value
    for name, value in vars(labeled_loss).items()
    if isinstance(value, type) and issubclass(value, LabeledLoss) and value is not LabeledLoss
}
# Settings that name a class: what it must be a kind of, the package's by their names, and words for one and for many.
CHOICES = {
    "method": (Method, METHODS, ("method", "methods")),
    "labeled_loss": (LabeledLoss, LABELED_LOSSES, ("loss", "losses")),
}

# What jsonargparse denies of the standard library is not imported for a setting's sake, rather than warned of, and
# a setting of any type stays the plain value that it is.
set_parsing_settings(import_path_denylist=[], instantiate_subclass_spec_in_any=False)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a run.

    Args:
        method: the class that turns views into losses and pseudo-labels; its own settings follow as --method.NAME.
        labeled_loss: the class whose mean over labeled images is the method's labeled loss; its own settings follow as
            --labeled_loss.NAME.
        data: which images, how they are split, read and augmented.
        model: the network.
        optim: the optimizer.
        steps: optimizer steps.
        seed: of the initial weights, the order of images and their augmentation, and the split.
        batch_size: labeled images of a step, over all processes.
        unlabeled_ratio: mu, unlabeled images for each labeled one.
        class_balanced: whether labeled images are drawn equally often from each class.
        accumulation: parts in which a step's images pass through the network, to save memory.
        teacher: whose weak views make the pseudo-labels: the trained model's (student) or the averaged one's (ema).
        given_by: run folder of a teacher, whose averaged model gives class probabilities of the very views that are
            trained on, to methods that ask for them; null takes those of data.probs.
        ema_decay: of the averaged weights.
        joint_pass: weak views in one pass with the others instead of apart and without gradient.
        precision: auto is bf16 on GPUs and CPUs that multiply in it (AVX512-BF16 or AMX), else fp32.
        compile: whether to compile the network.
        log_every: steps between lines in metrics.jsonl.
        eval_every: steps between evaluations.
        checkpoint_every: steps between checkpoints; each closes a logging interval.
        keep_checkpoints: how many are kept.
        median_of: evaluations at the end that the reported median is taken of.
        eval_batch_size: images of a batch in evaluations, in each process.
        log_with: trackers of Accelerate to log to as well; each needs its package, an extra of this one.
    """

    method: Callable[[Problem], Method] = DebiasPL
    labeled_loss: Callable[[tuple[int, ...]], LabeledLoss] = CrossEntropy
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    steps: int = 2**20
    seed: int = 0
    batch_size: int = 64
    unlabeled_ratio: int = 7
    class_balanced: bool = False
    accumulation: int = 1
    teacher: Teacher = "student"
    given_by: str | None = None
    ema_decay: float = 0.999
    joint_pass: bool = False
    precision: Precision = "auto"
    compile: bool = False
    log_every: int = 100
    eval_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    median_of: int = 20
    eval_batch_size: int = 500
    log_with: tuple[Literal["tensorboard", "wandb"], ...] = ()

    def __post_init__(self):
        positive = ("steps", "batch_size", "unlabeled_ratio", "accumulation", "log_every", "eval_every")
        positive += ("checkpoint_every", "keep_checkpoints", "median_of", "eval_batch_size")
        check_settings(self, "", **{name: (getattr(self, name) > 0, "at least 1") for name in positive})
        check_settings(
            self,
            "",
            accumulation=(self.accumulation <= self.batch_size, f"at most the batch_size {self.batch_size}"),
            seed=(self.seed >= 0, "at least 0"),
            ema_decay=(0 <= self.ema_decay < 1, "in [0, 1)"),
        )
        if self.given_by is not None and self.data.probs is not None:
            raise InputError("given_by and data.probs exclude each other: set one to null")


class Parser(ArgumentParser):
    """A parser whose errors are an InputError of one line."""

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
        if 'setting "base"' in text:
            text = re.sub(r"(no|not a) method", r"\1 base", text)
            hint = f"; DebiasPL goes over {', '.join(BASES)}"
        # An error in the settings of a setting's class comes here twice.
        raise InputError(text.removesuffix(hint) + hint) from ex

    def parse_args(self, *arguments: Any, **settings: Any) -> Namespace:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return super().parse_args(*arguments, **settings)
        except ImportError as error:
            # A section's class_path is looked at before anything that would make this an error in a setting.
            named = re.search(r"'([^']*)'", str(error))
            raise InputError(f"class_path {named[1] if named else None!r} is not a section of settings") from error

    def read_arguments(self, arguments: list[str]) -> Namespace:
        """Parses a command line; a config that is not a YAML file of settings is named in the error."""
        files = []
        for before, argument in pairwise(["", *arguments]):
            name = argument if before == "--config" else argument.removeprefix("--config=")
            if (before == "--config" or name != argument) and Path(name).is_file():
                if "config" in read_yaml(Path(name)):
                    raise InputError(
                        f"{name}: 'config' is not a setting: a file includes no other, but --config can be repeated"
                    )
                files.append(name)
        try:
            parsed, given = self.parse_args(arguments), self.parse_args(arguments, defaults=False)
        except InputError as error:
            raise self._blamed(error, files) from error
        for setting in self.choices:
            # jsonargparse hands the defaults of the class that another one takes the place of on to it.
            if setting in given and (chosen := named_class(given[setting])):
                asked = given[setting].get("init_args", {})
                for name, parameter in signature(chosen).parameters.items():
                    if name not in asked and parameter.default is not parameter.empty:
                        parsed[setting].init_args[name] = parameter.default
        return parsed

    def _blamed(self, error: InputError, files: Sequence[str]) -> InputError:
        """The error with the name of the file that has it, if one of them has."""
        for name in files:
            try:
                self.parse_args(["--config", name])
            except InputError as own:
                if str(own) == str(error):
                    return InputError(f"{name}: {error}")
        return error


def named_class(value: Any) -> type | None:
    """The class that a setting such as `method` names, if it is one."""
    module, _, name = getattr(value, "class_path", "").rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) else None


# jsonargparse's words for programmers, and ours for users.
WORDING = (
    (
        r"Does not validate.*? Errors: - Expected a <class '(\w+)'> - Expected a <class 'NoneType'>.*Given value: (.+)",
        r"expected \1 or null, got '\2'",
    ),
    (r"Does not validate against any of the Union subtypes .*? Errors: - (.+?)\.? - Expected a <class .*", r"\1"),
    (r"Expected a dot import path string: (\S+)", r"there is no method '\1'"),
    (r"Subclasses are disabled for \w+, thus (\S+) is not.*", r"class_path \1 is not a section of settings"),
    (r"Option 'class_path' is not accepted", "beside class_path there is nothing but init_args"),
    (
        r"Type collections.*Got value: (?:Namespace\(class_path=|\{'class_path': )'([^']*)'(?:\W*$|, init_args=Name.*)",
        r"'\1' is not a method",
    ),
    (r"Type collections.*Got value: (Namespace\(|\{).*", "expected a method, as a name or as class_path and init_args"),
    (r"Type collections.*Got value: (\S+)", r"'\1' is not a method"),
    (r"Expected a typing\.Literal\[(.+)\]\. Got value: (.+)", r"expected one of \1, got '\2'"),
    (r"Expected a typing\.Literal\[(.+)\]", r"expected one of \1"),
    (r"Type collections.*: Expected '(\S+)' to be a function that returns .*>", r"'\1' is not a method"),
    (r"Expected a <class '(\w+)'>\. Got value: ?(.*)", r"expected \1, got '\2'"),
    (r"Expected a <class '(\w+)'>", r"expected \1"),
)


def make_parser(job: str, settings: type, skip: Collection[str] = ()) -> Parser:
    """A parser of the fields of a settings dataclass, but for those to skip, from --config FILE and flags."""
    # argparse's own usage is every flag once more.
    usage = f"debias-ssl {job} [--config FILE]... [--SETTING VALUE]..."
    parser = Parser(
        prog=f"debias-ssl {job}", usage=usage, description=(settings.__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="a YAML file of settings; flags beside it beat it")
    parser.add_class_arguments(settings, as_group=False, skip=set(skip))
    return parser


def resolve(parser: Parser, arguments: Namespace) -> tuple[Config, dict[str, Any]]:
    """The settings of a command line, and the same as plain values: what `config.yaml` holds."""
    names = [setting.name for setting in fields(Config)]
    plain = yaml.safe_load(parser.dump(arguments, skip_unset=False))
    resolved = {name: plain[name] for name in names}
    for setting, (kind, named, _) in CHOICES.items():
        # jsonargparse takes any callable here; only classes of the kind may be called.
        chosen = named_class(arguments[setting])
        if not (chosen and issubclass(chosen, kind)):
            raise InputError(f"{setting} is not one of {', '.join(named)}")
        _shorten(resolved[setting], named)
        _refuse_misplaced(get_type_hints(chosen.__init__), resolved[setting].get("init_args", {}), f"{setting}.")
    _refuse_misplaced(get_type_hints(Config), resolved)
    settings = parser.instantiate(arguments)
    return Config(**{name: settings[name] for name in names}), resolved


def _refuse_misplaced(hints: dict[str, Any], values: dict[str, Any], prefix: str = "") -> None:
    """Raises InputError at a null, or a value in place of a section, that jsonargparse lets pass."""
    for name, value in values.items():
        hint = hints.get(name, Any)
        if value is None and hint is not Any and hint is not type(None) and type(None) not in get_args(hint):
            raise InputError(f"{prefix}{name} is null, which it must not be")
        if is_dataclass(hint):
            if not isinstance(value, dict):
                raise InputError(f"{prefix}{name} is {value!r}, where a section of settings is expected")
            _refuse_misplaced(get_type_hints(hint), value, f"{prefix}{name}.")


def _shorten(value: Any, named: dict[str, type]) -> None:
    """Calls the package's classes by their names alone, in place: one that is chosen, and those in its settings."""
    if isinstance(value, dict) and "class_path" in value:
        module, _, name = value["class_path"].rpartition(".")
        if name in named and getattr(sys.modules.get(module), name, None) is named[name]:
            value["class_path"] = name
        for inner in value.get("init_args", {}).values():
            _shorten(inner, named)


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
    try:
        return resolve(parser, parser.parse_object(saved))
    except (TypeError, ValueError, ArgumentError) as error:
        raise InputError(" ".join(str(error).split())) from error


def switched_method(resolved: dict[str, Any], files: Sequence[Path]) -> str | None:
    """What became of a method's settings in files when a flag switched the method; None where none was switched."""
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


def parse_data(parser: Parser, arguments: list[str]) -> tuple[Namespace, DataConfig]:
    """Parses a command line with --run, whose data settings are the run's unless flags --data.NAME change them."""
    parser.add_class_arguments(DataConfig, "data")
    run = parser.parse_args(arguments).run
    if not (Path(run) / "config.yaml").exists():
        raise InputError(f"{run!r} holds no run: it has no config.yaml")
    saved = read_yaml(Path(run) / "config.yaml")
    if not isinstance(saved.get("data"), dict):
        raise InputError(f"{run!r} has no data settings in its config.yaml")
    parsed = parser.parse_args(["--data", json.dumps(saved["data"]), *arguments])
    _refuse_misplaced({"data": DataConfig}, parsed.as_dict())
    return parsed, parser.instantiate(parsed).data


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of settings."""
    try:
        value = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a YAML file of settings") from error
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a YAML file of settings")
    return value


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under one name each, as flags name them: `data.labels_per_class`."""
    result = {}
    for key, value in settings.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result

"""Finds by name the configs that come with the package."""

from collections.abc import Sequence
from pathlib import Path

from debias_ssl.system.errors import InputError
from debias_ssl.system.imports import near

_PACKAGE = Path(__file__).parents[1]
# An installed package contains the configs (see pyproject.toml). In a checkout they are beside the package.
_FOLDER = next(
    (folder for folder in (_PACKAGE / "shipped_configs", _PACKAGE.parent / "configs") if folder.is_dir()),
    _PACKAGE / "shipped_configs",
)


def shipped_configs() -> dict[str, Path]:
    """The files by their names, such as `digits` or `compare/few`, in the order of `debias-ssl configs`."""
    files = sorted(_FOLDER.rglob("*.yaml"), key=lambda path: (len(path.relative_to(_FOLDER).parts), path))
    return {path.relative_to(_FOLDER).with_suffix("").as_posix(): path for path in files}


def first_comment(path: Path) -> str:
    """The comment in the first line of a file of settings; empty if that line is a setting."""
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""


def found_config(text: str, flag: str) -> Path:
    """The file that a flag names: a file of the user, else the config of this name that comes with the package.

    Args:
        text: a path, or a name with or without `configs/` before it and `.yaml` after it.
        flag: the flag, such as --config.

    Raises:
        InputError: there is no such file and no such config.
    """
    if Path(text).exists() and not Path(text).is_dir():
        return Path(text)
    shipped = shipped_configs()
    name = text.replace("\\", "/").removeprefix("configs/").removesuffix(".yaml")
    if name not in shipped:
        # Configs in folders are for flags other than --config.
        names = [known for known in shipped if ("/" in known) == (flag != "--config")]
        raise InputError(
            f"{flag} {text!r} is no file, and no config of this name comes with the package{near(name, names)}; "
            f"debias-ssl configs lists them: {', '.join(names)}"
        )
    return shipped[name]


def with_found_configs(arguments: Sequence[str]) -> list[str]:
    """A command line in which each --config names a file that exists."""
    found = [*arguments]
    for i, argument in enumerate(arguments):
        if argument.startswith("--config="):
            found[i] = f"--config={found_config(argument.removeprefix('--config='), '--config')}"
        elif i and arguments[i - 1] == "--config":
            found[i] = str(found_config(argument, "--config"))
    return found

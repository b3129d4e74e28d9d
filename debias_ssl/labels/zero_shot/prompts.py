"""The sentences that CLIP compares images with."""

from collections.abc import Callable, Sequence
from pathlib import Path

from debias_ssl.system.errors import InputError
from debias_ssl.system.tables import check_text, read_text

Templates = Sequence[str] | Sequence[Callable[[str], str]]
# Names of open_clip's templates.
NAMED = ("simple", "openai")


def read_templates(where: str | Sequence[str]) -> Templates:
    """Sentences with {} for the name of a class: open_clip's, or the lines of a file; or given ones.

    Raises:
        InputError: there is no such file, or a sentence has no place for the name.
    """
    if not isinstance(where, str):
        return _checked(where, "templates", "sentence")
    if where in NAMED:
        import open_clip

        return {"simple": open_clip.SIMPLE_IMAGENET_TEMPLATES, "openai": open_clip.OPENAI_IMAGENET_TEMPLATES}[where]
    path = Path(where)
    if not path.is_file():
        names = ", ".join(NAMED)
        raise InputError(
            f"--templates is {where!r}: neither {names}, nor a file with one sentence per line, such as 'a photo "
            "of a {}.'"
        )
    lines = read_text(path).rstrip().splitlines()
    for number, line in enumerate(lines, start=1):
        check_text(line, path, number)
    return _checked(lines, str(path), "line")


def _checked(lines: Sequence[str], source: str, unit: str) -> Sequence[str]:
    for number, line in enumerate(lines, start=1):
        if line.count("{}") != 1 or set("{}") & set(line.replace("{}", "")):
            raise InputError(f"{source}, {unit} {number}: {line!r} must have {{}} once, where the name of a class goes")
    if not lines:
        raise InputError(f"{source} has no templates")
    return lines

"""`debias-ssl configs`: lists the configs that come with the package, or copies one."""

from pathlib import Path

from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import check_new_file, write_aside
from debias_ssl.system.imports import near
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import job_parser
from debias_ssl.training.shipped import first_comment, shipped_configs

HELP = JobHelp(
    arguments="[--copy NAME] [--out FILE]",
    does="Lists the configs that come with the package, or copies one to change it.",
    example="debias-ssl configs --copy digits --out my.yaml",
    guide="start.md",
)


@entry_point
def main(arguments: list[str]) -> None:
    parser = job_parser("configs", HELP)
    parser.add_argument("--copy", type=str, default=None, help="name of a config to copy, such as digits")
    parser.add_argument("--out", type=str, default=None, help="the file to write; null is the name and .yaml, here")
    parser.add_argument("--overwrite", action="store_true", help="replace the file in --out")
    parsed = parser.parse_args(arguments)
    shipped = shipped_configs()
    if parsed.copy is None:
        if parsed.out is not None:
            raise InputError("--out is where the copy goes: name the config with --copy")
        width = max(map(len, shipped))
        for name, path in shipped.items():
            print(f"{name:<{width}}  {first_comment(path)}".rstrip())
        return
    if parsed.copy not in shipped:
        raise InputError(
            f"--copy {parsed.copy!r} is not one of the configs: {', '.join(shipped)}{near(parsed.copy, [*shipped])}"
        )
    out = Path(parsed.out or f"{Path(parsed.copy).name}.yaml")
    check_new_file(out, "--out", parsed.overwrite)
    write_aside(out, shipped[parsed.copy].read_text(encoding="utf-8"))
    print(out)


if __name__ == "__main__":
    main()

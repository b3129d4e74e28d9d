"""The beginning of `debias-ssl JOB --help`: what the job does, an example, and its guide."""

from argparse import RawDescriptionHelpFormatter
from dataclasses import dataclass

from jsonargparse import DefaultHelpFormatter


class Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of a description, so that its example can be pasted."""


@dataclass(frozen=True, kw_only=True)
class JobHelp:
    """The beginning of a job's help.

    Args:
        arguments: the arguments that the job needs, as in a usage line.
        does: what the job reads and writes, in lines of at most 100 characters.
        example: one command, on one or more lines.
        guide: a page in docs/.
    """

    arguments: str
    does: str
    example: str
    guide: str

    def usage(self, job: str) -> str:
        # argparse's own usage would repeat every flag.
        return f"debias-ssl {job} {self.arguments}"

    def description(self) -> str:
        return f"{self.does}\n\nExample:\n  {self.example}\n\nGuide: docs/{self.guide}"

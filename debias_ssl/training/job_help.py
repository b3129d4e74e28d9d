"""What `debias-ssl JOB --help` says before the settings: what the job does, an example, and its guide."""

from argparse import RawDescriptionHelpFormatter
from dataclasses import dataclass

from jsonargparse import DefaultHelpFormatter


class Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of a description: an example is to be pasted."""


@dataclass(frozen=True, kw_only=True)
class JobHelp:
    """The beginning of a job's help.

    Args:
        arguments: those that the job needs, as in a usage line.
        does: what it reads and writes, in lines of at most 100 characters.
        example: one command, perhaps over several lines.
        guide: a page in docs/.
    """

    arguments: str
    does: str
    example: str
    guide: str

    def usage(self, job: str) -> str:
        # argparse's own usage is every flag once more.
        return f"debias-ssl {job} {self.arguments}"

    def description(self) -> str:
        return f"{self.does}\n\nExample:\n  {self.example}\n\nGuide: docs/{self.guide}"

"""A worker process of `compare --jobs`: trains, one by one, the runs that it reads from standard input."""

import json
import os
import sys
from pathlib import Path

from debias_ssl.data.last_task import LastTask
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.runs.run import train
from debias_ssl.runs.workers import FINISHED, IN_USE
from debias_ssl.system.errors import InUseError
from debias_ssl.training.saved import config_from


@entry_point
def main(arguments: list[str]) -> None:
    """Reads a line for each run, a file with its settings and its folder; writes a line when its work on it is done.

    The first run that fails ends the process, as it would end `debias-ssl train`.
    """
    # Output of runs goes to stderr, because stdout is for replies about runs.
    with os.fdopen(os.dup(1), "w") as said:
        os.dup2(2, 1)
        last = LastTask()
        for line in sys.stdin:
            run = json.loads(Path(line.rstrip("\n")).read_text())
            resolved = run["resolved"]
            try:
                train(config_from(resolved), resolved, Path(run["out"]), resume=True, quiet=True, last=last)
                outcome = FINISHED
            except InUseError:
                outcome = IN_USE
            print(outcome, file=said, flush=True)


if __name__ == "__main__":
    main()

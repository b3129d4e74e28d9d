"""A process of `compare --jobs`: trains the runs that it is given on its standard input, one after the other."""

import json
import os
import sys
from pathlib import Path

from debias_ssl.data.last_task import LastTask
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.runs.run import train
from debias_ssl.training.saved import config_from


@entry_point
def main(arguments: list[str]) -> None:
    """Reads a line for each run, a file with its settings and its folder; writes a line when it is finished.

    The first run that fails ends the process, as it would end `debias-ssl train`.
    """
    # What runs print goes to stderr: on stdout, the process says which runs are finished.
    with os.fdopen(os.dup(1), "w") as said:
        os.dup2(2, 1)
        last = LastTask()
        for line in sys.stdin:
            run = json.loads(Path(line.rstrip("\n")).read_text())
            resolved = run["resolved"]
            train(config_from(resolved), resolved, Path(run["out"]), resume=True, quiet=True, last=last)
            print("finished", file=said, flush=True)


if __name__ == "__main__":
    main()

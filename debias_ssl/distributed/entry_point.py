"""Runs a job as a command: an error that the user can correct is one or two lines on stderr."""

import sys
from collections.abc import Callable
from functools import wraps

from debias_ssl.distributed.processes import GONE, Companions, is_first, says_that_another_is_gone
from debias_ssl.distributed.signals import ended_by_signals
from debias_ssl.system.errors import InputError, Interrupted, LeftToOthers, StoppedError, Terminated

# The exit status of a job that leaves its work to other processes: EX_TEMPFAIL of sysexits.h.
OTHERS_GO_ON = 75


def entry_point(main: Callable[[list[str]], None]) -> Callable[..., None]:
    """Makes a command: an error of the user is one or two lines on stderr, with exit status 2."""

    @wraps(main)
    def command(arguments: list[str] | None = None) -> None:
        with ended_by_signals():
            told(sys.argv[1:] if arguments is None else arguments)

    def told(arguments: list[str]) -> None:
        companions = Companions()
        try:
            main(arguments)
        except (InputError, StoppedError) as error:
            status = 2 if isinstance(error, InputError) else 1
            companions.fail(status, f"error: {error}")
            sys.exit(status)
        except LeftToOthers as left:
            print(left, file=sys.stderr)
            companions.leave()
            sys.exit(OTHERS_GO_ON)
        except Terminated as stopped:
            # In the middle of its work, so that the others cannot go on.
            companions.fail(128 + stopped.number, str(stopped))
            sys.exit(128 + stopped.number)
        except Interrupted as stopped:
            if is_first():
                print(stopped, file=sys.stderr)
            companions.leave()
            sys.exit(128 + stopped.number)
        except KeyboardInterrupt:
            if is_first():
                print("SIGINT: stopped", file=sys.stderr)
            companions.leave()
            sys.exit(130)
        except Exception as error:
            if says_that_another_is_gone(error):
                companions.fail(1, f"error: {GONE}")
                sys.exit(1)
            companions.fail(1, None)
            raise
        else:
            companions.leave()
        finally:
            companions.stop()

    return command

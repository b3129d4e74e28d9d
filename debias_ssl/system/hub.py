"""The Hugging Face hub: if it cannot be reached, its files come from the cache, or the job stops at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from debias_ssl.system.errors import reason


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Inside, files of the hub come from its cache alone if the hub does not answer.

    The package huggingface_hub would repeat the request for each file for half a minute, and open_clip and timm ask
    for several files.

    Raises:
        FileNotFoundError: a file is not in the cache, and the hub does not answer, or HF_HUB_OFFLINE forbids to ask it.
    """
    # Slow to import.
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    before = constants.HF_HUB_OFFLINE
    why = "HF_HUB_OFFLINE is set" if before else _why_unreachable()
    constants.HF_HUB_OFFLINE = why is not None
    try:
        yield
    except Exception as error:
        if why is not None and any(
            isinstance(each, LocalEntryNotFoundError | OfflineModeIsEnabled) for each in _chain(error)
        ):
            raise FileNotFoundError(f"it is not in the cache, and {why}") from error
        raise
    finally:
        constants.HF_HUB_OFFLINE = before


def _why_unreachable() -> str | None:
    """Why the hub does not answer; None if it does."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    answers: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            answers.append(None)
        except Exception as error:  # the versions of huggingface_hub have different clients
            answers.append(reason(error))

    # Looking up the address of a host has no timeout, so a thread does it.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(constants.HF_HUB_ETAG_TIMEOUT)
    why = answers[0] if answers else f"no answer in {constants.HF_HUB_ETAG_TIMEOUT} seconds"
    return why and f"{constants.ENDPOINT} cannot be reached ({why})"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

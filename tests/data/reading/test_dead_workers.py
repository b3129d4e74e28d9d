"""The death of a decoding process is reported in one way, whatever torch raises first."""

import signal

import pytest

from debias_ssl.data.reading.workers import dead_workers_told
from debias_ssl.system.errors import StoppedError


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no timer that sends signals")
@pytest.mark.parametrize("first", [ConnectionResetError, EOFError])
def test_a_connection_that_ends_before_the_signal_of_a_dead_worker(first, monkeypatch):
    def hear(*_):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. ")

    before = signal.signal(signal.SIGALRM, hear)
    try:
        with pytest.raises(StoppedError, match="has died"), dead_workers_told():
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            raise first
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_connection_that_ends_without_a_dead_worker_is_another_error(monkeypatch):
    monkeypatch.setattr("debias_ssl.data.reading.workers.SIGNAL_SECONDS", 0.0)
    with pytest.raises(ConnectionResetError), dead_workers_told():
        raise ConnectionResetError

"""The Accelerator that every job makes."""

from types import SimpleNamespace

import pytest
import torch

from debias_ssl.distributed import accelerator as runtime


@pytest.mark.parametrize(("cuda", "mps", "cpu"), [(False, False, True), (False, True, False), (True, False, False)])
def test_the_processor_is_taken_only_where_there_is_nothing_faster(cuda, mps, cpu, monkeypatch):
    """On a Mac, `cpu=True` would leave its GPU idle; without it, processes of a CPU do not find each other."""
    asked = {}

    def accelerator(**settings):
        asked.update(settings)
        raise InterruptedError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(runtime, "Accelerator", accelerator)
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: False)
    with pytest.raises(InterruptedError):
        runtime.make_accelerator("fp32")
    assert asked["cpu"] == cpu


def test_reseeding_is_seeding_for_the_processor_and_one_device(monkeypatch):
    torch.manual_seed(5)
    expected = torch.rand(3)
    runtime.reseed(5, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)
    seeded = []
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(manual_seed=seeded.append))
    runtime.reseed(6, torch.device("cuda"))
    assert seeded == [6] and torch.default_generator.initial_seed() == 6

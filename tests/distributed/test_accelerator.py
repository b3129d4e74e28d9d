"""The Accelerator that every job makes."""

import os
from types import SimpleNamespace

import accelerate
import pytest
import torch
from jobs import run

from debias_ssl.data.config import DataConfig
from debias_ssl.distributed import accelerator as runtime
from debias_ssl.distributed import device
from debias_ssl.system.errors import InputError
from debias_ssl.training.checkpoint import machine

DIGITS = DataConfig(name="digits", labels_per_class=4)


@pytest.mark.parametrize(("cuda", "mps", "cpu"), [(False, False, True), (False, True, False), (True, False, False)])
def test_the_processor_is_taken_only_where_there_is_nothing_faster(cuda, mps, cpu, monkeypatch):
    """On a Mac, `cpu=True` would leave its GPU idle; without it, processes of a CPU do not find each other."""
    asked = {}

    def accelerator(**settings):
        asked.update(settings)
        raise InterruptedError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(accelerate, "Accelerator", accelerator)
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: False)
    with pytest.raises(InterruptedError):
        runtime.make_accelerator("fp32")
    assert asked["cpu"] == cpu


@pytest.fixture
def torch_flags(monkeypatch: pytest.MonkeyPatch):
    """What a test changes of torch's own settings is put back."""
    for module, name in (
        (torch.backends.cudnn, "deterministic"),
        (torch.backends.cudnn, "benchmark"),
        (torch.backends.cudnn, "allow_tf32"),
        (torch.utils.deterministic, "fill_uninitialized_memory"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    algorithms, precision = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    yield
    torch.use_deterministic_algorithms(algorithms)
    torch.set_float32_matmul_precision(precision)


def flags() -> tuple[bool, bool, bool, bool, str]:
    cudnn = torch.backends.cudnn
    algorithms = torch.are_deterministic_algorithms_enabled()
    return cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, algorithms, torch.get_float32_matmul_precision()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were launched on a machine with 1 GPU: set --num_processes 1"):
        runtime.make_accelerator("fp32")


@pytest.mark.usefixtures("torch_flags")
def test_a_gpu_is_told_to_give_the_same_bits_or_the_fastest(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    runtime.set_determinism(False, has_gpu=True)
    assert flags() == (False, True, True, False, "high") and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    # One run after another in a process, as `compare` does.
    runtime.set_determinism(True, has_gpu=True)
    assert flags() == (True, False, False, True, "highest") and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    runtime.set_determinism(True, has_gpu=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.usefixtures("torch_flags")
def test_the_setting_of_a_run_reaches_torch(tmp_path):
    for value in (False, True):
        run(tmp_path / str(value), "--steps", "1", "--deterministic", str(value).lower())
        # On a CPU torch's own algorithms stay as they are: they give the same bits in any case.
        assert flags() == (value, not value, not value, False, "highest" if value else "high")


def test_the_device_has_a_name(monkeypatch):
    assert "CPU with " in device.device_name()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A Great GPU")
    assert machine()["device"] == "A Great GPU"


def test_reseeding_is_seeding_for_the_processor_and_one_device(monkeypatch):
    torch.manual_seed(5)
    expected = torch.rand(3)
    device.reseed(5, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)
    seeded = []
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(manual_seed=seeded.append))
    device.reseed(6, torch.device("cuda"))
    assert seeded == [6] and torch.default_generator.initial_seed() == 6

"""CUDA graphs: what is recorded when. What a GPU replays is compared by scripts/gpu/gpu_evidence.py."""

from collections.abc import Callable

import pytest
import torch
from jobs import refused
from launched import DIGITS
from torch import Tensor

from debias_ssl import train
from debias_ssl.models import build
from debias_ssl.system.errors import InputError
from debias_ssl.training.config import Config
from debias_ssl.training.cuda_graphs import Output, Recorded


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Size, bool]]:
    """What is recorded: sizes, and whether with gradient. A replay writes into the same tensors each time."""
    recorded = []

    def record(self: Recorded, images: Tensor) -> Callable[[Tensor], Output]:
        recorded.append((images.shape, torch.is_grad_enabled()))
        outputs = tuple(output.detach() for output in self.network(images))

        def replay(others: Tensor) -> Output:
            for output, new in zip(outputs, self.network(others), strict=True):
                output.copy_(new.detach())
            return outputs

        return replay

    monkeypatch.setattr(Recorded, "_record", record)
    return recorded


def test_each_size_is_recorded_once_with_and_without_gradient(recordings):
    network = build("wrn_10_1", 3).train()
    passes = Recorded(network, network)
    first, second = torch.randn(2, 4, 3, 8, 8)
    with torch.no_grad():
        kept = passes(first)
        passes(second)
        expected = network(first)
        # The replay of other images does not change outputs that were returned before.
        for output, value in zip(kept, expected, strict=True):
            assert torch.equal(output, value)
    passes(first)
    passes(second)
    passes(first[:2])
    assert recordings == [((4, 3, 8, 8), False), ((4, 3, 8, 8), True), ((2, 3, 8, 8), True)]


def test_evaluations_are_not_recorded(recordings):
    network = build("wrn_10_1", 3).eval()
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(Recorded(network, network)(images)[0], network(images)[0])
    assert not recordings


def test_a_network_that_cannot_be_recorded_is_told_with_the_flag(monkeypatch):
    def record(self: Recorded, images: Tensor) -> Callable[[Tensor], Output]:
        raise RuntimeError("operation not permitted when capturing\nmore")

    monkeypatch.setattr(Recorded, "_record", record)
    network = build("wrn_10_1", 3).train()
    with pytest.raises(InputError, match=r"\(operation not permitted when capturing\): remove --cuda_graphs$"):
        Recorded(network, network)(torch.randn(2, 3, 8, 8))


def test_too_little_memory_is_not_the_networks_fault(monkeypatch):
    def record(self: Recorded, images: Tensor) -> Callable[[Tensor], Output]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Recorded, "_record", record)
    network = build("wrn_10_1", 3).train()
    with pytest.raises(torch.OutOfMemoryError):
        Recorded(network, network)(torch.randn(2, 3, 8, 8))


def test_settings_whose_passes_change_in_size_are_refused():
    with pytest.raises(InputError, match=r"cuda_graphs .* set strong_views to its default"):
        Config(cuda_graphs=True, strong_views="counted")
    with pytest.raises(InputError, match=r"cuda_graphs .* set accumulation to its default"):
        Config(cuda_graphs=True, accumulation=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_run_without_a_gpu_says_that_it_needs_one(tmp_path, capsys):
    arguments = ["--config", str(DIGITS), "--cuda_graphs", "true", "--out", str(tmp_path / "run")]
    assert "cuda_graphs needs one NVIDIA GPU and one process" in refused(train.main, arguments, capsys)

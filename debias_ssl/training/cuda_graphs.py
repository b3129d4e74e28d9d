"""`Recorded`: a network whose passes in training are recorded as CUDA graphs and replayed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from debias_ssl.system.errors import InputError, reason

WARM_UPS = 3
Output = tuple[Tensor, ...]


class Recorded:
    """Passes of a network in training on a GPU, each recorded once for its size and then replayed.

    A pass starts hundreds of small operations. With a replay, the processor starts all of them at once. The operations
    are the same.

    Args:
        model: the network. Its weights and buffers stay where they are; it has no hooks.
        network: computes the outputs: the model, or its compiled form.
    """

    def __init__(self, model: nn.Module, network: Callable[[Tensor], Output]):
        self.model, self.network = model, network
        self._passes: dict[tuple[torch.Size, bool], Callable[[Tensor], Output]] = {}

    def __call__(self, images: Float[Tensor, "N K H W"]) -> Output:
        """The network's outputs.

        Raises:
            InputError: the network cannot be recorded.
        """
        if not self.model.training:
            return self.network(images)
        key = images.shape, torch.is_grad_enabled()
        if key not in self._passes:
            try:
                self._passes[key] = self._record(images)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise InputError(f"the network cannot be recorded ({reason(error)}): remove --cuda_graphs") from error
        # The next replay overwrites its outputs.
        return tuple(output.clone() for output in self._passes[key](images))

    def _record(self, images: Tensor) -> Callable[[Tensor], Output]:
        kind = images.device.type
        precision = torch.autocast(
            kind,
            dtype=torch.get_autocast_dtype(kind),
            enabled=torch.is_autocast_enabled(kind),
            # Weights that were cast before the recording would not be cast again in a replay.
            cache_enabled=False,
        )
        with _unchanged(self.model, images.device), precision:
            if torch.is_grad_enabled():
                module = _Module(self.model, self.network)
                recorded: Any = torch.cuda.make_graphed_callables(
                    module, (images.clone(),), num_warmup_iters=WARM_UPS, allow_unused_input=True
                )
                return recorded
            return self._record_without_gradient(images.clone())

    def _record_without_gradient(self, images: Tensor) -> Callable[[Tensor], Output]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.network(images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.network(images)

        def replay(others: Tensor) -> Output:
            images.copy_(others)
            graph.replay()
            return outputs

        return replay


class _Module(nn.Module):
    """A network as a module of its own: torch replaces the `forward` of the module that it records."""

    def __init__(self, model: nn.Module, network: Callable[[Tensor], Output]):
        super().__init__()
        self.model = model
        # In a list, so that a compiled module does not give each parameter a second name.
        self._network = [network]

    def forward(self, images: Tensor) -> Output:
        return self._network[0](images)


@contextmanager
def _unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restores buffers, such as averages of batch norms, and the state of the random numbers at the end."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    numbers = torch.cuda.get_rng_state(device)
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        torch.cuda.set_rng_state(numbers, device)

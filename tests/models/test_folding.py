"""Batch norms are folded into convolutions where the network stays the same function, and nowhere else."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from debias_ssl.models.folding import folded


def trained(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, with statistics that are not those of the start."""
    generator = torch.Generator().manual_seed(0)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean = torch.randn(norm.num_features, generator=generator) / 10
            norm.running_var = torch.rand(norm.num_features, generator=generator) + 0.5
            nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(norm.bias, 0, 0.1, generator=generator)
    return network.eval().requires_grad_(False)


def number_of_norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_a_folded_network_of_timm_is_the_same_function(name: str):
    torch.manual_seed(0)
    network = trained(timm.create_model(name, num_classes=0))
    images = torch.randn(2, 3, 64, 64)
    fewer = folded(network, lambda each: each(images[:1]))
    assert number_of_norms(network) > 0 == number_of_norms(fewer)
    torch.testing.assert_close(fewer(images), network(images), rtol=1e-4, atol=1e-4)


def test_networks_without_such_pairs_are_given_back():
    network: Any = timm.create_model("test_vit", num_classes=0).eval().requires_grad_(False)
    size = network.pretrained_cfg["input_size"]
    assert folded(network, lambda each: each(torch.zeros(1, *size))) is network


class TwoReaders(nn.Module):
    """The output of the convolution is read by the norm, and added to what that gives."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        return maps + self.norm(maps)


class Twice(nn.Module):
    """One convolution in front of two norms."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.conv(self.one(self.conv(x))))


class NormFirst(nn.Module):
    """A norm in front of the convolution."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


@pytest.mark.parametrize("kind", [TwoReaders, Twice, NormFirst])
def test_what_folding_would_change_stays(kind: Any):
    torch.manual_seed(0)
    network, images = trained(kind()), torch.randn(2, 3, 8, 8)
    assert folded(network, lambda each: each(images)) is network

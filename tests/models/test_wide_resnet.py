import math

import pytest
import torch
from torch import nn

from debias_ssl.models import build
from debias_ssl.models.wide_resnet import Block, WideResNet, wrn_10_1


def test_a_worked_activation_has_slope_a_tenth():
    net = WideResNet(10, 1, num_classes=2).eval()
    net.stem, net.blocks = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    x = torch.tensor([-2.0, 3.0]).view(2, 1, 1, 1).expand(2, 64, 4, 4)
    # With statistics 0 and 1, norm only divides by sqrt(1 + eps).
    assert net.forward_features(x)[:, 0, 0, 0].tolist() == pytest.approx([-0.2, 3.0], rel=1e-4)


def blocks_with_shortcut_inputs(net: WideResNet) -> list[tuple[Block, torch.Tensor, torch.Tensor]]:
    """Each block, what went into it and what went into its shortcut, of a pass of random images."""
    inputs, shortcuts = {}, {}
    for block in net.blocks:
        assert isinstance(block, Block)
        block.register_forward_pre_hook(lambda module, args: inputs.update({module: args[0]}))
        block.shortcut.register_forward_pre_hook(lambda module, args: shortcuts.update({module: args[0]}))
    net(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    return [(block, inputs[block], shortcuts[block.shortcut]) for block in inputs]


def test_only_the_first_shortcut_starts_behind_the_activation():
    net = WideResNet(16, 2, num_classes=2).eval()
    (first, x, shortcut), *others = blocks_with_shortcut_inputs(net)
    torch.testing.assert_close(shortcut, nn.functional.leaky_relu(first.norm1(x), 0.1))
    assert len(others) == 5
    for _, x, shortcut in others:
        assert shortcut.equal(x)


def test_a_block_without_convolutions_is_its_shortcut():
    x = torch.tensor([-4.0, 2.0]).view(2, 1, 1, 1).expand(2, 3, 5, 5)
    for activate, expected in ((False, [-4.0, 2.0]), (True, [-0.4, 2.0])):
        block = Block(3, 3, 1, activate_shortcut=activate).eval()
        nn.init.zeros_(block.conv2.weight)
        assert block(x)[:, 0, 0, 0].tolist() == pytest.approx(expected, rel=1e-4)


def test_scales_halve_the_image_and_double_the_channels():
    net = WideResNet(16, 2, num_classes=2)
    shapes = [tuple(x.shape[1:]) for _, x, _ in blocks_with_shortcut_inputs(net)]
    assert shapes == [(16, 8, 8), (32, 8, 8), (32, 8, 8), (64, 4, 4), (64, 4, 4), (128, 2, 2)]
    assert net.num_features == 128
    assert net.forward_features(torch.zeros(1, 3, 8, 8)).shape == (1, 128, 2, 2)


def test_initial_weights_are_scaled_by_what_goes_out():
    torch.manual_seed(0)
    net = WideResNet(16, 2, num_classes=10)
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 1 + 6 * 2 + 3
    for conv in convolutions:
        expected = math.sqrt(2 / (conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels))
        # Three standard errors of a standard deviation that is estimated from so many weights.
        assert conv.weight.std().item() == pytest.approx(expected, rel=3 / math.sqrt(2 * conv.weight.numel()))
        assert conv.bias is None
    assert net.fc.weight.std().item() == pytest.approx(math.sqrt(2 / (128 + 10)), rel=0.06)
    assert not net.fc.bias.any()


def test_a_new_classifier_has_as_many_outputs_as_asked():
    net = wrn_10_1(num_classes=3)
    net.reset_classifier(7)
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    assert net.num_classes == 7
    assert not net.fc.bias.any()


@pytest.mark.parametrize(("name", "depth", "width"), [("wrn_28_2", 28, 2), ("wrn_16_2", 16, 2), ("wrn_10_1", 10, 1)])
def test_names_say_depth_and_width(name, depth, width):
    state = build(name, 4, in_chans=1).net.state_dict()
    expected = WideResNet(depth, width, num_classes=4, in_chans=1).state_dict()
    assert {key: value.shape for key, value in state.items()} == {key: v.shape for key, v in expected.items()}

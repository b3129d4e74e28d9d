"""Wide residual networks as FixMatch defines them (arXiv 1605.07146, 2001.07685), registered with timm."""

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SLOPE = 0.1
# TensorFlow's 0.999: long runs only; short ones set model.batch_norm_momentum.
BATCH_NORM_MOMENTUM = 0.001


def _activated(x: Tensor, norm: nn.Module) -> Tensor:
    return F.leaky_relu(norm(x), SLOPE)


class Block(nn.Module):
    """Two pre-activated 3 x 3 convolutions; in the first scale, the shortcut starts after the activation."""

    def __init__(self, num_in: int, num_out: int, stride: int, activate_shortcut: bool):
        super().__init__()
        self.activate_shortcut = activate_shortcut
        self.norm1 = nn.BatchNorm2d(num_in, momentum=BATCH_NORM_MOMENTUM)
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_out, momentum=BATCH_NORM_MOMENTUM)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(num_in, num_out, 1, stride, bias=False) if num_in != num_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = _activated(x, self.norm1)
        shortcut = self.shortcut(out if self.activate_shortcut else x)
        return self.conv2(_activated(self.conv1(out), self.norm2)) + shortcut


class WideResNet(nn.Module):
    """Three scales of (depth - 4) / 6 blocks with 16, 32 and 64 times `width` channels, with timm's interface."""

    def __init__(self, depth: int, width: int, num_classes: int = 10, in_chans: int = 3):
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False)
        blocks, num_in = [], 16
        for scale in range(3):
            for i in range((depth - 4) // 6):
                num_out = 16 * width * 2**scale
                stride = 2 if scale > 0 and i == 0 else 1
                blocks.append(Block(num_in, num_out, stride, activate_shortcut=scale == 0 and i == 0))
                num_in = num_out
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(num_in, momentum=BATCH_NORM_MOMENTUM)
        self.num_features = self.head_hidden_size = num_in
        self.fc = nn.Linear(num_in, num_classes)
        self.apply(_initialize)

    def forward_features(self, x: Float[Tensor, "N K H W"]) -> Float[Tensor, "N D h w"]:
        return _activated(self.blocks(self.stem(x)), self.norm)

    def forward_head(self, x: Float[Tensor, "N D h w"], pre_logits: bool = False) -> Float[Tensor, "N out"]:
        features = x.mean((2, 3))
        return features if pre_logits else self.fc(features)

    def forward(self, x: Float[Tensor, "N K H W"]) -> Float[Tensor, "N C"]:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes)
        _initialize(self.fc)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels)))
    elif isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(module.bias)


def wrn_28_2(num_classes: int = 10, in_chans: int = 3) -> WideResNet:
    """1.5 million parameters: the field's network for CIFAR-10 and SVHN."""
    return WideResNet(28, 2, num_classes, in_chans)


def wrn_28_8(num_classes: int = 10, in_chans: int = 3) -> WideResNet:
    """23.4 million parameters: FixMatch's network for CIFAR-100."""
    return WideResNet(28, 8, num_classes, in_chans)


def wrn_16_2(num_classes: int = 10, in_chans: int = 3) -> WideResNet:
    """0.7 million parameters: half the depth, for runs on a CPU."""
    return WideResNet(16, 2, num_classes, in_chans)


def wrn_10_1(num_classes: int = 10, in_chans: int = 3) -> WideResNet:
    """78 thousand parameters: for digits of 8 x 8 pixels."""
    return WideResNet(10, 1, num_classes, in_chans)

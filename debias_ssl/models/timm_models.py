"""Registers the networks of this package with timm: after the import, `timm.create_model` finds them by name.

This is a separate module because timm takes longer to import than torch, and the networks do not need it.
"""

from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, register_model
from torch import nn

from debias_ssl.models.classifier import OWN


def _entry(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The function that timm calls to create a network, with the network's name."""
    name = make.__name__

    def create(pretrained: bool = False, **arguments: Any) -> nn.Module:
        # Without the config of a folder, timm would warn that it uses a default.
        config = arguments.pop("pretrained_cfg", None) or {"architecture": name}
        return build_model_with_cfg(
            make, name, pretrained, pretrained_cfg=config, kwargs_filter=("global_pool",), **arguments
        )

    create.__name__ = create.__qualname__ = name
    return create


for each in OWN.values():
    register_model(_entry(each))

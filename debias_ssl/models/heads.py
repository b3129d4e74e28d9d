"""Classifiers of stored features: they train in seconds."""

from jaxtyping import Float
from torch import Tensor, nn


class FeatureHead(nn.Module):
    """A linear classifier, after a hidden layer if `hidden` is not 0.

    It has the interface of timm's models. Features are images of one pixel, with one channel for each feature.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 512,
        *,
        hidden: int,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = hidden or in_chans
        self.hidden = nn.Sequential(nn.Linear(in_chans, hidden), nn.ReLU()) if hidden else nn.Identity()
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(self.num_features, num_classes)

    def forward_features(self, x: Float[Tensor, "N K 1 1"]) -> Float[Tensor, "N D"]:
        return self.hidden(x.flatten(1))

    def forward_head(self, x: Float[Tensor, "N D"], pre_logits: bool = False) -> Float[Tensor, "N out"]:
        features = self.drop(x)
        return features if pre_logits else self.fc(features)

    def forward(self, x: Float[Tensor, "N K 1 1"]) -> Float[Tensor, "N C"]:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes)


def linear(num_classes: int = 1000, in_chans: int = 512, **rates: float) -> FeatureHead:
    """A linear classifier of features."""
    return FeatureHead(num_classes, in_chans, hidden=0, **rates)


def mlp_512(num_classes: int = 1000, in_chans: int = 512, **rates: float) -> FeatureHead:
    """A classifier of features with one hidden layer of 512 units."""
    return FeatureHead(num_classes, in_chans, hidden=512, **rates)

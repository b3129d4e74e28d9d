"""Views of features: what the noise is like, and that it is a function of seed, step and position alone."""

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from debias_ssl.contract import Needs, Place
from debias_ssl.data.augment import feature_noise as module
from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.augment.feature_noise import POOL, FeatureNoise
from debias_ssl.data.augment.views import Normalization, normalize
from debias_ssl.data.reading.config import ReadingConfig
from debias_ssl.data.reading.reader import Reader
from debias_ssl.data.streams import Sampling, StreamConfig, TrainingImages, TrainingStream

CPU = torch.device("cpu")
STEPS, IMAGES, FEATURES = 4, 256, 128


def of(mean: tuple[float, ...], std: tuple[float, ...]) -> Normalization:
    return Normalization.of(mean, std, CPU)


def stream(
    *, seed: int = 0, rank: int = 0, num_processes: int = 1, needs: Needs | None = None, **augment: Any
) -> TrainingStream:
    """Of images whose features are all 1, so that a strong view is the noise that it has got."""
    num = 300
    config = StreamConfig(augment=AugmentConfig(**augment))
    return TrainingStream(
        reader=Reader(
            pixels=torch.ones(num, 1, 1, FEATURES).half(), files=(), config=ReadingConfig(features=("somewhere",))
        ),
        images=TrainingImages(
            labels=torch.arange(num) % 2,
            labeled=torch.arange(0, num, 3),
            unlabeled=torch.arange(num),
            truth=torch.arange(num) % 2,
        ),
        sampling=Sampling(seed=seed, batch_size=32, unlabeled_batch_size=IMAGES),
        config=config,
        normalization=of((1.0,) * FEATURES, (1.0,) * FEATURES),
        needs=needs or Needs(),
        place=Place(rank=rank, num_processes=num_processes),
    )


def noise(start: int = 0, stop: int = STEPS, **settings: Any) -> Tensor:
    """The first strong views of some steps: steps x images x features."""
    return torch.stack([batch.strong[0].flatten(1) for batch in stream(**settings).batches(start, stop)])


@pytest.fixture(scope="module")
def drawn() -> Tensor:
    return noise(feature_noise=2.0, feature_dropout=0.0)


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


def test_a_weak_view_of_features_is_the_features_standardized():
    features = torch.tensor([[1.0, 2.0], [3.0, 8.0]]).half()[:, None, None]
    view = normalize(features, of((2.0, 5.0), (1.0, 3.0)))
    assert view.flatten(1).tolist() == [[-1, -1], [1, 1]] and view.shape == (2, 2, 1, 1)
    (batch,) = stream().batches(0, 1)
    assert (batch.weak[0] == 0).all() and (batch.labeled == 0).all(), "the features are at their means"


def test_noise_is_normal_with_the_deviation_asked_for(drawn: Tensor):
    # 131,072 numbers: the mean is within 4 of its own deviations of 0, and so is the deviation of 2.
    num = drawn.numel()
    assert abs(drawn.mean()) < 4 * 2 / num**0.5 and abs(drawn.std() - 2) < 4 * 2 / (2 * num) ** 0.5
    # Kolmogorov and Smirnov's distance has a critical value of 1.95 / sqrt(n) at 0.001.
    assert stats.kstest(drawn.flatten().numpy() / 2, "norm").statistic < 1.95 / num**0.5
    assert (FeatureNoise.of(AugmentConfig(feature_dropout=0.0), 0, 5, CPU).pool.abs() < 6).all(), "finite at the ends"


def test_the_share_of_dropped_features_is_the_one_asked_for():
    views = noise(feature_noise=1.0, feature_dropout=0.3)
    assert abs((views == 0).float().mean() - 0.3) < 4 * (0.3 * 0.7 / views.numel()) ** 0.5
    assert (noise(feature_noise=0.0, feature_dropout=0.0) == 0).all()
    # A dropped feature is its mean, which is 0 here; others keep their noise, which does not depend on the dropout.
    whole = noise(feature_noise=1.0, feature_dropout=0.0)
    assert views[views != 0].equal(whole[views != 0])


def test_a_dropped_feature_is_its_mean():
    for deviation, kept in ((0.0, 1.0), (2.0, 1 + 2 * 7)):
        pool = torch.full((POOL + 3,), torch.nan)
        pool[[POOL // 2, POOL // 2 + 2]] = 7
        noise = FeatureNoise(deviation=deviation, drops=True, pool=pool)
        view = noise(torch.ones(1, 3, 1, 1), torch.tensor([0.5]))
        assert view.flatten().tolist() == [kept, 0, kept]


def test_every_place_of_the_pool_may_be_the_first():
    """The last one too, at the largest number below 1."""
    noise = FeatureNoise(deviation=1.0, drops=False, pool=torch.arange(POOL + 3.0))
    views = noise(torch.zeros(2, 3, 1, 1), torch.tensor([0.0, 1 - 2**-24]))
    assert views.flatten(1).tolist() == [[0, 1, 2], [POOL - 1, POOL, POOL + 1]]
    assert len(FeatureNoise.of(AugmentConfig(), 0, 5000, CPU).pool) >= POOL + 5000 - 1


def test_images_views_steps_and_seeds_have_noise_of_their_own(drawn: Tensor):
    two = stream(needs=Needs(num_strong=2), feature_noise=2.0, feature_dropout=0.0)
    first, second = next(two.batches(0, 1)).strong
    others = noise(seed=1, feature_noise=2.0, feature_dropout=0.0)
    pairs = {
        "images": (drawn[:, 1:], drawn[:, :-1]),
        "features": (drawn[..., 1:], drawn[..., :-1]),
        "steps": (drawn[1:], drawn[:-1]),
        "views": (first, second),
        "seeds": (drawn, others),
        "sizes of two features": (drawn[..., 1:].abs(), drawn[..., :-1].abs()),
    }
    for name, (one, other) in pairs.items():
        # Of independent numbers, a correlation has the deviation 1 / sqrt(n).
        assert abs(correlation(one, other)) < 4 / one.numel() ** 0.5, name
    assert first.flatten(1).equal(drawn[0])


def test_what_is_dropped_depends_on_nothing_else():
    numbers = torch.rand(IMAGES, generator=torch.Generator().manual_seed(0))
    features = torch.full((IMAGES, FEATURES, 1, 1), 100.0)

    def views(**settings: Any) -> Tensor:
        return FeatureNoise.of(AugmentConfig(**settings), 0, FEATURES, CPU)(features, numbers).flatten(1)

    gone, noisy = views(feature_noise=0.0, feature_dropout=0.4) == 0, views(feature_noise=1.0, feature_dropout=0.0)
    pairs = {
        "images": (gone[1:], gone[:-1]),
        "features": (gone[:, 1:], gone[:, :-1]),
        "noise": (gone, noisy),
    }
    for name, (one, other) in pairs.items():
        assert abs(correlation(one.float(), other.float())) < 4 / one.numel() ** 0.5, name


def test_any_number_of_processes_and_any_resume_have_the_same_noise(drawn: Tensor):
    settings: dict[str, Any] = {"feature_noise": 2.0, "feature_dropout": 0.0}
    parts = [noise(rank=rank, num_processes=4, **settings) for rank in range(4)]
    assert torch.cat(parts, 1).equal(drawn)
    module._pool.cache_clear()
    assert noise(2, 4, **settings).equal(drawn[2:])

"""Fixtures of several test files: views for methods, batches and learners of a tiny problem, a cache folder."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from small_learner import make_learner
from torch import Tensor

from debias_ssl.contract import Batch
from debias_ssl.methods import Problem, View, Views
from debias_ssl.training.learner import Learner

# Jobs in other processes also compute with one thread, and the number of threads changes the last bits.
torch.set_num_threads(1)


@pytest.fixture
def make_problem() -> Callable[[int], Problem]:
    def make(num_classes: int) -> Problem:
        return Problem(num_classes=num_classes, num_features=2, labeled_counts=(1,) * num_classes, num_unlabeled=10)

    return make


@pytest.fixture
def make_views() -> Callable[..., Views]:
    """Views with given logits. A list of weak or strong logits makes several views of the same images."""

    def make(labeled: Tensor, labels: Tensor, weak: Tensor | list[Tensor], strong: Tensor | list[Tensor]) -> Views:
        def views(logits: Tensor | list[Tensor]) -> list[View]:
            several = logits if isinstance(logits, list) else [logits]
            return [View(logits=each, features=torch.zeros(len(each), 2)) for each in several]

        first_weak, *further_weak = views(weak)
        first_strong, *further_strong = views(strong)
        return Views(
            labeled=views(labeled)[0],
            labels=labels,
            weak=first_weak,
            strong=first_strong,
            index=torch.arange(len(first_weak.logits)),
            progress=0.0,
            further_weak=tuple(further_weak),
            further_strong=tuple(further_strong),
        )

    return make


@pytest.fixture
def random_views(make_views: Callable[..., Views]) -> Callable[..., Views]:
    """Views of random logits that take gradients."""

    def make(num_classes: int, *, num_views: int = 1, num_labeled: int = 6, num_unlabeled: int = 30, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)

        def logits(num: int) -> Tensor:
            return 2 * torch.randn(num, num_classes, generator=generator)

        return make_views(
            logits(num_labeled).requires_grad_(),
            torch.randint(num_classes, (num_labeled,), generator=generator),
            [logits(num_unlabeled) for _ in range(num_views)],
            [logits(num_unlabeled).requires_grad_() for _ in range(num_views)],
        )

    return make


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Gray 8 x 8 images of four classes; images of each class are brighter than those of the class before."""

    def make(
        *,
        labeled: int = 4,
        unlabeled: int = 8,
        num_weak: int = 1,
        num_strong: int = 1,
        channels: int = 1,
        seed: int = 0,
    ) -> Batch:
        generator = torch.Generator().manual_seed(seed)

        def images(classes: Tensor) -> Tensor:
            noise = torch.randn(len(classes), channels, 8, 8, generator=generator)
            return noise + classes.view(-1, 1, 1, 1)

        labels = torch.arange(labeled) % 4
        truth = torch.randint(4, (unlabeled,), generator=generator)
        return Batch(
            labeled=images(labels),
            labels=labels,
            weak=tuple(images(truth) for _ in range(num_weak)),
            strong=tuple(images(truth) for _ in range(num_strong)),
            index=torch.arange(unlabeled),
            truth=truth,
        )

    return make


@pytest.fixture(name="make_learner")
def learner_maker() -> Callable[..., Learner]:
    return make_learner


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Gives jobs that tests start their own cache folder, so that they do not use the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def forget_modules_of_a_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Removes modules that a test has imported from its folder, so that tests may write modules of the same name."""
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path_factory.getbasetemp()):
            del sys.modules[name]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for one test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "debias_ssl"

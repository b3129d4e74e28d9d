from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from debias_ssl.contract import Batch, Place
from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.augment.views import Normalization
from debias_ssl.data.config import DataConfig
from debias_ssl.data.evaluation_stream import EvaluationStream
from debias_ssl.data.reading.config import ReadingConfig
from debias_ssl.data.reading.reader import Reader, make_reader
from debias_ssl.data.sampling.keyed import Purpose, permutation, uniform
from debias_ssl.data.sampling.orders import BalancedOrder, PassOrder
from debias_ssl.data.sources.load import load_data
from debias_ssl.data.streams import Sampling, StreamConfig, TrainingImages, TrainingStream
from debias_ssl.methods import Needs
from debias_ssl.system.errors import InputError

CPU = torch.device("cpu")
# Without an operation and cutout, a strong view is drawn like a weak one.
PLAIN = AugmentConfig(flip=True, op_probability=0.0, cutout=0.0)


def memory(num: int) -> Reader:
    """A reader of noise in memory."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, 8, 8, 3), dtype=np.uint8))
    return Reader(pixels=pixels, files=(), config=ReadingConfig())


def stream(reader: Reader, num: int, **settings: Any) -> TrainingStream:
    """Images 0, 3, 6, ... are labeled, and images 2, 3, 4, ... are unlabeled."""

    def given(*names: str) -> dict[str, Any]:
        return {name: settings.pop(name) for name in names if name in settings}

    labels = torch.arange(num) % 4 - 1
    positions: dict[str, Any] = {"labeled": torch.arange(0, num, 3), "unlabeled": torch.arange(num)[2:]}
    positions |= given("labeled", "unlabeled")
    images = TrainingImages(
        labels=labels,
        truth=labels[positions["unlabeled"]],
        teacher_probs=torch.linspace(0, 1, 3 * num).view(-1, 3),
        **positions,
    )
    sizes: dict[str, Any] = {"batch_size": 4, "unlabeled_batch_size": 8} | given(
        "batch_size", "unlabeled_batch_size", "balanced"
    )
    needs = given("num_weak", "num_strong", "mixup_alpha")
    return TrainingStream(
        reader=reader,
        images=images,
        sampling=Sampling(seed=0, **sizes),
        config=StreamConfig(**given("augment")),
        normalization=Normalization(mean=torch.full((3,), 0.5), std=torch.full((3,), 0.25)),
        needs=Needs(strong_labeled=True, teacher_probs=True, labeled_teacher_probs=True, draws=True, **needs),
        **{"place": Place()} | settings,
    )


def parts(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    for field in fields(batch):
        value = getattr(batch, field.name)
        several = value if isinstance(value, tuple) else (value,)
        yield from ((field.name, tensor) for tensor in several if isinstance(tensor, Tensor))


def assert_same(one: Batch, other: Batch) -> None:
    for (name, left), (_, right) in zip(parts(one), parts(other), strict=True):
        assert torch.equal(left, right), name


def at(training: TrainingStream, step: int) -> Batch:
    return next(training.batches(step, step + 1))


# Training.


def test_labeled_and_unlabeled_images_come_once_per_pass():
    training = stream(memory(32), 32, batch_size=11, unlabeled_batch_size=15, num_weak=0, num_strong=0)
    # 11 labeled and 30 unlabeled images.
    assert len(training.images.labeled) == 11 and len(training.images.unlabeled) == 30
    batches = list(training.batches(0, 4))
    for batch in batches:
        assert torch.equal(batch.labels.sort().values, training.images.labels[training.images.labeled].sort().values)
    for start in (0, 2):
        index = torch.cat([batch.index for batch in batches[start : start + 2]])
        assert index.sort().values.tolist() == list(range(30))


def test_a_batch_may_span_several_passes():
    training = stream(memory(12), 12, batch_size=16, unlabeled_batch_size=32)
    batch = at(training, 0)
    # Four labeled images, four times each; ten unlabeled images, three times each, and two once more.
    assert sorted(Counter(batch.labels.tolist()).items()) == [(-1, 4), (0, 4), (1, 4), (2, 4)]
    assert sorted(Counter(batch.index.tolist()).values()) == [3] * 8 + [4] * 2


def test_images_labels_and_truth_belong_to_the_same_image():
    still = AugmentConfig(flip=False, shift=0.0, op_probability=0.0, cutout=0.0)
    reader = memory(20)
    assert reader.pixels is not None
    training = stream(reader, 20, num_weak=2, augment=still)
    expected = ((reader.pixels.float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)
    for batch in training.batches(0, 3):
        position = training.images.unlabeled[batch.index]
        assert torch.equal(batch.truth, training.images.labels[position])
        for view in (*batch.weak, *batch.strong):
            torch.testing.assert_close(view, expected[position], atol=1e-5, rtol=0)
        # Of noise, the nearest image is the image itself.
        nearest = torch.cdist(batch.labeled.flatten(1), expected.flatten(1)).argmin(1)
        assert set(nearest.tolist()) <= set(training.images.labeled.tolist())
        assert torch.equal(batch.labels, training.images.labels[nearest])


@pytest.mark.parametrize("balanced", [False, True])
def test_a_step_is_the_same_from_wherever_the_stream_starts(balanced: bool):
    training = stream(memory(20), 20, balanced=balanced, num_weak=2, num_strong=2)
    whole = list(training.batches(0, 7))
    for start in (1, 5, 6):
        for batch, expected in zip(training.batches(start, 7), whole[start:], strict=True):
            assert_same(batch, expected)
    # By a stream that has not given any batch before, too.
    assert_same(at(stream(memory(20), 20, balanced=balanced, num_weak=2, num_strong=2), 6), whole[6])


@pytest.mark.parametrize("mixup_alpha", [0.0, 0.5])
@pytest.mark.parametrize("is_of_features", [False, True])
def test_views_of_several_steps_at_once_are_those_of_each_step(is_of_features: bool, mixup_alpha: float):
    def made() -> TrainingStream:
        features = torch.randn(20, 1, 1, 3, generator=torch.Generator().manual_seed(0))
        config = ReadingConfig(features=("",), feature_views="none")
        reader = Reader(pixels=features, files=(), config=config) if is_of_features else memory(20)
        return stream(reader, 20, num_weak=2, num_strong=2, mixup_alpha=mixup_alpha)

    together = made()
    # As on a GPU; the last block has two steps.
    vars(together)["_steps_at_once"] = 4
    for batch, expected in zip(together.batches(1, 11), made().batches(1, 11), strict=True):
        assert_same(batch, expected)


def test_the_number_of_steps_at_once_is_bounded_by_what_their_views_take():
    def at_once(place: Place, side: int, batch: int) -> int:
        reader = Reader(pixels=torch.empty(8, side, side, 3, dtype=torch.uint8), files=(), config=ReadingConfig())
        return stream(reader, 8, place=place, unlabeled_batch_size=batch)._steps_at_once

    # 2 views of 448 images of 3,072 numbers; of 512 x 512 pixels, those of one step are more than the bound.
    gpu = Place(device=torch.device("meta"))
    assert [at_once(gpu, 32, 448), at_once(gpu, 64, 448), at_once(gpu, 512, 448)] == [8, 3, 1]
    assert at_once(Place(), 32, 448) == 1
    assert at_once(replace(gpu, num_processes=4), 64, 448) == 8


def test_steps_and_seeds_hold_different_things():
    training = stream(memory(40), 40)
    batches = [at(training, 0), at(training, 1), at(replace(training, sampling=replace(training.sampling, seed=1)), 0)]
    for part in ("labeled", "index"):
        values = [getattr(batch, part) for batch in batches]
        assert not any(torch.equal(values[i], values[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("mixup_alpha", [0.0, 0.5])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("num_processes", [2, 4])
def test_the_parts_of_all_processes_are_one_process_batch(num_processes: int, balanced: bool, mixup_alpha: float):
    settings: dict[str, Any] = {"balanced": balanced, "num_weak": 2, "num_strong": 2, "mixup_alpha": mixup_alpha}

    def of_rank(rank: int) -> TrainingStream:
        place = Place(rank=rank, num_processes=num_processes)
        return stream(memory(20), 20, place=place, **settings)

    alone = stream(memory(20), 20, **settings)
    for step in (0, 3):
        assert {at(of_rank(rank), step).mixup_lambda for rank in range(num_processes)} == {at(alone, step).mixup_lambda}
        pieces = [list(parts(at(of_rank(rank), step))) for rank in range(num_processes)]
        for number, (name, expected) in enumerate(parts(at(alone, step))):
            together = torch.cat([piece[number][1] for piece in pieces])
            assert torch.equal(together, expected), name


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch_size": 5}, "batch_size 5 cannot be divided among 2 processes"),
        ({"unlabeled_batch_size": 7}, "unlabeled batch 7 cannot be divided among 2 processes"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(sizes: dict[str, int], message: str):
    with pytest.raises(InputError, match=message):
        stream(memory(20), 20, place=Place(rank=1, num_processes=2), **sizes)


def single(**settings: Any) -> TrainingStream:
    """A stream of nothing but views of one and the same image."""
    only = torch.tensor([0])
    config = {"labeled": only, "unlabeled": only, "batch_size": 8, "unlabeled_batch_size": 8, **settings}
    return stream(memory(1), 1, augment=PLAIN, **config)


def test_views_of_the_same_image_differ_by_kind_number_and_step():
    training = single(num_weak=2, num_strong=2)
    views = [
        tensor for step in (0, 1) for name, tensor in parts(at(training, step)) if name in ("labeled", "weak", "strong")
    ]
    # An image of 8 pixels is flipped or not and shifted in one of 9 ways, so two rows of 8 views are hardly the same.
    assert len(views) == 10
    assert len({view.numpy().tobytes() for view in views}) == 10


def test_views_of_the_same_image_differ_within_a_batch():
    weak = at(single(), 0).weak[0]
    assert len(weak.flatten(1).unique(dim=0)) > 3


def test_a_further_view_leaves_the_others_as_they_are():
    one, two = at(single(), 3), at(single(num_weak=2, num_strong=2), 3)
    assert torch.equal(one.weak[0], two.weak[0]) and torch.equal(one.strong[0], two.strong[0])
    assert torch.equal(one.labeled, two.labeled)


@pytest.mark.parametrize("settings", [{}, {"balanced": True}, {"mixup_alpha": 1.0}])
def test_what_a_step_holds_is_found_once(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    asked = []
    for order in (PassOrder, BalancedOrder):
        plain = order.__call__

        def counted(self: Any, step: int, positions: Tensor, plain: Any = plain) -> Tensor:
            asked.append((id(self), step))
            return plain(self, step, positions)

        monkeypatch.setattr(order, "__call__", counted)
    list(stream(memory(40), 40, **settings).batches(0, 3))
    assert {step for _, step in asked} == {0, 1, 2} and max(Counter(asked).values()) == 1


# Mixup.


@pytest.mark.parametrize("step", [0, 5])
def test_labeled_images_are_mixed_with_the_same_views_of_others(step: int):
    plain = at(stream(memory(40), 40), step)
    found = at(stream(memory(40), 40, mixup_alpha=1.0), step)
    partner = permutation(0, Purpose.MIXUP_PARTNER, step, 4)
    # Beta(1, 1) is the uniform distribution.
    share = uniform(0, Purpose.MIXUP_LAMBDA, step, torch.tensor([0]), 1).item()
    assert found.mixup_lambda == pytest.approx(share) and 0.01 < share < 0.99
    torch.testing.assert_close(found.labeled, share * plain.labeled + (1 - share) * plain.labeled[partner])
    assert not torch.equal(found.labeled, plain.labeled)
    assert found.partner_labels is not None and torch.equal(found.partner_labels, plain.labels[partner])
    # Nothing else is touched: not even strong views of the same images.
    others = {"partner_labels": None, "mixup_lambda": 1.0, "labeled": plain.labeled}
    assert_same(plain, replace(found, **others))


def test_shares_and_partners_differ_between_steps():
    training = stream(memory(40), 40, mixup_alpha=1.0, batch_size=8)
    shares = {at(training, step).mixup_lambda for step in range(4)}
    orders = {tuple(permutation(0, Purpose.MIXUP_PARTNER, step, 8).tolist()) for step in range(4)}
    assert len(shares) == len(orders) == 4


def test_without_mixup_nothing_is_mixed():
    batch = at(stream(memory(20), 20), 2)
    assert batch.partner_labels is None and batch.mixup_lambda == 1


# Files.


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets two workers start on any machine."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)


def with_workers(test: Callable) -> Callable:
    """For tests that start workers; torch remarks when they are more than there are cores."""
    return pytest.mark.usefixtures("two_cores")(pytest.mark.filterwarnings("ignore:This DataLoader will create")(test))


def of_files(config: DataConfig, **settings: Any) -> tuple[Reader, int]:
    images = load_data(config).train
    return make_reader(images, replace(config, **settings), CPU, progress=False), len(images)


@with_workers
@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_gives_what_resident_images_give(config: DataConfig, workers: int):
    resident = stream(*of_files(config, input="resident"), mixup_alpha=0.5)
    streaming = stream(*of_files(config, input="streaming", workers=workers), mixup_alpha=0.5)
    assert resident.reader.is_resident and not streaming.reader.is_resident
    for one, other in zip(resident.batches(2, 5), streaming.batches(2, 5), strict=True):
        assert_same(one, other)


@with_workers
def test_random_crops_do_not_depend_on_the_number_of_workers(config: DataConfig):
    alone = stream(*of_files(config, crop="resized", image_size=8), num_weak=2)
    helped = stream(*of_files(config, crop="resized", image_size=8, workers=2), num_weak=2)
    for one, other in zip(alone.batches(0, 3), helped.batches(0, 3), strict=True):
        assert_same(one, other)


def test_random_crops_of_all_processes_are_those_of_one(config: DataConfig):
    settings = of_files(config, crop="resized", image_size=8)
    halves = [list(parts(at(stream(*settings, place=Place(rank=rank, num_processes=2)), 1))) for rank in (0, 1)]
    for number, (name, expected) in enumerate(parts(at(stream(*settings), 1))):
        assert torch.equal(torch.cat([half[number][1] for half in halves]), expected), name


def test_random_crops_differ_by_view_and_step(config: DataConfig):
    # Nothing but the crop changes an image.
    still = AugmentConfig(flip=False, op_probability=0.0, cutout=0.0)
    reader, num = of_files(config, crop="resized", image_size=8)
    only = torch.tensor([0])
    training = stream(reader, num, labeled=only, unlabeled=only, num_weak=2, num_strong=2, augment=still)
    views = [
        *(view for step in (0, 1) for view in at(training, step).weak),
        *(view for step in (0, 1) for view in at(training, step).strong),
        *(at(training, step).labeled for step in (0, 1)),
    ]
    assert len({view.numpy().tobytes() for view in views}) == 10


def test_random_crops_are_not_shifted_as_well(config: DataConfig):
    still = AugmentConfig(flip=False, shift=0.5, op_probability=0.0, cutout=0.0)
    training = stream(*of_files(config, crop="resized", image_size=8), augment=still)
    batch, pixels = at(training, 0), training[0]
    for view, cropped in ((batch.weak[0], pixels["weak"][0]), (batch.strong[0], pixels["strong"][0])):
        expected = ((cropped.float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)
        torch.testing.assert_close(view, expected, atol=1e-5, rtol=0)


def test_a_further_random_crop_leaves_the_others_as_they_are(config: DataConfig):
    training = stream(*of_files(config, crop="resized", image_size=8))
    one, two = at(training, 3), at(replace(training, needs=replace(training.needs, num_weak=2, num_strong=2)), 3)
    assert torch.equal(one.weak[0], two.weak[0]) and torch.equal(one.strong[0], two.strong[0])


@with_workers
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_told_in_one_line_also_by_a_worker(config: DataConfig, workers: int):
    reader, num = of_files(config, input="streaming", workers=workers)
    Path(reader.files[3]).write_bytes(b"no image")
    training = stream(reader, num, labeled=torch.tensor([3]), batch_size=1)
    with pytest.raises(InputError) as caught:
        at(training, 0)
    assert str(caught.value).startswith(f"cannot read image '{reader.files[3]}': ")
    assert "\n" not in str(caught.value)


# Evaluation.


def evaluation(reader: Reader, index: Tensor, batch_size: int, rank: int = 0, num_processes: int = 1):
    place = Place(rank=rank, num_processes=num_processes)
    mean, std = (0.5,) * 3, (0.25,) * 3
    return EvaluationStream(reader=reader, index=index, mean=mean, std=std, batch_size=batch_size, place=place)


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 4, 3]), (11, [11]), (100, [11])])
def test_evaluation_gives_each_image_once_in_order(batch_size: int, sizes: list[int]):
    reader, index = memory(30), torch.arange(25, 3, -2)
    assert reader.pixels is not None
    batches = list(evaluation(reader, index, batch_size))
    assert [len(images) for _, images in batches] == sizes
    assert torch.cat([places for places, _ in batches]).tolist() == list(range(11))
    expected = ((reader.pixels[index].float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)
    torch.testing.assert_close(torch.cat([images for _, images in batches]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [0, 2, 11, 12])
def test_processes_together_evaluate_each_image_once(length: int):
    reader, index = memory(12), torch.arange(length).flip(0)
    pairs = [
        pair
        for rank in range(3)
        for places, images in evaluation(reader, index, 2, rank, 3)
        for pair in zip(places.tolist(), images, strict=True)
    ]
    # In order over the processes: each has one stretch, so that images in tar files are opened by one process.
    assert [place for place, _ in pairs] == list(range(length))
    alone = [image for _, images in evaluation(reader, index, 5) for image in images]
    for place, image in pairs:
        assert torch.equal(image, alone[place])


@with_workers
def test_evaluation_of_files_does_not_depend_on_workers(config: DataConfig):
    batches = [
        list(evaluation(of_files(config, **settings)[0], torch.arange(15), 4))
        for settings in ({"input": "resident"}, {"input": "streaming"}, {"input": "streaming", "workers": 2})
    ]
    for other in batches[1:]:
        for (places, images), (expected_places, expected) in zip(other, batches[0], strict=True):
            assert torch.equal(places, expected_places) and torch.equal(images, expected)


def test_given_probabilities_are_those_of_the_images():
    made = stream(memory(20), 20)
    batch, images, probs = next(made.batches(3, 4)), made.images, made.images.teacher_probs
    labeled = images.labeled[made[3]["labeled_at"] // 3]
    assert probs is not None and batch.teacher_probs is not None and batch.labeled_teacher_probs is not None
    assert batch.teacher_probs.equal(probs[images.unlabeled[batch.index]])
    assert batch.labeled_teacher_probs.equal(probs[labeled]) and batch.labels.equal(images.labels[labeled])

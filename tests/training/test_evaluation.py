import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from debias_ssl.contract import Place
from debias_ssl.data.config import DataConfig
from debias_ssl.data.evaluation_stream import EvaluationStream
from debias_ssl.data.reading.reader import Reader
from debias_ssl.training.evaluation import evaluate_logits, predict_all, predict_logits, try_batch


class Brightness(nn.Module):
    """Logits (b, -b) of images of brightness b; it refuses to predict in training mode."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        brightness = images.mean((1, 2, 3))
        return torch.stack([brightness, -brightness], 1)


def stream(index: list[int], batch_size: int, place: Place | None = None) -> EvaluationStream:
    """Images of brightness 0, 10, 20 ... of 255, normalized by mean .5 and deviation 2."""
    pixels = (10 * torch.arange(10, dtype=torch.uint8)).view(10, 1, 1, 1).expand(10, 4, 4, 1).contiguous()
    return EvaluationStream(
        reader=Reader(pixels=pixels, files=(), config=DataConfig()),
        index=torch.tensor(index),
        mean=(0.5,),
        std=(2.0,),
        batch_size=batch_size,
        place=place or Place(),
    )


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_logits_are_in_the_order_of_the_stream_whatever_the_batches(batch_size):
    index = [7, 0, 3, 3]
    logits = predict_logits(Brightness().eval(), stream(index, batch_size), 2)
    brightness = (10 * torch.tensor(index) / 255 - 0.5) / 2
    torch.testing.assert_close(logits, torch.stack([brightness, -brightness], 1))


def test_processes_share_the_images_and_their_sum_is_the_whole():
    whole = predict_logits(Brightness(), stream([*range(7)], 2), 2)
    parts = [
        predict_logits(Brightness(), stream([*range(7)], 2, Place(rank=rank, num_processes=3)), 2) for rank in range(3)
    ]
    torch.testing.assert_close(sum(parts), whole)
    assert [int(part.any(1).sum()) for part in parts] == [3, 2, 2]


@dataclass(frozen=True, kw_only=True)
class CountingReader(Reader):
    """A reader that notes which images it decodes."""

    decoded: list[int] = field(default_factory=list)

    def center(self, index: Tensor) -> Tensor:
        self.decoded.extend(index.tolist())
        return super().center(index)


def test_each_image_is_decoded_once_for_all_predictors():
    class Darkness(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            return -super().forward(images)

    images = stream([7, 0, 3, 3], 3)
    reader = CountingReader(pixels=images.reader.pixels, files=(), config=DataConfig())
    found = predict_all({"a": Brightness(), "b": Darkness()}, replace(images, reader=reader), 2)
    assert reader.decoded == [7, 0, 3, 3]
    assert found["a"].equal(predict_logits(Brightness(), images, 2)) and found["b"].equal(-found["a"])


@pytest.mark.parametrize(("batch_size", "expected"), [(3, 3), (100, 4)])
def test_a_trial_is_as_large_as_the_largest_batch_and_reads_no_more_than_a_shape(batch_size, expected):
    seen = []

    class Seeing(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.shape)
            return super().forward(images)

    images = stream([7, 0, 3, 3], batch_size)
    reader = CountingReader(pixels=images.reader.pixels, files=(), config=DataConfig())
    model = Seeing().train()
    try_batch({"a": model, "b": model}, replace(images, reader=reader))
    assert seen == [(expected, 1, 4, 4)] * 2 and model.training and len(reader.decoded) <= 1


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_restored(training):
    model = Brightness().train(training)
    predict_logits(model, stream([0, 1], 2), 2)
    assert model.training == training


def test_figures_worked():
    # Probabilities .9 for class 0, .8 for class 1, .6 for class 0; the truth is 0, 1, 1.
    probs = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.6, 0.4, 0.0]])
    figures = evaluate_logits(probs.clamp(min=1e-9).log(), torch.tensor([0, 1, 1]), torch.tensor([4, 2, 1]))
    assert figures["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert figures["recalls"] == [1, 0.5, None]
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["mean_recall"] == 0.75
    assert figures["min_recall"] == 0.5
    assert figures["h_mean"] == pytest.approx(2 / 3)
    assert figures["g_mean"] == pytest.approx(math.sqrt(0.5))
    assert figures["ece"] == pytest.approx((0.1 + 0.2 + 0.6) / 3, abs=1e-6)
    assert figures["nll"] == pytest.approx(-math.log(0.9 * 0.8 * 0.4) / 3, abs=1e-6)
    assert (figures["head_recall"], figures["medium_recall"]) == (1, 0.5)
    assert "tail_recall" not in figures


def test_a_prediction_at_the_edge_of_a_bin_is_below_it():
    # 1 / 5 = 3 / 15 is in (2/15, 3/15], where it is off by .8; beside .25 in (3/15, 4/15] the errors would cancel.
    probs = torch.tensor([[0.2] * 5, [0.25, *[0.1875] * 4]])
    figures = evaluate_logits(probs.log(), torch.tensor([0, 1]), torch.ones(5, dtype=torch.int64))
    assert figures["ece"] == pytest.approx((0.8 + 0.25) / 2, abs=1e-6)


def test_balanced_labels_have_no_head_and_tail():
    figures = evaluate_logits(torch.eye(3), torch.tensor([0, 1, 2]), torch.tensor([4, 4, 4]))
    assert not [name for name in figures if name.endswith(("head_recall", "tail_recall", "medium_recall"))]
    assert figures["accuracy"] == 1

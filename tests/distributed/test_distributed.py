"""Two processes compute what one does: on halves of a batch that differ, with a network that mixes no images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launched import run_ranks
from small_learner import make_learner
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from debias_ssl.contract import Batch, Place
from debias_ssl.data.augment.views import Normalization
from debias_ssl.data.evaluation_stream import EvaluationStream
from debias_ssl.data.reading.config import ReadingConfig
from debias_ssl.data.reading.reader import Reader
from debias_ssl.data.streams import Sampling, TrainingImages, TrainingStream
from debias_ssl.distributed.collectives import all_mean_, num_processes, sum_with_gradient
from debias_ssl.distributed.running import LabelMemory, RunningMean
from debias_ssl.methods import DebiasPL, Method, Needs, Problem, PseudoLabels, Step, Supervised
from debias_ssl.models import batch_norms
from debias_ssl.training.checkpoint import machine
from debias_ssl.training.evaluation import predict_logits
from debias_ssl.training.journal import StepStatistics
from debias_ssl.training.learner import Learner
from debias_ssl.training.optim import OptimConfig, make_optimizer

STEPS = 4


def debiaspl(problem: Problem) -> Method:
    return DebiasPL(problem, threshold=0.55, strength=1.0, momentum=0.5)


def learner_of(norm: Any, method: Callable[[Problem], Method] = debiaspl, **settings: Any) -> Learner:
    return make_learner(method, norm=norm, num_unlabeled=16, decay=0.5, **settings)


def wrapped(learner: Learner, place: Place) -> nn.Module:
    return DistributedDataParallel(learner, broadcast_buffers=False) if place.num_processes > 1 else learner


def batch_of(step: int, place: Place) -> Batch:
    """This process's part of a global batch, whose second half is darker and of other classes than the first."""
    generator = torch.Generator().manual_seed(step)

    def part(tensor: Tensor) -> Tensor:
        return tensor.chunk(place.num_processes)[place.rank]

    def images(num: int) -> Tensor:
        darkness = torch.arange(num).view(-1, 1, 1, 1) // (num // 2)
        return part(torch.randn(num, 1, 8, 8, generator=generator) * (1 + 2 * darkness) - 2 * darkness)

    return Batch(
        labeled=images(8),
        labels=part(torch.arange(8) // 2),
        weak=(images(16),),
        strong=(images(16),),
        index=part(torch.arange(16)),
        truth=part(torch.arange(16) // 4),
    )


def trained(place: Place) -> dict[str, Any]:
    """A few steps as train.py takes them."""
    learner = learner_of("group")
    method = learner.raw.method
    assert isinstance(method, DebiasPL)
    shared = wrapped(learner, place)
    optimizer = make_optimizer(learner, OptimConfig(lr=0.05))
    sums, found = StepStatistics(4, place.device), {}
    for k in range(STEPS):
        batch = batch_of(k, place)
        step = shared(batch, k / STEPS)
        torch.stack([*step.losses.values()]).sum().backward()
        if k == 0:
            gradients = {name: p.grad.clone() for name, p in learner.raw.named_parameters() if p.grad is not None}
            found |= {"gradients": gradients, "passed": step.pseudo.weight.mean().item()}
        optimizer.step()
        optimizer.zero_grad()
        learner.after_step(k)
        sums.add(step, batch.truth)
    marginals = {"logged": learner.marginal.value, "method": method.marginal.value}
    return found | {"state": learner.state_dict(), "marginals": marginals, "statistics": sums.collect()}


def frozen(place: Place) -> dict[str, Any]:
    """Steps of a network with batch norms, of which the classifier alone is trained."""
    return of_a_frozen_network(place, {"freeze": "backbone"})


def adapted(place: Place) -> dict[str, Any]:
    """Steps of a network with batch norms, beside whose convolutions LoRA is trained."""
    return of_a_frozen_network(place, {"adapter": "lora", "adapter_rank": 2})


def of_a_frozen_network(place: Place, network: dict[str, Any]) -> dict[str, Any]:
    learner = learner_of("batch", network=network)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    shared, optimizer = wrapped(learner, place), make_optimizer(learner, OptimConfig(lr=0.05))
    for k in range(STEPS):
        torch.stack([*shared(batch_of(k, place), k / STEPS).losses.values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        learner.after_step(k)
    after = learner.state_dict()
    return {"state": after, "moved": sorted(name for name in after if not after[name].equal(before[name]))}


def mixed_up(place: Place) -> dict[str, Any]:
    """Loss and gradient of labeled images that are mixed with others, some of them of the other process."""
    pixels = torch.randint(0, 256, (16, 8, 8, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    stream = TrainingStream(
        reader=Reader(pixels=pixels, files=(), config=ReadingConfig()),
        images=TrainingImages(
            labels=torch.arange(16) // 4,
            labeled=torch.arange(16),
            unlabeled=torch.arange(16),
            truth=torch.arange(16) // 4,
        ),
        sampling=Sampling(seed=0, batch_size=8, unlabeled_batch_size=8),
        normalization=Normalization(mean=torch.tensor([0.5]), std=torch.tensor([0.5])),
        needs=Needs(num_strong=0, mixup_alpha=1.0),
        place=place,
    )
    learner = learner_of("group", Supervised)
    shared = wrapped(learner, place)
    loss = shared(next(stream.batches(3, 4)), 0.0).losses["labeled"]
    loss.backward()
    return {
        "loss": loss.detach(),
        "gradients": {name: p.grad for name, p in learner.raw.named_parameters() if p.grad is not None},
    }


def tracked(place: Place) -> Tensor:
    """A running mean of rows of which the processes have unequal numbers."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    tracker = RunningMean(torch.tensor([0.5, 0.5]), momentum=0.5)
    tracker.update(rows if place.num_processes == 1 else rows[:1] if place.rank == 0 else rows[1:])
    return tracker.value


def remembered(place: Place) -> Tensor:
    """A memory of six images, of which a step has two twice: one on one process, one on both."""
    memory = LabelMemory(6, 4)
    index, label = torch.tensor([[5, 1, 1, 2], [2, 0, 3, 4]]), torch.tensor([[3, 2, 1, 0], [2, -1, 0, 1]])
    parts = [part.flatten().chunk(place.num_processes)[place.rank] for part in (index, label)]
    memory.update(*parts)
    return memory.value


def summed(place: Place) -> dict[str, Tensor]:
    """A function of a sum over images, and its gradient as it is averaged over processes."""
    images, weight = torch.tensor([1.0, -2.0, 0.5, 4.0]), torch.tensor(0.7, requires_grad=True)
    total = sum_with_gradient((images.chunk(place.num_processes)[place.rank] * weight).exp().sum())
    (gradient,) = torch.autograd.grad(total.square(), weight)
    all_mean_([gradient])
    return {"total": total.detach(), "gradient": gradient}


def averaged_buffers(place: Place) -> dict[str, list[Tensor]]:
    """Running statistics of batch norm, before and after they are averaged over the processes."""
    learner = learner_of("batch")
    learner(batch_of(0, place), 0.0)
    norms = batch_norms(learner.raw.model)
    before = [buffer.clone() for norm in norms for buffer in norm.buffers()]
    learner.after_step(0)
    return {
        "before": before,
        "after": [buffer for norm in norms for buffer in norm.buffers()],
        "ema": [buffer for norm in batch_norms(learner.ema.model) for buffer in norm.buffers()],
    }


def predicted(place: Place) -> Tensor:
    """Logits of seven images, which two processes cannot share equally."""
    pixels = torch.randint(0, 256, (9, 8, 8, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    stream = EvaluationStream(
        reader=Reader(pixels=pixels, files=(), config=ReadingConfig()),
        index=torch.tensor([8, 1, 2, 3, 0, 5, 6]),
        mean=(0.5,),
        std=(0.5,),
        batch_size=2,
        place=place,
    )
    return predict_logits(learner_of("batch").ema, stream, 4).clone()


def spoiled(place: Place) -> dict[str, Any]:
    """Statistics of a step whose loss is not finite on one process only."""
    sums = StepStatistics(2, place.device)
    loss = torch.tensor(float("nan") if place.rank == 0 else 1.0)
    pseudo = PseudoLabels(target=torch.tensor([0]), weight=torch.tensor([1.0]))
    for each in (torch.tensor(1.0), loss):
        sums.add(Step(losses={"labeled": each}, pseudo=pseudo), torch.tensor([0]))
    return sums.collect()


def everything(place: Place) -> dict[str, Any]:
    results = {
        job.__name__: job(place)
        for job in (
            trained,
            frozen,
            adapted,
            mixed_up,
            tracked,
            remembered,
            summed,
            averaged_buffers,
            predicted,
            spoiled,
        )
    }
    return results | {"processes": (num_processes(), machine()["processes"])}


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(everything(Place(rank=rank, num_processes=2)), folder / f"{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return everything(Place())


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    run_ranks(work, folder)
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


def test_processes_are_counted(one, two):
    assert one["processes"] == (1, 1)
    assert [each["processes"] for each in two] == [(2, 2), (2, 2)]


def test_the_halves_differ_and_some_pseudo_labels_pass(two):
    first, second = (each["averaged_buffers"]["before"][0] for each in two)
    assert (first - second).abs().max() > 0.01
    assert all(0 < each["trained"]["passed"] < 1 for each in two)


def test_marginals_are_those_of_one_process(one, two):
    for name, expected in one["trained"]["marginals"].items():
        assert (expected - 0.25).abs().max() > 1e-3
        for each in two:
            torch.testing.assert_close(each["trained"]["marginals"][name], expected, rtol=0, atol=1e-6)


def test_a_running_mean_weighs_rows_not_processes(one, two):
    assert one["tracked"].tolist() == pytest.approx([5 / 12, 7 / 12])
    for each in two:
        torch.testing.assert_close(each["tracked"], one["tracked"], rtol=0, atol=1e-7)


def test_a_memory_is_that_of_all_images(one, two):
    assert one["remembered"].tolist() == [-1, 2, 2, 0, 1, 3]
    assert all(each["remembered"].equal(one["remembered"]) for each in two)


def test_a_sum_over_processes_has_the_gradient_of_the_whole(one, two):
    for each in two:
        torch.testing.assert_close(each["summed"], one["summed"])


def test_gradients_are_those_of_one_process(one, two):
    assert len(one["trained"]["gradients"]) > 20
    for each in two:
        torch.testing.assert_close(each["trained"]["gradients"], one["trained"]["gradients"], rtol=1e-4, atol=1e-6)


def test_weights_averages_and_trackers_are_those_of_one_process_after_several_steps(one, two):
    for each in two:
        torch.testing.assert_close(each["trained"]["state"], one["trained"]["state"], rtol=1e-4, atol=1e-5)


def test_every_process_holds_the_same_bits(two):
    first, second = (each["trained"]["state"] for each in two)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_frozen_network_is_trained_as_by_one_process_and_stays_as_it_was(one, two):
    classifier = [f"{which}.model.net.fc.{part}" for which in ("ema", "raw") for part in ("bias", "weight")]
    expected = {"marginal.value", "ema.method.marginal.value", "raw.method.marginal.value", *classifier}
    for each in (one, *two):
        assert set(each["frozen"]["moved"]) == expected
    for each in two:
        torch.testing.assert_close(each["frozen"]["state"], one["frozen"]["state"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(two[0]["frozen"]["state"], two[1]["frozen"]["state"], rtol=0, atol=0)


def test_adapters_are_trained_as_by_one_process_and_what_is_beside_them_stays_as_it_was(one, two):
    for each in (one, *two):
        moved = {name for name in each["adapted"]["moved"] if "marginal" not in name}
        assert {name.rpartition(".")[0].split(".")[-1] for name in moved} == {"down", "up", "fc"}
        assert len(moved) == 2 * (2 * 8 + 2)
    for each in two:
        torch.testing.assert_close(each["adapted"]["state"], one["adapted"]["state"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(two[0]["adapted"]["state"], two[1]["adapted"]["state"], rtol=0, atol=0)


def test_mixed_images_have_the_loss_and_gradient_of_one_process(one, two):
    first, second = (each["mixed_up"] for each in two)
    torch.testing.assert_close((first["loss"] + second["loss"]) / 2, one["mixed_up"]["loss"])
    assert (first["loss"] - second["loss"]).abs() > 1e-3
    for each in (first, second):
        torch.testing.assert_close(each["gradients"], one["mixed_up"]["gradients"], rtol=1e-4, atol=1e-6)


def test_statistics_of_steps_are_those_of_one_process(one, two):
    expected = one["trained"]["statistics"]
    for each in two:
        found = each["trained"]["statistics"]
        assert found.keys() == expected.keys()
        for key in ("pseudo_counts", "nonfinite_steps"):
            assert found[key] == expected[key]
        for key in ("loss", "mask_rate", "pseudo_weights", "pseudo_accuracy"):
            assert found[key] == pytest.approx(expected[key], rel=1e-4)


def test_a_loss_that_one_process_alone_finds_not_finite_is_counted(two):
    assert [each["spoiled"]["nonfinite_steps"] for each in two] == [1, 1]


def test_running_statistics_are_averaged_over_processes(two):
    first, second = (each["averaged_buffers"] for each in two)
    for key in ("after", "ema"):
        assert all(a.equal(b) for a, b in zip(first[key], second[key], strict=True))
    for a, b, mean in zip(first["before"], second["before"], first["after"], strict=True):
        if a.is_floating_point():
            torch.testing.assert_close(mean, (a + b) / 2)
        else:
            assert mean.equal(a)


def test_predictions_are_those_of_one_process(one, two):
    assert one["predicted"].any(1).all()
    for each in two:
        torch.testing.assert_close(each["predicted"], one["predicted"], rtol=1e-4, atol=1e-6)

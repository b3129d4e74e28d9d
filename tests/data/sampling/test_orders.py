"""Each item once per pass, whatever the step, the lane or the process."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from debias_ssl.data.sampling import permutations
from debias_ssl.data.sampling.keyed import Purpose, permutation
from debias_ssl.data.sampling.orders import BalancedOrder, PassOrder, ShardOrder


def whole(order: Any, step: int) -> Tensor:
    """A global batch."""
    return order(step, torch.arange(order.batch_size))


@pytest.mark.parametrize(("length", "batch_size"), [(40, 64), (40, 16), (7, 3), (5, 5), (3, 20), (1, 4)])
def test_every_item_comes_once_per_pass(length: int, batch_size: int):
    order = PassOrder(length=length, batch_size=batch_size, seed=3, purpose=Purpose.LABELED_ORDER)
    num_steps = -(-4 * length // batch_size)
    drawn = torch.cat([whole(order, step) for step in range(num_steps)])
    assert len(drawn) == num_steps * batch_size
    passes = drawn[: 4 * length].view(4, length)
    assert torch.equal(passes.sort(1).values, torch.arange(length).expand(4, -1))


def test_passes_seeds_and_purposes_have_their_own_order():
    order = PassOrder(length=30, batch_size=30, seed=0, purpose=Purpose.LABELED_ORDER)
    others = (
        whole(order, 0),
        whole(order, 1),
        whole(replace(order, seed=1), 0),
        whole(replace(order, purpose=Purpose.UNLABELED_ORDER), 0),
    )
    assert len({tuple(other.tolist()) for other in others}) == 4


@pytest.mark.parametrize("batch_size", [3, 4, 10])
def test_balanced_order_draws_every_class_equally_often(batch_size: int):
    order = BalancedOrder(labels=torch.tensor([7] * 11 + [2] * 3 + [5]), batch_size=batch_size, seed=0)
    drawn = torch.cat([whole(order, step) for step in range(6)])
    classes = order.labels[drawn]
    for stop in range(3, len(drawn) + 1, 3):
        assert set(Counter(classes[:stop].tolist()).values()) == {stop // 3}


def test_balanced_order_goes_through_each_class_in_passes():
    labels = torch.tensor([0, 1, 1, 0, 1, 2, 1])
    order = BalancedOrder(labels=labels, batch_size=5, seed=1)
    drawn = torch.cat([whole(order, step) for step in range(24)])
    for k, members in ((0, [0, 3]), (1, [1, 2, 4, 6]), (2, [5])):
        of_class = drawn[labels[drawn] == k]
        assert len(of_class) == 40
        passes = of_class.view(-1, len(members))
        assert torch.equal(passes.sort(1).values, torch.tensor(members).expand(len(passes), -1))
    # Not in the same order each time.
    ones = drawn[labels[drawn] == 1].view(-1, 4)
    assert len(ones.unique(dim=0)) > 5


def test_balanced_order_starts_anywhere():
    order = BalancedOrder(labels=torch.arange(10) % 3, batch_size=4, seed=0)
    wide = replace(order, batch_size=8)
    assert torch.equal(torch.cat([whole(order, 6), whole(order, 7)]), whole(wide, 3))


# Shards.


def order_of(*sizes: int, before: int = 0, lanes: int = 4, batch_size: int = 8, seed: int = 0) -> ShardOrder:
    borders = before + np.cumsum([0, *sizes])
    return ShardOrder(borders=borders, batch_size=batch_size, lanes=lanes, seed=seed)


@pytest.mark.parametrize(
    ("sizes", "before"), [((6, 6, 6, 6), 0), ((1, 17, 2, 9, 4), 3), ((40,), 0), ((4, 0, 0, 5), 2), ((1,) * 30, 1)]
)
def test_every_item_comes_once_per_pass_of_its_lane(sizes: tuple[int, ...], before: int):
    order, length = order_of(*sizes, before=before), before + sum(sizes)
    num_passes = 3
    steps = -(-num_passes * length // 4 // 2) + 2
    drawn = torch.cat([order(step, torch.arange(8)) for step in range(steps)]).view(steps, 4, 2)
    stretches = [range(lane * length // 4, (lane + 1) * length // 4) for lane in range(4)]
    assert sorted(item for stretch in stretches for item in stretch) == [*range(length)]
    for lane, stretch in enumerate(stretches):
        of_lane = drawn[:, lane].flatten()[: num_passes * len(stretch)].view(num_passes, -1)
        assert torch.equal(of_lane.sort(1).values, torch.tensor(stretch).expand(num_passes, -1))


def test_a_lane_goes_through_one_shard_after_another_in_an_order_of_its_own():
    order = order_of(*[20] * 12, lanes=2, batch_size=4)
    drawn = torch.cat([order(step, torch.arange(2)) for step in range(120)]).view(2, 120)
    turns = [row.view(6, 20) // 20 for row in drawn]
    assert all((turn == turn[:, :1]).all() for turn in turns), "no two shards at a time"
    first, second = (tuple(turn[:, 0].tolist()) for turn in turns)
    assert sorted(first) == sorted(second) == [*range(6)] and first != second
    inside = {tuple((part % 20).tolist()) for row in drawn for part in row.view(6, 20)}
    assert len(inside) == 12, "each shard in each pass has an order of its own"
    assert not order(5, torch.arange(4)).equal(replace(order, seed=1)(5, torch.arange(4)))


def test_parts_of_a_batch_are_those_of_the_whole():
    order = order_of(5, 9, 2, 30, lanes=4, batch_size=12)
    for step in (0, 3, 50):
        whole = order(step, torch.arange(12))
        for parts in (2, 4):
            assert torch.cat([order(step, part) for part in torch.arange(12).chunk(parts)]).equal(whole)


# The draws are those of the definitions, image by image.

STEPS = (0, 1, 2, 3, 17, 1000, 999, 2**20)


def drawn_in_passes(order: PassOrder, step: int, position: int) -> int:
    number, place = divmod(step * order.batch_size + position, order.length)
    return int(permutation(order.seed, order.purpose, number, order.length)[place])


def drawn_evenly(order: BalancedOrder, step: int, position: int) -> int:
    members = [torch.nonzero(order.labels == label).flatten() for label in order.labels.unique()]
    number, place = divmod(step * order.batch_size + position, len(members))
    k = int(permutation(order.seed, Purpose.CLASS_ORDER, number, len(members))[place])
    number, place = divmod(number, len(members[k]))
    inner = permutation(order.seed, Purpose.LABELED_ORDER, number * len(members) + k, len(members[k]))
    return int(members[k][inner[place]])


def drawn_from_shards(order: ShardOrder, step: int, position: int) -> int:
    width, length = order.batch_size // order.lanes, int(order.borders[-1])
    lane, draw = position // width, step * width + position % width
    stretches = [k * length // order.lanes for k in range(order.lanes + 1)]
    pieces = sorted({*stretches, *order.borders.tolist()})
    first, stop = pieces.index(stretches[lane]), pieces.index(stretches[lane + 1])
    number, place = divmod(draw, stretches[lane + 1] - stretches[lane])
    turns = permutation(order.seed, Purpose.SHARD_ORDER, number * order.lanes + lane, stop - first).tolist()
    for piece in (first + turn for turn in turns):
        size = pieces[piece + 1] - pieces[piece]
        if place < size:
            key = number * (len(pieces) - 1) + piece
            return pieces[piece] + int(permutation(order.seed, Purpose.UNLABELED_ORDER, key, size)[place])
        place -= size
    raise AssertionError


@pytest.mark.parametrize("length", [1, 3, 20, 700, 20_000])
def test_passes_are_the_permutations(length: int):
    order = PassOrder(length=length, batch_size=16, seed=5, purpose=Purpose.LABELED_ORDER)
    for step in STEPS:
        assert whole(order, step).tolist() == [drawn_in_passes(order, step, position) for position in range(16)]
        part = torch.tensor([7, 3, 3, 15])
        assert order(step, part).equal(whole(order, step)[part])


@pytest.mark.parametrize("labels", [[7] * 11 + [2] * 3 + [5], [k % 10 for k in range(40)], [0] * 300 + [1]])
def test_balanced_draws_are_the_permutations(labels: list[int]):
    order = BalancedOrder(labels=torch.tensor(labels), batch_size=16, seed=5)
    for step in STEPS:
        assert whole(order, step).tolist() == [drawn_evenly(order, step, position) for position in range(16)]
        part = torch.tensor([7, 3, 3, 15])
        assert order(step, part).equal(whole(order, step)[part])


@pytest.mark.parametrize(("sizes", "before"), [((1, 17, 2, 9, 4), 3), ((40,), 0), ((1,) * 30, 1), ((900, 60), 0)])
def test_draws_from_shards_are_the_permutations(sizes: tuple[int, ...], before: int):
    order = order_of(*sizes, before=before, batch_size=16, seed=5)
    for step in STEPS:
        assert order(step, torch.arange(16)).tolist() == [drawn_from_shards(order, step, each) for each in range(16)]


def test_what_is_kept_is_bounded_and_made_again_where_it_is_needed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(permutations, "SPARE", 0)
    labels = torch.arange(60) % 4
    order = BalancedOrder(labels=labels, batch_size=8, seed=2)
    first = [whole(order, step).tolist() for step in range(200)]
    assert order._orders._size <= 2 * len(labels) + 15
    assert [whole(order, step).tolist() for step in range(200)] == first


# What is made, and how often.


def made_by(orders: list[Any], steps: int, monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often permutations of each length are made while orders are asked for one step after the other."""
    made: Counter = Counter()
    long, short = permutations.permutation, permutations.permutations

    def counted(seed: int, purpose: int, number: int, length: int) -> Tensor:
        made[length] += 1
        return long(seed, purpose, number, length)

    def counted_together(seed: int, purpose: int, numbers: list[int], lengths: list[int]) -> list[np.ndarray]:
        made["together"] += 1
        made.update(lengths)
        return short(seed, purpose, numbers, lengths)

    monkeypatch.setattr(permutations, "permutation", counted)
    monkeypatch.setattr(permutations, "permutations", counted_together)
    for step in range(steps):
        for order in orders:
            whole(order, step)
    return made


def test_few_labels_leave_a_long_pass_as_it_is(monkeypatch: pytest.MonkeyPatch):
    # With one cache for both, each step threw the other's permutation of 50,000 away: 60 ms instead of 1.5.
    labeled = PassOrder(length=20, batch_size=64, seed=0, purpose=Purpose.LABELED_ORDER)
    unlabeled = PassOrder(length=50_000, batch_size=448, seed=0, purpose=Purpose.UNLABELED_ORDER)
    made = made_by([labeled, unlabeled], 120, monkeypatch)
    # 53,760 images, and 384 passes over the labels.
    assert made[50_000] == 2 and made[20] == 384 and made["together"] == 120


def test_a_thousand_classes_are_not_made_anew_each_time(monkeypatch: pytest.MonkeyPatch):
    # 512 were kept, of a thousand that come in turn.
    order = BalancedOrder(labels=torch.arange(30_000) % 1000, batch_size=100, seed=0)
    made = made_by([order], 290, monkeypatch)
    assert made[30] == 1000 and made[1000] == 29, "one for each class, and one for each pass over the classes"


def test_what_a_balanced_step_lacks_is_made_at_once(monkeypatch: pytest.MonkeyPatch):
    order = BalancedOrder(labels=torch.arange(40) % 10, batch_size=64, seed=0)
    assert made_by([order], 50, monkeypatch)["together"] == 100, "classes, and images of all classes"

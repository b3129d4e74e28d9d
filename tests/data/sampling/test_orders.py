"""Each item once per pass, whatever the step, the lane or the process."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from debias_ssl.data.sampling.keyed import Purpose
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

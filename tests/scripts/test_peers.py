"""Our methods give what their peers' formulas give, and depart where it is said."""

import math

import numpy as np
import peers as script
import peers_steps
import pytest
import torch
from jobs import refused

STEPS = 6


@pytest.mark.parametrize("name", script.PEERS)
def test_losses_weights_and_state_are_those_of_the_peer(name: str):
    found = script.PEERS[name](STEPS)
    assert all(difference < 1e-6 for difference in found.largest.values())
    # A repository, a file and a commit.
    assert found.source.count("/") >= 1 and len(found.source.split()[-1]) == 7
    for ours, theirs in found.departures.values():
        assert ours != pytest.approx(theirs, rel=1e-5)


def departures(name: str) -> list[tuple[float, float]]:
    return [*script.PEERS[name](STEPS).departures.values()]


def test_departures_worked():
    (labeled, _) = departures("AdaMatch")
    assert labeled[0] == pytest.approx(2 * labeled[1])
    # Four of five classes have log 1e-8 or log 1e-12, times the same weights.
    (fairness,) = departures("FreeMatch")
    assert fairness[0] / fairness[1] == pytest.approx(math.log(1e-8) / math.log(1e-12), rel=1e-5)
    (first, variance) = departures("SoftMatch")
    assert first[0] == pytest.approx(0.9 / 5 + 0.1 * first[1]) and variance[0] < variance[1]
    (at_first, *_) = departures("SimPro")
    # (100 + 1000 / 5) of 1205 images, and 100 of 205 labels.
    assert at_first == pytest.approx((300 / 1205, 100 / 205))
    (consistency,) = departures("ABC")
    assert 1.5 < consistency[1] / consistency[0] < 2.5
    (aligned,) = departures("alignment")
    # Ten times as much as on average, of four others that are average; .2 + 1e-6 over 1.1e-6, of as much over .25.
    assert aligned == pytest.approx((10 / 14, 1e-6 / 1.1e-6 * 0.2 / (1e-6 / 1.1e-6 * 0.2 + 0.8)), rel=1e-3)


def test_a_difference_is_relative_above_one_and_of_all_steps():
    found = peers_steps.Comparison(source="")
    found.see("losses", torch.tensor([0.5, 100.0]), np.array([0.25, 101.0]))
    found.see("losses", torch.tensor([0.5]), 0.5)
    assert found.largest == {"losses": 0.25, "weights": 0, "state": 0}


def test_the_command_prints_a_line_for_each(capsys):
    script.main(["--steps", "2"])
    said = capsys.readouterr().out
    assert all(f"\n{name} " in said for name in script.PEERS) and "departs: labeled loss: sum, half of it: ours" in said
    assert "--steps is 0, must be at least 1" in refused(script.main, ["--steps", "0"], capsys)

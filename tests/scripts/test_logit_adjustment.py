"""The synthetic check in miniature: what Theorem 1 says reaches the oracle, and what does not."""

import math

import logit_adjustment as script
import pytest
import torch
from jobs import refused


def test_the_oracle_is_the_error_of_the_line_between_the_means():
    assert abs(script.ORACLE - 0.0786) < 1e-4
    weight = torch.tensor([[0.0, 0.0], [3.0, 3.0]])
    assert script.balanced_error(weight, torch.zeros(2)) == pytest.approx(script.ORACLE)
    # A line shifted by one standard deviation errs by Phi(-sqrt 2 - 1) and Phi(-sqrt 2 + 1).
    shifted = script.balanced_error(weight, torch.tensor([0.0, 3 * math.sqrt(2)]))
    ends = torch.special.ndtr(torch.tensor([-math.sqrt(2) - 1, -math.sqrt(2) + 1]))
    assert shifted == pytest.approx(ends.mean().item())


def test_consistent_losses_and_adjustment_reach_the_oracle_and_others_do_not():
    by_loss, adjusted = script.measure(seeds=2, num=1000, steps=200)
    excess = {name: errors.mean().item() - script.ORACLE for name, errors in by_loss.items()}
    after = {name: errors.mean(0) - script.ORACLE for name, errors in adjusted.items()}
    assert all(0 <= excess[name] < 0.01 for name in ("balanced", "logit-adjusted"))
    assert all(excess[name] > 0.05 for name in ("plain", "adaptive margin"))
    tau = script.STRENGTHS[after["logit adjustment"].argmin()]
    assert after["logit adjustment"].min() < 0.01 and 0.6 <= tau <= 1.4
    assert all(after[name].min() > 0.05 for name in ("weight normalization", "division by the prior"))


def test_the_command_writes_a_table_and_a_figure(tmp_path, capsys):
    out = tmp_path / "out"
    script.main(["--out", str(out), "--seeds", "2", "--points", "100", "--steps", "2"])
    text = (out / "errors.txt").read_text()
    assert capsys.readouterr().out == text and "oracle" in text and "7.86%" in text
    assert (out / "errors.svg").read_text().count("<svg") == 1
    message = refused(script.main, ["--out", str(tmp_path / "other"), "--seeds", "0"], capsys)
    assert "--seeds is 0, must be at least 2" in message and not (tmp_path / "other").exists()

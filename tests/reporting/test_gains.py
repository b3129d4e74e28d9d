"""Gains over labels alone: which lines have one, what the figure shows, and the pictures of the script."""

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from debias_ssl.reporting.figures import Gain, gains
from debias_ssl.reporting.sections.gains import gains_figure, read_gains

SCRIPT = Path(__file__).parents[2] / "scripts" / "studies" / "draw_gains.py"


def line(variant: str, mean: float | None, half: float | None = None) -> dict[str, Any]:
    ends = (None, None) if mean is None or half is None else (mean - half, mean + half)
    return {
        "variant": variant,
        "setting": variant.rpartition("/")[0],
        "difference_to_floor": {"accuracy": {"num": 3, "mean": mean, "low": ends[0], "high": ends[1]}},
    }


LINES = [
    {"variant": "few/LabelsOnly", "setting": "few", "difference_to_floor": None},
    line("few/FixMatch", -0.015, 0.01),
    line("few/DebiasPL", 0.0375, 0.02),
    line("tail/DebiasPL", 0.05),
    line("tail/FixMatch", None),
]


def test_only_lines_that_are_paired_with_labels_alone_have_a_gain():
    found = read_gains(LINES)
    assert [(gain.setting, gain.name) for gain in found] == [
        ("few", "FixMatch"),
        ("few", "DebiasPL"),
        ("tail", "DebiasPL"),
    ]
    assert (found[0].low, found[2].low) == (pytest.approx(-0.025), None)


def test_the_figure_is_described_in_words_and_names_settings_and_variants():
    svg = gains_figure(read_gains(LINES))
    label = re.search(r'aria-label="([^"]*)"', svg)
    assert label is not None
    assert label[1] == (
        "Points of accuracy over labels alone: few, FixMatch -1.5; few, DebiasPL +3.8; tail, DebiasPL +5.0."
    )
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert [text for text in texts if text in ("few", "tail", "FixMatch", "DebiasPL")] == [
        *("few", "FixMatch", "DebiasPL", "tail", "DebiasPL")
    ]
    assert {"points of accuracy over labels alone", "(95 % interval)"} <= {*texts}


def test_one_setting_without_a_name_has_no_title_and_one_seed_no_interval():
    one = Gain(setting="", name="DebiasPL", mean=0.02, low=None, high=None)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", gains_figure([one]))
    assert "DebiasPL" in texts and "" not in texts
    assert "points of accuracy over labels alone" in texts


def test_a_variant_has_one_color_in_all_settings():
    values = [
        Gain(setting=setting, name=name, mean=0.01, low=0.0, high=0.02) for setting in "ab" for name in ("x", "y")
    ]
    colors = re.findall(r"var\(--c(\d)\)", gains(values, "alt", x_label="points"))
    assert {color: colors.count(color) for color in sorted(set(colors))}.keys() == {"0", "1"}
    assert colors.count("0") == colors.count("1")


def test_the_script_draws_pictures_for_light_and_dark_pages(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "compare.json").write_text(json.dumps({"table": LINES}))
    monkeypatch.setattr(sys, "argv", ["draw_gains.py", str(tmp_path), "--out", str(tmp_path / "gains")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    light, dark = ((tmp_path / f"gains-{theme}.svg").read_text() for theme in ("light", "dark"))
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / f"gains-{theme}.svg") for theme in ("light", "dark")]
    for svg in (light, dark):
        # A picture knows no colors of a page.
        assert svg.startswith("<svg xmlns=") and "var(" not in svg and "currentColor" not in svg
    assert light != dark and re.sub(r"#\w{6}", "", light) == re.sub(r"#\w{6}", "", dark)

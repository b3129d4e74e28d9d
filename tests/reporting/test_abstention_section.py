"""The part of the page about rows without a label: its numbers, and whatever is known of the rows."""

from typing import Any

import numpy as np
import pytest
from pages import check_self_contained
from test_labels_page import NAMES, biased, html, labeled, page_of, rows_of, titles_of

from debias_ssl.labels.debiasing.abstention import Abstention, OnTuned
from debias_ssl.labels.debiasing.rows import Labeling
from debias_ssl.reporting.sections.abstention import coverage_figure, least_sure_sheet, risk_figure


def abstaining(num: int = 60, threshold: float | None = 0.5, known: bool = True, **other: Any) -> Labeling:
    score = np.linspace(1, 0, num, dtype=np.float32)
    abstained = np.zeros(num, dtype=bool) if threshold is None else score < threshold
    abstention = Abstention(score="margin", threshold=threshold, tuned=OnTuned(num=20, num_labeled=10, num_right=9))
    given = {"score": score, "plain_score": score, "abstained": abstained, "abstention": abstention}
    return biased(NAMES, num, known=known, **(given | other))


def test_tables_of_worked_rows():
    labeling = labeled(
        [0, 0, 1, 1],
        [0, 1, 1, 1],
        [0, 1, 0, -1],
        ["a", "b"],
        score=np.array([0.9, 0.8, 0.4, 0.2], dtype=np.float32),
        plain_score=np.array([0.1, 0.2, 0.9, 0.2], dtype=np.float32),
        abstained=np.array([False, False, True, True]),
        abstention=Abstention(score="margin", threshold=0.5),
    )
    page = page_of(labeling)
    assert rows_of(page, "Rows with a label") == [
        ["margin", "2 of 4", "50.00\u00a0%", "0.5", "100.00\u00a0%", "34.2 to 100.0\u00a0%", "66.67\u00a0%"]
    ]
    # All that would be b: one has a label and is right, two have none, of which one is known and wrong.
    which = "Classes of rows without a label"
    assert rows_of(page, which) == [["b", "3", "2", "66.7\u00a0%", "100.0\u00a0%", "0.0\u00a0%"]]
    figure = risk_figure(labeling)
    # Risks of 0, 0, 1 / 3 of the debiased labels, and of 1, 1, 2 / 3 of the plain ones by their own score.
    assert "area 88.89\u00a0% plain, 11.11\u00a0% debiased; chosen: 0.00\u00a0% wrong at 66.67\u00a0%" in figure.caption


def test_what_is_shown_depends_on_what_is_known():
    titles = {*titles_of(page_of(abstaining()))}
    assert {"Risk against coverage", "Classes of rows without a label", "Least certain"} <= titles
    unknown = titles_of(page_of(abstaining(known=False), with_pictures=False))
    assert "Rows with a label at each threshold" in unknown
    assert not {"Risk against coverage", "Least certain"} & {*unknown}
    everything = titles_of(page_of(abstaining(threshold=None)))
    assert "Rows with a label" in everything and "Classes of rows without a label" not in everything
    assert "Rows with a label" not in titles_of(page_of(biased(NAMES, 60)))


@pytest.mark.parametrize("threshold", [None, 0.5, 2.0])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("num", [1, 60])
def test_every_case_is_drawn_and_names_stay_text(threshold: float | None, known: bool, num: int):
    text = html(abstaining(num, threshold, known))
    check_self_contained(text, min_figures=1)
    assert (
        "Without a label" in text and "<script>" not in text.split("Without a label")[1].split("Class correlation")[0]
    )


def test_rows_of_tune_on_are_left_out():
    reported = np.arange(60) % 3 != 0
    page = page_of(abstaining(reported=reported))
    score = np.linspace(1, 0, 60, dtype=np.float32)[reported]
    cells = rows_of(page, "Rows with a label")[0]
    assert cells[1] == f"{(score >= 0.5).sum()} of 40" and "90.00\u00a0% (59.6 to 98.2\u00a0%) of 10" in cells


def test_the_least_sure_come_first():
    labeling = abstaining(5, 0.6)
    asked = []

    def pictures(rows: Any) -> Any:
        asked.extend(rows)
        return [np.zeros((4, 4, 3), dtype=np.uint8)] * len(rows)

    assert labeling.abstained is not None and labeling.score is not None
    sheet = least_sure_sheet(labeling, labeling.abstained, labeling.score, pictures)
    assert asked == [4, 3, 2] and [picture.lines[0].rpartition(" ")[2] for picture in sheet.pictures] == [
        *("0.000", "0.250", "0.500")
    ]


def test_without_truth_the_curve_says_what_a_threshold_would_leave():
    caption = coverage_figure(abstaining(101, known=False)).caption
    assert caption == "5 % of the scores are below 0.05, half below 0.5, 95 % below 0.95."

"""The page of labels: its numbers, what it shows of what is known, and that names cannot do harm in it."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from pages import SCRIPT, Seen, check_in_browser, check_self_contained

from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.debiasing.rows import Labeling
from debias_ssl.labels.output.summary import summary_of
from debias_ssl.reporting import figures
from debias_ssl.reporting.labels_page import flow_table, labels_page, precisions_and_recalls, rank_correlation
from debias_ssl.reporting.page import Page, render
from debias_ssl.reporting.sections.class_correlation import class_means, nearest_classes, nearest_classes_section
from debias_ssl.reporting.sections.examples import changed_sheet, changes_in_turn, wrong_sheet

NAMES = (SCRIPT, 'Bär "x" & $y^2$ <b>', "#010101 href=x 1.23456", "a very long name of a class, indeed", "eel")


Numbers = Sequence[int] | np.ndarray


def labeled(plain: Numbers, label: Numbers, truth: Numbers, classes: Sequence[str], **other: Any) -> Labeling:
    """Labels as given, of falling confidence."""
    num, num_classes = len(plain), len(classes)
    prior = np.bincount(plain, minlength=num_classes) / num
    confidence = np.linspace(0.99, 0.3, num, dtype=np.float32)
    values: dict[str, Any] = {
        "classes": tuple(classes),
        "names": [f"dir/{i} <i>.png" for i in range(num)],
        "plain": np.array(plain),
        "plain_confidence": confidence,
        "label": np.array(label),
        "confidence": confidence,
        "top2_gap": confidence,
        "truth": np.array(truth),
        "reported": np.ones(num, dtype=bool),
        "prior": prior,
        "shift": np.log(prior + 1e-8),
        "config": DebiasConfig(),
        "strength": 1.0,
        "temperature": 1.0,
    }
    return Labeling(**values | other)


def biased(classes: Sequence[str], num: int, *, known: bool = True, seed: int = 0, **other: Any) -> Labeling:
    """Random labels that prefer the first classes before, and the last ones after."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(len(classes), size=num)
    plain, label = (
        np.where(rng.random(num) < 0.6, truth, (rng.random(num) ** power * len(classes)).astype(int))
        for power in (2, 0.5)
    )
    return labeled(plain, label, truth if known else np.full(num, -1), classes, **other)


def page_of(labeling: Labeling, *, with_features: bool = True, with_pictures: bool = True) -> Page:
    rng = np.random.default_rng(1)
    features = torch.from_numpy(rng.normal(size=(len(labeling.plain), 6)).astype(np.float32))
    pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return labels_page(
        labeling,
        facts=["7 rows of <u>x</u>"],
        features=(lambda: features.split(5)) if with_features else None,
        pictures=(lambda rows: [pixels for _ in rows]) if with_pictures else None,
    )


def html(labeling: Labeling, **what: bool) -> str:
    return render(page_of(labeling, **what), "1.2.3")


@pytest.fixture(scope="module")
def page() -> Page:
    """Of names that want to be markup, with all that there can be."""
    return page_of(biased(NAMES, 60))


def rows_of(page: Page, title: str) -> list[list[str]]:
    tables = [table for section in page.sections for table in section.tables if table.title == title]
    assert len(tables) == 1, title
    return [[*row] for row in tables[0].rows]


def titles_of(page: Page) -> list[str]:
    parts = [part.title for section in page.sections for part in (*section.figures, *section.sheets, *section.tables)]
    return [section.title for section in page.sections] + parts


def test_class_means_and_the_nearest_classes():
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [9.0, 9.0]])
    classes = np.array([0, 0, 1, 3, -1])
    for size in (1, 2, 5):
        means = class_means(features.half().split(size), classes, 4)
        np.testing.assert_array_equal(means, [[2, 0], [0, 2], [np.nan, np.nan], [1, 1]])
    near, cosine = nearest_classes(means, [3, 0], np.array([0, 1, 3]), 9)
    np.testing.assert_array_equal(near[:, :2], [[0, 1], [3, 1]])
    np.testing.assert_allclose(cosine[:, :2], [[np.sqrt(0.5), np.sqrt(0.5)], [np.sqrt(0.5), 0]], atol=1e-12)


def test_a_class_is_no_neighbor_of_itself():
    means = np.random.default_rng(0).normal(size=(5, 3))
    near, cosine = nearest_classes(means, [0, 4], np.arange(5), 9)
    assert near.shape == (2, 4) and 0 not in near[0] and 4 not in near[1]
    assert np.isfinite(cosine).all() and (np.diff(cosine) <= 0).all()


def test_precision_and_recall_of_classes():
    precision, recall = precisions_and_recalls(np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]]))
    np.testing.assert_allclose(precision, [0.6, 2 / 3, np.nan])
    np.testing.assert_allclose(recall, [0.75, 0.5, np.nan])


def test_rank_correlation_is_of_ranks():
    assert rank_correlation(np.array([1, 10, 100]), np.array([0.1, 0.2, 0.9])) == "1.00"
    assert rank_correlation(np.array([1, 10, 100, 1000]), np.array([0.4, 0.3, 0.2, 0.1])) == "-1.00"
    assert rank_correlation(np.array([1, 10, 100]), np.array([0.5, 0.5, 0.5])) == "-"
    assert rank_correlation(np.array([1, 2]), np.array([0.1, 0.2])) == "-"


def test_flows_tell_where_labels_came_from_and_went():
    labeling = labeled([0] * 6 + [1, 2], [0, 1, 1, 1, 2, 2, 1, 1], [0, 0, 1, 1, 2, 2, -1, -1], ["a", "b", "c"])
    table = flow_table(labeling)
    assert table.head == ["class", "plain", "debiased", "true, of 6", "gained", "most from", "lost", "most to"]
    assert table.rows == [
        ["a", "6", "1", "2", "0", "-", "5", "b (3)"],
        ["b", "1", "5", "2", "4", "a (3)", "0", "-"],
        ["c", "1", "2", "2", "2", "a (2)", "1", "b (1)"],
    ]


def test_changes_take_turns_by_frequency_and_confidence():
    before = np.array([0, 0, 0, 1, 2, 2])
    after = np.array([1, 1, 1, 0, 2, 0])
    confidence = np.array([0.1, 0.3, 0.2, 0.5, 0.9, 0.4])
    rows, frequent = changes_in_turn(before, after, confidence)
    assert frequent[0] == (0, 1, 3) and sorted(frequent[1:]) == [(1, 0, 1), (2, 0, 1)]
    # The first of each change, the most frequent one first and then by confidence; then the second ones.
    assert rows.tolist() == [1, 3, 5, 2, 0]
    rows, frequent = changes_in_turn(before, before, confidence)
    assert len(rows) == 0 and frequent == []


def test_sheets_leave_out_images_that_are_gone():
    labels, truth, confidence = np.array([0, 0, 1]), np.array([1, 1, -1]), np.array([0.6, 0.9, 1.0])
    asked = []

    def images(rows: Sequence[int]):
        asked.append([*rows])
        return [None if i == 1 else np.zeros((4, 4, 3), dtype=np.uint8) for i in rows]

    sheet = wrong_sheet(labels, confidence, truth, ["a", "b"], ["x/0", "x/1", "x/2"], images, "rows")
    assert asked == [[1, 0]] and [picture.lines[2] for picture in sheet.pictures] == ["x/0"]
    assert sheet.caption == "The 1 most confident of 2 wrong predictions on 2 rows."
    before, names = np.array([1, 0, 1]), ["x/0", "x/1", "x/2"]
    changed = changed_sheet(before, labels, confidence, truth, ["a", "b"], names, images)
    assert [picture.lines for picture in changed.pictures] == [["b → a", "is b", "x/0"]]
    assert changed.caption == "1 of 3 labels changed, most often b → a (1). 0 became right, 1 became wrong."


def test_headline_is_the_summary():
    labeling = biased("abcd", 60)
    page, summary = page_of(labeling), summary_of(labeling)
    for row, key in zip(rows_of(page, "Against the truth"), ("plain", "debiased"), strict=True):
        figures = [summary[key][name] for name in ("accuracy", "mean_recall", "min_recall", "h_mean", "ece")]
        low, high = summary[key]["accuracy_interval"]
        between = f"{100 * low:.1f} to {100 * high:.1f}\u00a0%"
        assert row == [key, *(f"{100 * value:.2f}\u00a0%" for value in figures), between]
    plain, debiased = rows_of(page, "What is predicted")
    number = labeling.counts("plain")
    assert plain[1] == f"{summary['count_entropy']['plain']:.4f}" and plain[0] == "plain"
    assert plain[2] == f"{100 * number.min() / 60:.2f}\u00a0% ({'abcd'[number.argmin()]})"
    assert debiased[3] == f"{100 * labeling.counts('label').max() / 60:.2f}\u00a0% (d)"
    text = html(labeling)
    assert f"Debiasing changes {summary['num_changed']} of 60 labels" in text
    assert "4 classes; prior stationary, strength 1, temperature 1, target auto" in text


def test_rows_of_tune_on_are_in_no_figure():
    labeling = biased(NAMES, 80)
    reported = np.arange(80) % 4 != 0
    # Those rows, had they been shown, would be what changes most and is most wrong.
    other = np.where(reported, labeling.truth, (labeling.truth + 1) % 5)
    with_rows = labeled(other, np.roll(other, 1), labeling.truth, NAMES, reported=reported)
    kept = np.flatnonzero(reported)
    without = labeled(
        other[kept],
        np.roll(other, 1)[kept],
        labeling.truth[kept],
        NAMES,
        names=[with_rows.names[i] for i in kept.tolist()],
        confidence=with_rows.confidence[kept],
        plain_confidence=with_rows.plain_confidence[kept],
        prior=with_rows.prior,
        shift=with_rows.shift,
    )
    one, other_page = (page_of(each, with_features=False, with_pictures=False) for each in (with_rows, without))
    assert one.sections == other_page.sections
    assert one.notes == ["All figures leave out 20 rows, on which strength and temperature may be chosen."]


def test_pictures_are_asked_for_by_their_rows_among_all():
    reported = np.array([False, True, False, True])
    labeling = labeled([0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], "ab", reported=reported)
    asked: list[int] = []

    def pictures(rows: Sequence[int]):
        asked.extend(rows)
        return [np.zeros((4, 4, 3), dtype=np.uint8) for _ in rows]

    page = labels_page(labeling, facts=[], features=None, pictures=pictures)
    (section,) = [section for section in page.sections if section.title == "Examples"]
    for sheet in section.sheets:
        assert [picture.lines[-1] for picture in sheet.pictures] == ["dir/1 <i>.png", "dir/3 <i>.png"]
    assert asked == [1, 3, 1, 3]


def test_features_of_rows_of_tune_on_count_for_no_class():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0], [50.0, -70.0]])
    labels, rows = np.array([0, 1, 2, 3, 1]), np.array([True, True, True, True, False])
    labeling = labeled(labels, labels, labels, "abcd", reported=rows)
    page = labels_page(labeling, facts=[], features=lambda: features.split(2), pictures=None)
    nearest = {row[0]: row[1] for row in rows_of(page, "Nearest classes by name")}
    assert nearest == {"a": "c 0.707", "b": "c 0.707", "c": "a 0.707", "d": "b 0.000"}


def test_the_claim_about_rare_classes_is_checked():
    """Most predicted: a, b at right angles to all; least predicted: c, d all but parallel; and the other way round."""
    features = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0, 0.01, 1.0]])
    for order, said in (([0, 1, 2, 3], "these labels agree"), ([2, 3, 0, 1], "these labels do not")):
        labels = np.repeat(order, [5, 4, 2, 1])
        labeling = labeled(labels, labels, labels, "abcd")
        section = nearest_classes_section(labeling, np.arange(12), 12, [features[labels]])
        assert said in section.text and "true classes" in section.text
        assert [row[0] for row in section.tables[0].rows] == ["abcd"[k] for k in order]


def test_without_truth_nothing_is_judged():
    page = page_of(biased(NAMES, 60, known=False))
    titles, text = titles_of(page), render(page, "1.2.3")
    assert not {"Against the truth", "Confusion, plain", "Confident mistakes"} & set(titles)
    assert {"What is predicted", "The class prior", "Labels that debiasing changes"} < set(titles)
    for word in ("recall", "true share", "ECE", "became right"):
        assert word not in text, word
    assert "classes by plain label" in text and "true class unknown" in text
    check_self_contained(text, min_figures=4)


def test_everything_is_there_where_it_is_known(page: Page):
    assert {"Confusion, plain", "Confusion, debiased", "Confident mistakes", "Each class in numbers"} < set(
        titles_of(page)
    )
    assert {"The 2 most predicted classes", "The 2 least predicted classes"} < set(titles_of(page))
    text = render(page, "1.2.3")
    assert "true share" in text and "(true classes)" in text
    check_self_contained(text, min_figures=9)


def test_what_is_not_given_is_not_there():
    page = page_of(biased("ab", 9), with_features=False, with_pictures=False)
    assert not {"Class correlation", "Examples"} & set(titles_of(page))


def test_pictures_that_are_all_gone_make_no_section():
    page = labels_page(biased(NAMES, 60), facts=[], features=None, pictures=lambda rows: [None] * len(rows))
    assert "Examples" not in titles_of(page)


def test_names_are_text_wherever_they_stand(page: Page):
    raw = render(page, "1.2.3")
    seen = Seen.page(raw)
    text = "".join(seen.text)
    assert SCRIPT in text and SCRIPT not in raw and "&lt;script&gt;ale…" in raw
    assert any(SCRIPT in title for title in seen.titles) and "7 rows of <u>x</u>" in text
    assert 'Bär "x" & $y^2$ <b>' in text and "dir/3 <i>.png" in text
    assert any("<i>" in (attributes.get("alt") or "") for tag, attributes in seen.tags if tag == "img")


def test_a_class_that_is_never_predicted_is_named():
    labeling = labeled([0, 0, 0, 1, 1, 3], [0, 2, 2, 1, 3, 3], [0, 2, 2, 1, 3, 3], "abcd")
    page = page_of(labeling, with_features=False, with_pictures=False)
    assert "1 never predicted, not drawn: c." in render(page, "1.2.3")
    row = next(row for row in rows_of(page, "Each class in numbers") if row[0] == "c")
    interval = "34.2 to 100.0\u00a0%"  # Wilson's of 2 of 2
    assert row[3:] == ["0", "2", "2", "0.0\u00a0%", "100.0\u00a0%", interval, "-", "100.0\u00a0%"]


@pytest.mark.parametrize("num", [1, 2, 3])
@pytest.mark.parametrize(
    ("plain", "truth"),
    [
        # None of the classes that are predicted is true: there is no precision beside a recall.
        ([0, 0, 0], [1, 1, 2]),
        ([0, 1, 0], [2, -1, -1]),
        ([0, 0, 0], [-1, -1, -1]),
        ([0, 0, 0], [0, -1, 0]),
        ([2, 2, 1], [2, 2, 1]),
    ],
)
def test_a_few_rows_whatever_is_known_of_them(num: int, plain: list[int], truth: list[int]):
    """With names that are no usual ones; warnings are errors here."""
    labeling = labeled(plain[:num], plain[:num], truth[:num], ["$x^2$", "two\nlines", "\ud800<b>%s {0}"])
    text = html(labeling)
    check_self_contained(text, min_figures=2)
    is_seen = bool({*plain[:num]} & {*truth[:num]})
    assert ("Precision and recall by predicted count" in text) == is_seen


@pytest.mark.parametrize("known", [True, False])
def test_two_classes_and_two_rows(known: bool):
    labeling = labeled([0, 0], [0, 1], [0, 1] if known else [-1, -1], "ab")
    titles = titles_of(page_of(labeling))
    # Two classes are each other's only neighbor: nothing to compare.
    assert "Class correlation" not in titles and "Where labels went" in titles
    check_self_contained(html(labeling), min_figures=2)


def test_labels_that_do_not_change():
    labeling = labeled([0, 1, 1], [0, 1, 1], [0, 1, 0], "ab", config=DebiasConfig(prior="none"), strength=0.0)
    text = html(labeling)
    assert "No count changes." in text and "Debiasing changes 0 of 3 labels" in text
    assert "The class prior" not in text and "Labels that debiasing changes" not in text


def test_a_page_without_reported_rows_says_so():
    page = page_of(labeled([0, 1], [0, 1], [0, 1], "ab", reported=np.zeros(2, dtype=bool)))
    assert page.sections == [] and "2 rows" in page.notes[0]


def test_a_thousand_classes_make_a_light_page():
    names = [f"a name of class {k}" for k in range(1000)]
    text = html(biased(names, 20_000), with_pictures=False)
    check_self_contained(text, min_figures=9)
    for svg in re.findall(r'<svg viewBox="[^"]*" role.*?</svg>', text, re.DOTALL):
        assert svg.count("<text") < 150
    assert "Each curve is sorted separately." in text and text.count("a name of class 7</th>") >= 1


def test_a_mistake_among_many_classes_is_seen():
    """A single full cell of 600 x 600 classes is the largest of its block, not one of those that are left out."""
    shares = np.zeros((601, 601))
    empty = figures.heat_map(shares, ["x"] * 601, "1")
    for row, column in ((0, 0), (301, 302), (600, 600)):
        shares[:] = 0
        shares[row, column] = 1
        assert figures.heat_map(shares, ["x"] * 601, "1") != empty


@pytest.mark.browser
@pytest.mark.parametrize(("num_classes", "width"), [(5, 390), (5, 1280), (40, 390)])
def test_a_browser_cuts_nothing_off(num_classes: int, width: int, tmp_path):
    names = [*NAMES, *(f"another long name of a class, number {k}" for k in range(num_classes - 5))]
    check_in_browser(html(biased(names, 300)), width, tmp_path)

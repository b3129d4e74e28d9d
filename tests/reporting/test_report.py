"""Reports: what a page holds, that names cannot do harm in it, and what is refused."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import refused
from jobs import run as digits_run
from pages import SCRIPT, Seen, check_in_browser, check_self_contained, measured
from PIL import Image

from debias_ssl import report, train
from debias_ssl.reporting import figures
from debias_ssl.reporting.reading.inspection import inspect
from debias_ssl.reporting.reading.run import METRICS, read_run
from debias_ssl.reporting.sections.class_correlation import mean_feature_cosines
from debias_ssl.reporting.sections.pseudo_labels import moments_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_run(tmp_path_factory.mktemp("report") / "a")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_run(tmp_path_factory.mktemp("report") / "b", "--method", "FixMatch")


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    report.main([str(run)])
    return run / "report.html"


@pytest.fixture(scope="module")
def comparison(run: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "page.html"
    report.main([str(other), str(run), "--out", str(out)])
    return out


def make_folder_run(folder: Path) -> Path:
    """A run on files whose names and classes want to be markup."""
    rng = np.random.default_rng(0)
    classes = [SCRIPT, 'Bär "x" & $y^2$ <b>', "#010101 href=x 1.23456"]
    lists: dict[str, list[tuple[str, str]]] = {"labeled": [], "test": []}
    for part, number in (("labeled", 6), ("test", 4)):
        (folder / part).mkdir(parents=True)
        for k, name in enumerate(classes):
            for i in range(number):
                path = folder / part / f"{k}{i} \"quoted\" 'ünï' 猫 <i>.png"
                Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
                lists[part].append((str(path), name))
        with (folder / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *lists[part]])
    out = folder / 'run "é" <u>\''
    files = [f"--data.{part}={folder / f'{part}.csv'}" for part in lists]
    size = ["--data.labels_per_class", "2", "--batch_size", "4", "--unlabeled_ratio", "2", "--data.cache", str(folder)]
    steps = ["--steps", "2", "--log_every", "1", "--eval_every", "1", "--checkpoint_every", "2"]
    train.main(["--data.name", "folder", *files, *size, *steps, "--model.name", "wrn_10_1", "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder_run(tmp_path_factory.mktemp("files"))


def test_truth_of_labeled_images_alone_is_no_truth(folder_run: Path, tmp_path: Path):
    """A flat folder of unlabeled images: of the unlabeled set only the labeled images have a known class."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for k, path in enumerate(sorted((folder_run.parent / "labeled").iterdir())):
        shutil.copy(path, flat / f"{k}.png")
    out, config = tmp_path / "run", str(folder_run / "config.yaml")
    train.main(["--config", config, "--data.unlabeled", str(flat), "--out", str(out)])
    assert sum(json.loads((out / "model.json").read_text())["unlabeled_counts"]) == 0
    report.main([str(out)])
    text = (out / "report.html").read_text()
    assert "true classes are unknown" in text and "Confusion of pseudo-labels" not in text
    assert "true share" not in text and "Confusion of predictions" in text


@pytest.fixture(scope="module")
def folder_page(folder_run: Path) -> Path:
    report.main([str(folder_run)])
    return folder_run / "report.html"


@pytest.mark.parametrize("name", ["page", "comparison", "folder_page"])
def test_page_is_self_contained_and_described(name: str, request: pytest.FixtureRequest):
    check_self_contained(request.getfixturevalue(name).read_text(), min_figures=9)


def test_numbers_are_those_of_the_summary(run: Path, page: Path):
    summary, text = json.loads((run / "summary.json").read_text()), page.read_text()
    rows = re.findall(r'<tr><th scope="row">(.*?)</tr>', text, re.DOTALL)[:6]
    for row, (moment, which) in zip(
        rows, [(m, w) for m in ("last", "median", "best") for w in ("ema", "raw")], strict=True
    ):
        cells = re.findall(r"<td>(.*?)</td>", row)
        assert cells == [f"{100 * summary[which][moment][name]:.2f}\u00a0%" for name in METRICS]
    assert "chosen on test" in rows[-1] and "EMA" in rows[0]


def test_every_figure_of_a_run_is_there(page: Path):
    text = page.read_text()
    for title in (
        "Losses",
        "Accuracy on the test images",
        "Pseudo-labels in training",
        "The marginal over time",
        "Step 12",
        "Confusion of predictions",
        "Confusion of pseudo-labels, plain",
        "Confusion of pseudo-labels, debiased",
        "Recall of each class, sorted",
        "Reliability: ECE",
        "Class correlation",
    ):
        assert f"<h3>{title}" in text, title
    assert "Confident mistakes" in text and "data:image/png;base64," in text and "class_path: DebiasPL" in text
    assert "strength 0.5 (the method&#39;s own)" in text and "Left out" not in text


def test_unlabeled_images_are_counted_by_true_class(run: Path):
    counts = json.loads((run / "model.json").read_text())["unlabeled_counts"]
    inspection = inspect(read_run(run))
    assert counts == np.bincount(inspection.truth, minlength=10).tolist() and sum(counts) == 1198


def test_debiasing_at_report_time_takes_the_last_marginal(run: Path, other: Path):
    for path, strength in ((run, 0.5), (other, 1.0)):
        finished = read_run(path)
        inspection = inspect(finished)
        assert inspection.strength == strength and inspection.is_own_strength == (path == run)
        assert len(inspection.index) == finished.num_unlabeled == len(inspection.features)
        assert [log["step"] for log in moments_of(finished)] == [2, 6, 8, 12]


def test_class_correlation_is_the_cosine_of_means():
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    cosine = mean_feature_cosines(features, np.array([0, 0, 1, 2]), [0, 1, 2])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(cosine, [[1, 0, half], [0, 1, half], [half, half, 1]], atol=1e-12)


def test_names_are_text_wherever_they_stand(folder_run: Path, folder_page: Path):
    seen, raw = Seen.page(folder_page.read_text()), folder_page.read_text()
    text = "".join(seen.text)
    assert SCRIPT in text and SCRIPT not in raw and "&lt;script&gt;alert" in raw
    # In a figure, shortened, and as they are in its description.
    assert "&lt;script&gt;ale…" in raw and any(SCRIPT in title for title in seen.titles)
    assert 'Bär "x" & $y^2$ <b>' in text and "#010101 href=x 1.23456" in text
    assert str(folder_run) in text and "\"quoted\" 'ünï' 猫 <i>.png" in text
    assert any("猫 <i>" in (attributes.get("alt") or "") for tag, attributes in seen.tags if tag == "img")


def test_missing_images_are_a_note(folder_run: Path, tmp_path: Path):
    copy = shutil.copytree(folder_run, tmp_path / "run")
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace(str(folder_run.parent), str(tmp_path / "gone")))
    report.main([str(copy)])
    text = (copy / "report.html").read_text()
    assert "Left out, because" in text and "gone" in text and "Recall of each class" in text
    assert "Class correlation" not in text and "<img" not in text


def test_a_run_of_an_older_version_has_confusion_matrices_in_its_journal(run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "report.html"))
    edit_log('"recalls"', '"confusion": [[600, 0], [0, 0]], "recalls"')(copy)
    (copy / "confusion.npz").unlink()
    report.main([str(copy)])
    assert "Confusion of predictions" in (copy / "report.html").read_text()


def edit_json(name: str, key: str, value: object) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        whole = json.loads((run / name).read_text())
        *parents, last = key.split(".")
        inner = whole
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
        (run / name).write_text(json.dumps(whole))

    return edit


def edit_log(pattern: str, replacement: str) -> Callable[[Path], None]:
    def edit(run: Path) -> None:
        path = run / "metrics.jsonl"
        path.write_text(re.sub(pattern, replacement, path.read_text()))

    return edit


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda run: (run / "summary.json").unlink(), "--resume"),
        (lambda run: (run / "config.yaml").unlink(), "config.yaml"),
        (lambda run: (run / "model.safetensors").unlink(), "model.safetensors"),
        (lambda run: (run / "model.safetensors").write_bytes(b"x"), "cannot be loaded"),
        (lambda run: (run / "predictions" / "test_ema.npy").unlink(), "test_ema.npy"),
        (lambda run: (run / "predictions" / "test_ema.npy").write_bytes(b"x"), "damaged"),
        (lambda run: np.save(run / "predictions" / "test_labels.npy", np.zeros(599, int)), "predictions"),
        (lambda run: (run / "summary.json").write_text("{"), "damaged"),
        (lambda run: (run / "split.json").write_text("[]"), "damaged"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "metrics.jsonl"),
        (edit_json("summary.json", "ema.last.accuracy", 0.999), "accuracy differs"),
        (edit_json("summary.json", "ema.best", {}), "accuracy"),
        (edit_json("summary.json", "seconds", "long"), "damaged"),
        (edit_json("model.json", "classes", ["a", "b"]), "classes"),
        (edit_json("split.json", "classes", ["a", "b"]), "split.json"),
        (edit_log(r'"marginal": \[', '"marginal": [0.5, '), "number of classes"),
        (edit_log('"mask_rate"', '"mask"'), "mask_rate"),
        (edit_log('"pseudo_weights": .0.0', '"pseudo_weights": ["x"'), "damaged"),
    ],
)
def test_unfinished_and_edited_runs_are_refused(
    edit: Callable[[Path], object], word: str, run: Path, tmp_path: Path, capsys
):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "report.html"))
    edit(copy)
    assert word in refused(report.main, [str(copy)], capsys)
    assert not (copy / "report.html").exists()


def test_several_runs_are_set_side_by_side(run: Path, other: Path, comparison: Path):
    text = comparison.read_text()
    for title in ("What differs", "The bias", "Recall of each class", "Where errors fall", "Difference to FixMatch"):
        assert title in text, title
    for path in (run, other):
        accuracy = json.loads((path / "summary.json").read_text())["ema"]["last"]["accuracy"]
        assert f"<td>{100 * accuracy:.2f}</td>" in text
    assert "<h3>FixMatch, plain" in text and "<h3>DebiasPL, debiased" in text and "FixMatch, debiased" not in text
    assert '<th scope="row">method.strength</th><td>-</td><td>0.5</td>' in text


def test_a_variant_without_pseudo_labels_has_no_shares_of_them(tmp_path: Path):
    supervised = digits_run(tmp_path / "c", "--method", "Supervised")
    debiased = digits_run(tmp_path / "d", "--method.threshold", "0")
    report.main([str(supervised), str(debiased), "--out", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    assert "No pseudo-labels count in Supervised." in text and "DebiasPL from" in text
    assert "Supervised from" not in text


def test_the_folder_of_a_comparison_makes_a_page(run: Path, other: Path, tmp_path: Path, capsys):
    from debias_ssl.runs.results import Result, differences_between, write_results

    folders = {"FixMatch": other, SCRIPT.replace("/", ""): run}
    results = []
    for variant, source in folders.items():
        folder = tmp_path / variant / "seed-0"
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("checkpoints"))
        summary = read_run(folder).summary
        shown = Result(variant=variant, seed=0, folder=f"{variant}/seed-0", status="finished", summary=summary)
        results += [shown, Result(variant=variant, seed=1, folder="x", status="failed", error="the <b>loss</b>")]
    resolved = {variant: read_run(path).resolved for variant, path in folders.items()}
    write_results(tmp_path, results, differences_between(resolved), [])
    report.main([str(tmp_path)])
    text = (tmp_path / "report.html").read_text()
    assert "seed 1: failed (the &lt;b&gt;loss&lt;/b&gt;)" in text and "&lt;script&gt;alert(1)&lt;script&gt;" in text
    assert "<b>" not in text and "<script" not in text
    # Written before there were labels-only runs.
    whole = json.loads((tmp_path / "compare.json").read_text())
    for line in whole["table"]:
        for name in ("setting", "first", "floor", "difference_to_floor", "unlabeled_images", "is_uneven"):
            del line[name]
        del (line["difference_to_first"] or {"mean_recall": None})["mean_recall"]
    (tmp_path / "compare.json").write_text(json.dumps(whole))
    report.main([str(tmp_path)])
    assert '<h3 class="block">Difference to FixMatch</h3>' in (tmp_path / "report.html").read_text()
    (tmp_path / "compare.json").write_text('{"runs": [3]}')
    assert "compare.json" in refused(report.main, [str(tmp_path)], capsys)


def test_seeds_of_a_variant_are_averaged(run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace("\nseed: 0", "\nseed: 7"))
    report.write_report([run, copy], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    accuracy = json.loads((run / "summary.json").read_text())["ema"]["last"]["accuracy"]
    assert f"<td>2</td><td>{100 * accuracy:.2f} ± 0.00</td>" in text and "1 variants, 2 seeds" in text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["{run}", "{run}"], "--out"),
        (["{run}", "{run}", "--out", "{tmp}/x.html"], "same settings"),
        (["{run}", "{folder_run}", "--out", "{tmp}/x.html"], "other classes"),
        (["{tmp}"], "holds no run"),
        (["{run}", "--out", "{tmp}"], "is a folder"),
        (["{run}", "--out", "{run}/split.json", "--overwrite"], "lies in the run"),
        (["{run}", "--out", "{run}/page.html"], "lies in the run"),
        (["{run}", "{folder_run}", "--out", "{run}/report.html", "--overwrite"], "lies in the run"),
        ([], "runs"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: list[str], word: str, run: Path, folder_run: Path, tmp_path: Path, capsys
):
    arguments = [a.format(run=run, folder_run=folder_run, tmp=tmp_path) for a in arguments]
    assert word in refused(report.main, arguments, capsys)
    assert not (tmp_path / "x.html").exists()


def test_a_thousand_classes_are_neither_named_nor_heavy():
    names = [f"class {k}" for k in range(1000)]
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.ones(1000))
    drawn = [
        figures.heat_map(rng.random((1000, 1000)) ** 40, names, "a 1"),
        figures.class_shares(share, share, share, names, "b 1", top=0.01),
        figures.recall_bars(np.sort(rng.random(1000)), names, "c 1"),
        figures.class_dots(rng.random((3, 1000)), names, "d 1"),
        figures.marginals(np.arange(50), rng.dirichlet(np.ones(1000), 50), names, [1, 2, 3, 4], "e 1"),
    ]
    for svg in drawn:
        assert svg.count("<text") < 30 and len(svg) < 3_000_000
    assert max(map(len, drawn[1:])) < 100_000


def test_a_figure_follows_the_page():
    svg = figures.lines([figures.Series(x=np.arange(3), y=np.arange(3) / 2)], 'says "<hm>" & 猫\udcff 1')
    assert svg.startswith('<svg viewBox="0 0 360') and 'aria-label="says &quot;&lt;hm&gt;&quot; &amp; 猫? 1"' in svg
    assert "currentColor" in svg and "var(--c0)" in svg and "<style" not in svg and "http" not in svg


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["page", "comparison", "folder_page"])
def test_a_browser_cuts_nothing_off_and_asks_for_nothing(
    name: str, width: int, request: pytest.FixtureRequest, tmp_path: Path
):
    check_in_browser(request.getfixturevalue(name).read_text(), width, tmp_path)


@pytest.mark.browser
def test_the_browser_would_tell(page: Path, tmp_path: Path):
    wrong = '<img src="http://example.invalid/x.png"><p style="width:900px">wide</p></body>'
    found = measured(page.read_text().replace("</body>", wrong), 390, tmp_path)
    assert found["width"] > 390 and found["wide"] and found["asked"] == ["http://example.invalid/x.png"]


def test_the_summary_in_words_says_the_figures(run: Path, page: Path):
    summary, text = json.loads((run / "summary.json").read_text()), page.read_text()
    accuracy = f"{100 * summary['ema']['last']['accuracy']:.1f}\u00a0%"
    points = re.findall(r"<li>([^<]*)</li>", text[text.index("<h2>Summary") : text.index("<h2>Figures")])
    assert len(points) == 3 and points[0].startswith(f"DebiasPL reached {accuracy} accuracy with 4 labels a class")
    assert f"{100 * summary['ema']['last']['min_recall']:.1f}\u00a0% of its" in points[1]


def test_the_marginal_fills_a_wide_page(page: Path):
    text = page.read_text()
    figure = text[text.index("<h3>The marginal over time") :]
    assert re.findall(r'<div class="(\w+)"><svg viewBox="0 0 (\d+)', figure)[:2] == [("wide", "756"), ("narrow", "360")]
    assert 'class="figures lone full"' in text

"""What `debias-ssl compare` is asked for: grids, variants and wrong flags."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from jobs import refused
from short_comparisons import BASE, TWO, rows, run

from debias_ssl import compare


def test_grid_marks_the_value_chosen_on_validation_images(tmp_path: Path, capsys):
    variants = tmp_path / "v.yaml"
    variants.write_text("base: null\nlonger: {optim: {lr: 0.06}}\n")
    flags = ["--variants", str(variants), "--grid", "optim.lr=0.03,.3", "--choose_on", "validation"]
    flags += ["--floor", "false"]
    run(tmp_path / "a", *flags, "--data.validation_per_class", "5", "--data.split_seed", "3")
    said = capsys.readouterr()
    assert "data.split_seed is 3: all seeds share one split" in said.err
    whole = json.loads((tmp_path / "a" / "compare.json").read_text())
    assert whole["variants"] == ["base", "longer", "lr=0.03", "lr=0.3"]
    assert whole["differences"] == {"optim.lr": {"base": 0.03, "longer": 0.06, "lr=0.03": 0.03, "lr=0.3": 0.3}}
    accuracies = {entry["variant"]: entry["validation"]["accuracy"] for entry in whole["runs"]}
    (chosen,) = [line["variant"] for line in whole["table"] if line["chosen"]]
    assert chosen == max(["lr=0.03", "lr=0.3"], key=lambda name: accuracies[name]) and f"{chosen} *" in said.out
    assert rows(tmp_path / "a")[0] | {"variant": ""} == rows(tmp_path / "a")[2] | {"variant": ""}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["--methods", "--variants", "--grid"]),
        (["--methods", "FixMatch,Nope"], ["variant 'Nope'", "no method 'Nope'", "DebiasPL", "FixMatch"]),
        (["--methods", "FixMatch,FixMatch"], ["two variants", "FixMatch"]),
        ([*TWO, "--stepz", "3"], ["--stepz 3; near it: --steps"]),
        ([*TWO, "--optim.lr", "fast"], ["optim.lr", "fast"]),
        ([*TWO, "--seeds", "0,x"], ["--seeds", "0,x"]),
        ([*TWO, "--seeds", "0,0"], ["--seeds", "0,0"]),
        ([*TWO, "--jobs", "0"], ["--jobs", "0"]),
        ([*TWO, "--choose_on", "validation"], ["--choose_on", "--grid"]),
        (["--grid", "method.strength"], ["method.strength", "method.strength=0,0.25,0.5,1"]),
        (["--grid", "method.strength=0,,1"], ["method.strength=0,,1"]),
        (["--grid", "method.strength=0,0.0"], ["0.0 twice"]),
        (["--grid", "method.strenth=0,1"], ["strenth=0", "strenth", "DebiasPL", "FixMatch"]),
        (["--grid", "seed=0,1"], ["--seeds"]),
        (["--grid", "jobs=1,2"], ["no setting 'jobs'"]),
        (["--grid", "optim.lr=0.1,fast"], ["variant 'lr=fast'", "optim.lr", "fast"]),
        (["--grid", "optim.lr=0.1", "--choose_on", "validation"], ["--data.validation_per_class"]),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(flags: list[str], words: list[str], tmp_path: Path, capsys):
    message = refused(compare.main, [*BASE, "--out", str(tmp_path / "out"), *flags], capsys)
    assert all(word in message for word in words), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: {method: Supervised}\nb: {stepz: 3}", ["variant 'b'", "no setting 'stepz'", "steps"]),
        ("a: {optim: {lrr: 3}}", ["variant 'a'", "optim.lrr", "near it: ", "optim.lr"]),
        ("a: {method: {class_path: Nope}}", ["variant 'a'", "Nope", "DebiasPL", "FixMatch"]),
        ("a: {method: {help: FixMatch}}", ["method.help"]),
        ("a: {seed: 3}", ["variant 'a'", "--seeds"]),
        ("a: 3", ["variant 'a'", "3"]),
        ("../a: {steps: 2}", ["../a", "folder"]),
        ("[a, b]", ["v.yaml"]),
        ("a: {steps: [", ["v.yaml"]),
    ],
)
def test_bad_variants_are_refused_before_anything_is_written(text: str, words: list[str], tmp_path: Path, capsys):
    (tmp_path / "v.yaml").write_text(text)
    flags = ["--out", str(tmp_path / "out"), "--variants", str(tmp_path / "v.yaml")]
    message = refused(compare.main, [*BASE, *flags], capsys)
    assert all(word in message for word in words), message
    assert not (tmp_path / "out").exists()


def test_several_processes_of_a_comparison_are_refused(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--jobs" in refused(compare.main, [*BASE, *TWO, "--out", str(tmp_path / "out")], capsys)


def test_unknown_key_in_the_base_stops_with_those_near_it(tmp_path: Path, capsys):
    (tmp_path / "c.yaml").write_text("stepz: 3")
    flags = ["--config", str(tmp_path / "c.yaml"), *TWO, "--out", str(tmp_path / "out")]
    message = refused(compare.main, flags, capsys)
    assert "'stepz' is not accepted; near it: steps" in message and not (tmp_path / "out").exists()


def test_a_record_from_before_a_setting_was_there_is_resumed(finished: Path, tmp_path: Path):
    shutil.copytree(finished, tmp_path / "a")
    record = yaml.safe_load((finished / "compare.yaml").read_text())
    for settings in (record["base"], *record["variants"].values()):
        del settings["labeled_loss"]
    (tmp_path / "a" / "compare.yaml").write_text(yaml.safe_dump(record))
    run(tmp_path / "a", *TWO, "--seeds", "0,1", "--resume")
    ours, theirs = (sorted(map(str, rows(out))) for out in (tmp_path / "a", finished))
    assert ours == theirs

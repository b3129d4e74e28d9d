"""The recipe of V-PET: its commands, its table, and going on after a stop."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vpet as script
import yaml
from jobs import refused
from PIL import Image
from sklearn.datasets import load_digits

PLAN = {
    "members": {"small": {"model.name": "wrn_10_1"}, "large": {"model.name": "wrn_10_1", "seed": 7}},
    "settings": {
        "steps": 2,
        "batch_size": 8,
        "unlabeled_ratio": 1,
        "log_every": 1,
        "eval_every": 2,
        "precision": "fp32",
    },
    "member_settings": {"method": "Supervised"},
    "student": "large",
    "vote_settings": {"target_prior": "em"},
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class trees of four digits."""
    digits: Any = load_digits(n_class=4)
    place = tmp_path_factory.mktemp("trees")
    for i in range(80):
        folder = place / ("test" if i % 4 == 0 else "train") / str(digits.target[i])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 255 / 16).astype(np.uint8)).save(folder / f"{i}.png")
    return place


def flags(trees: Path, out: Path, config: Path) -> list[str]:
    given = ["--config", str(config), "--train", str(trees / "train"), "--test", str(trees / "test")]
    return [*given, "--labels_per_class", "2", "--seeds", "0,1", "--out", str(out)]


@pytest.mark.slow
def test_members_votes_and_rounds_make_a_table_and_the_same_command_goes_on(trees, tmp_path, capsys):
    config = tmp_path / "plan.yaml"
    config.write_text(yaml.safe_dump(PLAN))
    script.main(flags(trees, tmp_path / "out", config))
    said = capsys.readouterr().out
    commands = [line for line in said.splitlines() if line.startswith("$ debias-ssl ")]
    # For each seed two members, votes on two kinds of labels and of the test images, and five rounds.
    assert [line.split()[2] for line in commands] == 2 * (["train"] * 2 + ["vote"] * 3 + ["train"] * 5)
    found = json.loads((tmp_path / "out" / "vpet.json").read_text())
    rows = [line for line in said.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 2 + 2 + 1 + len(script.ROUNDS)
    for seed in ("0", "1"):
        summary = json.loads((tmp_path / "out" / f"seed_{seed}" / "large" / "summary.json").read_text())
        assert found[seed]["large"]["accuracy"] == summary["ema"]["last"]["accuracy"]
        with (tmp_path / "out" / f"seed_{seed}" / "plain_votes" / "labels.csv").open(newline="") as file:
            assert all(row["label"] == row["plain_label"] for row in csv.DictReader(file))
    mean = 100 * np.mean([found[seed]["votes"]["accuracy"] for seed in "01"])
    assert f"| votes | {mean:.2f} |" in said and "large, labels only (the floor)" in said
    # Another draw of the labels for each seed, the same for all runs of it.
    splits = [
        json.loads(path.read_text())["labeled"] for path in sorted((tmp_path / "out").glob("seed_*/*/split.json"))
    ]
    assert len(splits) == 14 and len({str(split) for split in splits}) == 2

    # What is finished is not done again.
    (tmp_path / "out" / "seed_1" / "round_on_votes" / "summary.json").unlink()
    script.main(flags(trees, tmp_path / "out", config))
    again = capsys.readouterr().out
    commands = [line for line in again.splitlines() if line.startswith("$ debias-ssl ")]
    assert len(commands) == 1 and "--resume" in commands[0] and "round_on_votes " in commands[0]
    assert json.loads((tmp_path / "out" / "vpet.json").read_text()) == found

    # Other settings in the same folder would be mixed with what is there.
    config.write_text(yaml.safe_dump(PLAN | {"vote_settings": {"target_prior": "uniform"}}))
    message = refused(script.main, flags(trees, tmp_path / "out", config), capsys)
    assert "vote_settings.target_prior was em, now it is uniform" in message


def test_features_are_made_once_for_each_network_and_read_by_its_members(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(script, "run", lambda job, *_, **settings: calls.append((job, settings)))
    settings = script.read_plan(Path(script.__file__).with_suffix(".yaml"))
    plan = script.Plan(settings=settings, train="a", test="b", weights="w", labels_per_class=5, out=tmp_path)
    script.make_features(plan)
    assert [job for job, _ in calls] == ["features"] * 4
    assert [(each["images"], each["weights"]) for _, each in calls] == [("a", "w"), ("b", "w")] * 2
    for member in settings["members"]:
        folders = json.loads(plan.run_settings(member, 0)["data.features"])
        assert {*folders} <= {each["out"] for _, each in calls}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"student": "nobody"}, "student is 'nobody', must be one of large, small"),
        ({"members": {"large": {}}}, "members names 1; votes need two or more"),
        ({"rounds": 3}, "there is no setting 'rounds'"),
        ({"members": {"small": {"features": "none"}, "large": {}}}, "has features 'none', which are not in features"),
    ],
)
def test_plans_that_say_nothing_are_refused(change, words, trees, tmp_path, capsys):
    config = tmp_path / "plan.yaml"
    config.write_text(yaml.safe_dump(PLAN | change))
    assert words in refused(script.main, flags(trees, tmp_path / "out", config), capsys)

"""Processes that do not begin with the same refuse to begin."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from jobs import run
from launched import DIGITS, SHORT, Launched, run_ranks
from PIL import Image
from small_clip import save_clip

from debias_ssl.distributed import agreement
from debias_ssl.distributed.agreement import SHOWN, check_agreement, difference
from debias_ssl.runs.folder import RunFolder
from debias_ssl.system.errors import InputError

SECONDS = 120
Flags = Callable[[int], Sequence[str]]


def refused(launched: Launched) -> str:
    """The one message of processes that all refuse."""
    assert launched.statuses(SECONDS) == [2] * len(launched.processes), launched.log.read_text()
    log = launched.log.read_text()
    assert "Traceback" not in log and log.count("error: ") == 1, log
    message = log[log.index("error: ") :]
    assert "the processes do not agree" in message
    return message


def only(rank: int, *flags: str) -> Flags:
    return lambda each: flags if each == rank else ()


def as_gathered(*each: dict[str, str]) -> list[dict[str, tuple[str, str]]]:
    return [{name: (value[:SHOWN], value) for name, value in own.items()} for own in each]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes, of five images each to train on and of four to test on."""
    random = np.random.default_rng(0)
    for part, number in (("labeled", 5), ("test", 4)):
        for name in ("ant", "bee"):
            for i in range(number):
                path = tmp_path / "images" / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def data_flags(root: Path) -> list[str]:
    return [f"--data.{part}={root / part}" for part in ("labeled", "test")]


def of_folder(root: Path) -> list[str]:
    return [
        *("--config", str(DIGITS), *SHORT, *data_flags(root), "--data.name=folder", "--data.labels_per_class=2"),
        *("--batch_size=2", "--unlabeled_ratio=1"),
    ]


# The comparison.


def test_a_difference_names_the_fact_the_process_and_both_values():
    facts = {"rate": "1", "list": "a" * 100}
    assert difference(as_gathered(facts, facts, facts)) is None
    other = {"rate": "2", "list": "a" * 99 + "b"}
    message = difference(as_gathered(facts, facts, other))
    assert message is not None
    assert "rate is 1 in process 0, and 2 in process 2; they also differ in list" in message


def test_values_are_compared_whole_though_their_beginnings_are_shown():
    facts, other = {"list": "a" * 100}, {"list": "a" * 99 + "b"}
    assert difference(as_gathered(facts, other)) is not None


def test_a_fact_that_one_process_does_not_know_is_a_difference():
    message = difference(as_gathered({"a": "1"}, {"a": "1", "b": "2"}))
    assert message is not None and "b is not known in process 0, and 2 in process 1" in message


def test_a_process_alone_gathers_nothing():
    def facts() -> dict[str, str]:
        raise AssertionError

    check_agreement(facts)


# Runs.


def test_another_setting_of_one_process_is_named(tmp_path):
    launched = Launched(3, tmp_path / "a", "--batch_size=6", "--unlabeled_ratio=1", of_rank=only(2, "--optim.lr=0.5"))
    assert "--optim.lr is 0.03 in process 0, and 0.5 in process 2\n" in refused(launched)
    assert not (tmp_path / "a" / "config.yaml").exists()


def test_runs_in_folders_of_their_own_begin_together_and_are_not_resumed_apart(tmp_path):
    """On disks of several hosts, one process finds the checkpoint and the other begins anew."""
    run(tmp_path / "first")
    shutil.rmtree(tmp_path / "first" / "checkpoints" / "step_00000012")
    (tmp_path / "first" / "summary.json").unlink()

    def own(rank: int) -> list[str]:
        return ["--out", str(tmp_path / ("first" if rank == 0 else "second"))]

    base = ["--config", str(DIGITS), *SHORT, "--resume"]
    launched = Launched(2, tmp_path / "a", base=base, of_rank=own)
    message = refused(launched)
    assert "the step to begin with is 8 in process 0, and 0 in process 1" in message and "--out must be" in message


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_that_one_process_finds_finished_is_not_begun_by_the_other(rank, tmp_path):
    run(tmp_path / "0")

    def own(each: int) -> list[str]:
        return ["--out", str(tmp_path / str(abs(each - rank)))]

    launched = Launched(2, tmp_path / "a", base=["--config", str(DIGITS), *SHORT, "--resume"], of_rank=own)
    assert "the run in --out is" in refused(launched)


def test_a_finished_run_is_told_once_by_several_processes(tmp_path):
    launched = Launched(2, run(tmp_path / "a"), base=["--config", str(DIGITS), *SHORT, "--resume"])
    launched.finish()
    assert launched.log.read_text().count("is finished") == 1


def test_other_images_of_one_process_are_found(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "copy")
    launched = Launched(2, tmp_path / "a", base=of_folder(tree), of_rank=only(1, *data_flags(tmp_path / "copy")))
    assert "--data.labeled is" in refused(launched)
    # Below a root, as hosts have them.
    for part in ("labeled", "test"):
        rows = "".join(f"{part}/{name}/{i}.png,{name}\n" for name in ("ant", "bee") for i in range(4))
        (tmp_path / f"{part}.csv").write_text("path,label\n" + rows)
    lists = [f"--data.{part}={tmp_path / part}.csv" for part in ("labeled", "test")]

    def own(rank: int) -> list[str]:
        return [f"--data.root={tmp_path / 'copy' if rank else tree}"]

    Launched(2, tmp_path / "b", *lists, base=of_folder(tree), of_rank=own).finish()
    for part, what in (("test", "test images"), ("labeled", "training images")):
        Image.new("RGB", (8, 8)).save(tmp_path / "copy" / part / "ant" / "1.png")
        launched = Launched(2, tmp_path / part, *lists, base=of_folder(tree), of_rank=own)
        assert f"the hash of the {what} is" in refused(launched)


def test_another_split_of_one_process_is_found(tmp_path):
    for name, seed in (("a", "0"), ("b", "1")):
        run(tmp_path / name, f"--data.split_seed={seed}")
        (tmp_path / name / "split.json").replace(tmp_path / f"{name}.json")
    (tmp_path / "split.json").symlink_to(tmp_path / "a.json")
    launched = Launched(
        2,
        tmp_path / "c",
        of_rank=lambda rank: [f"--data.split={tmp_path / 'ab'[rank]}.json"],
    )
    assert "; they also differ in the hash of the split" in refused(launched)


def check_as(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    agreement.__version__ = f"{rank}.0"
    with pytest.raises(InputError, match=r"the package's version is 0\.0 in process 0, and 1\.0 in process 1; .* rank"):
        check_agreement(lambda: {"rank": str(rank), **({"new": ""} if rank else {})})
    dist.destroy_process_group()


def test_another_version_of_the_package_is_told_first_whatever_it_compares(tmp_path):
    run_ranks(check_as, tmp_path)


# Jobs that share a list of images.


def test_processes_that_predict_with_other_weights_or_images_are_refused(tree, tmp_path):
    first = run(tmp_path / "first", *of_folder(tree))
    second = run(tmp_path / "second", *of_folder(tree), "--seed=1")
    assert RunFolder(first).hash_of_model() != RunFolder(second).hash_of_model()
    images = str(tree / "test")

    def predict(of_rank: Flags) -> Launched:
        base = ["--run", str(first), "--images", images]
        return Launched(2, tmp_path / "labels.csv", base=base, of_rank=of_rank, job="predict")

    assert "the hash of --run is" in refused(predict(only(1, "--run", str(second))))
    assert "the hash of --images is" in refused(predict(only(1, "--images", str(tree / "labeled"))))
    predict(only(0)).finish()


def test_processes_that_evaluate_other_weights_or_images_are_refused(tree, tmp_path):
    first = run(tmp_path / "first", *of_folder(tree))
    second = run(tmp_path / "second", *of_folder(tree), "--seed=1")

    def evaluate(of_rank: Flags) -> Launched:
        return Launched(2, tmp_path / "e.json", base=[], of_rank=of_rank, job="evaluate")

    def of(run: Path, *flags: str) -> list[str]:
        return ["--run", str(run), *flags]

    assert "the hash of --run is" in refused(evaluate(lambda rank: of((first, second)[rank])))
    labeled = f"--data.test={tree / 'labeled'}"
    assert "the hash of the images is" in refused(evaluate(lambda rank: of(first, *[labeled][:rank])))
    evaluate(lambda rank: of(first)).finish()


def test_processes_that_label_by_other_classes_or_models_are_refused(tree, tmp_path):
    models = [save_clip(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    for name, words in (("ant", "ant\nbee\n"), ("wasp", "ant\nwasp\n")):
        (tmp_path / f"{name}.txt").write_text(words)
    base = ["--images", str(tree), "--classes", f"{tmp_path}/ant.txt", "--model", models[0], "--workers=0"]

    def label(*flags: str) -> Launched:
        return Launched(2, tmp_path / "labels", base=base, of_rank=only(1, *flags), job="label")

    assert "the list of classes is ant, bee in process 0, and ant, wasp in" in refused(
        label("--classes", f"{tmp_path}/wasp.txt")
    )
    assert "the model is" in refused(label("--model", models[1]))
    assert "the hash of --images is" in refused(label("--images", str(tree / "test")))
    assert "the folder of features is" in refused(label("--features", str(tmp_path / "own")))
    assert not (tmp_path / "labels" / "features").exists()

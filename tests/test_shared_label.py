"""Several `label` commands on one folder: each shard of features is made once, and one of them writes the labels."""

import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jobs import refused, rows_of
from killing import contents, strays
from launched import Job
from small_clip import paint_images, save_clip

from debias_ssl import label
from debias_ssl.features import embedding
from debias_ssl.models.clip import Clip
from debias_ssl.system.files import LOCK
from debias_ssl.system.locking import joined, lock_if_free


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(label, "_page", lambda *_: "")
    monkeypatch.setattr(embedding, "SHARD_SIZE", 4)
    monkeypatch.setattr(embedding, "LOOKED_AT_EVERY", 0.01)
    paint_images(tmp_path / "images")
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    model = save_clip(tmp_path / "clip")
    flags = ["--images", str(tmp_path / "images"), "--classes", str(tmp_path / "classes.txt"), "--model", model]
    return [*flags, "--workers", "0", "--precision", "fp32", "--batch_size", "4"]


@contextmanager
def other_process(out: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch):
    """Stands for a process with the same command, which works in both folders."""
    works: list[str] = []

    def told(folder: Path, flag: str = "--out", work: str = ""):
        works.append(work)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(label, "joined", told)
        with pytest.raises(SystemExit):
            label.main([*flags, "--out", str(out)])
    with joined(out, work=works[0]) as member, joined(out / "features") as of_features:
        for each in (member, of_features):
            each.end_first_turn()
        yield


def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the images of each batch that passes through the network."""
    numbers: list[int] = []
    encode = Clip.encode

    def counted(clip: Clip, images: Any):
        numbers.append(len(images))
        return encode(clip, images)

    monkeypatch.setattr(Clip, "encode", counted)
    return numbers


def test_shards_of_another_process_are_left_and_the_last_process_writes_the_labels(
    tmp_path: Path, flags: list[str], monkeypatch, capsys
):
    label.main([*flags, "--out", str(tmp_path / "alone")])
    out, numbers = tmp_path / "a", encoded(monkeypatch)
    with other_process(out, flags, monkeypatch):
        lock = lock_if_free(out / "features" / f".shard_00001.npy{LOCK}", "--features")
        assert lock is not None
        with pytest.raises(SystemExit) as ended:
            label.main([*flags, "--out", str(out), "--wait=false"])
        # Ten images in shards of four: the second one is in other hands.
        assert ended.value.code == 75 and sum(numbers) == 6
        assert "shards of features left to other processes: 1" in capsys.readouterr().err
        lock.close()
        numbers.clear()
        with pytest.raises(SystemExit) as ended:
            label.main([*flags, "--out", str(out), "--wait=false"])
        assert ended.value.code == 75 and sum(numbers) == 4
        assert "still at work: process" in capsys.readouterr().err and not (out / "summary.json").exists()
        message = refused(label.main, [*flags, "--out", str(out), "--prior", "none"], capsys)
        assert "which works on something else" in message
    numbers.clear()
    label.main([*flags, "--out", str(out)])
    # The blank image alone.
    assert numbers == [1] and not strays(out)
    assert rows_of(out) == rows_of(tmp_path / "alone")


def test_who_waits_makes_no_shard_again_and_prints_the_labels_of_another_process(
    tmp_path: Path, flags: list[str], monkeypatch, capsys
):
    alone, out = tmp_path / "alone", tmp_path / "a"
    label.main([*flags, "--out", str(alone)])
    said = capsys.readouterr().out.splitlines()
    kept = embedding.kept

    def meanwhile(*arguments: Any, **settings: Any):
        """Another process labels while this one makes features."""
        found = kept(*arguments, **settings)
        for name in ("summary.json", "labels.csv", "written.json"):
            shutil.copy(alone / name, out / name)
        return found

    monkeypatch.setattr(embedding, "kept", meanwhile)
    monkeypatch.setattr(label, "write_folder", None)
    label.main([*flags, "--out", str(out)])
    # But for the first lines, which say the settings, and the last one, the folder.
    assert capsys.readouterr().out.splitlines()[:-1] == said[2:-1]


def test_a_list_of_other_images_waits_until_the_features_are_not_in_use(
    tmp_path: Path, flags: list[str], monkeypatch, capsys
):
    label.main([*flags, "--out", str(tmp_path / "a"), "--features", str(tmp_path / "features")])
    shutil.copy(tmp_path / "images" / "ant" / "0.png", tmp_path / "images" / "ant" / "more.png")
    again = [*flags, "--out", str(tmp_path / "b"), "--features", str(tmp_path / "features")]
    with joined(tmp_path / "features") as member:
        member.end_first_turn()
        assert "for another list of images" in refused(label.main, again, capsys)
    label.main(again)
    assert len(rows_of(tmp_path / "b")) == 11


@pytest.mark.slow
def test_three_commands_of_which_one_is_killed_do_what_one_does(tmp_path: Path):
    model = Path(__file__).parent.parent.parent / "shared" / "models" / "tiny-clip"
    paint_images(tmp_path / "images", num=6000)
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    out = tmp_path / "a"
    flags = ["--images", str(tmp_path / "images"), "--classes", str(tmp_path / "classes.txt")]
    flags += ["--model", f"local-dir:{model}" if model.exists() else save_clip(tmp_path / "clip")]
    flags += ["--workers", "0", "--precision", "fp32", "--out", str(out)]
    assert Job("label", flags, tmp_path / "alone.log").wait() == 0, (tmp_path / "alone.log").read_text()
    expected = contents(out)
    shutil.rmtree(out)
    jobs = [Job("label", flags, tmp_path / f"{i}.log") for i in range(3)]
    mine = f"process {jobs[0].process.pid} on "
    while not any(mine in _text(lock) for lock in (out / "features").glob(f".shard_*{LOCK}")):
        assert jobs[0].is_running(), jobs[0].log.read_text()
        time.sleep(0.002)
    jobs[0].send(signal.SIGKILL)
    assert jobs[0].wait() == -signal.SIGKILL
    assert [job.wait() for job in jobs[1:]] == [0, 0], [job.log.read_text() for job in jobs]
    assert contents(out) == expected and not strays(out)
    tables = [[line for line in job.log.read_text().splitlines() if line.startswith("debiased ")] for job in jobs[1:]]
    assert tables[0] == tables[1] != []


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""

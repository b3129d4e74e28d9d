"""Peak memory of the jobs against the number of rows or images. The script makes the inputs.

    python scripts/benchmarks/bench_memory.py                        # 10^4 and 10^6: half an hour on two cores
    python scripts/benchmarks/bench_memory.py --rows 10000 1000000 --matrix_rows 10000 10000000 \\
        --cases predict_folder,debias

Images have 8 x 8 pixels: a folder of hard links to a few files, a thousand in each inner folder, or tar files of
100,000. Each job is one of its own, with two decoding processes. Its peak is the largest sum, at one time, of what its
processes hold, where memory that several of them share counts once (Pss), and mapped pages of files count too. `main`
is the largest resident size of the first process alone (ru_maxrss).

`bytes a row` is by how much the peak with the largest input is above that with the smallest, divided by the rows
between them. The last line is `bench_memory: CASE=... ...`, these bytes; the exit status is 1 where a case takes more
than its bound, or `predict` of a million images more than 1.5 GB. What was made is removed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench_inputs import CLASSES, Inputs, save_run_images

# Seconds between two looks at the memory of a job.
PAUSE = 0.2
# That `predict` of a million images may take in all.
MOST_PREDICTING = 1.5e9
CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PREPARED = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2], "interpolation": "bicubic", "resize_mode": "shortest"}
# Saves a CLIP of random weights, in a process of its own: this one stays small.
SAVE_CLIP = """
import json, sys, open_clip, torch
from safetensors.torch import save_file
torch.manual_seed(0)
save_file(open_clip.CLIP(**json.loads(sys.argv[1])).state_dict(), sys.argv[2])
"""


@dataclass(frozen=True, kw_only=True)
class Models:
    """What the jobs use that does not depend on the size."""

    folder: Path

    @property
    def run(self) -> str:
        return str(self.folder / "run")

    @property
    def clip(self) -> str:
        return f"local-dir:{self.folder / 'clip'}"

    @property
    def images(self) -> str:
        """A class tree of a few images."""
        return str(self.folder / "images")

    @property
    def classes(self) -> str:
        return str(self.folder / "classes.txt")

    def make(self) -> None:
        save_run_images(Path(self.images))
        clip = self.folder / "clip"
        clip.mkdir()
        config = {"model_cfg": CLIP, "preprocess_cfg": PREPARED}
        (clip / "open_clip_config.json").write_text(json.dumps(config))
        save = [sys.executable, "-c", SAVE_CLIP, json.dumps(CLIP), str(clip / "open_clip_model.safetensors")]
        subprocess.run(save, check=True)
        Path(self.classes).write_text("".join(f"{name}\n" for name in CLASSES))
        run_job(["train", *self.training, "--out", self.run], self.folder)

    @property
    def training(self) -> list[str]:
        """Settings of a run of two steps."""
        data = ["folder", "--data.labeled", self.images, "--data.test", self.images, "--data.image_size", "8"]
        steps = [f"--{name}=2" for name in ("steps", "batch_size", "log_every", "eval_every", "checkpoint_every")]
        return ["--data.name", *data, "--model.name", "wrn_10_1", "--precision", "fp32", *steps]


Arguments = Callable[[Inputs, Models], list[str]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A job with a kind of input."""

    arguments: Arguments
    """All arguments except for --out, which becomes a name in the folder of the inputs."""
    bound: int
    """Bytes a row."""
    of_matrix: bool = False
    out: str | None = "out"
    before: str | None = None
    """The case that must have been before, whose output is kept."""


def predict(what: str) -> Arguments:
    return lambda inputs, models: ["predict", "--run", models.run, "--images", images(inputs, what), *WORKERS]


def images(inputs: Inputs, what: str) -> str:
    if what == "shards":
        return str(inputs("shards") / "*.tar")
    # Which lists name.
    inputs("images")
    return str(inputs(what))


WORKERS = ["--workers", "2"]


def label(inputs: Inputs, models: Models) -> list[str]:
    clip = ["--model", models.clip, "--classes", models.classes, "--precision", "fp32"]
    return ["label", "--images", str(inputs("images")), *clip, *WORKERS, "--features", str(inputs.folder / "features")]


def label_with_truth(inputs: Inputs, models: Models) -> list[str]:
    return [*label(inputs, models), "--truth", str(inputs("truth_of_images.csv"))]


def features(inputs: Inputs, models: Models) -> list[str]:
    return ["features", "--images", images(inputs, "shards"), "--model", f"open_clip:{models.clip}", *WORKERS]


def train(what: str) -> Arguments:
    def arguments(inputs: Inputs, models: Models) -> list[str]:
        unlabeled = ["--data.unlabeled", images(inputs, what), "--data.input", "streaming", "--data.workers", "2"]
        return ["train", *models.training, *unlabeled]

    return arguments


def evaluate_run(inputs: Inputs, models: Models) -> list[str]:
    return ["evaluate", "--run", models.run, "--data.test", images(inputs, "labels.csv")]


def evaluate(predictions: str, truth: str, *further: str) -> Arguments:
    return lambda inputs, _: [
        *("evaluate", "--predictions", str(inputs(predictions)), "--kind", "logits"),
        *("--truth", str(inputs(truth)), *further),
    ]


def debias(predictions: str, truth: str | None = None) -> Arguments:
    def arguments(inputs: Inputs, _: Models) -> list[str]:
        known = [] if truth is None else ["--truth", str(inputs(truth))]
        return ["debias", "--predictions", str(inputs(predictions)), "--kind", "logits", *known]

    return arguments


def vote(inputs: Inputs, _: Models) -> list[str]:
    return ["vote", "--runs", str(inputs("matrix.npy")), str(inputs("other.npy"))]


CASES = {
    "predict_folder": Case(arguments=predict("images"), bound=400, out="out.csv"),
    "predict_list": Case(arguments=predict("list.txt"), bound=400, out="out.csv"),
    "predict_shards": Case(arguments=predict("shards"), bound=400, out="out.csv"),
    "label": Case(arguments=label, bound=400),
    "label_again": Case(arguments=label_with_truth, bound=400, before="label"),
    "features": Case(arguments=features, bound=400),
    "train_folder": Case(arguments=train("images"), bound=800),
    "train_list": Case(arguments=train("list.txt"), bound=800),
    "train_csv": Case(arguments=train("labels.csv"), bound=800),
    "train_shards": Case(arguments=train("shards"), bound=400),
    "evaluate_run": Case(arguments=evaluate_run, bound=400, out="out.json"),
    "evaluate": Case(arguments=evaluate("matrix.npy", "truth.npy"), bound=200, of_matrix=True, out=None),
    "evaluate_csv": Case(arguments=evaluate("matrix.npy", "truth.csv"), bound=200, of_matrix=True, out=None),
    "evaluate_table": Case(arguments=evaluate("table.csv", "truth_of_table.csv"), bound=400, of_matrix=True, out=None),
    "calibrate": Case(
        arguments=evaluate("matrix.npy", "truth.npy", "--calibrate", "--tune_on", "0.1"),
        bound=200,
        of_matrix=True,
        out=None,
    ),
    "debias": Case(arguments=debias("matrix.npy"), bound=200, of_matrix=True),
    "debias_csv": Case(arguments=debias("matrix.npy", "truth.csv"), bound=200, of_matrix=True),
    "debias_table": Case(arguments=debias("table.csv", "truth_of_table.csv"), bound=400, of_matrix=True),
    "vote": Case(arguments=vote, bound=400, of_matrix=True),
}


@dataclass(frozen=True, kw_only=True)
class Used:
    """What a job took."""

    peak: int
    """Bytes that its processes held at one time, shared ones once."""
    main: int
    """The first process's largest resident size in bytes."""
    seconds: float


def run_job(arguments: list[str], folder: Path) -> Used:
    """Runs a job, with caches in a folder.

    Raises:
        SystemExit: it failed.
    """
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    log = folder / "log.txt"
    start, peak = time.perf_counter(), 0
    with log.open("w") as file:
        command = [sys.executable, "-m", "debias_ssl", *arguments]
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        # As waitid looks, and does not take what wait4 is to tell.
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            peak = max(peak, held_by(process.pid))
            time.sleep(PAUSE)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"failed: {' '.join(command)}\n{log.read_text()[-2000:]}")
    return Used(peak=max(peak, 0), main=1024 * usage.ru_maxrss, seconds=time.perf_counter() - start)


def held_by(pid: int) -> int:
    """Bytes that a process and those that it has started hold."""
    held = 0
    # It, or one of them, may have ended.
    with suppress(OSError, StopIteration):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        held += 1024 * int(next(line for line in rollup if line.startswith("Pss:")).split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir():
            held += sum(held_by(int(child)) for child in (task / "children").read_text().split())
    return held


def measured(case: Case, inputs: Inputs, models: Models) -> Used:
    arguments = case.arguments(inputs, models)
    out = inputs.folder / (case.out or "none")
    used = run_job([*arguments, *([] if case.out is None else ["--out", str(out)])], inputs.folder)
    shutil.rmtree(out, ignore_errors=True)
    out.unlink(missing_ok=True)
    return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000], help="numbers of images")
    parser.add_argument("--matrix_rows", type=int, nargs="+", help="numbers of rows of matrices; else --rows")
    parser.add_argument("--cases", default=",".join(CASES), help="which, in this order")
    parser.add_argument("--folder", type=Path, help="where inputs and outputs are made; else a temporary folder")
    parsed = parser.parse_args()
    cases = {name: CASES[name] for name in parsed.cases.split(",")}
    sizes = {True: parsed.matrix_rows or parsed.rows, False: parsed.rows}
    found: dict[str, dict[int, Used]] = {name: {} for name in cases}
    with tempfile.TemporaryDirectory(dir=parsed.folder) as place:
        models = Models(folder=Path(place))
        models.make()
        print(f"{'':<16}{'rows':>12}{'peak GB':>10}{'main GB':>10}{'seconds':>9}")
        for rows in sorted({*sizes[True], *sizes[False]}):
            inputs = Inputs(folder=Path(place) / str(rows), rows=rows)
            inputs.folder.mkdir()
            for name, case in cases.items():
                if rows in sizes[case.of_matrix]:
                    used = found[name][rows] = measured(case, inputs, models)
                    print(
                        f"{name:<16}{rows:>12,}{used.peak / 1e9:>10.3f}{used.main / 1e9:>10.3f}{used.seconds:>9.1f}",
                        flush=True,
                    )
            shutil.rmtree(inputs.folder)
    tell(found)


def tell(found: dict[str, dict[int, Used]]) -> None:
    """Prints the last line, and exits with 1 where a bound is not met."""
    told, failed = [], False
    for name, used in found.items():
        (fewest, least), (most, largest) = min(used.items()), max(used.items())
        a_row = (largest.peak - least.peak) / max(1, most - fewest)
        too_large = name.startswith("predict") and most <= 10**6 and largest.peak > MOST_PREDICTING
        is_wrong = a_row > CASES[name].bound or too_large
        failed |= is_wrong
        told.append(f"{name}={a_row:.0f}{'(!)' if is_wrong else ''}")
    print("bench_memory:", *told)
    sys.exit(failed)


if __name__ == "__main__":
    main()

"""Checks that two versions of the package give the same weights, metrics, labels and probabilities, bit for bit.

    python scripts/checks/same_results.py BEFORE AFTER

BEFORE and AFTER are folders of two checkouts. Each runs digits, digits stopped and resumed, digits with two processes,
`debias` on a matrix, and `label` on images with a CLIP model (--clip local-dir:FOLDER and --images FOLDER; left out
without them). A refactoring changes nothing of what they write. What measures time is not compared.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

# Of a summary also what it was made by: the commit is another one.
TIMES = {"seconds", "images_per_second", "data_wait", "made_by"}
# Files whose text names settings, paths or versions.
NOT_COMPARED = {"config.yaml", "manifest.json", "report.html", "state.json"}
SHORT = ["--steps", "30", "--eval_every", "10", "--checkpoint_every", "10", "--log_every", "5"]


def run(checkout: Path, *arguments: str, stop_after: Path | None = None, num_processes: int = 1) -> None:
    """Starts a job of a checkout; `stop_after` is a file at whose coming it gets SIGTERM."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(num_processes):
        ranks = {"WORLD_SIZE": str(num_processes), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        together = {**ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": port} if num_processes > 1 else {}
        command = [sys.executable, "-m", "debias_ssl", *arguments]
        started.append(
            subprocess.Popen(
                command, env=environment | together, cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        )
    if stop_after is not None:
        while not stop_after.exists() and started[0].poll() is None:
            time.sleep(0.01)
        started[0].send_signal(signal.SIGTERM)
    for process in started:
        status = process.wait()
        assert status == 0 or stop_after is not None, f"{' '.join(arguments)} ended with {status} in {checkout}"


def write_all(checkout: Path, out: Path, clip: str | None, images: str | None) -> None:
    """Runs everything into `out`."""
    digits = ["train", "--config", str(checkout / "configs/digits.yaml"), *SHORT]
    run(checkout, *digits, "--out", str(out / "digits"))
    run(checkout, *digits, "--out", str(out / "resumed"), stop_after=out / "resumed/checkpoints/step_00000010")
    run(checkout, *digits, "--out", str(out / "resumed"), "--resume")
    run(checkout, *digits, "--out", str(out / "two"), num_processes=2)
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(500, 7)) + np.linspace(0, 2, 7)
    np.save(out / "logits.npy", logits.astype(np.float32))
    for prior in ("stationary", "fixed_point", "transport"):
        flags = ["--prior", prior, "--out", str(out / f"debias_{prior}")]
        run(checkout, "debias", "--predictions", str(out / "logits.npy"), *flags)
    if clip and images:
        classes = sorted(path.name for path in Path(images).iterdir() if path.is_dir())
        (out / "classes.txt").write_text("\n".join(classes))
        flags = ["--images", images, "--classes", str(out / "classes.txt"), "--model", clip, "--precision", "fp32"]
        run(checkout, "label", *flags, "--out", str(out / "label"))


def content(path: Path) -> object:
    """What is compared of a file."""
    if path.name == "optimizer.safetensors":
        # The names of its tensors may change, their values not.
        return sorted(tensor.tobytes() for tensor in load_file(path).values())
    if path.suffix not in (".json", ".jsonl"):
        return path.read_bytes()
    return [without_times(json.loads(line)) for line in ([path.read_text()] if path.suffix == ".json" else path.open())]


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return value


def differing(before: Path, after: Path) -> list[str]:
    """Names of files that are not the same in two folders, or are in one of them alone."""
    files = {path.relative_to(root) for root in (before, after) for path in root.rglob("*") if path.is_file()}
    compared = sorted(file for file in files if file.name not in NOT_COMPARED)
    print(f"{len(compared)} files compared")
    return [
        str(file)
        for file in compared
        if not ((before / file).exists() and (after / file).exists()) or content(before / file) != content(after / file)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--clip", default=None, help="local-dir:FOLDER of a CLIP model")
    parser.add_argument("--images", default=None, help="folder with a folder of images for each class")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        # The same place for both, as some files name it.
        place, kept = Path(aside) / "now", [Path(aside) / "before", Path(aside) / "after"]
        for checkout, folder in zip((parsed.before, parsed.after), kept, strict=True):
            place.mkdir()
            write_all(checkout.resolve(), place, parsed.clip, parsed.images)
            place.rename(folder)
        found = differing(*kept)
    print("\n".join(["differing:", *found]) if found else "the same")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()

"""The parts of `gpu_evidence.sh`: each in a process of its own, with a time limit, and lines of JSON as it goes.

    python scripts/gpu/gpu_evidence.py --minutes 120 --data data/cifar10-jpeg --out runs/gpu

- smoke: 50 steps on digits in bf16, eager, compiled and with CUDA graphs, with losses beside those of fp32 on the CPU.
- step: `bench_step.py` with wrn_28_2 and 64 + 448 + 448 images, in the same ways.
- few: CIFAR-10 with 40 labels: labels alone, FixMatch, DebiasPL, the same seed.
- tail: long-tailed CIFAR-10, unlabeled images in the same and in the reversed order: labels alone, FixMatch, DebiasPL,
  EvenMatch.

--parts names those to do, and --jobs the number of runs that share the GPU. The last two train as many steps as the
minutes allow, by a rate that is measured first. `evidence.jsonl` in --out has a line for each part and each run that
ended. Started again, what has a line that says `done` is not done again, and runs go on from their checkpoints. This
module imports nothing but Python's own library: what is missing it has to say.
"""

import argparse
import csv
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gpu_missing import machine_of, what_is_missing
from gpu_parts import Evidence

METHODS = ("FixMatch", "DebiasPL")
OWN = "EvenMatch"
# Of what is left of the time, the steps of `few` and `tail` are to fill; the rest is for starts and evaluations.
FILLED = 0.8
PARTS = ("smoke", "step", "few", "tail")
# Each run compiles its network for about a minute. With fewer minutes than these, that is more than it saves.
COMPILED_MINUTES = 60
# Ways to take a step, with their flags, which are those of `bench_step.py` too.
KINDS = {
    "eager": [],
    "compiled": ["--compile"],
    "graphs": ["--cuda_graphs"],
    "compiled graphs": ["--compile", "--cuda_graphs"],
}
MOST_STEPS = 2**20
RATED_STEPS = 120
# Runs below this get a note if batch norms have the papers' momentum.
SHORT_RUN = 10_000
# On a CPU, a small network and batch: a trial is of the parts, not of a figure.
TRIED = ["--model.name", "wrn_10_1", "--batch_size", "8", "--unlabeled_ratio", "1"]


# ---- smoke and step ----


def smoke(evidence: Evidence, steps: int) -> None:
    """Losses of a few steps, beside those of the CPU in fp32."""
    length = ["--config", "configs/digits.yaml", "--method", METHODS[0], "--steps", str(steps), "--log_every", "1"]
    length += ["--eval_every", str(steps), "--checkpoint_every", str(steps)]
    out, on_cpu = evidence.out / "smoke", "smoke, CPU in fp32"
    command = ["-m", "debias_ssl.train", *length, "--precision", "fp32", "--out", str(out / "cpu"), "--overwrite"]
    limit = evidence.limit(0.1)
    evidence.run(on_cpu, command, limit, lambda _: {"losses": losses_of(out / "cpu")}, on_cpu=True)
    if on_cpu not in evidence.done:
        return
    kinds = {
        name: {"precision": "bf16", **{flag.removeprefix("--"): True for flag in flags}}
        for name, flags in kinds_on(evidence.device).items()
    }
    (out / "kinds.json").write_text(json.dumps(kinds))
    command = ["-m", "debias_ssl.compare", *length, "--variants", str(out / "kinds.json"), "--floor", "false"]
    command += ["--seeds", "0", "--resume", "--report", "false", "--out", str(out / "bf16")]

    def figures(run: Path) -> dict[str, Any]:
        losses = losses_of(run)
        return {"losses": losses, **closeness(losses, evidence.done[on_cpu]["losses"])}

    told = partial(tell_runs, evidence, "smoke", out / "bf16", figures)
    evidence.run("smoke", command, evidence.limit(0.1), lambda _: {}, meanwhile=told)


def kinds_on(device: str) -> dict[str, list[str]]:
    """The ways to take a step on a device: a CPU records no graphs."""
    return {name: flags for name, flags in KINDS.items() if device == "cuda" or "--cuda_graphs" not in flags}


def losses_of(run: Path) -> list[float]:
    """The loss of each step."""
    return [sum(line["loss"].values()) for line in records(run) if "loss" in line]


def closeness(losses: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """How far losses are from those of the CPU: of the first step, and of the mean over the last fifth of the steps.

    In bf16 each number is known to 0.4 %, and what that does to a loss grows with the steps.
    """
    last = -(-len(reference) // 5)
    means = [sum(each[-last:]) / last for each in (losses, reference)]
    first, later = abs(losses[0] / reference[0] - 1), abs(means[0] / means[1] - 1)
    return {"first_off": round(first, 4), "last_off": round(later, 4), "is_close": first < 0.02 and later < 0.2}


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def step(evidence: Evidence) -> None:
    """`bench_step.py`; on a CPU with a small network and batch."""
    is_trial = evidence.device == "cpu"
    command = ["scripts/benchmarks/bench_step.py", "--device", evidence.device, "--precision", "bf16"]
    command += [flag.replace("model.name", "model") for flag in TRIED] if is_trial else ["--batch_size", "64"]
    command += ["--rounds", "2"] if is_trial else []
    for name, flags in kinds_on(evidence.device).items():
        # For memory, each program starts once more, and would be compiled again.
        memory = ["--memory"] * (name == "eager" and not is_trial)
        evidence.run(f"step, {name}", [*command, *flags, *memory], evidence.limit(0.1), step_figures)


def step_figures(printed: str) -> dict[str, Any]:
    """The ratios of the last line, steps/s where they are printed, and peak memory in GB where it was measured."""
    found = re.findall(r"(\w+/\w+)=([\d.]+)", printed.splitlines()[-1])
    rates = re.findall(r"(?:^|, )([\w ]+?(?:, bf16)?) ([\d.]+) steps/s", printed, re.MULTILINE)
    found += [(f"{program}, steps/s", rate) for program, rate in rates]
    found += [(f"{program}, GB", peak) for program, peak in re.findall(r"[:;] ([\w ]+, bf16) ([\d.]+)", printed)]
    return {name: float(value) for name, value in found}


# ---- few and tail ----


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One comparison on CIFAR-10."""

    name: str
    flags: list[str]
    """Of the data, for `train` and `compare`."""
    variants: list[str]
    """Flags of `compare`."""
    rated: list[str]
    """Further flags of the short run that tells how fast it is."""
    num_runs: int
    share: float
    """Of the time that is left when it begins; the last one gets all of it."""


def comparisons(evidence: Evidence, data: Path) -> list[Comparison]:
    files = ["--data.name", "folder", "--data.labeled", str(data / "train"), "--data.test", str(data / "test")]
    tails = evidence.out / "orders.json"
    tails.write_text(json.dumps(orders(data)))
    return [
        Comparison(
            name="few",
            flags=["--config", "configs/cifar10.yaml", *files],
            variants=["--methods", ",".join(METHODS)],
            rated=[],
            num_runs=len(METHODS) + 1,
            share=0.45,
        ),
        Comparison(
            name="tail",
            flags=["--config", "configs/cifar10_lt.yaml", *files],
            variants=["--methods", ",".join([*METHODS, OWN]), "--settings", str(tails)],
            rated=[f"--data.{name}={value}" for name, value in orders(data)["same"]["data"].items()],
            num_runs=2 * (len(METHODS) + 2),
            share=0.55,
        ),
    ]


def trained(evidence: Evidence, data: Path, parts: Sequence[str], steps: int | None, jobs: int) -> None:
    """The comparisons on CIFAR-10, after short runs that tell how fast they are."""
    as_here = TRIED if evidence.device == "cpu" else fastest(evidence)
    found = [each for each in comparisons(evidence, data) if each.name in parts]
    for each in found if steps is None else []:
        out = evidence.out / "rate" / each.name
        command = ["-m", "debias_ssl.train", *each.flags, *each.rated, *as_here, "--method", METHODS[0]]
        command += [*lengths(RATED_STEPS, logs=6), "--out", str(out), "--overwrite"]
        evidence.run(
            f"{each.name}, rate", command, evidence.limit(0.08), lambda _, out=out: {"steps_per_second": rate_of(out)}
        )
    for each in found:
        limit = evidence.left * (each.share if each is not found[-1] else 1.0)
        # A comparison that was begun keeps its steps.
        if f"{each.name}, plan" not in evidence.done:
            rate = evidence.done.get(f"{each.name}, rate", {}).get("steps_per_second", 0.0)
            planned = steps or min(MOST_STEPS, int(FILLED * rate * limit / each.num_runs))
            if not planned:
                evidence.write(each.name, "left out: its rate is not known, or no time is left")
                continue
            evidence.write(f"{each.name}, plan", "done", flags=[*lengths(planned, logs=100), *as_here])
        out = evidence.out / each.name
        command = ["-m", "debias_ssl.compare", *each.flags, *each.variants]
        command += [*evidence.done[f"{each.name}, plan"]["flags"], "--seeds", "0", "--resume", "--out", str(out)]
        command += ["--jobs", str(jobs)]
        told = partial(tell_runs, evidence, each.name, out)
        evidence.run(each.name, command, limit, lambda _: {}, meanwhile=told)


def lengths(steps: int, logs: int) -> list[str]:
    """The flags of a run's length: a long one is evaluated ten times."""
    tenth = -(-steps // 10)
    numbers = {"steps": steps, "eval_every": steps if steps < 1000 else tenth, "checkpoint_every": tenth}
    numbers["log_every"] = -(-steps // logs)
    # With the papers' 0.001, evaluations of a short run use statistics of much earlier weights.
    momentum = {"model.batch_norm_momentum": 0.1} if steps < SHORT_RUN else {}
    return [part for name, number in {**numbers, **momentum}.items() for part in (f"--{name}", str(number))]


def orders(data: Path) -> dict[str, Any]:
    """Two settings of `compare`: N1 = 1500 and M1 = 3000, or a third and two thirds of the smallest class."""
    smallest = min(sum(1 for _ in folder.iterdir()) for folder in (data / "train").iterdir() if folder.is_dir())
    largest = min(1500, max(1, smallest // 3))
    tail = {"labels_per_class": largest, "unlabeled_per_class": 2 * largest}
    tail |= dict.fromkeys(("labeled_imbalance", "unlabeled_imbalance"), min(100, largest))
    return {order: {"data": {**tail, "unlabeled_order": order}} for order in ("same", "reversed")}


def fastest(evidence: Evidence) -> list[str]:
    """The flags of the fastest step that was measured, of those that there is time for."""
    can_compile = evidence.minutes >= COMPILED_MINUTES
    kinds = {name: flags for name, flags in KINDS.items() if can_compile or "--compile" not in flags}
    rates = {name: evidence.done.get(f"step, {name}", {}).get("step, bf16, steps/s", 0.0) for name in kinds}
    return [part for flag in kinds[max(rates, key=rates.__getitem__)] for part in (flag, "true")]


def rate_of(run: Path) -> float:
    """Steps a second of a short run, without those before its second line of the log, in which much is done once."""
    logged = [line for line in records(run) if "loss" in line]
    first, last = logged[min(1, len(logged) - 1)], logged[-1]
    if first is last:
        return last["step"] / last["seconds"]
    return (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])


def tell_runs(
    evidence: Evidence, name: str, out: Path, further: Callable[[Path], dict[str, Any]] = lambda run: {}
) -> None:
    """Writes a line for each run of a comparison that has ended and has none; `further` gives figures of its folder."""
    if not (out / "compare.csv").exists():
        return
    with (out / "compare.csv").open(newline="") as file:
        for run in csv.DictReader(file):
            part = f"{name}, {run['variant']}"
            if run["status"] == "finished" and part not in evidence.done:
                figures = {
                    key: round(float(run[key]), 5) for key in ("accuracy", "mean_recall", "min_recall", "seconds")
                }
                evidence.write(part, "done", **figures, **further(out / run["variant"] / "seed-0"))


# ---- the command ----


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="how long all of it may take")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, help="steps of each run; else what the minutes allow. For a trial")
    parser.add_argument("--parts", default=",".join(PARTS), help="those to do, separated by commas")
    parser.add_argument("--jobs", type=int, default=1, help="runs of a comparison at a time, on the one GPU")
    parser.add_argument("--data", type=Path, default=Path("data/cifar10-jpeg"), help="folder with train/ and test/")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parsed = parser.parse_args()
    parts = parsed.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts has {unknown[0]!r}: the parts are {', '.join(PARTS)}")
    ends = time.monotonic() + 60 * parsed.minutes
    # As an error, so that the part that is running is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    data, out = parsed.data.absolute(), parsed.out.absolute()
    fatal, lacking = what_is_missing(data)
    machine = {} if fatal else machine_of(parsed.device)
    if parsed.device == "cuda" and not fatal and not machine["num_gpus"]:
        fatal.append("a GPU that torch sees: install a torch with CUDA for this driver, or try all by --device cpu")
    for text in [*fatal, *lacking]:
        print(f"missing: {text}", file=sys.stderr, flush=True)
    if fatal:
        sys.exit(2)
    evidence = Evidence(out=out, device=parsed.device, ends=ends, minutes=parsed.minutes)
    evidence.write("machine", "started", device=parsed.device, minutes=parsed.minutes, **machine)
    if "smoke" in parts:
        smoke(evidence, parsed.steps or 50)
    if "step" in parts:
        step(evidence)
    if not lacking:
        trained(evidence, data, parts, parsed.steps, parsed.jobs)
    print(f"{evidence.file}; {max(0.0, evidence.left) / 60:.1f} of {parsed.minutes:g} minutes are left", flush=True)


if __name__ == "__main__":
    main()

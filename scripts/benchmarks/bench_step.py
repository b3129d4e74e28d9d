"""Time of the trainer's step, compared with a lower bound and with the usual implementation.

    python scripts/benchmarks/bench_step.py                 # 16 + 112 + 112 images, wrn_28_2: some minutes on two cores
    python scripts/benchmarks/bench_step.py --batch_size 64       # the protocol's 64 + 448 + 448
    python scripts/benchmarks/bench_step.py --device cuda --batch_size 64 --compile
    python scripts/benchmarks/bench_step.py --strong_views counted    # networks that mix no images

- step: what `debias-ssl train` does: data, views, method, optimizer, averages, statistics for the log.
- floor: the weak images forward without gradient, labeled and strong ones forward and backward, the optimizer; the
  images are there, the loss is plain cross-entropy. Precision, layout and compilation are those of the step.
- usual: one DataLoader with a worker for each core and torchvision's transforms of PIL images, one by one; one forward
  pass of all views in fp32; FixMatch's loss; torch's default optimizer; averages tensor by tensor.

The programs take turns in one process, after warm-up. On a GPU they take 16 steps each, and the usual way comes after
the others. `as started` is the usual way in a process of its own, with the allocator's defaults; in the others it has
the trainer's settings. With --memory each takes two rounds in a process of its own: the largest resident size, or what
torch has allocated on a GPU. The last line is `bench_step: step/floor=... step/usual=...`, in single precision and,
where the processor computes in it, in bf16.

With --strong_views, the steps of two networks that do not mix images are compared with a floor of all views, at mask
rates of 0.2, 0.5 and 0.9. The networks are --model with group norm, and `vit_tiny`, timm's ViT-Ti for 32 pixels in
patches of 4. The mask rate is the share of pseudo-labels that count, the most confident ones. The last line is
`bench_step: wrn_28_2 0.2=... 0.5=... vit_tiny ...`.
"""

import argparse
import copy
import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import torch
import torch.nn.functional as F
from bench_counted import RATES, AtRate
from benchmark import Apart, Taken, answer, cost, in_turns, ratio, repeated, seconds, table, taken
from torch import Tensor, nn
from torch.utils.data import DataLoader
from usual_loading import PassOrder, PerImage, collated

from debias_ssl.data.augment.views import Normalization
from debias_ssl.data.reading.config import ReadingConfig
from debias_ssl.data.reading.reader import Reader
from debias_ssl.data.streams import Sampling, TrainingImages, TrainingStream
from debias_ssl.distributed.accelerator import make_accelerator, place_of
from debias_ssl.distributed.device import Precision, computes_in_bf16
from debias_ssl.methods import FixMatch, Method, Problem
from debias_ssl.models import ModelConfig, build
from debias_ssl.models.classifier import Norm
from debias_ssl.training.config import Config
from debias_ssl.training.journal import StepStatistics
from debias_ssl.training.learner import Learner
from debias_ssl.training.loop import take_step
from debias_ssl.training.optim import OptimConfig, make_optimizer
from debias_ssl.training.strong_views import StrongViews

NUM_LABELED = 250
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
OPTIM = OptimConfig()


@dataclass(frozen=True, kw_only=True)
class Setting:
    batch_size: int = 16
    unlabeled_ratio: int = 7
    model: str = "wrn_28_2"
    norm: Norm = "batch"
    classes: int = 10
    image_size: int = 32
    device: str = "cpu"
    precision: Precision = "fp32"
    compile: bool = False
    cuda_graphs: bool = False

    @property
    def unlabeled(self) -> int:
        return self.batch_size * self.unlabeled_ratio

    @property
    def images(self) -> int:
        """Views of a step."""
        return self.batch_size + 2 * self.unlabeled

    @property
    def steps(self) -> int:
        """Steps of a round: on a GPU several, because its work is queued ahead, and some is done for several steps."""
        return 16 if self.device == "cuda" else 1


def make_pixels(num: int, side: int) -> Tensor:
    """Images of soft blots and some noise."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.empty(num, side, side, 3, dtype=torch.uint8)
    for part in pixels.split(500):
        blots = F.interpolate(255 * torch.rand(len(part), 3, 5, 5, generator=generator), side, mode="bilinear")
        noise = 10 * torch.randn(blots.shape, generator=generator)
        part.copy_((blots + noise).clamp(0, 255).permute(0, 2, 3, 1))
    return pixels


def num_images(setting: Setting) -> int:
    return 10_000 if setting.image_size <= 64 else 1000


def make_network(setting: Setting) -> nn.Module:
    torch.manual_seed(0)
    return build(num_classes=setting.classes, **vars(ModelConfig(name=setting.model, norm=setting.norm)))


def make_step(
    setting: Setting, method: Callable[[Problem], Method] = FixMatch, counted: bool = False
) -> Callable[[], Taken]:
    accelerator = make_accelerator(setting.precision)
    device = accelerator.device
    pixels = make_pixels(num_images(setting), setting.image_size)
    labels = torch.arange(len(pixels)) % setting.classes
    unlabeled = torch.arange(len(pixels))
    model = make_network(setting)
    counts = tuple(labels[:NUM_LABELED].bincount(minlength=setting.classes).tolist())
    problem = Problem(
        num_classes=setting.classes,
        num_features=int(model.num_features),  # pyright: ignore[reportArgumentType]
        labeled_counts=counts,
        num_unlabeled=len(unlabeled),
    )
    stream = TrainingStream(
        reader=Reader(pixels=pixels.to(device), files=(), config=ReadingConfig()),
        images=TrainingImages(labels=labels, labeled=unlabeled[:NUM_LABELED], unlabeled=unlabeled, truth=labels),
        sampling=Sampling(seed=0, batch_size=setting.batch_size, unlabeled_batch_size=setting.unlabeled),
        normalization=Normalization.of(MEAN, STD, device),
        needs=FixMatch.needs,
        place=place_of(accelerator),
    )
    config = Config(batch_size=setting.batch_size, unlabeled_ratio=setting.unlabeled_ratio)
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    learner = Learner(model, method(problem), counted=counted).to(device)
    optimizer = make_optimizer(learner, OPTIM)
    if setting.compile:
        learner.compile_networks()
    if setting.cuda_graphs:
        learner.record_networks()
    trained, optimizer = accelerator.prepare(learner, optimizer)
    trained.train()
    sums = StepStatistics(setting.classes, device)
    batches = enumerate(stream.batches(0, config.steps))

    def step() -> float:
        asked = time.perf_counter()
        step, batch = next(batches)
        waited = time.perf_counter() - asked
        result, _ = take_step(step, batch, config, accelerator, trained, optimizer)
        learner.after_step(step)
        sums.add(result, batch.truth)
        return waited

    return lambda: taken(repeated(step, setting.steps), setting.device)


def make_floor(setting: Setting) -> Callable[[], Taken]:
    model = make_network(setting).to(setting.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = make_optimizer(model, OPTIM)
    network = torch.compile(model) if setting.compile else model

    def images(num: int) -> Tensor:
        drawn = torch.randn(num, 3, setting.image_size, setting.image_size, device=setting.device)
        return drawn.contiguous(memory_format=torch.channels_last)

    weak, others = images(setting.unlabeled), images(setting.batch_size + setting.unlabeled)
    labels = torch.arange(len(others), device=setting.device) % setting.classes

    def step() -> None:
        with torch.autocast(setting.device, dtype=torch.bfloat16, enabled=setting.precision == "bf16"):
            with torch.no_grad():
                network(weak)
            logits = network(others)[0]
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return lambda: taken(repeated(step, setting.steps), setting.device)


def make_usual(setting: Setting) -> Callable[[], Taken]:
    pixels = make_pixels(num_images(setting), setting.image_size)
    model = make_network(setting).to(setting.device)
    averaged = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=OPTIM.lr, momentum=0.9, nesterov=True, weight_decay=OPTIM.weight_decay
    )
    loader = DataLoader(
        PerImage(pixels, MEAN, STD),
        batch_sampler=PassOrder(NUM_LABELED, len(pixels), setting.batch_size, setting.unlabeled),  # pyright: ignore[reportArgumentType]
        num_workers=os.cpu_count() or 1,
        collate_fn=collated,
        pin_memory=setting.device == "cuda",
    )
    batches = iter(loader)
    sizes = [setting.batch_size, setting.unlabeled, setting.unlabeled]

    def step() -> float:
        asked = time.perf_counter()
        loaded = next(batches)
        waited = time.perf_counter() - asked
        images, index = (each.to(setting.device, non_blocking=True) for each in loaded)
        labeled, weak, strong = model(images)[0].split(sizes)
        confidence, target = weak.detach().softmax(-1).max(-1)
        losses = F.cross_entropy(strong, target, reduction="none") * (confidence >= 0.95)
        loss = F.cross_entropy(labeled, index[: sizes[0]] % setting.classes) + losses.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for average, value in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
                average.copy_(0.999 * average + 0.001 * value)
        return waited

    return lambda: taken(repeated(step, setting.steps), setting.device)


PROGRAMS = {"step": make_step, "floor": make_floor, "usual": make_usual}


# ---- processes of their own ----


def apart(name: str, setting: Setting) -> Apart:
    """A program in a process of its own, with OpenMP's defaults, whatever this package has put into the environment."""
    switches = ("compile", "cuda_graphs")
    fields = [f"--{name}={value}" for name, value in vars(setting).items() if name not in switches]
    fields += [f"--{name}" for name in switches if getattr(setting, name)]
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    return Apart([__file__, "--serve", name, *fields], environment)


def serve(name: str, setting: Setting) -> None:
    answer(PROGRAMS[name](setting), setting.device)


# ---- strong views that count ----


def compare_rates(setting: Setting, strong_views: StrongViews, rounds: int, warmup: int) -> None:
    """Prints the step beside the floor of all views, for networks that mix no images."""
    results = []
    for name, each in {
        setting.model: replace(setting, norm="group"),
        "vit_tiny": replace(setting, model="bench_counted.vit_tiny"),
    }.items():
        programs = {"floor": make_floor(each)} | {
            f"mask rate {rate}": make_step(
                each, lambda problem, rate=rate: AtRate(problem, rate), strong_views != "all"
            )
            for rate in RATES
        }
        found = in_turns(programs, rounds, warmup=warmup)
        print(f"{name}, {each.precision}, {setting.device}, {torch.get_num_threads()} threads, {rounds} rounds")
        print(table(found, setting.steps * setting.images))
        ratios = (f"{rate}={ratio(found[f'mask rate {rate}'], found['floor']):.2f}" for rate in RATES)
        results.append(f"{name} {' '.join(ratios)}")
    print("bench_step:", " ".join(results))


def measured(settings: Mapping[str, Setting], rounds: int, warmup: int) -> dict[str, list[Taken]]:
    """What floor and step take in each precision, and the usual way."""
    setting = next(iter(settings.values()))
    programs: dict[str, Callable[[], Taken]] = {}
    for precision, each in settings.items():
        programs |= {f"{name}, {precision}": PROGRAMS[name](each) for name in ("floor", "step")}
    if setting.device == "cuda":
        # Before the usual way: its workers would take processor time from those that start a GPU's work.
        found = in_turns(programs, rounds, warmup=warmup)
        return found | in_turns({"usual": make_usual(setting)}, rounds, warmup=warmup)
    # Its workers come first: they would keep open the connection to a process that was there before them.
    programs["usual"] = make_usual(setting)
    with closing(apart("usual", setting)) as programs["usual, as started"]:
        # What workers prepare after the usual way's step would otherwise be charged to the program behind it.
        return in_turns(programs, rounds, warmup=warmup, untimed=1)


def peak_of(name: str, setting: Setting) -> int:
    """Peak memory in bytes of a process of its own that takes two rounds of a program."""
    with closing(apart(name, setting)) as process:
        return max(process().peak_bytes for _ in range(2))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=16, help="labeled images")
    parser.add_argument("--unlabeled_ratio", type=int, default=7)
    parser.add_argument("--model", default="wrn_28_2")
    parser.add_argument("--norm", default="batch", choices=get_args(Norm))
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", help="fp32 or bf16; as a default both where the processor computes in bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cuda_graphs", action="store_true", help="of the step alone")
    parser.add_argument("--rounds", type=int, help="that count: of one step on a CPU, else 4; of 16 on a GPU, else 6")
    parser.add_argument("--strong_views", choices=get_args(StrongViews), help="the setting, by how many images count")
    parser.add_argument("--memory", action="store_true", help="measure memory too, which starts more processes")
    parser.add_argument("--serve", choices=PROGRAMS, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    parsed = make_parser().parse_args()
    flags: dict[str, Any] = {each.name: getattr(parsed, each.name) for each in fields(Setting)}
    flags["precision"] = parsed.precision or "fp32"
    setting = Setting(**flags)
    if parsed.serve:
        serve(parsed.serve, setting)
        return
    on_gpu = setting.device == "cuda"
    rounds, warmup = parsed.rounds or (6 if on_gpu else 4), 2 if on_gpu else 1
    if parsed.strong_views:
        compare_rates(setting, parsed.strong_views, rounds, warmup)
        return
    has_bf16 = computes_in_bf16(torch.device(setting.device))
    chosen = [parsed.precision] if parsed.precision else ["fp32", "bf16"] if has_bf16 else ["fp32"]
    settings = {precision: replace(setting, precision=precision) for precision in chosen}
    found = measured(settings, rounds, warmup)
    size = f"{setting.batch_size} + {setting.unlabeled} + {setting.unlabeled} images of {setting.image_size} pixels"
    print(f"{setting.model}, {size}, {setting.device}, {torch.get_num_threads()} threads, {rounds} rounds")
    print(table(found, setting.steps * setting.images))
    print(f"the floor in one precision: {cost(make_floor(replace(setting, compile=False)), setting.steps)}")
    if parsed.memory:
        peaks = {
            f"{name}, {precision}": peak_of(name, each) for precision, each in settings.items() for name in PROGRAMS
        }
        print("peak memory in GB:", "; ".join(f"{name} {peak / 1e9:.2f}" for name, peak in peaks.items()))
    if on_gpu:
        print(", ".join(f"{name} {setting.steps / seconds(takes):.1f} steps/s" for name, takes in found.items()))
    ratios = []
    for precision in chosen:
        step = found[f"step, {precision}"]
        ratios.append(f"{precision}" if len(chosen) > 1 else "")
        ratios.append(f"step/floor={ratio(step, found[f'floor, {precision}']):.2f}")
        ratios.append(f"step/usual={ratio(step, found['usual']):.2f}")
        if not on_gpu:
            ratios.append(f"step/usual_as_started={ratio(step, found['usual, as started']):.2f}")
    print("bench_step:", " ".join(filter(None, ratios)))


if __name__ == "__main__":
    main()

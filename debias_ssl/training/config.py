"""`Config`: the settings of a run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from debias_ssl.data.config import DataConfig
from debias_ssl.distributed.device import Precision
from debias_ssl.methods import DebiasPL, Method, Problem
from debias_ssl.methods.labeled_loss import CrossEntropy, LabeledLoss
from debias_ssl.models import ModelConfig
from debias_ssl.system.errors import InputError, check_settings
from debias_ssl.system.ranges import AtLeastOne, BelowOne, Natural, check_ranges
from debias_ssl.training.learner import TargetModel
from debias_ssl.training.optim import OptimConfig
from debias_ssl.training.strong_views import StrongViews


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a run.

    Args:
        method: the class that turns views into losses and pseudo-labels; its own settings follow as --method.NAME.
        labeled_loss: the class that computes the loss of labeled images; its own settings follow as
            --labeled_loss.NAME.
        data: the images, and how they are split, read and augmented.
        model: the network.
        optim: the optimizer.
        steps: optimizer steps.
        seed: of the initial weights, the order and augmentation of images, and the split.
        batch_size: labeled images in a step, over all processes.
        unlabeled_ratio: mu, unlabeled images for each labeled one.
        class_balanced: whether labeled images are drawn equally often from each class.
        accumulation: number of parts in which a step's images pass through the network, to save memory.
        target_model: the model that makes the pseudo-labels from weak views: the trained one (raw) or the averaged one
            (ema).
        teacher: run folder of a teacher. Its averaged model predicts class probabilities of the training views, for
            methods that need them; null takes those of data.probs.
        ema_decay: decay of the averaged weights.
        joint_pass: whether weak views pass through the network together with the other views, instead of separately and
            without gradient.
        strong_views: the strong views that pass through the network: all, or only those whose pseudo-labels count
            (counted). counted changes only rounding if the network does not mix images. Otherwise batch norms use the
            statistics of fewer images, and dropout draws other numbers. auto is counted if it saves time and changes
            only rounding, else all.
        precision: auto is bf16 on GPUs and CPUs that multiply in it (AVX512-BF16 or AMX), else fp32.
        compile: whether to compile the network.
        cuda_graphs: whether to record the network's passes in a step and replay them, on one NVIDIA GPU: the same
            operations, with less work for the processor. All strong views then pass through the network.
        deterministic: whether a GPU computes the same bits each time; false lets cuDNN choose its fastest algorithms,
            and computes fp32 in TF32. A CPU always computes the same bits.
        log_every: steps between lines in metrics.jsonl.
        eval_every: steps between evaluations.
        checkpoint_every: steps between checkpoints; each checkpoint ends a logging interval.
        keep_checkpoints: number of checkpoints to keep.
        median_of: number of last evaluations in the reported median.
        eval_batch_size: images in a batch of an evaluation, in each process.
        log_with: further trackers of Accelerate to log to; each needs its package, which is an extra of this package.
    """

    method: Callable[[Problem], Method] = DebiasPL
    labeled_loss: Callable[[Problem], LabeledLoss] = CrossEntropy
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    steps: AtLeastOne = 2**20
    seed: Natural = 0
    batch_size: AtLeastOne = 64
    unlabeled_ratio: AtLeastOne = 7
    class_balanced: bool = False
    accumulation: AtLeastOne = 1
    target_model: TargetModel = "raw"
    teacher: str | None = None
    ema_decay: BelowOne = 0.999
    joint_pass: bool = False
    strong_views: StrongViews = "auto"
    precision: Precision = "auto"
    compile: bool = False
    cuda_graphs: bool = False
    deterministic: bool = True
    log_every: AtLeastOne = 100
    eval_every: AtLeastOne = 1000
    checkpoint_every: AtLeastOne = 1000
    keep_checkpoints: AtLeastOne = 2
    median_of: AtLeastOne = 20
    eval_batch_size: AtLeastOne = 500
    log_with: tuple[Literal["tensorboard", "wandb"], ...] = ()

    def __post_init__(self):
        check_ranges(self, "")
        at_most = f"at most the batch_size {self.batch_size}"
        check_settings(self, "", accumulation=(self.accumulation <= self.batch_size, at_most))
        if self.strong_views == "counted" and self.is_joint:
            raise InputError(
                "strong_views is counted, but with joint_pass weak and strong views pass together, before it is "
                "known which count: set one of them to its default"
            )
        if self.cuda_graphs and (self.strong_views == "counted" or self.accumulation > 1):
            other = "strong_views" if self.strong_views == "counted" else "accumulation"
            raise InputError(f"cuda_graphs needs passes that are the same in each step: set {other} to its default")
        if self.teacher is not None and self.data.probs is not None:
            raise InputError("teacher and data.probs exclude each other: set one to null")

    @property
    def is_joint(self) -> bool:
        """Whether weak views pass through the network together with the others."""
        return self.joint_pass and self.target_model == "raw"

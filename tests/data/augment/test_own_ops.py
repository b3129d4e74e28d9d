"""The list of RandAugment's operations: the draws that it gives, and operations of the user's own, through the job."""

import hashlib
from pathlib import Path

import pytest
import torch
import yaml
from jobs import refused, run, same, weights
from torch import Tensor

from debias_ssl import train
from debias_ssl.contract import Place
from debias_ssl.data.augment.config import FIXMATCH_OPS, AugmentConfig
from debias_ssl.data.augment.views import num_numbers, strong
from debias_ssl.data.config import DataConfig
from debias_ssl.data.task import make_task
from debias_ssl.methods import FixMatch

LISTS = [("rotate", "shear-x"), ("identity",), ("solarize",), ("identity", "solarize", "rotate")]
# As in docs/architecture.md.
NEGATIVE = '''
def negative(images, magnitudes):
    """Blends with the negative image: the larger the magnitude, the more of it."""
    share = magnitudes.view(-1, 1, 1, 1) / 10
    return ((1 - share) * images + share * (255 - images)).to(images.dtype)
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_ops.py").write_text(NEGATIVE)
    return "own_ops.negative"


def noise(num: int) -> tuple[Tensor, Tensor]:
    """Images, and the random numbers of their strong views."""
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    images = torch.randint(0, 256, (num, 32, 32, 3), generator=generators[0], dtype=torch.uint8)
    return images, torch.rand(num, num_numbers(AugmentConfig()), generator=generators[1])


def test_the_views_of_the_default_list_are_those_before_there_was_a_list():
    images, numbers = noise(64)
    # Operations of colors and the identity alone, whose results do not depend on the processor.
    numbers[:, [3, 7]] *= 9 / 14
    views = strong(images, numbers, AugmentConfig(flip=True))
    digest = hashlib.sha256(views.numpy().tobytes()).hexdigest()
    assert digest == "f17d25722d668f0f395bbba6174c01b3c5e17a27c4b05d8b0ed23f5f90989641"


@pytest.mark.parametrize("ops", LISTS, ids=",".join)
def test_a_list_of_its_own_is_drawn_from_by_position(ops: tuple[str, ...]):
    images, numbers = noise(60)
    numbers = numbers[:, :9]
    found = strong(images, numbers, AugmentConfig(ops=ops, num_ops=1, cutout=0.0, op_probability=1.0))
    for place, name in enumerate(ops):
        rows = (numbers[:, 3] * len(ops)).long() == place
        alone = AugmentConfig(ops=(name,), num_ops=1, cutout=0.0, op_probability=1.0)
        assert rows.any() and found[rows].equal(strong(images[rows], numbers[rows], alone))


def test_an_operation_at_the_end_changes_nothing_but_strong_views(mine: str):
    def batch(ops: tuple[str, ...], op_probability: float):
        config = DataConfig(labels_per_class=4, augment=AugmentConfig(ops=ops, op_probability=op_probability))
        task = make_task(config, seed=0, place=Place(), progress=False)
        stream = task.training_stream(
            FixMatch(task.problem(4)), seed=0, batch_size=8, unlabeled_ratio=4, balanced=False
        )
        return next(stream.batches(3, 4))

    for op_probability in (0.0, 1.0):
        before = batch(FIXMATCH_OPS, op_probability)
        after = batch((*FIXMATCH_OPS, mine), op_probability)
        assert before.index.equal(after.index) and before.labels.equal(after.labels)
        assert before.labeled.equal(after.labeled) and before.weak[0].equal(after.weak[0])
        assert before.strong[0].equal(after.strong[0]) == (op_probability == 0)


def test_an_operation_of_ones_own_is_trained_with_and_saved(tmp_path: Path, mine: str):
    out = run(tmp_path / "mine", f"--data.augment.ops=[identity, {mine}]")
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert saved["data"]["augment"]["ops"] == ["identity", mine]
    nothing = run(tmp_path / "nothing", "--data.augment.ops=[identity]")
    assert not same(weights(out), weights(nothing))
    images, numbers = noise(20)
    # Magnitude 4 of 10 at the number 0.35: 0.6 x + 0.4 (255 - x).
    numbers[:, 3:7] = torch.tensor([0.99, 0.35, 0.0, 0.5])
    still = AugmentConfig(ops=("identity", mine), num_ops=1, cutout=0.0, flip=False, shift=0.0)
    expected = (0.6 * images + 0.4 * (255 - images.float())).floor()
    assert (strong(images, numbers[:, :9], still).float() - expected).abs().max() <= 1


def test_the_default_list_is_saved_with_a_run(tmp_path: Path):
    saved = yaml.safe_load((run(tmp_path / "run") / "config.yaml").read_text())
    assert tuple(saved["data"]["augment"]["ops"]) == FIXMATCH_OPS


@pytest.mark.parametrize(
    ("ops", "messages"),
    [
        ("[rotat]", ["unknown operation 'rotat'", "autocontrast, brightness, color", "near it: rotate"]),
        ("[]", ["data.augment.ops is empty", "data.augment.num_ops to 0"]),
        ("[wrong_ops.gone]", ["data.augment.ops 'wrong_ops.gone' cannot be imported", "has no 'gone'"]),
        ("[nowhere.at_all]", ["No module named 'nowhere'", "PYTHONPATH=."]),
        ("[wrong_ops.floats]", ["'wrong_ops.floats' returned torch.float32 [2, 8, 8, 1] of torch.uint8 [2, 8, 8, 1]"]),
        ("[wrong_ops.half]", ["'wrong_ops.half' returned torch.uint8 [2, 4, 8, 1]"]),
        ("[wrong_ops.nothing]", ["'wrong_ops.nothing' returned a NoneType"]),
        ("[wrong_ops.fails]", ["'wrong_ops.fails' raised ZeroDivisionError", "wrong_ops.py, line 5)"]),
        (
            "[wrong_ops.noisy]",
            ["'wrong_ops.noisy' returns different images at a second call", "not use random numbers"],
        ),
    ],
)
def test_operations_that_are_not_right_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, ops: str, messages: list[str]
):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "wrong_ops.py").write_text(
        "import torch\n"
        "def floats(images, magnitudes): return images.float()\n"
        "def half(images, magnitudes): return images[:, ::2]\n"
        "def nothing(images, magnitudes): return None\n"
        "def fails(images, magnitudes): return 1 / 0\n"
        "def noisy(images, magnitudes): return torch.randint_like(images, 256)\n"
    )
    flags = ["--data.labels_per_class", "4", f"--data.augment.ops={ops}", "--model.name", "wrn_10_1"]
    said = refused(train.main, [*flags, "--out", str(tmp_path / "run")], capsys)
    assert all(message in said for message in messages), said

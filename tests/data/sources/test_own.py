"""A data set of the user's own: the example in the docs, through the jobs, and what goes wrong."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from jobs import refused

from debias_ssl import evaluate, train
from debias_ssl.data.sources import SourceConfig
from debias_ssl.data.sources.load import load_data

DOCS = Path(__file__).parents[3] / "docs/add-a-data-set.md"
EXAMPLE = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[0]
SHORT = ["--steps", "4", "--log_every", "2", "--eval_every", "4", "--checkpoint_every", "4", "--batch_size", "8"]
SHORT += ["--model.name", "wrn_10_1", "--precision", "fp32"]

Module = Callable[[str, str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Writes a module of a name that Python finds."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


def test_the_example_of_the_docs_is_trained_and_evaluated_on(tmp_path: Path, module: Module):
    module("stripes", EXAMPLE)
    out = tmp_path / "run"
    train.main(["--data.name", "stripes.stripes", "--data.labels_per_class", "4", *SHORT, "--out", str(out)])
    model = json.loads((out / "model.json").read_text())
    assert model["classes"] == ["rows", "columns"] and model["labeled_counts"] == [4, 4]
    assert model["transform"] == {"size": 8, "channels": 1, "mean": [0.5], "std": [0.29]}
    assert yaml.safe_load((out / "config.yaml").read_text())["data"]["name"] == "stripes.stripes"
    evaluate.main(["--run", str(out), "--out", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["accuracy"] == json.loads((out / "summary.json").read_text())["ema"]["last"]["accuracy"]


def test_the_statistics_of_the_example_are_those_of_its_images(module: Module):
    module("stripes_again", EXAMPLE)
    data = load_data(SourceConfig(name="stripes_again.stripes"))
    assert data.train.pixels is not None and (len(data.train), len(data.test), data.num_separate) == (200, 100, 0)
    assert data.mean == pytest.approx((data.train.pixels.mean() / 255,), abs=0.01)
    assert data.std == pytest.approx((data.train.pixels.std() / 255,), abs=0.01)


def test_the_function_gets_the_settings_and_may_return_files(module: Module, tree: Path):
    source = (
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from debias_ssl.data.sources import Data, Images\n"
        "def cats(config):\n"
        "    paths = sorted(str(path) for path in Path(config.root).glob('*/cat/*.png'))\n"
        "    images = Images(pixels=None, labels=np.zeros(len(paths), dtype=np.int64), names=paths)\n"
        "    numbers = {'mean': (0.0,) * 3, 'std': (1.0,) * 3}\n"
        "    return Data(classes=('cat',), train=images, num_separate=2, test=images, **numbers)\n"
    )
    module("cats", source)
    data = load_data(SourceConfig(name="cats.cats", root=str(tree)))
    assert len(data.train) == 6 and data.train.names[0] == str(tree / "labeled/cat/0.png")
    assert (data.classes, data.mean, data.std) == (("cat",), (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("digit", ["data.name is 'digit', must be one of digits, CIFAR10,", "or package.module.function", ": digits"]),
        (
            "nowhere.at_all",
            ["data.name 'nowhere.at_all' cannot be imported: No module named 'nowhere'", "PYTHONPATH=."],
        ),
        ("broken.strips", ["module 'broken' has no 'strips'", "near it: stripes"]),
        ("broken.", ["'broken.' is not of the form package.module.function"]),
        ("broken.number", ["is a int, not a function"]),
        ("broken.none", ["returned a NoneType, must return Data of debias_ssl.data.sources"]),
        ("broken.fails", ["'broken.fails' raised KeyError: 'files' (", "broken.py, line 6)"]),
    ],
)
def test_what_is_no_data_set_is_told(tmp_path: Path, module: Module, capsys, name: str, messages: list[str]):
    module(
        "broken",
        "number = 3\ndef none(config): return None\ndef stripes(config): return None\n"
        "def fails(config):\n    given = {}\n    return given['files']\n",
    )
    said = refused(train.main, ["--data.name", name, *SHORT, "--out", str(tmp_path / "run")], capsys)
    assert all(message in said for message in messages), said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("labels[3] = 2", "train labels reach 2, must be below the number of classes, 2"),
        ("object.__setattr__(images, 'labels', labels.astype('int32'))", "train labels are not an int64 array"),
        ("object.__setattr__(images, 'pixels', pixels / 255)", "train pixels are not a uint8 array"),
        ("object.__setattr__(images, 'pixels', pixels[:9])", "train has 9 pixels and 200 labels"),
        ("object.__setattr__(images, 'names', images.names[:9])", "train has 9 names and 200 labels"),
        ("object.__setattr__(images, 'pixels', None)", "train has a file 'stripes/0' that is not there"),
        ("test = images.part(slice(0))", "test has no images"),
        ("classes = ('rows', 'rows')", "classes are not different names"),
        ("num_separate = 201", "num_separate is 201, must be from 0 to"),
        ("std = (0.0,)", "mean and std are not two numbers for each channel"),
    ],
)
def test_data_that_is_not_right_is_told(tmp_path: Path, module: Module, change: str, message: str):
    # Names differ, as Python imports a module once.
    name = module(
        f"wrong_{abs(hash(change))}",
        "import numpy as np\nfrom debias_ssl.data.sources import Data, Images\n"
        "def made(config):\n"
        "    labels, pixels = np.arange(200) % 2, np.zeros((200, 8, 8, 1), dtype=np.uint8)\n"
        "    images = test = Images(pixels=pixels, labels=labels, names=[f'stripes/{i}' for i in range(200)])\n"
        "    classes, num_separate, std = ('rows', 'columns'), 0, (1.0,)\n"
        f"    {change}\n"
        "    return Data(classes=classes, train=images, test=test, num_separate=num_separate, mean=(0.5,), std=std)\n",
    )
    with pytest.raises(ValueError, match=re.escape(f"data.name '{name}.made' returned Data whose {message}")):
        load_data(SourceConfig(name=f"{name}.made"))

"""Every file in configs/ is valid, says how it is used, and holds only what differs from the defaults."""

from pathlib import Path

import pytest
import yaml
from jobs import settings_of

from debias_ssl.system.errors import InputError
from debias_ssl.training.renamed import flat
from debias_ssl.training.saved import config_from

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_parses_and_its_resolved_form_is_a_config(path: Path):
    settings = settings_of("--config", str(path))[1]
    assert config_from(settings).steps == settings["steps"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_holds_only_what_differs_from_the_defaults(path: Path):
    written = yaml.safe_load(path.read_text())
    method = written.get("method", {}).get("class_path", "DebiasPL")
    defaults = flat(settings_of("--method", method)[1])
    same = [key for key, value in flat(written).items() if defaults.get(key) == value and key != "method.class_path"]
    assert [key for key in same if key != "data.name"] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_says_how_it_is_run(path: Path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"--config configs/{path.name}" in line for line in header)


def test_a_class_that_takes_anothers_place_has_its_own_defaults(tmp_path: Path):
    # The default method has a threshold and a strength too.
    assert settings_of("--method", "CDMAD")[1]["method"]["init_args"]["threshold"] == 0
    (tmp_path / "base.yaml").write_text("method: {class_path: DebiasPL, init_args: {momentum: 0.5}}")
    flags = ["--config", str(tmp_path / "base.yaml"), "--method", "SimPro", "--method.threshold", "0.3"]
    expected = {"threshold": 0.3, "strength": 2.0, "momentum": 0.5, "unlabeled_weight": 1.0}
    assert settings_of(*flags)[1]["method"]["init_args"] == expected


@pytest.mark.parametrize(
    "text", ["steps: null", "data: {workers: null}", "method: {class_path: FixMatch, init_args: {threshold: null}}"]
)
def test_a_setting_that_is_null_although_it_must_not_be_is_refused(text: str, tmp_path: Path):
    (tmp_path / "null.yaml").write_text(text)
    with pytest.raises(InputError, match=r"(steps|data\.workers|method\.threshold) is null"):
        settings_of("--config", str(tmp_path / "null.yaml"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: 3", r"model is 3, must be a section"),
        ("data: {augment: -6.5e+16}", r"data\.augment is -6\.5e\+16, must be a section"),
        ("optim: [1]", r"optim"),
        ("config: false", r"'config' is not a setting"),
        ("steps: ''", r"steps.*expected int, got ''"),
        ("optim: {clip: ''}", r"optim\.clip.*expected float"),
        ("method: {class_path: FixMatch, data: 3}", r"class_path allows only init_args beside it"),
        ("method: builtins.eval", r"'builtins.eval' is not a method"),
        ("optim: {class_path: os.system}", r"class_path 'os.system' is not a section of settings"),
        ("data: {augment: {class_path: nope.Nope}}", r"class_path 'nope.Nope' is not a section of settings"),
        ("method: {class_path: os.system}", r"os.system"),
        ("method: {init_args: {strength: 1}, data: 3}", r"expected a method, as a name or as class_path and init_args"),
    ],
)
def test_a_value_in_the_wrong_place_is_told_by_its_setting(text: str, words: str, tmp_path: Path):
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(InputError, match=words) as error:
        settings_of("--config", str(tmp_path / "broken.yaml"))
    assert "<class" not in str(error.value) and "Namespace" not in str(error.value)


def test_an_error_does_not_repeat_all_of_a_long_value(tmp_path: Path):
    (tmp_path / "long.yaml").write_text(f"steps: {'a' * 5000}")
    with pytest.raises(InputError, match=r"aaa\.\.\.") as error:
        settings_of("--config", str(tmp_path / "long.yaml"))
    assert len(str(error.value)) < 1000

"""The configs that come along: found by name, listed and copied."""

from pathlib import Path

import pytest
import yaml
from jobs import refused, settings_of
from launched import SHORT

from debias_ssl import compare, configs, train
from debias_ssl.system.errors import InputError
from debias_ssl.training.shipped import found_config, shipped_configs

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("text", ["digits", "digits.yaml", "configs/digits.yaml", "configs\\digits.yaml"])
def test_a_config_that_comes_along_is_found_by_its_name(text: str):
    assert found_config(text, "--config").samefile(CONFIGS / "digits.yaml")


@pytest.mark.parametrize("flags", [["--config", "digits"], ["--config=digits"]])
def test_a_file_of_the_name_wins(flags: list[str]):
    assert settings_of(*flags)[0].steps == 400
    Path("digits").mkdir()
    assert settings_of(*flags)[0].steps == 400
    Path("digits").rmdir()
    Path("digits").write_text("steps: 7")
    assert settings_of(*flags)[0].steps == 7


def test_a_flag_after_the_name_beats_it_and_names_can_be_mixed_with_files():
    Path("mine.yaml").write_text("steps: 9\nbatch_size: 16")
    config, _ = settings_of("--config", "digits", "--config", "mine.yaml", "--steps", "3")
    assert (config.steps, config.batch_size, config.model.name) == (3, 16, "wrn_10_1")


def test_train_runs_by_a_name_where_there_is_no_checkout():
    train.main(["--config", "digits", *SHORT])
    assert Path("runs/digits/summary.json").exists()


def test_compare_takes_settings_and_variants_by_name(tmp_path: Path, capsys):
    flags = ["--config", "digits", "--settings", "compare/few", "--variants", "compare/nope"]
    message = refused(compare.main, flags, capsys)
    assert "--variants 'compare/nope'" in message and "compare/few_and_long_tailed" in message
    assert found_config("compare/few", "--settings").samefile(CONFIGS / "compare" / "few.yaml")


@pytest.mark.parametrize("text", ["nope", "configs/nope.yaml", "../configs/digits.yaml", ""])
def test_an_unknown_name_lists_those_that_exist(text: str):
    with pytest.raises(InputError, match="digits_smoothing") as error:
        settings_of("--config", text)
    assert repr(text) in str(error.value) and "compare/few" not in str(error.value)


def test_all_are_listed_with_what_they_say_of_themselves(capsys):
    configs.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*shipped_configs()]
    assert {line.split()[0] for line in lines} == {
        str(path.relative_to(CONFIGS).with_suffix("").as_posix()) for path in CONFIGS.rglob("*.yaml")
    }
    (digits,) = (line for line in lines if line.startswith("digits "))
    assert digits.endswith("the smallest run that shows the method.") and "#" not in digits
    assert all(len(line.split()) > 4 for line in lines if not line.startswith("suites/"))
    # A setting is no comment.
    assert "suites/tiles/settings" in lines


def test_a_copy_is_the_file_and_replaces_nothing(capsys):
    configs.main(["--copy", "digits", "--out", "my.yaml"])
    assert Path("my.yaml").read_bytes() == (CONFIGS / "digits.yaml").read_bytes()
    assert capsys.readouterr().out == "my.yaml\n"
    Path("my.yaml").write_text("steps: 1")
    assert "--overwrite" in refused(configs.main, ["--copy", "digits", "--out", "my.yaml"], capsys)
    assert Path("my.yaml").read_text() == "steps: 1"
    configs.main(["--copy", "digits", "--out", "my.yaml", "--overwrite"])
    assert yaml.safe_load(Path("my.yaml").read_text())["steps"] == 400
    configs.main(["--copy", "compare/few"])
    assert Path("few.yaml").exists()


@pytest.mark.parametrize(
    ("flags", "words"), [(["--copy", "nope"], "'nope'"), (["--out", "a.yaml"], "--copy"), (["digits"], "digits")]
)
def test_a_wrong_request_is_refused(flags: list[str], words: str, capsys):
    assert words in refused(configs.main, flags, capsys)
    assert not [*Path().iterdir()]

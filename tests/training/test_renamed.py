"""Old names of settings."""

import pytest
from jobs import refused

from debias_ssl.predict import main as predict
from debias_ssl.train import main as train


@pytest.mark.parametrize(
    ("old", "flag", "told"),
    [
        ("given_by: runs/a", ["--given_by", "runs/a"], "given_by is now called teacher"),
        ("optim: {momentum: 0.8}", ["--optim.momentum=0.8"], "optim.momentum is now called optim.args.momentum"),
        ("optim: {nesterov: false}", ["--optim.nesterov", "false"], "optim.nesterov is now called optim.args.nesterov"),
        ("teacher: ema", ["--teacher", "ema"], "teacher ema is now called target_model ema; teacher is a run folder"),
        ("teacher: student", ["--teacher=student"], "teacher student is now called target_model raw"),
    ],
)
def test_an_old_name_of_a_setting_is_told_the_new_one(old, flag, told, tmp_path, capsys):
    (tmp_path / "old.yaml").write_text(old)
    message = refused(train, ["--config", str(tmp_path / "old.yaml"), "--out", str(tmp_path / "a")], capsys)
    assert message.startswith(f"error: {tmp_path / 'old.yaml'}: {told}")
    assert refused(train, [*flag, "--out", str(tmp_path / "a")], capsys).startswith(f"error: --{told}")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.yaml").write_text(old)
    assert told in refused(predict, ["--run", str(tmp_path / "b"), "--images", "x", "--out", "y.csv"], capsys)

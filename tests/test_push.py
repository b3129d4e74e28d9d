"""`debias-ssl push`: what goes to the hub is enough for timm and for this package, and nothing goes without a token."""

import fnmatch
import inspect
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from jobs import refused, run

import debias_ssl.models.timm_models  # noqa: F401
from debias_ssl import load_run, push
from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources.load import load_data

# What the hub's client calls these, with arguments that it takes.
SIGNATURES = {
    name: inspect.signature(getattr(huggingface_hub.HfApi, name)) for name in ("create_repo", "upload_folder")
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "a", "--steps", "2")


class Hub:
    """A hub that is a folder: repositories by name, and which of them are private."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.root, self.private = root, {}
        self.fails_with: Exception | None = None
        for name in SIGNATURES:
            monkeypatch.setattr(huggingface_hub.HfApi, name, self._called(name))
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")

    def _called(self, name: str):
        def call(api: Any, *arguments: Any, **settings: Any) -> Any:
            if self.fails_with is not None:
                raise self.fails_with
            bound = SIGNATURES[name].bind(api, *arguments, **settings).arguments
            return getattr(self, name)(**{key: value for key, value in bound.items() if key != "self"})

        return call

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool, **_: Any) -> str:
        assert exist_ok or repo_id not in self.private
        self.private.setdefault(repo_id, private)
        return f"https://hub/{repo_id}"

    def upload_folder(self, repo_id: str, folder_path: Path, allow_patterns: list[str], **_: Any) -> None:
        assert repo_id in self.private
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        for path in Path(folder_path).rglob("*"):
            name = str(path.relative_to(folder_path))
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                shutil.copyfile(path, self.root / repo_id / path.name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path / "hub", monkeypatch)


def test_what_is_uploaded_is_enough_for_timm_and_for_this_package(hub: Hub, finished: Path, capsys):
    push.main(["--run", str(finished), "--repo", "me/digits"])
    assert "https://hub/me/digits" in capsys.readouterr().out
    assert hub.private == {"me/digits": True}
    there = hub.root / "me" / "digits"
    names = {"README.md", "config.json", "model.safetensors", "method.safetensors", "model.json", "config.yaml"}
    assert {path.name for path in there.iterdir()} == {*names, "summary.json"}
    pixels = load_data(DataConfig()).test.pixels
    assert pixels is not None
    wanted = load_run(finished, "cpu").predict(pixels)
    assert np.array_equal(load_run(there, "cpu").predict(pixels), wanted)
    network: Any = timm.create_model(f"local-dir:{there}", pretrained=True).eval()
    mean, std = (network.pretrained_cfg[name][0] for name in ("mean", "std"))
    with torch.no_grad():
        logits = network((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)
    np.testing.assert_allclose(logits.softmax(-1).numpy(), wanted, atol=1e-5)


def test_a_repository_is_public_where_that_is_asked_for(hub: Hub, finished: Path):
    push.main(["--run", str(finished), "--repo", "me/digits", "--public"])
    push.main(["--run", str(finished), "--repo", "me/digits"])
    assert hub.private == {"me/digits": False}


def test_without_a_token_nothing_is_asked_of_the_hub(finished: Path, tmp_path: Path, hub: Hub, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    message = refused(push.main, ["--run", str(finished), "--repo", "me/digits"], capsys)
    assert "there is no token" in message and "hf auth login" in message
    assert not hub.private


@pytest.mark.parametrize(
    ("repo", "words"), [("digits", "must be owner/name"), ("me/di gits", "is not a repository name")]
)
def test_a_wrong_name_is_refused(repo: str, words: str, hub: Hub, finished: Path, capsys):
    assert words in refused(push.main, ["--run", str(finished), "--repo", repo], capsys)
    assert not hub.private


def test_a_hub_that_says_no_or_is_away_is_told(hub: Hub, finished: Path, capsys):
    hub.fails_with = HfHubHTTPError("403 Forbidden", response=MagicMock(status_code=403, headers={}))
    assert "may not write to" in refused(push.main, ["--run", str(finished), "--repo", "me/digits"], capsys)
    hub.fails_with = ConnectionError("no route")
    with pytest.raises(SystemExit) as ended:
        push.main(["--run", str(finished), "--repo", "me/digits"])
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "ConnectionError: no route" in said and "run the same command again" in said


def test_a_run_that_cannot_be_loaded_or_has_no_card_is_refused(hub: Hub, finished: Path, tmp_path: Path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "README.md").unlink()
    flags = ["--run", str(tmp_path / "run"), "--repo", "me/digits"]
    assert "has no README.md" in refused(push.main, flags, capsys)
    (tmp_path / "run" / "model.safetensors").write_bytes(b"x")
    assert "cannot be loaded" in refused(push.main, flags, capsys)
    assert not hub.private

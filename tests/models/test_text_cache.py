"""Vectors of texts in the user's cache: the same to the last bit as if they were made, whatever happens to files."""

from pathlib import Path

import open_clip
import pytest
import torch
from small_clip import save_clip, save_siglip

from debias_ssl.models import clip as module
from debias_ssl.models import text_cache
from debias_ssl.models.clip import ClassVectors, Clip, class_vectors, load_clip

NAMES = [f"kind {number}" for number in range(23)]
TEMPLATES = open_clip.SIMPLE_IMAGENET_TEMPLATES
CPU = torch.device("cpu")


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    return load_clip(save_clip(tmp_path / "clip"), None, CPU)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many classes were encoded together, each time that any were."""
    sizes, make = [], module._mean_vectors
    monkeypatch.setattr(module, "_mean_vectors", lambda clip, tokens, n: sizes.append(n) or make(clip, tokens, n))
    return sizes


def vectors(clip: Clip, names: list[str] = NAMES) -> ClassVectors:
    return class_vectors(clip, names, TEMPLATES)


@pytest.mark.parametrize("save", [save_clip, save_siglip])
def test_they_are_open_clips_to_the_last_bit_made_and_kept(save, tmp_path: Path, cache: Path, made):
    clip = load_clip(save(tmp_path / "clip"), None, CPU)
    expected = open_clip.build_zero_shot_classifier(clip.network, clip.tokenizer, NAMES, TEMPLATES)
    assert vectors(clip).weights.equal(expected) and made == [10, 10, 3]
    kept = vectors(clip)
    assert kept.weights.equal(expected) and made == [10, 10, 3]
    assert kept.weights.stride() == expected.stride(), "products with it have the same bits too"
    assert kept.num_prompts == 23 * 7 and kept.not_kept is None
    # Bare numbers: 4 bytes each, and 4 of a checksum.
    assert sorted(path.stat().st_size for path in cache.rglob("*.*")) == [
        4 * n * clip.embed_dim + 4 for n in (3, 10, 10)
    ]


def test_a_name_that_changes_makes_its_neighbors_anew_alone(clip: Clip, cache: Path, made):
    before = vectors(clip).weights
    changed = vectors(clip, [*NAMES[:12], "another kind", *NAMES[13:]]).weights
    assert made == [10, 10, 3, 10]
    differs = (changed != before).any(0)
    assert differs[12] and not differs[:10].any() and not differs[20:].any()


def test_other_weights_settings_and_prompts_are_others(tmp_path: Path, cache: Path, made, monkeypatch):
    def load(**settings) -> Clip:
        return load_clip(save_clip(tmp_path / "clip", **settings), None, CPU)

    vectors(load())
    vectors(load(scale=3.0))  # Vectors are before the scale.
    assert len(made) == 3
    config = open_clip.get_model_config(f"local-dir:{tmp_path / 'clip'}")
    assert config is not None
    for other in (load(seed=1), load(model_cfg=config | {"quick_gelu": True})):
        made.clear()
        vectors(other)
        assert len(made) == 3
    made.clear()
    class_vectors(load(), NAMES, TEMPLATES[:6])
    # What was made by another number of threads would have other bits.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    vectors(load())
    assert len(made) == 6


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"", lambda data: b"x" + data[1:]])
def test_a_damaged_file_is_made_anew(damage, clip: Clip, cache: Path, made):
    expected = vectors(clip).weights
    path = next(cache.rglob("*.f32"))
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert vectors(clip).weights.equal(expected) and len(made) == 4 and path.read_bytes() == content


def test_where_nothing_can_be_written_time_is_lost_and_nothing_else(tmp_path: Path, clip: Clip, monkeypatch, made):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    tried, keep = [], text_cache.keep
    monkeypatch.setattr(module, "keep", lambda *given: tried.append(given) or keep(*given))
    for _ in range(2):
        found = vectors(clip)
        assert found.not_kept is not None and "cannot make the folder" in found.not_kept
    assert len(made) == 6 and len(tried) == 2


def test_what_was_killed_leaves_no_half_file(clip: Clip, cache: Path, made, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("os.replace", killed)
        vectors(clip)
    assert not [*cache.rglob("*.f32")]
    vectors(clip)
    assert len(made) == 4


def test_many_prompts_pass_through_the_network_in_parts(clip: Clip, cache: Path, monkeypatch):
    """What a class of very many prompts takes is bounded."""
    sizes, encode = [], clip.network.encode_text
    monkeypatch.setattr(
        clip.network, "encode_text", lambda tokens, **rest: sizes.append(len(tokens)) or encode(tokens, **rest)
    )
    templates = [f"{{}} {number}" for number in range(250)]
    found = class_vectors(clip, NAMES[:9], templates).weights
    assert sizes == [1024, 1024, 202]
    with torch.no_grad():
        tokens = clip.tokenizer([each.format(NAMES[8]) for each in templates])
        mean = torch.nn.functional.normalize(encode(tokens), dim=-1).mean(0)
    torch.testing.assert_close(found[:, 8], torch.nn.functional.normalize(mean, dim=0))

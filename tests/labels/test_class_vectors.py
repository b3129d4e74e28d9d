"""Vectors of classes with several prompts, against open_clip's own, and vectors of the user's making."""

import numpy as np
import open_clip
import pytest
import torch
from small_clip import save_clip

from debias_ssl.labels.names.class_list import given_classes
from debias_ssl.labels.zero_shot.class_vectors import (
    check_different,
    own_vectors,
    read_class_vectors,
    vectors_of_prompts,
)
from debias_ssl.models.clip import Clip, class_vectors, load_clip
from debias_ssl.system.errors import InputError

TEMPLATES = ("a photo of a {}.", "{} there", "the {}")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Clip:
    return load_clip(save_clip(tmp_path_factory.mktemp("clip")), None, torch.device("cpu"))


def vector(clip: Clip, *sentences: str) -> torch.Tensor:
    """open_clip's class vector of some sentences, whatever the name in them."""
    weights = open_clip.build_zero_shot_classifier(
        clip.network, clip.tokenizer, ["x"], [lambda _, sentence=sentence: sentence for sentence in sentences]
    )
    return weights[:, 0]


def of(clip: Clip, classes, templates=TEMPLATES) -> torch.Tensor:
    return vectors_of_prompts(clip, given_classes(classes).prompts, templates).weights


def test_one_prompt_a_class_has_the_bits_of_open_clip(clip):
    names = [f"thing {k}" for k in range(23)]
    expected = open_clip.build_zero_shot_classifier(clip.network, clip.tokenizer, names, TEMPLATES)
    assert torch.equal(of(clip, names), expected)
    assert torch.equal(of(clip, {f"class {name}": name for name in names}), expected)


def test_several_prompts_are_the_mean_of_their_vectors_and_each_counts_as_much(clip):
    sentences = {
        name: [t.format(name) for t in TEMPLATES] for name in ("cat", "kitten", "house cat", "dog", "puppy", "ant")
    }
    alone = {name: vector(clip, *each) for name, each in sentences.items()}
    text = "It has four legs and barks."
    classes = {"cat": ["cat", "kitten", "house cat"], "dog": ["dog", text, "puppy"], "ant": "ant"}
    found = of(clip, classes)
    expected = [
        alone["cat"] + alone["kitten"] + alone["house cat"],
        # A sentence goes through no template, and counts as much as a name, which goes through three.
        alone["dog"] + alone["puppy"] + vector(clip, text),
        alone["ant"],
    ]
    for k, each in enumerate(expected):
        torch.testing.assert_close(found[:, k], each / each.norm(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.norm(dim=0), torch.ones(3))


def test_a_prompt_that_is_there_twice_counts_once(clip):
    once = {"cat": ["cat", "kitten"], "dog": "dog", "ant": "It has six legs."}
    twice = {"cat": ["cat", "kitten", "cat", "Kitten"], "dog": ["dog", "dog"], "ant": ["It has six legs."] * 2}
    torch.testing.assert_close(of(clip, twice), of(clip, once))
    assert torch.equal(of(clip, {"dog": ["dog", "dog"], "cat": "cat"}), of(clip, ["dog", "cat"]))


def test_all_classes_may_be_sentences_alone(clip):
    found = of(clip, {"cat": "It says meow.", "dog": ["It barks.", "It says { }."]})
    torch.testing.assert_close(found[:, 0], vector(clip, "It says meow."))
    assert found.shape == (8, 2) and torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("classes", "same"),
    [
        ({"a": ["cat", "kitten"], "b": ["kitten", "cat"], "c": "dog"}, [(0, 1)]),
        ({"a": ["cat", "Kitten"], "b": "dog", "c": ["kitten", "Cat", "cat"]}, [(0, 2)]),
        ({"a": "It is.", "b": ["cat"], "c": ["it is."]}, [(0, 2)]),
        ({"a": ["cat", "kitten"], "b": ["cat"], "c": ["cat", "puppy"]}, []),
    ],
)
def test_classes_are_the_same_where_all_their_prompts_are(clip, classes, same):
    listed = given_classes(classes)
    made = vectors_of_prompts(clip, listed.prompts, TEMPLATES)
    assert [*made.same] == same
    if same:
        with pytest.raises(InputError, match=r"the classes 'a' and '[bc]' have the same prompts.*never be predicted"):
            check_different(clip, made, listed)
    else:
        check_different(clip, made, listed)


def test_prompts_are_counted_and_the_long_ones_told(clip):
    long = "a very long description of a small animal that lives in the old wood by the sea."
    made = vectors_of_prompts(clip, given_classes({"cat": ["cat", "kitten", long], "dog": "dog"}).prompts, TEMPLATES)
    assert made.num_prompts == 10 and made.cut == [long]


def test_own_vectors_are_normalized(clip, tmp_path):
    classes = given_classes(["cat", "dog", "ant"])
    values = 5 * torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).numpy()
    np.save(tmp_path / "v.npy", values.astype(np.float16))
    for given in (values, values.astype(np.float64), str(tmp_path / "v.npy")):
        made = own_vectors(clip, read_class_vectors(given, 3), classes)
        expected = values / np.linalg.norm(values, axis=1, keepdims=True)
        np.testing.assert_allclose(made.weights, expected.T, atol=1e-6 if given is values else 2e-3)
    # Squares of these numbers are not finite in fp32.
    huge = own_vectors(clip, read_class_vectors((1e30 * values).astype(np.float32), 3), classes)
    np.testing.assert_allclose(huge.weights, expected.T, atol=1e-6)


def test_open_clips_own_vectors_give_what_prompts_give(clip):
    classes = given_classes(["cat", "dog"])
    made = class_vectors(clip, ["cat", "dog"], TEMPLATES).weights
    own = own_vectors(clip, read_class_vectors(made.T.numpy(), 2), classes)
    torch.testing.assert_close(own.weights, made)


WRONG = np.arange(24, dtype=np.float32).reshape(3, 8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (WRONG[:2], "has 2 rows of 8 numbers; 3 rows are needed, one for each class in the order of --classes"),
        (WRONG.T, "has 8 rows of 3 numbers; .* --classes: pass its transpose"),
        (WRONG[0], r"holds float32 of shape \(8,\); floating-point numbers are needed, one row for each class"),
        (WRONG.astype(int), "holds int64"),
        (np.where(WRONG > 7, WRONG, 0), r"row 0 \(from 0\) is 0 everywhere"),
        (np.where(WRONG == 9, np.nan, WRONG + 1), r"row 1 \(from 0\) has a number that is not finite"),
        (WRONG[:, :5] + 1, "have 5 numbers each, and vectors of --model 8: make them by its encode_text"),
        (
            np.stack([WRONG[1], WRONG[2], 2 * WRONG[1]]),
            r"rows 0 and 2 \(from 0\) are the same, so 'ant' would never",
        ),
    ],
)
def test_vectors_that_do_not_fit_are_refused(clip, values, message):
    with pytest.raises(InputError, match=message) as error:
        own_vectors(clip, read_class_vectors(values, 3), given_classes(["cat", "dog", "ant"]))
    assert "--class_vectors" in str(error.value)


@pytest.mark.parametrize("content", [b"no array", None])
def test_a_file_that_is_no_array_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "v.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read --class_vectors .*v\.npy: .*; numpy\.save writes such a file"):
        read_class_vectors(str(tmp_path / "v.npy"), 3)

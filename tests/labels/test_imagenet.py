"""ImageNet's classes by name and by id: two packages' lists have one order."""

import open_clip
import pytest
from timm.data.imagenet_info import ImageNetInfo

from debias_ssl.labels.names.imagenet import imagenet_names, numbers_of, wnids


def test_ids_are_sorted_and_each_has_a_number():
    assert [*wnids()] == sorted(wnids()) and [*wnids().values()] == [*range(1000)]


@pytest.mark.parametrize(
    ("wnid", "name"),
    [
        ("n01440764", "tench"),
        ("n02012849", "crane bird"),
        ("n02119789", "kit fox"),
        ("n02123045", "tabby cat"),
        ("n03126707", "construction crane"),
        ("n03773504", "missile (657)"),
        ("n04008634", "missile (744)"),
        ("n15075141", "toilet paper"),
    ],
)
def test_an_id_is_that_of_its_class(wnid, name):
    assert imagenet_names()[wnids()[wnid]] == name


def test_open_clips_order_is_that_of_timms_ids():
    """Names of a list that was sorted otherwise would share words with WordNet's by chance only: 3 of 1,000."""

    def agree(shift: int) -> int:
        words = [{*info.index_to_description(k).lower().replace(",", "").split()} for k in range(1000)]
        ours = [{*name.lower().split()} for name in open_clip.IMAGENET_CLASSNAMES]
        return sum(bool(words[k] & ours[(k + shift) % 1000]) for k in range(1000))

    info = ImageNetInfo()
    assert agree(0) > 900
    assert max(agree(shift) for shift in (-1, 1, 500)) < 300


def test_other_classes_have_their_names_alone():
    assert numbers_of(("tench", "goldfish")) == {"tench": 0, "goldfish": 1}
    assert numbers_of(tuple(map(str, range(1000))))["999"] == 999 and len(numbers_of(imagenet_names())) == 2000
    turned = imagenet_names()[::-1]
    assert "n01440764" not in numbers_of(turned)

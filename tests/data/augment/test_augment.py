import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from debias_ssl.data.augment import randaugment
from debias_ssl.data.augment.color import COLOR
from debias_ssl.data.augment.geometry import GEOMETRIC
from debias_ssl.data.augment.views import (
    AugmentConfig,
    Normalization,
    normalize,
    num_numbers,
    strong,
    weak,
)

STILL = AugmentConfig(flip=False, shift=0.0, num_ops=1, cutout=0.0)
MAGNITUDES = range(1, 10)
# In the order of which the draws of all runs depend.
OPERATIONS = (
    *("autocontrast", "brightness", "color", "contrast", "equalize", "posterize", "sharpness", "solarize", "identity"),
    *("rotate", "shear-x", "shear-y", "translate-x", "translate-y"),
)


def of(mean: Sequence[float], std: Sequence[float]) -> Normalization:
    return Normalization.of(mean, std, torch.device("cpu"))


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def smooth(num: int, height: int, width: int, channels: int) -> Tensor:
    """Images like photographs: slow gradients of a limited range, next to flat areas."""
    coarse = noise(num, channels, 4, 4).float() * 0.6 + 40
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255)
    images[:, :, : height // 4] = images[:, :, :1, :1]
    return images.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def pictures(num: int = 6, height: int = 32, width: int = 32, channels: int = 3) -> Tensor:
    """Half noise, half smooth."""
    images = noise(num, height, width, channels)
    images[num // 2 :] = smooth(num - num // 2, height, width, channels)
    return images


def draw(num: int, config: AugmentConfig) -> Tensor:
    return torch.rand(num, num_numbers(config), generator=torch.Generator().manual_seed(1))


def row(*rounds: tuple[str, int]) -> Tensor:
    """The numbers of one image to which the given operations of given magnitude are applied, one in each round."""
    numbers = [0.5, 0.5, 0.5]
    for name, v in rounds:
        level = (abs(v) - 0.5) / 9
        numbers += [(OPERATIONS.index(name) + 0.5) / 14, level, 0.0, 0.25 if v > 0 else 0.75]
    return torch.tensor([[*numbers, 0.5, 0.5]])


def augment(images: Tensor, name: str, v: int) -> Tensor:
    return strong(images, row((name, v)).expand(len(images), -1), STILL)


def torchvision_result(images: Tensor, name: str, v: int) -> Tensor:
    planes = images.permute(0, 3, 1, 2)
    height, width = planes.shape[2:]
    factor = 0.05 + 0.9 * v / 10
    shear = math.degrees(math.atan(0.3 * v / 10))

    def affine(angle: float = 0.0, right: int = 0, down: int = 0, shear_x: float = 0.0, shear_y: float = 0.0) -> Tensor:
        center = [0.0, 0.0] if shear_x or shear_y else None
        return vision.affine(planes, float(angle), [right, down], 1.0, [float(shear_x), float(shear_y)], center=center)

    functions = {
        "autocontrast": lambda: vision.autocontrast(planes),
        "brightness": lambda: vision.adjust_brightness(planes, factor),
        "color": lambda: vision.adjust_saturation(planes, factor),
        "contrast": lambda: vision.adjust_contrast(planes, factor),
        "equalize": lambda: vision.equalize(planes),
        "identity": lambda: planes,
        "posterize": lambda: vision.posterize(planes, 4 + int(0.4 * v)),
        "rotate": lambda: affine(angle=30 * v / 10),
        "sharpness": lambda: vision.adjust_sharpness(planes, factor),
        "shear-x": lambda: affine(shear_x=shear),
        "shear-y": lambda: affine(shear_y=shear),
        "solarize": lambda: vision.solarize(planes, 256 - 25.6 * v),
        "translate-x": lambda: affine(right=int(0.3 * v / 10 * width)),
        "translate-y": lambda: affine(down=int(0.3 * v / 10 * height)),
    }
    return functions[name]().permute(0, 2, 3, 1)


def test_there_are_the_fourteen_operations_of_fixmatch():
    assert AugmentConfig().ops == OPERATIONS and len(set(OPERATIONS)) == 14


@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1), (30, 21, 3)], ids=str)
@pytest.mark.parametrize("name", [*COLOR, "identity"])
def test_color_operations_equal_torchvision_bit_for_bit(name: str, shape: tuple[int, int, int]):
    images = pictures(6, *shape)
    for v in MAGNITUDES:
        assert torch.equal(augment(images, name, v), torchvision_result(images, name, v))


@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1), (31, 45, 3)], ids=str)
@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric_operations_equal_torchvision_at_both_signs(name: str, shape: tuple[int, int, int]):
    images = pictures(6, *shape)
    # A source halfway between two pixels may go to either, which depends on the processor's rounding.
    equal = [
        (augment(images, name, v) == torchvision_result(images, name, v)).float().mean()
        for v in (*MAGNITUDES, *(-v for v in MAGNITUDES))
    ]
    assert torch.stack(equal).mean() > 0.995


def pil_shear(images: Tensor, name: str, v: int) -> Tensor:
    """What FixMatch's code, its CTAugment and most of its successors do."""
    matrix = {"shear-x": (1, 0.03 * v, 0, 0, 1, 0), "shear-y": (1, 0, 0, 0.03 * v, 1, 0)}[name]
    sheared = [
        np.array(Image.fromarray(each).transform(each.shape[1::-1], Image.Transform.AFFINE, matrix))
        for each in images.numpy()
    ]
    return torch.from_numpy(np.stack(sheared))


@pytest.mark.parametrize("shape", [(32, 32, 3), (31, 45, 3), (96, 20, 3)], ids=str)
@pytest.mark.parametrize("name", ["shear-x", "shear-y"])
def test_shears_are_about_the_corner_as_in_pil(name: str, shape: tuple[int, int, int]):
    images = noise(4, *shape)
    differs = {
        v: (augment(images, name, v) != pil_shear(images, name, v)).any(-1).float().mean().item()
        for v in (*MAGNITUDES, *(-v for v in MAGNITUDES))
    }
    # Apart from ties, sources halfway between two pixels, they are the same; noise would differ anywhere else.
    assert max(differs.values()) < 0.04 and np.mean([*differs.values()]) < 0.005


def test_shears_worked():
    # Row i moves by .27 (i + .5) pixels: the first of 40 by .1, the last by 10.7.
    images = torch.full((1, 40, 60, 1), 255, dtype=torch.uint8)
    black = (augment(images, "shear-x", 9)[0, :, :, 0] == 0).sum(1)
    assert black[0] == 0 and black[39] == 11 == round(0.27 * 39.5)
    black = (augment(images, "shear-y", 9)[0, :, :, 0] == 0).sum(0)
    assert black[0] == 0 and black[59] == 16 == round(0.27 * 59.5)
    # 13.5 % of a square are black, .27 / 2.
    squares = torch.full((1, 200, 200, 1), 255, dtype=torch.uint8)
    for name in ("shear-x", "shear-y"):
        for v in (9, -9):
            assert (augment(squares, name, v) == 0).float().mean().item() == pytest.approx(0.135, abs=0.001)


def test_large_rotation_fills_with_black_and_translation_moves_by_whole_pixels():
    white = torch.full((1, 20, 40, 3), 255, dtype=torch.uint8)
    assert augment(white, "rotate", 9)[0, 0, 0].tolist() == [0, 0, 0]
    # int(0.3 * 5 / 10 * 40) = 6 pixels to the right, int(0.3 * 5 / 10 * 20) = 3 pixels up.
    right = augment(white, "translate-x", 5)[0, :, :, 0]
    assert (right[:, :6] == 0).all() and (right[:, 6:] == 255).all()
    up = augment(white, "translate-y", -5)[0, :, :, 0]
    assert (up[-3:] == 0).all() and (up[:-3] == 255).all()


def test_whole_pixels_of_a_translation_are_not_lost_to_rounding():
    # 0.3 * 9 / 10 * 100 is 27, but 26.999999999999996 in doubles.
    image = torch.full((1, 100, 100, 1), 255, dtype=torch.uint8)
    for v in MAGNITUDES:
        assert int((augment(image, "translate-x", v)[0, 0] == 0).sum()) == 3 * v


@pytest.mark.parametrize(("v", "expected"), [(1, 0b10110000), (4, 0b10110000), (5, 0b10110100), (9, 0b10110110)])
def test_posterize_keeps_the_leading_bits(v: int, expected: int):
    image = torch.full((1, 4, 4, 3), 0b10110111, dtype=torch.uint8)
    # 4, 5, 6 and 7 bits.
    bits = {1: 4, 4: 5, 5: 6, 9: 7}[v]
    assert augment(image, "posterize", v).unique().tolist() == [expected]
    assert expected == 0b10110111 >> (8 - bits) << (8 - bits)


def test_solarize_inverts_from_its_threshold_on():
    image = torch.tensor([204, 205, 127, 128, 25, 26], dtype=torch.uint8).view(1, 1, 6, 1)
    # 256 - 25.6 v is 204.8, 128 and 25.6.
    assert augment(image, "solarize", 2).flatten().tolist() == [204, 50, 127, 128, 25, 26]
    assert augment(image, "solarize", 5).flatten().tolist() == [51, 50, 127, 127, 25, 26]
    assert augment(image, "solarize", 9).flatten().tolist() == [51, 50, 128, 127, 25, 229]


def test_rounds_are_applied_in_their_order():
    config = AugmentConfig(flip=False, shift=0.0, num_ops=3, cutout=0.0)
    images = pictures()
    chain = [("solarize", 6), ("rotate", -7), ("brightness", 4)]
    for order in (chain, chain[::-1]):
        expected = images
        for name, v in order:
            expected = torchvision_result(expected, name, v)
        result = strong(images, row(*order).expand(len(images), -1), config)
        assert (result == expected).float().mean() > 0.995


def test_images_of_one_batch_get_their_own_operation_and_magnitude():
    cases = [("contrast", 2), ("contrast", 9), ("rotate", 3), ("equalize", 1), ("translate-y", -8), ("identity", 5)]
    images = pictures(len(cases))
    result = strong(images, torch.cat([row(case) for case in cases]), STILL)
    for image, case, view in zip(images.split(1), cases, result.split(1), strict=True):
        assert (view == torchvision_result(image, *case)).float().mean() > 0.98


def test_flip_mirrors_left_and_right_for_numbers_below_one_half():
    image = torch.arange(6, dtype=torch.uint8).view(1, 2, 3, 1)
    numbers = torch.tensor([[0.49, 0.5, 0.5], [0.5, 0.5, 0.5]])
    mirrored, same = weak(image.repeat(2, 1, 1, 1), numbers, AugmentConfig(flip=True, shift=0.0)).squeeze(-1).tolist()
    assert mirrored == [[2, 1, 0], [5, 4, 3]]
    assert same == [[0, 1, 2], [3, 4, 5]]


def test_shift_of_one_pixel_reflects_without_repeating_the_border():
    image = torch.arange(8, dtype=torch.uint8).view(1, 1, 8, 1).repeat(1, 8, 1, 1)
    numbers = torch.tensor([[0.9, 0.5, 0.0], [0.9, 0.5, 0.99]])
    left, right = weak(image.repeat(2, 1, 1, 1), numbers, AugmentConfig(flip=True, shift=0.125))[:, 0, :, 0].tolist()
    assert left == [1, 0, 1, 2, 3, 4, 5, 6]
    assert right == [1, 2, 3, 4, 5, 6, 7, 6]


@pytest.mark.parametrize("flip", [False, True])
def test_every_shift_equals_a_crop_of_the_reflected_image(flip: bool):
    height, width, config = 16, 24, AugmentConfig(flip=True, shift=0.125)
    image = noise(1, height, width, 3)
    planes = image.permute(0, 3, 1, 2)
    padded = vision.pad(vision.horizontal_flip(planes) if flip else planes, [3, 2], padding_mode="reflect")
    for top in range(5):
        for left in range(7):
            numbers = torch.tensor([[0.0 if flip else 0.9, (top + 0.5) / 5, (left + 0.5) / 7]])
            expected = vision.crop(padded, top, left, height, width).permute(0, 2, 3, 1)
            assert torch.equal(weak(image, numbers, config), expected)


def test_strong_view_starts_with_the_weak_view():
    images, config = pictures(32), AugmentConfig(flip=True, op_probability=0.0, cutout=0.0)
    numbers = draw(32, config)
    assert torch.equal(strong(images, numbers, config), weak(images, numbers[:, :3], config))


@pytest.mark.parametrize(
    ("center", "rows", "columns"),
    [
        ((0.5, 0.5), (8, 24), (8, 24)),
        ((0.0, 0.0), (0, 8), (0, 8)),
        ((0.99, 0.0), (23, 32), (0, 8)),
        ((0.5, 0.99), (8, 24), (23, 32)),
    ],
)
def test_cutout_paints_a_gray_square_cut_off_at_the_border(
    center: tuple[float, float], rows: tuple[int, int], columns: tuple[int, int]
):
    image = torch.full((1, 32, 32, 3), 10, dtype=torch.uint8)
    numbers = torch.tensor([[0.5, 0.5, 0.5, *center]])
    expected = image.clone()
    expected[:, slice(*rows), slice(*columns)] = 127
    assert torch.equal(strong(image, numbers, AugmentConfig(num_ops=0, flip=False)), expected)


def test_cutout_is_a_fraction_of_the_shorter_side():
    image = torch.zeros(1, 20, 40, 1, dtype=torch.uint8)
    view = strong(image, torch.full((1, 5), 0.5), AugmentConfig(num_ops=0, flip=False, cutout=0.25))
    assert int((view == 127).sum()) == 5 * 5


@pytest.mark.parametrize("shape", [(32, 32, 3), (8, 8, 1)], ids=str)
def test_a_view_depends_on_its_own_image_and_numbers_alone(shape: tuple[int, int, int]):
    config = AugmentConfig(flip=True, op_probability=0.9)
    images = pictures(96, *shape)
    numbers = draw(96, config)
    views = strong(images, numbers, config)
    for part in (slice(0, 1), slice(5, 18), slice(90, 96)):
        assert torch.equal(strong(images[part], numbers[part], config), views[part])
        assert torch.equal(weak(images[part], numbers[part, :3], config), weak(images, numbers[:, :3], config)[part])


def test_the_images_given_are_not_modified():
    images, config = pictures(64), AugmentConfig(op_probability=1.0, flip=False, shift=0.0)
    before = images.clone()
    assert not torch.equal(strong(images, draw(64, config), config), images)
    assert torch.equal(images, before)


def test_everything_turned_off_is_the_identity():
    images, config = pictures(64), AugmentConfig(flip=False, shift=0.0, op_probability=0.0, cutout=0.0)
    assert torch.equal(strong(images, draw(64, config), config), images)


def test_operations_are_drawn_uniformly_and_applied_half_of_the_time(monkeypatch: pytest.MonkeyPatch):
    num, drawn = 28000, {}
    # As they are then, not as they were found before.
    monkeypatch.setattr(randaugment, "operations", randaugment.operations.__wrapped__)
    for name in COLOR:
        monkeypatch.setitem(COLOR, name, lambda images, v, name=name: drawn.__setitem__(name, v) or images)
    strong(torch.zeros(num, 1, 1, 1, dtype=torch.uint8), draw(num, STILL), STILL)
    # 1000 each are expected, with a standard deviation of 31.
    assert all(850 < len(v) < 1150 for v in drawn.values()) and len(drawn) == 8
    counts = torch.cat(list(drawn.values())).bincount(minlength=11)
    # 889 of each magnitude are expected, with a standard deviation of 28.
    assert counts[0] == 0 and counts[10] == 0
    assert all(750 < count < 1030 for count in counts[1:10])


def test_geometric_operations_are_drawn_uniformly_with_either_sign():
    num, config = 28000, AugmentConfig(flip=False, shift=0.0, num_ops=1, cutout=0.0, op_probability=1.0)
    # Translations and shears move the middle of an 11 x 11 image in one direction, the other operations do not.
    image = torch.zeros(1, 11, 11, 1, dtype=torch.uint8)
    image[0, 5, 5] = 255
    views = strong(image.expand(num, -1, -1, -1), draw(num, config), config)[..., 0]
    places = (views == 255).sum(0)
    moved = [int(places[5, :5].sum()), int(places[5, 6:].sum()), int(places[:5, 5].sum()), int(places[6:, 5].sum())]
    # int(0.33 v) and round(0.03 v * 5.5) are not zero for the six magnitudes v >= 4: of both operations together
    # 2 * 28000 / 14 / 2 * 6 / 9 = 1333 are expected in each direction.
    assert all(1150 < count < 1520 for count in moved)


def test_the_largest_number_below_one_draws_the_last_choice():
    config = AugmentConfig(flip=False, num_ops=1, op_probability=1.0)
    views = [strong(pictures(1), torch.full((1, num_numbers(config)), number), config) for number in (1 - 2**-24, 0.99)]
    assert torch.equal(*views)


def test_normalize_is_channels_last_and_per_channel():
    image = torch.tensor([0, 51, 255, 255, 102, 0], dtype=torch.uint8).view(1, 1, 2, 3).repeat(4, 3, 1, 1)
    result = normalize(image, of((0.5, 0.2, 0.0), (0.5, 0.1, 2.0)))
    assert result.shape == (4, 3, 3, 2)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result[0, :, 0], torch.tensor([[-1.0, 1.0], [0.0, 2.0], [0.5, 0.0]]), atol=1e-6, rtol=0)

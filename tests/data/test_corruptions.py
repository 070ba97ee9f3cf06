from __future__ import annotations

import colorsys
import functools
import io
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage, stats
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from distsens.data import CORRUPTIONS, SEVERITIES, corrupt
from distsens.data.corruptions.blur import shattered
from distsens.data.corruptions.filters import gaussian_blur, motion_blur, sampled, zoomed
from distsens.data.corruptions.textures import crystals, plasma
from distsens.errors import InputError
from distsens.randomness import sample_keys, uniform

_WITHOUT_CHANCE = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}


_UNORDERED = {"glass_blur", "frost", "elastic_transform"}  # whose published parameters change more than one thing


def _keys(count: int, seed: int = 0) -> Tensor:
    return sample_keys(torch.arange(count), seed)


@functools.cache
def _photographs(count: int, side: int) -> Tensor:
    """Patches of two photographs, (N, 3, side, side), small ones at a quarter of the resolution."""
    generator, shrink = np.random.default_rng(0), 4 if side <= 64 else 1
    patches = []
    for photograph in itertools.islice(itertools.cycle(load_sample_images().images), count):
        top, left = (generator.integers(size - side * shrink + 1) for size in photograph.shape[:2])
        patch = photograph[top : top + side * shrink, left : left + side * shrink]
        patches.append(patch.reshape(side, shrink, side, shrink, 3).mean((1, 3)).round())
    return torch.from_numpy(np.stack(patches).astype(np.uint8)).permute(0, 3, 1, 2).contiguous()


@functools.cache
def _digits(count: int) -> Tensor:
    """Digits of 8x8 pixels, enlarged to (N, 1, 32, 32)."""
    images = torch.from_numpy(load_digits().images[:count, None] * (255 / 16))
    return torch.nn.functional.interpolate(images, scale_factor=4, mode="bilinear").round().to(torch.uint8)


def _grey(count: int, side: int, level: int) -> Tensor:
    return torch.full((count, 1, side, side), level, dtype=torch.uint8)


def _pixels(count: int, channels: int, height: int, width: int) -> Tensor:
    """Random pixels, float64 in [0, 1]."""
    return uniform(_keys(count, 1), (channels, height, width)).double()


def _rounded(pixels: np.ndarray) -> np.ndarray:
    return np.floor(255 * pixels.clip(0, 1) + 0.5 + 1e-6).astype(np.uint8)


def test_there_are_the_fifteen_families_of_the_paper() -> None:
    assert list(CORRUPTIONS) == (
        "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog "
        "brightness contrast elastic_transform pixelate jpeg_compression"
    ).split(" ")


@pytest.mark.parametrize("family", CORRUPTIONS)
@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 20, 33), (3, 64, 64), (1, 8, 65), (3, 90, 70)]
)
def test_images_of_any_size_keep_their_shape_and_are_left_as_they_are(family: str, shape: tuple[int, int, int]) -> None:
    images = (255 * _pixels(2, *shape)).to(torch.uint8)
    original, state = images.clone(), torch.get_rng_state()
    for severity in (3, 5):
        corrupted = corrupt(images, family, severity, _keys(2))
        assert corrupted.shape == images.shape
        assert corrupted.dtype == torch.uint8
        assert not torch.equal(corrupted, images)
    assert torch.equal(images, original)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", CORRUPTIONS)
@pytest.mark.parametrize("side", [32, 96])
def test_an_image_depends_on_its_key_and_not_on_its_batch(family: str, side: int) -> None:
    images, keys = _photographs(6, side), _keys(6)
    corrupted = corrupt(images, family, 4, keys)
    assert torch.equal(corrupt(images, family, 4, keys), corrupted)
    for rows in ([4], [5, 0, 1], [2, 3]):
        assert torch.equal(corrupt(images[rows], family, 4, keys[rows]), corrupted[rows])


@pytest.mark.parametrize("family", CORRUPTIONS)
def test_other_keys_corrupt_otherwise_where_chance_plays(family: str) -> None:
    images = _photographs(1, 32).expand(2, -1, -1, -1)
    first, second = corrupt(images, family, 3, _keys(2))
    assert torch.equal(first, second) == (family in _WITHOUT_CHANCE)


def test_many_images_are_corrupted_like_few() -> None:
    images, keys = _grey(300, 64, 100), _keys(300)
    whole = corrupt(images, "gaussian_noise", 1, keys)
    assert torch.equal(whole[250:], corrupt(images[250:], "gaussian_noise", 1, keys[250:]))
    assert len(corrupt(images[:0], "gaussian_noise", 1, keys[:0])) == 0


def test_the_severities_of_a_family_share_their_random_numbers() -> None:
    images, keys = _grey(4, 32, 128), _keys(4)
    weak, strong = (corrupt(images, "gaussian_noise", severity, keys).double() - 128 for severity in (1, 5))
    assert (strong - weak * (0.10 / 0.04)).abs().max() <= 0.5 + 0.5 * 2.5


def _distances(images: Tensor, family: str) -> list[float]:
    """Mean L2 distance to the clean images at each severity."""
    keys = _keys(len(images))
    offsets = [corrupt(images, family, severity, keys).double() - images for severity in SEVERITIES]
    return [offset.flatten(1).norm(dim=1).mean().item() for offset in offsets]


@pytest.mark.parametrize("family", [name for name in CORRUPTIONS if name not in _UNORDERED])
@pytest.mark.parametrize("kind", ["digits", "small photographs", "large photographs"])
def test_images_move_away_with_the_severity(family: str, kind: str) -> None:
    images = {
        "digits": _digits(40),
        "small photographs": _photographs(40, 32),
        "large photographs": _photographs(2, 224),
    }
    distances = _distances(images[kind], family)
    if family == "pixelate" and kind == "digits":
        del distances[2]  # boxes of 1.2 pixels, which beat with the 4 pixels that the digits were enlarged by
    if family == "motion_blur" and kind != "large photographs":
        # A deviation of 2 cut off at 12 or at 16 pixels is the same blur.
        assert distances.pop(3) == pytest.approx(distances[2])
    assert all(low < high for low, high in itertools.pairwise(distances))


@pytest.mark.parametrize("images", [_digits(40), _photographs(40, 32)])
def test_glass_blur_moves_small_images_further_with_two_rounds_than_with_one(images: Tensor) -> None:
    distances = _distances(images, "glass_blur")
    assert max(distances[:3]) < min(distances[3:])


@pytest.mark.parametrize("images", [_digits(40), _photographs(40, 32)])
def test_elastic_transform_moves_small_images_less_as_a_whole_but_bends_them_more(images: Tensor) -> None:
    distances = _distances(images, "elastic_transform")
    assert all(low > high for low, high in itertools.pairwise(distances))
    ramp = (4 * torch.arange(32)).to(torch.uint8).expand(50, 1, 32, 32)
    inner = [
        corrupt(ramp, "elastic_transform", severity, _keys(50))[..., 8:-8, 8:-8].double() for severity in SEVERITIES
    ]
    bends = [image.diff(n=2, dim=3).abs().mean().item() for image in inner]
    assert bends[0] < 0.5  # an affine map keeps a ramp a ramp, up to rounding
    assert bends[0] < bends[2] < bends[3] < bends[4]


@pytest.mark.parametrize("images", [_digits(40), _photographs(40, 32), _photographs(2, 224)])
def test_frost_hides_more_of_the_image_with_the_severity(images: Tensor) -> None:
    images = images // 3  # dark, so that white cuts nothing off
    likeness = []
    for severity in SEVERITIES:
        frosted = corrupt(images, "frost", severity, _keys(len(images)))
        pairs = zip(images.flatten(1).numpy(), frosted.flatten(1).numpy(), strict=True)
        likeness.append(np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs]))
    assert all(high > low for high, low in itertools.pairwise(likeness))


# Noise, on a grey image of value x = 128 / 255.

_X = 128 / 255


def _noise(family: str, severity: int, side: int) -> np.ndarray:
    """Many noisy values, in [0, 1]."""
    count = 2**18 // side**2
    return corrupt(_grey(count, side, 128), family, severity, _keys(count)).double().numpy().ravel() / 255


@pytest.mark.parametrize(("severity", "deviation"), zip(SEVERITIES, [0.04, 0.06, 0.08, 0.09, 0.10], strict=True))
def test_gaussian_noise_has_its_variance(severity: int, deviation: float) -> None:
    values = _noise("gaussian_noise", severity, 32)
    assert values.mean() == pytest.approx(_X, abs=1e-3)
    assert values.var() == pytest.approx(deviation**2, rel=0.02)


@pytest.mark.parametrize(("severity", "photons"), zip(SEVERITIES, [500, 250, 100, 75, 50], strict=True))
def test_shot_noise_has_the_variance_of_photons(severity: int, photons: int) -> None:
    values = _noise("shot_noise", severity, 32)
    counts = np.arange(3 * photons)
    shown, likely = _rounded(counts / photons) / 255, stats.poisson.pmf(counts, photons * _X)
    assert values.mean() == pytest.approx(_X, abs=1e-3)
    assert values.var() == pytest.approx(
        _X / photons, rel=0.05
    )  # and more exactly, since grey levels and photons beat:
    assert values.var() == pytest.approx(((shown - _X) ** 2 * likely).sum(), rel=0.015)


@pytest.mark.parametrize(("severity", "part"), zip(SEVERITIES, [0.01, 0.02, 0.03, 0.05, 0.07], strict=True))
def test_impulse_noise_replaces_its_part_by_as_much_salt_as_pepper(severity: int, part: float) -> None:
    values = _noise("impulse_noise", severity, 32)
    assert set(values.tolist()) == {0.0, _X, 1.0}
    for impulse in (0.0, 1.0):
        assert (values == impulse).mean() == pytest.approx(part / 2, rel=0.15)
    assert values.var() == pytest.approx(part / 2 * (_X**2 + (1 - _X) ** 2), rel=0.1)


@pytest.mark.parametrize(("severity", "deviation"), zip(SEVERITIES, [0.08, 0.12, 0.18, 0.26, 0.38], strict=True))
def test_gaussian_noise_of_large_images_is_cut_off_at_black_and_white(severity: int, deviation: float) -> None:
    values, normal = _noise("gaussian_noise", severity, 128), stats.norm(_X, deviation)
    mean, square = (normal.expect(lambda x, power=power: x**power, lb=0, ub=1) + normal.sf(1) for power in (1, 2))
    assert values.var() == pytest.approx(square - mean**2, rel=0.02)


@pytest.mark.parametrize(("severity", "photons"), zip(SEVERITIES, [60, 25, 12, 5, 3], strict=True))
def test_shot_noise_of_large_images_counts_photons(severity: int, photons: int) -> None:
    values = _noise("shot_noise", severity, 128)
    seen = Counter((values * photons).round().astype(int).tolist())
    counts = np.arange(photons)
    expected = np.append(stats.poisson.pmf(counts, photons * _X), stats.poisson.sf(photons - 1, photons * _X))
    common = expected * len(values) > 20
    observed = np.array([seen[count] for count in range(photons + 1)])
    deviations = (observed - expected * len(values))[common] / np.sqrt(expected * len(values))[common]
    assert np.abs(deviations).max() < 5


# Blur, against scipy and loops.


@given(st.floats(0.0, 20.0), st.sampled_from([3.0, 4.0]), st.integers(8, 20), st.integers(8, 20))
@settings(max_examples=30)
def test_gaussian_blur_is_scipys(deviation: float, reach: float, height: int, width: int) -> None:
    images = _pixels(2, 2, height, width)
    expected = ndimage.gaussian_filter(images.numpy(), deviation, axes=(2, 3), mode="reflect", truncate=reach)
    assert np.allclose(gaussian_blur(images, deviation, reach).numpy(), expected, atol=1e-12)


_DEFOCUS = [(8, 1, 0.3, 0.4), (32, 5, 1.5, 0.1), (32, 3, 0.5, 0.6), (80, 1, 3, 0.1), (80, 4, 8, 0.5), (80, 5, 10, 0.5)]


@pytest.mark.parametrize(("side", "severity", "radius", "deviation"), _DEFOCUS)
def test_defocus_blur_is_the_convolution_with_a_smoothed_disk(
    side: int, severity: int, radius: float, deviation: float
) -> None:
    images, reach = (255 * _pixels(2, 1, side, side)).to(torch.uint8), 5 if radius > 8 else 3
    taps = range(-13, 14)
    disk = np.array([[float(y * y + x * x <= radius * radius) for x in taps] for y in taps])
    kernel = ndimage.gaussian_filter(disk, deviation, mode="constant", radius=reach // 2)
    expected = ndimage.convolve(images.numpy() / 255, (kernel / kernel.sum())[None, None], mode="reflect")
    assert np.array_equal(corrupt(images, "defocus_blur", severity, _keys(2)).numpy(), _rounded(expected))


@pytest.mark.parametrize("angle", [0.0, 0.3, -math.pi / 4, math.pi / 2, 2.5])
def test_motion_blur_is_the_weighted_mean_along_its_direction(angle: float) -> None:
    images, radius, deviation = _pixels(1, 1, 9, 11), 3, 1.7
    expected = np.zeros((9, 11))
    weights = [math.exp(-(step**2) / (2 * deviation**2)) for step in range(7)]
    for row, column in np.ndindex(9, 11):
        for step, weight in enumerate(weights):
            down, right = (math.ceil(step * turn - 0.5 - 1e-6) for turn in (math.sin(angle), math.cos(angle)))
            place = min(max(row + down, 0), 8), min(max(column + right, 0), 10)
            expected[row, column] += weight / sum(weights) * images[0, 0][place].item()
    blurred = motion_blur(images, torch.tensor([angle], dtype=torch.float64), radius, deviation)
    assert np.allclose(blurred[0, 0].numpy(), expected)


def _roughness(images: Tensor, dim: int) -> float:
    """Mean difference of neighbours along one axis."""
    return images.double().diff(dim=dim).abs().mean().item()


def test_a_camera_moves_sideways_and_snow_falls_down() -> None:
    grains = (255 * _pixels(20, 1, 32, 32)).to(torch.uint8)
    moved = corrupt(grains, "motion_blur", 3, _keys(20))
    assert _roughness(moved, 3) < 0.8 * _roughness(moved, 2)
    snow = corrupt(torch.zeros_like(grains), "snow", 3, _keys(20))
    assert _roughness(snow, 2) < 0.8 * _roughness(snow, 3)


@pytest.mark.parametrize(("size", "factor"), [(32, 1.0), (32, 1.06), (32, 1.75), (32, 2.25), (28, 1.13), (80, 4.5)])
def test_zoomed_is_the_middle_enlarged_by_scipy(size: int, factor: float) -> None:
    images = _pixels(1, 1, size, size)
    keep = math.ceil(size / factor)
    first = (size - keep) // 2
    enlarged = ndimage.zoom(images[0, 0, first : first + keep, first : first + keep].numpy(), factor, order=1)
    first = (len(enlarged) - size) // 2
    assert np.allclose(
        zoomed(images, factor)[0, 0].numpy(), enlarged[first : first + size, first : first + size], atol=1e-12
    )


def test_zoom_blur_is_the_mean_of_the_enlarged_images() -> None:
    images = _photographs(2, 32)
    enlarged = [zoomed(images.double() / 255, 1 + number / 100).numpy() for number in range(12)]
    expected = (images.numpy() / 255 + sum(enlarged)) / 13
    assert np.array_equal(corrupt(images, "zoom_blur", 2, _keys(2)).numpy(), _rounded(expected))


@given(st.integers(1, 4), st.integers(0, 2**32))
@settings(max_examples=40)
def test_glass_copies_pixels_one_after_the_other(reach: int, seed: int) -> None:
    height, width = 12, 15
    images = torch.arange(2 * height * width).reshape(2, 1, height, width).expand(-1, 3, -1, -1)
    steps = (2 * reach * uniform(_keys(2, seed), (2, height, width))).long() - reach
    expected = images.clone()
    for row in range(height - reach, reach, -1):
        for column in range(width - reach, reach, -1):
            for image, (down, right) in enumerate(steps[:, :, row, column].tolist()):
                expected[image, :, row, column] = expected[image, :, row + down, column + right]
    assert torch.equal(shattered(images, steps, reach), expected)


# Weather.


@pytest.mark.parametrize("images", [_digits(20), _photographs(20, 32)])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_snow_only_lightens(images: Tensor, severity: int) -> None:
    assert (corrupt(images, "snow", severity, _keys(20)) >= images).all()


@pytest.mark.parametrize(("severity", "density"), zip(SEVERITIES, [0.2, 0.5, 0.75, 1, 1.5], strict=True))
def test_fog_lies_between_none_and_its_density(severity: int, density: float) -> None:
    foggy = corrupt(_grey(3, 32, 200), "fog", severity, _keys(3))
    value = 200 / 255
    assert foggy.amax((1, 2, 3)).tolist() == [200] * 3
    assert foggy.amin((1, 2, 3)).tolist() == [round(255 * value**2 / (value + density))] * 3
    assert (corrupt(_grey(1, 32, 0), "fog", severity, _keys(1)) == 0).all()


@pytest.mark.parametrize("decay", [3.0, 1.4])
def test_plasma_is_the_diamond_square_algorithm(decay: float) -> None:
    keys, side = _keys(1), 8
    cloud, step = np.zeros((side, side)), side
    for level in range(3):
        half, points = step // 2, range(0, side, step)
        noise = (2 * uniform(sample_keys(keys, level), (3, len(points), len(points)))[0].double().numpy() - 1) / (
            decay ** (2 * level)
        )
        for (i, top), (j, left) in itertools.product(enumerate(points), repeat=2):
            corners = [cloud[(top + a) % side, (left + b) % side] for a in (0, step) for b in (0, step)]
            cloud[top + half, left + half] = np.mean(corners) + noise[0, i, j]
        for (i, top), (j, left) in itertools.product(enumerate(points), repeat=2):
            for kind, (row, column) in enumerate([(top, left + half), (top + half, left)], start=1):
                around = [(row - half, column), (row + half, column), (row, column - half), (row, column + half)]
                cloud[row, column] = np.mean([cloud[a % side, b % side] for a, b in around]) + noise[kind, i, j]
        step = half
    expected = (cloud - cloud.min()) / (cloud.max() - cloud.min())
    assert np.allclose(plasma(keys, side, decay)[0].numpy(), expected)


@given(st.integers(8, 40), st.integers(8, 40))
@settings(max_examples=10)
def test_crystals_are_standardised_and_differ(height: int, width: int) -> None:
    texture = crystals(_keys(3), height, width)
    assert texture.shape == (3, 1, height, width)
    assert torch.allclose(texture.mean((1, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(texture.std((1, 2, 3)), torch.ones(3, dtype=torch.float64))
    assert len(texture.flatten(1).unique(dim=0)) == 3


@pytest.mark.parametrize(("severity", "ice"), zip(SEVERITIES, [0.2, 0.3, 0.4, 0.4, 0.45], strict=True))
def test_frost_adds_its_weight_of_bluish_ice(severity: int, ice: float) -> None:
    black = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    red, green, blue = (corrupt(black, "frost", severity, _keys(20)).double().mean((0, 2, 3)) / 255 / ice).tolist()
    assert 0.5 < red < green < blue < 0.75


# Digital.


@pytest.mark.parametrize(("severity", "more"), zip(SEVERITIES, [0.05, 0.1, 0.15, 0.2, 0.3], strict=True))
def test_brightness_is_added_to_the_value_of_hue_saturation_and_value(severity: int, more: float) -> None:
    images = _photographs(3, 16).clone()
    images[0, :, 0] = 0
    brighter = corrupt(images, "brightness", severity, _keys(3))
    for before, after in zip(images.movedim(1, 3).reshape(-1, 3), brighter.movedim(1, 3).reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255).tolist())
        expected = np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + more, 1.0)))
        assert np.abs(after.numpy() / 255 - expected).max() < 0.5001 / 255


@pytest.mark.parametrize(("severity", "factor"), zip(SEVERITIES, [0.75, 0.5, 0.4, 0.3, 0.15], strict=True))
@pytest.mark.parametrize("images", [_digits(5), _photographs(5, 32)])
def test_contrast_draws_each_channel_towards_its_mean(images: Tensor, severity: int, factor: float) -> None:
    lower = corrupt(images, "contrast", severity, _keys(5))
    for before, after in zip(images.flatten(0, 1).numpy() / 255, lower.flatten(0, 1).numpy(), strict=True):
        assert np.array_equal(after, _rounded(before.mean() + factor * (before - before.mean())))


def _boxes(size: int, scale: float) -> list[list[int]]:
    """The pixels whose centres lie in each of ``int(size * scale)`` equal parts of a line."""
    parts = int(size * scale)
    return [
        [pixel for pixel in range(size) if part * size < (pixel + 0.5) * parts <= (part + 1) * size]
        for part in range(parts)
    ]


@pytest.mark.parametrize("images", [_digits(2), _photographs(2, 32), _photographs(1, 100)])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_shows_the_means_of_boxes(images: Tensor, severity: int) -> None:
    side = images.shape[2]
    scale = ([0.95, 0.9, 0.85, 0.75, 0.65] if side <= 64 else [0.6, 0.5, 0.4, 0.3, 0.25])[severity - 1]
    boxes = _boxes(side, scale)
    shown = [int((pixel + 0.5) * len(boxes) / side) for pixel in range(side)]
    means = images.numpy().astype(float)
    for axis in (2, 3):
        means = np.stack([means.take(box, axis).mean(axis) for box in boxes], axis)
    coarse = corrupt(images, "pixelate", severity, _keys(len(images))).numpy()
    assert np.abs(coarse - means[:, :, shown][..., shown]).max() <= 1.01  # rounded after each axis


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_compression_is_pillows_round_trip(side: int, channels: int) -> None:
    images = _photographs(2, side)[:, :channels]
    for severity, quality in enumerate([80, 65, 58, 50, 40] if side == 32 else [25, 18, 15, 10, 7], start=1):
        for before, after in zip(images, corrupt(images, "jpeg_compression", severity, _keys(2)), strict=True):
            pixels = before.permute(1, 2, 0).numpy()
            file = io.BytesIO()
            Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(file, "JPEG", quality=quality)
            decoded = np.array(Image.open(file)).reshape(side, side, channels)
            assert np.array_equal(after.permute(1, 2, 0).numpy(), decoded)


@given(st.integers(8, 12), st.integers(8, 12), st.floats(0.0, 40.0))
@settings(max_examples=20)
def test_sampling_is_scipys(height: int, width: int, spread: float) -> None:
    images, places = _pixels(2, 1, height, width), spread * (2 * _pixels(2, 2, height, width) - 0.5)
    values = sampled(images, places[:, 0], places[:, 1])
    for image, place, value in zip(images, places, values, strict=True):
        expected = ndimage.map_coordinates(image[0].numpy(), place.numpy(), order=1, mode="reflect")
        assert np.allclose(value[0].numpy(), expected, atol=1e-9)


@pytest.mark.parametrize(
    "family", [name for name in CORRUPTIONS if name.endswith("_blur")] + ["contrast", "elastic_transform", "pixelate"]
)
@pytest.mark.parametrize("side", [32, 80])
def test_a_uniform_image_stays_as_it_is_where_nothing_is_added(family: str, side: int) -> None:
    for severity in SEVERITIES:
        assert (corrupt(_grey(1, side, 77), family, severity, _keys(1)) == 77).all()


# Wrong input.


def test_an_unknown_family_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(
        InputError, match=r"corruption\.family: got 'rain'; must be one of gaussian_noise, shot_noise, "
    ):
        corrupt(_grey(1, 8, 0), "rain", 1, _keys(1))


@pytest.mark.parametrize("severity", [0, 6, -1])
def test_a_severity_out_of_range_is_refused(severity: int) -> None:
    with pytest.raises(InputError, match=rf"corruption\.severity: got {severity}; must be 1, 2, 3, 4 or 5"):
        corrupt(_grey(1, 8, 0), "fog", severity, _keys(1))


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 8, 8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 2, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 3, 8, 7, dtype=torch.uint8),
    ],
)
def test_other_than_uint8_images_with_one_or_three_channels_are_refused(images: Tensor) -> None:
    with pytest.raises(InputError, match=r"corruption\.images"):
        corrupt(images, "fog", 1, _keys(1))


def test_every_image_needs_a_key() -> None:
    with pytest.raises(InputError, match=r"corruption\.keys: got \(3,\); must be \(2,\), one key per image"):
        corrupt(_grey(2, 8, 0), "fog", 1, _keys(3))

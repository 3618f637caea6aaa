"""Photometric distortion by distribution."""

import numpy as np
import pytest

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")
from dcnv4_mm.bev.data.transforms import PhotoMetricDistortionMultiViewImage

# B, G, R: in the middle of a sector of hues, so that a shift of at most 18 degrees keeps the order.
PIXEL = (120, 110, 100)
DRAWS = 4000


def test_the_photometric_distortion_is_that_of_the_original():
    """Half of the images each get another brightness, contrast, saturation, hue, channel order."""
    np.random.seed(0)
    images = [np.full((1, 1, 3), PIXEL, np.uint8) for _ in range(DRAWS)]
    distorted = PhotoMetricDistortionMultiViewImage()(dict(imgs=images))["imgs"]
    assert {image.dtype for image in distorted} == {np.dtype(np.uint8)}
    values = np.stack(distorted).reshape(DRAWS, 3).astype(float)
    # Saturation, hue and channel order keep the largest channel, which becomes (120 + b) * c: b is
    # 0 or uniform in [-32, 32], c is 1 or uniform in [0.5, 1.5].
    largest = values.max(1)
    spread_b, spread_c = 64**2 / 12 / 2, 1 / 12 / 2
    spread = (120**2 + spread_b) * spread_c + spread_b
    error = 3 * (spread / DRAWS) ** 0.5
    # Fractions of a byte are cut off: half of one on average where anything changed.
    assert largest.mean() == pytest.approx(120 - 0.4, abs=error + 0.1)
    assert largest.std() == pytest.approx(spread**0.5, rel=0.05)
    assert 120 * 1.5 < largest.max() <= 152 * 1.5
    assert 88 * 0.5 - 1 <= largest.min() < 120 * 0.5
    # Half of the images are permuted, one in six of these by the identity.
    moved = (values.argmax(1) != 0) | (values.argmin(1) != 2)
    assert moved.mean() == pytest.approx(5 / 12, abs=3 * (5 / 12 * 7 / 12 / DRAWS) ** 0.5)
    # Images are distorted independently of each other.
    assert len({tuple(value) for value in values}) > DRAWS / 2

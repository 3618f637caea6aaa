"""Label maps painted over their pictures, with a legend."""

import cv2
import numpy as np

# Opacity of the labels; width of the legend in pixels; height of a row in it.
OPACITY, LEGEND, ROW = 0.55, 220, 22


def overlay(
    picture: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    palette: list[tuple[int, int, int]],
) -> np.ndarray:
    """Paints a label map over a picture, and a legend of what is in it beside.

    Args:
        picture: uint8 (H, W, 3) in OpenCV's channel order.
        labels: (H, W) indices into ``classes``; others are left unpainted.
        classes: Names of the classes.
        palette: RGB colours of the classes.

    Returns:
        The painted picture, uint8, higher than H where the legend needs it; classes are listed by
        their share of the picture.
    """
    painted = picture.copy()
    shares = {}
    for label in np.unique(labels[labels < len(classes)]):
        where = labels == label
        shares[int(label)] = where.mean()
        color = np.array(palette[label][::-1], np.float32)
        painted[where] = ((1 - OPACITY) * picture[where] + OPACITY * color).astype(np.uint8)
    height, width = picture.shape[:2]
    result = np.full((max(height, ROW * (len(shares) + 1)), width + LEGEND, 3), 255, np.uint8)
    result[:height, :width] = painted
    for row, (label, share) in enumerate(sorted(shares.items(), key=lambda item: -item[1])):
        top = ROW // 2 + row * ROW
        corners = ((width + 8, top), (width + 24, top + 16))
        cv2.rectangle(result, *corners, [int(v) for v in palette[label][::-1]], cv2.FILLED)
        text = f"{classes[label].split(';')[0][:18]} {share:.0%}"
        origin = (width + 32, top + 13)
        cv2.putText(result, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return result

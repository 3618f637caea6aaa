"""Label maps drawn over their images, with a legend."""

import cv2
import numpy as np

# Opacity of the labels; width of the legend in pixels; height of a row in it.
OPACITY, LEGEND, ROW = 0.55, 220, 22


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    palette: list[tuple[int, int, int]],
) -> np.ndarray:
    """Draws a label map over an image, with a legend beside it.

    Args:
        image: uint8 (H, W, 3) in OpenCV's channel order.
        labels: (H, W) indices into ``classes``; other values are not drawn.
        classes: Names of the classes.
        palette: RGB colours of the classes.

    Returns:
        The visualization, uint8, higher than H where the legend needs it; classes are listed by
        the fraction of the image that they cover.
    """
    drawn = image.copy()
    fractions = {}
    for label in np.unique(labels[labels < len(classes)]):
        where = labels == label
        fractions[int(label)] = where.mean()
        color = np.array(palette[label][::-1], np.float32)
        drawn[where] = ((1 - OPACITY) * image[where] + OPACITY * color).astype(np.uint8)
    height, width = image.shape[:2]
    result = np.full((max(height, ROW * (len(fractions) + 1)), width + LEGEND, 3), 255, np.uint8)
    result[:height, :width] = drawn
    for row, (label, fraction) in enumerate(sorted(fractions.items(), key=lambda item: -item[1])):
        top = ROW // 2 + row * ROW
        corners = ((width + 8, top), (width + 24, top + 16))
        cv2.rectangle(result, *corners, [int(v) for v in palette[label][::-1]], cv2.FILLED)
        text = f"{classes[label].split(';')[0][:18]} {fraction:.0%}"
        origin = (width + 32, top + 13)
        cv2.putText(result, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return result

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
        palette: RGB colors of the classes.

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


def colors(count: int) -> list[tuple[int, int, int]]:
    """RGB colors of evenly spaced hues for classes that have none."""
    hsv = np.full((1, count, 3), 220, np.uint8)
    hsv[0, :, 0] = np.arange(count) * 180 // max(count, 1)
    return [tuple(map(int, color)) for color in cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0]]


def draw_masks(
    image: np.ndarray, masks: np.ndarray, labels: np.ndarray, classes: list[str] | None
) -> np.ndarray:
    """Draws masks over an image, in the colors of :func:`draw_boxes`.

    Args:
        image: uint8 (H, W, 3) in OpenCV's channel order.
        masks: bool (K, H, W).
        labels: (K,) indices into ``classes``.
        classes: Names of the classes, if they are known.

    Returns:
        The visualization, uint8 (H, W, 3).
    """
    drawn = image.copy()
    palette = colors(len(classes) if classes else int(labels.max(initial=0)) + 1)
    for mask, label in zip(masks, labels, strict=True):
        color = np.array(palette[int(label)][::-1], np.float32)
        drawn[mask] = ((1 - OPACITY) * drawn[mask] + OPACITY * color).astype(np.uint8)
    return drawn


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    classes: list[str] | None,
) -> np.ndarray:
    """Draws boxes with the names of their classes and their scores, the best on top.

    Args:
        image: uint8 (H, W, 3) in OpenCV's channel order.
        boxes: (K, 4) x1, y1, x2, y2 in pixels.
        scores: (K,).
        labels: (K,) indices into ``classes``.
        classes: Names of the classes, if they are known.

    Returns:
        The visualization, uint8 (H, W, 3).
    """
    drawn = image.copy()
    palette = colors(len(classes) if classes else int(labels.max(initial=0)) + 1)
    for index in np.argsort(scores):
        label, color = int(labels[index]), palette[int(labels[index])][::-1]
        left, top, right, bottom = boxes[index].round().astype(int).tolist()
        cv2.rectangle(drawn, (left, top), (right, bottom), color, 2)
        text = f"{classes[label] if classes else label} {scores[index]:.2f}"
        (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
        # Above the box or, at the upper border, inside.
        line = top if top > height + base else top + height + base
        corner = (left + width, line - height - base)
        cv2.rectangle(drawn, (left, line), corner, color, cv2.FILLED)
        origin = (left, line - base)
        cv2.putText(drawn, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return drawn

"""Videos of a scene."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

__all__ = ["write_video"]


def write_video(path: str | Path, images: Iterable[np.ndarray], *, fps: float = 2.0) -> int:
    """Writes images of one size as a video.

    Args:
        path: A file that ends in ``.mp4`` or ``.gif``.
        images: (H, W, 3), BGR.
        fps: Images per second; nuScenes has two keyframes per second.

    Returns:
        The number of images.

    Raises:
        ValueError: The ending is another one, or there is no image.
        OSError: OpenCV cannot write the file.
    """
    path = Path(path)
    if path.suffix not in (".mp4", ".gif"):
        raise ValueError(f"path: expected a file that ends in .mp4 or .gif, got {path}")
    count, writer, frames = 0, None, []
    for image in images:
        count += 1
        if path.suffix == ".gif":
            frames.append(Image.fromarray(image[..., ::-1]).quantize(128))
            continue
        if writer is None:
            # The codec wants even sides.
            size = (image.shape[1] // 2 * 2, image.shape[0] // 2 * 2)
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
            if not writer.isOpened():
                raise OSError(f"OpenCV cannot write {path}: try a .gif")
        writer.write(np.ascontiguousarray(image[: size[1], : size[0]]))
    if not count:
        raise ValueError(f"there is no image to write to {path}")
    if writer is not None:
        writer.release()
    else:
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000 / fps, loop=0)
    return count

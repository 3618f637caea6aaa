"""Info files: reading them, and adding the scenes and objects per image that BEVFormerV2 needs."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from mmdet3d.evaluation.metrics import NuScenesMetric

from dcnv4_mm.bev.data.mono import ATTRIBUTE_IDS, clipped_box
from dcnv4_mm.bev.task_modules.camera_boxes import NO_ATTRIBUTE
from dcnv4_mm.engine.pickles import load_pickle

if TYPE_CHECKING:
    from nuscenes import NuScenes

__all__ = ["extend_infos", "mono_instances", "read_infos"]

_MIN_POINTS = 3


def read_infos(path: str, backend_args: dict | None = None) -> dict[str, Any]:
    """Reads an info file of version 1.1, without running code in it.

    Raises:
        ValueError: The file has the format of mmdet3d 0.x, is damaged, or holds code.
    """
    content = load_pickle(path, backend_args)
    if not isinstance(content, dict) or not {"metainfo", "data_list"} <= content.keys():
        raise ValueError(
            f"{path} has the format of mmdet3d 0.x: convert it with mmdet3d's "
            "tools/dataset_converters/update_infos_to_v2.py, then extend it with "
            "tools/dataset_converters/add_bevformerv2_infos.py; or create it with "
            "tools/dataset_converters/prepare_nuscenes.py"
        )
    return content


def extend_infos(
    infos: dict, nusc: "NuScenes", *, progress: Callable[[Iterable], Iterable] = iter
) -> None:
    """Adds scene and mono fields to every sample, in place.

    A sample gets ``scene_token``, ``scene_name``, ``frame_idx``, ``prev``, ``next`` and
    ``mono_instances`` by camera, which are empty where the release has no annotations; nothing
    else changes.

    Args:
        infos: The content of an info file of version 1.1.
        nusc: The tables of the same release.
        progress: Wraps the loop over the samples, as ``tqdm`` does.

    Raises:
        ValueError: The infos are of another version, or of samples that the tables lack.
    """
    version = infos["metainfo"]["version"]
    if version != nusc.version:
        raise ValueError(f"the infos are of {version}, the tables of {nusc.version}")
    positions = {}
    for scene in nusc.scene:
        token = scene["first_sample_token"]
        for index in range(scene["nbr_samples"]):
            positions[token] = (scene, index)
            token = nusc.get("sample", token)["next"]
    for info in progress(infos["data_list"]):
        if info["token"] not in positions:
            raise ValueError(f"the tables of {nusc.dataroot} have no sample {info['token']}")
        scene, index = positions[info["token"]]
        sample = nusc.get("sample", info["token"])
        info.update(
            scene_token=scene["token"],
            scene_name=scene["name"],
            frame_idx=index,
            prev=sample["prev"],
            next=sample["next"],
            mono_instances={
                camera: mono_instances(
                    nusc, image["sample_data_token"], infos["metainfo"]["categories"]
                )
                for camera, image in info["images"].items()
            },
        )


def mono_instances(nusc: "NuScenes", camera_token: str, categories: dict[str, int]) -> list[dict]:
    """The objects that an image shows, in its camera's frame.

    Args:
        nusc: The tables.
        camera_token: The image's ``sample_data`` token.
        categories: Label of each detection class.

    Returns:
        Dictionaries with ``bbox`` (x1, y1, x2, y2), ``bbox_label``, ``quat`` (w first), ``center``,
        ``wlh``, ``attr``, ``speed``, NaN where unknown, and ``token``.
    """
    from nuscenes.utils.geometry_utils import BoxVisibility

    record = nusc.get("sample_data", camera_token)
    _, boxes, intrinsics = nusc.get_sample_data(camera_token, BoxVisibility.ANY)
    found = []
    for box in boxes:
        annotation = nusc.get("sample_annotation", box.token)
        name = NuScenesMetric.NameMapping.get(box.name)
        points = annotation["num_lidar_pts"] + annotation["num_radar_pts"]
        if name is None or points < _MIN_POINTS:
            continue
        clipped = clipped_box(box.corners().T, intrinsics, (record["height"], record["width"]))
        if clipped is None:
            continue
        attributes = [nusc.get("attribute", a)["name"] for a in annotation["attribute_tokens"]]
        found.append(
            dict(
                bbox=clipped.tolist(),
                bbox_label=categories[name],
                quat=box.orientation.elements.tolist(),
                center=box.center.tolist(),
                wlh=box.wlh.tolist(),
                attr=ATTRIBUTE_IDS[attributes[0]] if attributes else NO_ATTRIBUTE,
                speed=float(np.linalg.norm(nusc.box_velocity(box.token))),
                token=box.token,
            )
        )
    return found

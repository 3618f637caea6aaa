"""Writes a small synthetic dataset in nuScenes' format: boxes around a car, drawn for six cameras.

The dataset loads with the nuScenes devkit and passes mmdet3d's converter. It covers what real data
contain: cameras that are not synchronized with the LiDAR, a tilted LiDAR, a turning car, objects
without points, seen only once or of no detection class, and a keyframe without objects. The
velocity of an object does not depend on its class, colour, position or orientation: it can only be
estimated from several frames. The info files that the BEVFormerV2 configs read are written too.

    python dev/generators/synthetic_nuscenes.py data/synthetic_nuscenes
"""

import argparse
import json
import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from dataset_folder import run_generator, write_folder, write_image
from driving_scene import (
    CAMERAS,
    CATEGORIES,
    LIDAR,
    SceneObject,
    Trajectory,
    add_corner_cases,
    camera_matrix,
    draw,
    lidar_points,
    place_objects,
    pose_matrix,
    sensor_pose,
)
from nuscenes.utils.splits import create_splits_scenes
from pyquaternion import Quaternion

ROOT = Path(__file__).resolve().parents[2]
FORMAT = 1
# Training and validation split of a version in the devkit, which name the scenes: 8 + 2, 700 + 150.
SPLITS = {"v1.0-mini": ("mini_train", "mini_val"), "v1.0-trainval": ("train", "val")}
TEST_VERSION = "v1.0-test"
# Time between keyframes; time stamp of the first in microseconds.
SECONDS = 0.5
START = 1_530_000_000_000_000
ATTRIBUTES = (
    *("vehicle.moving", "vehicle.stopped", "vehicle.parked"),
    *("cycle.with_rider", "cycle.without_rider"),
    *("pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving"),
)


class Tables:
    """nuScenes' tables; tokens are numbered."""

    def __init__(self) -> None:
        # Those of the test set are there, and empty.
        self.rows = defaultdict(list, instance=[], sample_annotation=[])

    def add(self, table: str, **fields: object) -> str:
        token = f"{table.replace('_', '')[:12]}{len(self.rows[table]):08x}".ljust(32, "0")
        self.rows[table].append({"token": token, **fields})
        return token

    def link(self, table: str, tokens: list[str]) -> None:
        """Links each row to the previous and the next one."""
        rows = {row["token"]: row for row in self.rows[table][-4000:]}
        for before, token, after in zip(["", *tokens], tokens, [*tokens[1:], ""], strict=False):
            rows[token].update(prev=before, next=after)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in self.rows.items():
            (folder / f"{name}.json").write_text(json.dumps(rows))


def fixed_tables(tables: Tables) -> dict[str, str]:
    """Adds the rows that do not depend on scenes; returns tokens by name."""
    tokens = {}
    for name in CATEGORIES:
        tokens[name] = tables.add("category", name=name, description="")
    for name in ATTRIBUTES:
        tokens[name] = tables.add("attribute", name=name, description="")
    for level in range(1, 5):
        tables.rows["visibility"].append(
            {"token": str(level), "level": f"v{20 * level}-{20 * level + 20}", "description": ""}
        )
    for name in (*CAMERAS, LIDAR):
        modality = "lidar" if name == LIDAR else "camera"
        tokens[name] = tables.add("sensor", channel=name, modality=modality)
    return tokens


class SceneWriter:
    """Writes the rows and files of one scene.

    Args:
        root: Folder of the dataset.
        tables: Tables to add to.
        tokens: Tokens of categories, attributes and sensors by name.
        size: (W, H) of the images.
        keyframes: Number of keyframes.
        annotate: Whether to write the objects to the tables.
    """

    def __init__(
        self,
        root: Path,
        tables: Tables,
        tokens: dict[str, str],
        size: tuple[int, int],
        keyframes: int,
        *,
        annotate: bool = True,
    ) -> None:
        self.root, self.tables, self.tokens = root, tables, tokens
        self.size, self.keyframes, self.annotate = size, keyframes, annotate

    def write(
        self,
        name: str,
        trajectory: Trajectory,
        things: list[SceneObject],
        start: int,
        empty: int | None,
    ) -> None:
        """Adds a scene that starts at ``start`` microseconds; keyframe ``empty`` has no objects."""
        tables = self.tables
        log = tables.add(
            "log", logfile=name, vehicle="n000", date_captured="2018-01-01", location="synthetic"
        )
        sensors = {sensor: self._calibrate(sensor) for sensor in (*CAMERAS, LIDAR)}
        times = [SECONDS * keyframe for keyframe in range(self.keyframes)]
        scene = tables.add("scene", name=name, description="", log_token=log)
        samples = [
            tables.add("sample", timestamp=start + round(1e6 * t), scene_token=scene) for t in times
        ]
        tables.link("sample", samples)
        tables.rows["scene"][-1].update(
            nbr_samples=len(samples),
            first_sample_token=samples[0],
            last_sample_token=samples[-1],
        )
        for sensor, calibrated in sensors.items():
            rows = []
            for index, (sample, seconds) in enumerate(zip(samples, times, strict=True)):
                shown = [] if index == empty else [t for t in things if index in t.keyframes]
                rows.append(
                    self._data(sensor, calibrated, sample, seconds, start, trajectory, shown)
                )
            tables.link("sample_data", rows)
        for thing in things if self.annotate else ():
            kept = [index for index in thing.keyframes if index != empty]
            self._annotate(thing, [samples[i] for i in kept], [times[i] for i in kept], trajectory)

    def _calibrate(self, sensor: str) -> str:
        position, rotation = sensor_pose(sensor)
        intrinsics = [] if sensor == LIDAR else camera_matrix(sensor, self.size).tolist()
        return self.tables.add(
            "calibrated_sensor",
            sensor_token=self.tokens[sensor],
            translation=list(position),
            rotation=list(rotation.unit.elements),
            camera_intrinsic=intrinsics,
        )

    def _data(
        self,
        sensor: str,
        calibrated: str,
        sample: str,
        seconds: float,
        start: int,
        trajectory: Trajectory,
        things: list[SceneObject],
    ) -> str:
        delay = 0.0 if sensor == LIDAR else CAMERAS[sensor][2]
        seconds += delay
        timestamp = start + round(1e6 * seconds)
        position, rotation = trajectory.pose(seconds)
        pose = self.tables.add(
            "ego_pose",
            timestamp=timestamp,
            translation=position.tolist(),
            rotation=rotation.elements.tolist(),
        )
        ending = "pcd.bin" if sensor == LIDAR else "jpg"
        file = Path("samples", sensor, f"{sample[:14]}__{sensor}__{timestamp}.{ending}")
        target = self.root / file
        target.parent.mkdir(parents=True, exist_ok=True)
        to_world = pose_matrix(position, rotation) @ pose_matrix(*sensor_pose(sensor))
        since_middle = seconds - trajectory.middle
        if sensor == LIDAR:
            lidar_points(things, since_middle, np.linalg.inv(to_world)).tofile(target)
        else:
            intrinsics = camera_matrix(sensor, self.size)
            write_image(target, draw(things, since_middle, to_world, intrinsics, self.size))
        return self.tables.add(
            "sample_data",
            sample_token=sample,
            ego_pose_token=pose,
            calibrated_sensor_token=calibrated,
            timestamp=timestamp,
            fileformat="pcd" if sensor == LIDAR else "jpg",
            is_key_frame=True,
            height=0 if sensor == LIDAR else self.size[1],
            width=0 if sensor == LIDAR else self.size[0],
            filename=str(file),
        )

    def _annotate(
        self, thing: SceneObject, samples: list[str], times: list[float], trajectory: Trajectory
    ) -> None:
        if not samples:
            return
        still, moving = CATEGORIES[thing.category][3:5]
        attribute = moving if np.linalg.norm(thing.velocity) > 0.2 else still
        instance = self.tables.add(
            "instance",
            category_token=self.tokens[thing.category],
            nbr_annotations=len(samples),
        )
        annotations = [
            self.tables.add(
                "sample_annotation",
                sample_token=sample,
                instance_token=instance,
                visibility_token="4",
                attribute_tokens=[self.tokens[attribute]] if attribute else [],
                translation=thing.center(seconds - trajectory.middle).tolist(),
                size=thing.wlh.tolist(),
                rotation=Quaternion(axis=[0, 0, 1], angle=thing.yaw).elements.tolist(),
                num_lidar_pts=thing.points,
                num_radar_pts=0,
            )
            for sample, seconds in zip(samples, times, strict=True)
        ]
        self.tables.link("sample_annotation", annotations)
        self.tables.rows["instance"][-1].update(
            first_annotation_token=annotations[0], last_annotation_token=annotations[-1]
        )


def scene_names(splits: Sequence[str], counts: Sequence[int]) -> list[str]:
    """The first scenes of some of the devkit's splits."""
    names = []
    for split, count in zip(splits, counts, strict=True):
        scenes = create_splits_scenes()[split]
        if not 0 <= count <= len(scenes):
            raise ValueError(f"{split} has {len(scenes)} scenes, got {count}")
        names += scenes[:count]
    return names


def write_scenes(
    root: Path,
    names: list[str],
    keyframes: int,
    objects: int,
    reach: float,
    top_speed: float,
    size: tuple[int, int],
    version: str,
    seed: int,
    first: int = 0,
) -> None:
    """Writes tables, images and points of the named scenes; see :func:`generate`.

    The scenes count from ``first``. Those of the test set have no annotations.
    """
    tables = Tables()
    tokens = fixed_tables(tables)
    writer = SceneWriter(root, tables, tokens, size, keyframes, annotate=version != TEST_VERSION)
    for number, name in enumerate(names, start=first):
        rng = np.random.default_rng([seed, number])
        trajectory = Trajectory(
            np.array([300.0 * number + 400, 900.0]), SECONDS * (keyframes - 1) / 2
        )
        things = place_objects(rng, trajectory, keyframes, objects, reach, top_speed)
        add_corner_cases(things)
        empty = keyframes // 2 if number == 0 and keyframes > 4 else None
        writer.write(name, trajectory, things, START + number * 60_000_000, empty)
    empty_map = Path("maps", "empty.png")
    (root / "maps").mkdir(parents=True, exist_ok=True)
    write_image(root / empty_map, np.zeros((8, 8), np.uint8))
    logs = [row["token"] for row in tables.rows["log"]]
    tables.add("map", log_tokens=logs, category="semantic_prior", filename=str(empty_map))
    tables.write(root / version)


def generate(
    out_dir: str | Path,
    *,
    train: int = 2,
    val: int = 1,
    test: int = 0,
    keyframes: int = 10,
    objects: int = 10,
    reach: float = math.inf,
    top_speed: float = 3.0,
    size: tuple[int, int] = (1600, 900),
    version: str = "v1.0-mini",
    seed: int = 0,
) -> bool:
    """Writes the dataset and its info files atomically, or keeps a finished one.

    Args:
        out_dir: Folder to make.
        train: Number of training scenes.
        val: Number of validation scenes.
        test: Number of scenes without annotations, as version ``v1.0-test`` in the same folder.
        keyframes: Number of keyframes of each scene, half a second apart.
        objects: Number of objects of each scene, besides one of every category.
        reach: Maximum distance of the objects in the middle of a scene in metres, above 11.
        top_speed: Maximum speed in metres per second, above 1; the minimum of moving objects is 1.
        size: (W, H) of the images; the intrinsics are scaled accordingly.
        version: Key of ``SPLITS``; the scenes are named after its splits.
        seed: Seed of all randomness.

    Returns:
        True if the dataset was written, False if it was there already.

    Raises:
        ValueError: The version has fewer scenes, or the folder holds something else.
        subprocess.CalledProcessError: The info files could not be written.
    """
    names, tests = scene_names(SPLITS[version], (train, val)), scene_names(("test",), (test,))
    options = dict(keyframes=keyframes, objects=objects, reach=reach, top_speed=top_speed)
    options |= dict(size=list(size), version=version, seed=seed)
    settings = dict(name="synthetic_nuscenes", format=FORMAT, train=train, val=val, **options)
    if test:
        settings["test"] = test

    def write(folder: Path) -> None:
        write_scenes(folder, names, **options)
        versions = [version]
        if tests:
            write_scenes(folder, tests, **{**options, "version": TEST_VERSION}, first=len(names))
            versions.append(TEST_VERSION)
        prepare = ROOT / "tools" / "dataset_converters" / "prepare_nuscenes.py"
        for each in versions:
            subprocess.run([sys.executable, prepare, folder, "--version", each], check=True)

    return write_folder(out_dir, settings, write)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path, help="folder to make")
    parser.add_argument("--train", type=int, default=2, help="training scenes")
    parser.add_argument("--val", type=int, default=1, help="validation scenes")
    parser.add_argument("--test", type=int, default=0, help="scenes of v1.0-test, not annotated")
    parser.add_argument("--keyframes", type=int, default=10)
    parser.add_argument("--objects", type=int, default=10, help="besides one of every category")
    parser.add_argument("--reach", type=float, default=math.inf, help="maximum distance in metres")
    parser.add_argument("--top-speed", type=float, default=3.0, help="maximum in metres per second")
    parser.add_argument("--size", default="1600x900", help="width and height of the images")
    parser.add_argument("--version", choices=SPLITS, default="v1.0-mini")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    options["size"] = tuple(map(int, options["size"].split("x")))
    return run_generator("synthetic_nuscenes", generate, options)


if __name__ == "__main__":
    sys.exit(main())

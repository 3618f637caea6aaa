"""Writes a small synthetic set in nuScenes' format: boxes around a car, drawn for six cameras.

The set loads with the nuScenes devkit and passes mmdet3d's converter. It holds what real data
hold: cameras that fire at other moments than the LiDAR, a tilted LiDAR, a curved way, objects
without points, seen only once, or of no detection class, and a keyframe without any. How fast an
object is, and where to, depends neither on its class or colour nor on where it is or looks: only
pictures of several moments tell. The info files that the BEVFormerV2 configs read are made too.

    python dev/generators/synthetic_nuscenes.py data/synthetic_nuscenes
"""

import argparse
import colorsys
import itertools
import json
import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from dataset_folder import write_whole
from nuscenes.utils.splits import create_splits_scenes
from pyquaternion import Quaternion

ROOT = Path(__file__).resolve().parents[2]
FORMAT = 1
# The devkit's splits to train on and to evaluate on: they name the scenes, 8 + 2 and 700 + 150.
SPLITS = {"v1.0-mini": ("mini_train", "mini_val"), "v1.0-trainval": ("train", "val")}
TEST_VERSION = "v1.0-test"
SECONDS = 0.5
START = 1_530_000_000_000_000
LIDAR = "LIDAR_TOP"
# Yaw in degrees, focal length at 1600 pixels, delay to the LiDAR in seconds.
CAMERAS = {
    "CAM_FRONT": (0.0, 1266, -0.035),
    "CAM_FRONT_RIGHT": (-56.5, 1260, -0.027),
    "CAM_FRONT_LEFT": (55.5, 1272, -0.043),
    "CAM_BACK": (180.0, 809, -0.010),
    "CAM_BACK_LEFT": (108.5, 1256, 0.000),
    "CAM_BACK_RIGHT": (-110.5, 1259, 0.028),
}
LIDAR_POSE = ((0.94, 0.0, 1.84), Quaternion(0.7077955, -0.0064922, 0.0106098, -0.7063073))
# Category: width, length, height, attributes when still and when moving, farthest distance.
CATEGORIES = {
    "movable_object.barrier": (2.3, 0.6, 1.0, None, None, 24),
    "vehicle.bicycle": (0.6, 1.7, 1.3, "cycle.without_rider", "cycle.with_rider", 34),
    "vehicle.bus.rigid": (2.9, 10.9, 3.4, "vehicle.stopped", "vehicle.moving", 42),
    "vehicle.car": (1.9, 4.6, 1.7, "vehicle.parked", "vehicle.moving", 42),
    "vehicle.construction": (2.8, 6.5, 3.2, "vehicle.parked", "vehicle.moving", 42),
    "vehicle.motorcycle": (0.8, 2.1, 1.5, "cycle.without_rider", "cycle.with_rider", 34),
    "human.pedestrian.adult": (0.7, 0.7, 1.8, "pedestrian.standing", "pedestrian.moving", 34),
    "movable_object.trafficcone": (0.4, 0.4, 1.1, None, None, 24),
    "vehicle.trailer": (2.9, 12.0, 3.8, "vehicle.parked", "vehicle.moving", 42),
    "vehicle.truck": (2.5, 6.9, 2.8, "vehicle.parked", "vehicle.moving", 42),
    "static_object.bicycle_rack": (2.0, 6.0, 1.4, None, None, 34),
}
ATTRIBUTES = (
    *("vehicle.moving", "vehicle.stopped", "vehicle.parked"),
    *("cycle.with_rider", "cycle.without_rider"),
    *("pedestrian.sitting_lying_down", "pedestrian.standing", "pedestrian.moving"),
)
FACES = {
    # Corner indices of a face, and how bright it is: front and back differ, so yaw can be seen.
    "front": ((0, 1, 3, 2), 1.0),
    "back": ((4, 5, 7, 6), 0.35),
    "left": ((0, 1, 5, 4), 0.7),
    "right": ((2, 3, 7, 6), 0.7),
    "top": ((0, 2, 6, 4), 0.85),
}
CORNERS = np.array(list(itertools.product((1, -1), repeat=3)))


@dataclass
class Thing:
    """An object that stands or moves along a line, in the world's frame.

    Attributes:
        category: One of ``CATEGORIES``.
        position: x and y at the scene's middle, metres.
        velocity: Metres per second.
        yaw: Counter-clockwise, radians.
        wlh: Width, length, height.
        points: LiDAR points in each of its boxes.
        keyframes: In which it is annotated.
    """

    category: str
    position: np.ndarray
    velocity: np.ndarray
    yaw: float
    wlh: np.ndarray
    points: int
    keyframes: range

    def center(self, seconds: float) -> np.ndarray:
        return np.array([*(self.position + self.velocity * seconds), self.wlh[2] / 2])

    def corners(self, seconds: float) -> np.ndarray:
        """(8, 3): along the length first, then to the left, then up."""
        half = self.wlh[[1, 0, 2]] / 2
        turn = Quaternion(axis=[0, 0, 1], angle=self.yaw).rotation_matrix
        return CORNERS * half @ turn.T + self.center(seconds)


class Way:
    """Where the car is: on a circle, at a constant speed, nodding a little.

    Args:
        start: x and y in metres.
        middle: Seconds at which the scene's objects are placed around the car.
    """

    speed, turn_rate = 4.0, 0.06

    def __init__(self, start: np.ndarray, middle: float) -> None:
        self.start, self.middle = start, middle

    def pose(self, seconds: float) -> tuple[np.ndarray, Quaternion]:
        heading = self.turn_rate * seconds
        radius = self.speed / self.turn_rate
        xy = self.start + radius * np.array([math.sin(heading), 1 - math.cos(heading)])
        pitch = 0.012 * math.sin(2.5 * seconds)
        rotation = Quaternion(axis=[0, 0, 1], angle=heading) * Quaternion(
            axis=[0, 1, 0], angle=pitch
        )
        return np.array([*xy, 0.0]), rotation


class Tables:
    """nuScenes' tables, with tokens that count."""

    def __init__(self) -> None:
        # Those of the test set are there, and empty.
        self.rows = defaultdict(list, instance=[], sample_annotation=[])

    def add(self, table: str, **fields: object) -> str:
        token = f"{table.replace('_', '')[:12]}{len(self.rows[table]):08x}".ljust(32, "0")
        self.rows[table].append({"token": token, **fields})
        return token

    def link(self, table: str, tokens: list[str]) -> None:
        """Notes the previous and the next row of each."""
        rows = {row["token"]: row for row in self.rows[table][-4000:]}
        for before, token, after in zip(["", *tokens], tokens, [*tokens[1:], ""], strict=False):
            rows[token].update(prev=before, next=after)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in self.rows.items():
            (folder / f"{name}.json").write_text(json.dumps(rows))


def scene_things(
    rng: np.random.Generator,
    way: Way,
    keyframes: int,
    count: int,
    reach: float = math.inf,
    top_speed: float = 3.0,
) -> list[Thing]:
    """Objects of every category around the car, as far as a class counts and at most ``reach``.

    Three of five move, each at a speed and into a direction that depend on nothing else.
    """
    center, heading = way.pose(way.middle)
    taken: list[tuple[np.ndarray, float]] = []
    things = []
    names = [*CATEGORIES, *rng.choice(list(CATEGORIES)[:-1], count)]
    # The largest first: they find no room later.
    for name in sorted(names, key=lambda name: -CATEGORIES[name][1]):
        width, length, height, *_, farthest = CATEGORIES[name]
        wlh = np.array([width, length, height]) * rng.uniform(0.9, 1.1, 3)
        for _ in range(200):
            angle = rng.uniform(-math.pi, math.pi)
            # A long object leaves a camera something else to see.
            distance = rng.uniform(5 + length / 2, min(farthest - 12, reach))
            offset = distance * np.array([math.cos(angle), math.sin(angle)])
            position = center[:2] + heading.rotation_matrix[:2, :2] @ offset
            room = math.hypot(length, width) / 2 + 0.5
            if all(np.linalg.norm(position - other) > room + r for other, r in taken):
                break
        taken.append((position, room))
        speed = rng.uniform(1, top_speed) if rng.random() < 0.6 else 0.0
        direction, yaw = rng.uniform(-math.pi, math.pi, 2)
        velocity = speed * np.array([math.cos(direction), math.sin(direction)])
        points = int(rng.integers(8, 60))
        things.append(Thing(name, position, velocity, yaw, wlh, points, range(keyframes)))
    return things


def add_traps(things: list[Thing]) -> None:
    """No points, too few points, seen once: on objects whose class has another example."""
    spare = [t for t in things if sum(o.category == t.category for o in things) > 1]
    seen: set[str] = set()
    spare = [t for t in spare if t.category not in seen and not seen.add(t.category)]
    for thing, points in zip(spare, (0, 2), strict=False):
        thing.points = points
    if len(spare) > 2:
        spare[2].keyframes = range(1, 2)


def camera_matrix(name: str, size: tuple[int, int]) -> np.ndarray:
    scale = size[0] / 1600
    focal = CAMERAS[name][1] * scale
    return np.array([[focal, 0, 816 * scale], [0, focal, 491 * scale], [0, 0, 1]])


def camera_pose(name: str) -> tuple[tuple[float, float, float], Quaternion]:
    """Mounting of a camera: x right, y down, z forward, turned by its yaw."""
    yaw = math.radians(CAMERAS[name][0])
    forward = Quaternion(matrix=np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]))
    place = (0.5 + 1.2 * math.cos(yaw), 0.5 * math.sin(yaw), 1.5)
    return place, Quaternion(axis=[0, 0, 1], angle=yaw) * forward


def colour(category: str, brightness: float) -> tuple[int, ...]:
    hue = list(CATEGORIES).index(category) / len(CATEGORIES)
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.85, brightness))[::-1]


def draw(
    things: list[Thing],
    seconds: float,
    to_world: np.ndarray,
    intrinsics: np.ndarray,
    size: tuple[int, int],
) -> np.ndarray:
    """A picture, BGR: sky, chequered ground, and the faces of the boxes from far to near.

    Args:
        things: What is there.
        seconds: When.
        to_world: (4, 4), of the camera.
        intrinsics: (3, 3).
        size: (W, H).
    """
    image = _background(to_world, intrinsics, size)
    to_camera = np.linalg.inv(to_world)
    faces = []
    for thing in things:
        corners = thing.corners(seconds) @ to_camera[:3, :3].T + to_camera[:3, 3]
        if corners[:, 2].min() < 0.2:
            continue
        pixels = corners @ intrinsics.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        for indices, brightness in FACES.values():
            depth = np.linalg.norm(corners[list(indices)].mean(0))
            faces.append((depth, pixels[list(indices)], colour(thing.category, brightness)))
    for _, polygon, shade in sorted(faces, key=lambda face: -face[0]):
        # Far outside, coordinates would leave OpenCV's range.
        points = np.round(np.clip(polygon, -10_000, 10_000) * 8).astype(np.int32)
        cv2.fillConvexPoly(image, points, shade, lineType=cv2.LINE_AA, shift=3)
    return image


def _background(to_world: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    coarse = 4
    x, y = np.meshgrid(np.arange(0, size[0], coarse), np.arange(0, size[1], coarse))
    rays = np.stack((x, y, np.ones_like(x)), -1) @ np.linalg.inv(intrinsics).T
    rays = rays @ to_world[:3, :3].T
    down = rays[..., 2] < -1e-3
    ground = to_world[:2, 3] + rays[..., :2] * (to_world[2, 3] / np.maximum(-rays[..., 2:], 1e-3))
    near = np.linalg.norm(ground - to_world[:2, 3], axis=-1) < 80
    chequer = (np.floor(ground / 4).sum(-1) % 2) * near
    shades = np.where(down, 90 + 25 * chequer, 200).astype(np.uint8)
    return cv2.cvtColor(cv2.resize(shades, size), cv2.COLOR_GRAY2BGR)


def pose_matrix(translation: np.ndarray, rotation: Quaternion) -> np.ndarray:
    matrix = rotation.transformation_matrix
    matrix[:3, 3] = translation
    return matrix


def fixed_tables(tables: Tables) -> dict[str, str]:
    """What does not depend on the scenes; tokens by name."""
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
        root: The set's folder.
        tables: Tables to add to.
        tokens: Of categories, attributes and sensors.
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
        self, name: str, way: Way, things: list[Thing], start: int, empty: int | None
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
                rows.append(self._data(sensor, calibrated, sample, seconds, start, way, shown))
            tables.link("sample_data", rows)
        for thing in things if self.annotate else ():
            kept = [index for index in thing.keyframes if index != empty]
            self._annotate(thing, [samples[i] for i in kept], [times[i] for i in kept], way)

    def _calibrate(self, sensor: str) -> str:
        place, rotation = LIDAR_POSE if sensor == LIDAR else camera_pose(sensor)
        intrinsics = [] if sensor == LIDAR else camera_matrix(sensor, self.size).tolist()
        return self.tables.add(
            "calibrated_sensor",
            sensor_token=self.tokens[sensor],
            translation=list(place),
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
        way: Way,
        things: list[Thing],
    ) -> str:
        delay = 0.0 if sensor == LIDAR else CAMERAS[sensor][2]
        moment = seconds + delay
        timestamp = start + round(1e6 * moment)
        place, rotation = way.pose(moment)
        pose = self.tables.add(
            "ego_pose",
            timestamp=timestamp,
            translation=place.tolist(),
            rotation=rotation.elements.tolist(),
        )
        ending = "pcd.bin" if sensor == LIDAR else "jpg"
        file = Path("samples", sensor, f"{sample[:14]}__{sensor}__{timestamp}.{ending}")
        target = self.root / file
        target.parent.mkdir(parents=True, exist_ok=True)
        ego = pose_matrix(place, rotation)
        since_middle = moment - way.middle
        if sensor == LIDAR:
            to_world = ego @ pose_matrix(*LIDAR_POSE)
            _points(things, since_middle, np.linalg.inv(to_world)).tofile(target)
        else:
            to_world = ego @ pose_matrix(*camera_pose(sensor))
            picture = draw(
                things, since_middle, to_world, camera_matrix(sensor, self.size), self.size
            )
            cv2.imwrite(str(target), picture)
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

    def _annotate(self, thing: Thing, samples: list[str], times: list[float], way: Way) -> None:
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
                translation=thing.center(seconds - way.middle).tolist(),
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


def _points(things: list[Thing], seconds: float, to_lidar: np.ndarray) -> np.ndarray:
    """Points inside of the boxes, as nuScenes' files have them: x, y, z, intensity, ring."""
    rng = np.random.default_rng(0)
    clouds = [np.zeros((1, 3))]
    for thing in things:
        corners = thing.corners(seconds)
        weights = rng.dirichlet(np.ones(8), thing.points)
        clouds.append(weights @ corners @ to_lidar[:3, :3].T + to_lidar[:3, 3])
    points = np.concatenate(clouds)
    return np.pad(points, ((0, 0), (0, 2))).astype(np.float32)


def scene_names(splits: Sequence[str], counts: Sequence[int]) -> list[str]:
    """The first scenes of some of the devkit's splits."""
    names = []
    for split, count in zip(splits, counts, strict=True):
        scenes = create_splits_scenes()[split]
        if not 0 <= count <= len(scenes):
            raise ValueError(f"{split} has {len(scenes)} scenes, got {count}")
        names += scenes[:count]
    return names


def write_set(
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
        way = Way(np.array([300.0 * number + 400, 900.0]), SECONDS * (keyframes - 1) / 2)
        things = scene_things(rng, way, keyframes, objects, reach, top_speed)
        add_traps(things)
        empty = keyframes // 2 if number == 0 and keyframes > 4 else None
        writer.write(name, way, things, START + number * 60_000_000, empty)
    picture = Path("maps", "empty.png")
    (root / "maps").mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / picture), np.zeros((8, 8), np.uint8))
    logs = [row["token"] for row in tables.rows["log"]]
    tables.add("map", log_tokens=logs, category="semantic_prior", filename=str(picture))
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
    """Writes the set and its info files to ``out_dir``, or keeps a finished one.

    Args:
        out_dir: Folder to make.
        train: Scenes to train on.
        val: Scenes to evaluate on.
        test: Scenes without annotations, as another version ``v1.0-test`` in the same folder.
        keyframes: Of each scene, half a second apart.
        objects: Of each scene, beside one of every category.
        reach: Metres within which the objects lie in the middle of a scene, above 11.
        top_speed: Metres per second, above 1; the slowest of those that move drives at 1.
        size: (W, H) of the pictures; the intrinsics are scaled accordingly.
        version: One of ``SPLITS``, by whose names the scenes go.
        seed: Of all that is random.

    Returns:
        True if the set was written, False if it was there already.

    Raises:
        ValueError: The version has fewer scenes, or the folder holds something else.
        subprocess.CalledProcessError: The info files could not be made.
    """
    names, tests = scene_names(SPLITS[version], (train, val)), scene_names(("test",), (test,))
    options = dict(keyframes=keyframes, objects=objects, reach=reach, top_speed=top_speed)
    options |= dict(size=list(size), version=version, seed=seed)
    settings = dict(name="synthetic_nuscenes", format=FORMAT, train=train, val=val, **options)
    if test:
        settings["test"] = test

    def write(folder: Path) -> None:
        write_set(folder, names, **options)
        versions = [version]
        if tests:
            write_set(folder, tests, **{**options, "version": TEST_VERSION}, first=len(names))
            versions.append(TEST_VERSION)
        prepare = ROOT / "tools" / "dataset_converters" / "prepare_nuscenes.py"
        for each in versions:
            subprocess.run([sys.executable, prepare, folder, "--version", each], check=True)

    return write_whole(out_dir, settings, write)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path, help="folder to make")
    parser.add_argument("--train", type=int, default=2, help="scenes to train on")
    parser.add_argument("--val", type=int, default=1, help="scenes to evaluate on")
    parser.add_argument("--test", type=int, default=0, help="scenes of v1.0-test, not annotated")
    parser.add_argument("--keyframes", type=int, default=10)
    parser.add_argument("--objects", type=int, default=10, help="beside one of every category")
    parser.add_argument("--reach", type=float, default=math.inf, help="metres to the farthest")
    parser.add_argument("--top-speed", type=float, default=3.0, help="metres per second")
    parser.add_argument("--size", default="1600x900", help="width and height of the pictures")
    parser.add_argument("--version", choices=SPLITS, default="v1.0-mini")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    out_dir = options.pop("out_dir")
    options["size"] = tuple(map(int, options["size"].split("x")))
    try:
        written = generate(out_dir, **options)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"synthetic_nuscenes.py: error: {error}", file=sys.stderr)
        return 1
    what = "wrote" if written else "kept the finished set in"
    scenes = f"{options['train']} + {options['val']} scenes of {options['keyframes']} keyframes"
    print(f"{what} {out_dir}: {scenes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

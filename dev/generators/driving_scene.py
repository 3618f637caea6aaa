"""Objects around a car with six cameras and a LiDAR: the content of synthetic_nuscenes.py.

The cameras are not triggered at the same time as the LiDAR, the LiDAR is tilted and the car turns.
"""

import colorsys
import itertools
import math
from dataclasses import dataclass

import cv2
import numpy as np
from pyquaternion import Quaternion

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
# Category: width, length, height, attributes when still and when moving, maximum distance.
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
FACES = {
    # Corner indices of a face, and its brightness: front and back differ, so that yaw is visible.
    "front": ((0, 1, 3, 2), 1.0),
    "back": ((4, 5, 7, 6), 0.35),
    "left": ((0, 1, 5, 4), 0.7),
    "right": ((2, 3, 7, 6), 0.7),
    "top": ((0, 2, 6, 4), 0.85),
}
CORNERS = np.array(list(itertools.product((1, -1), repeat=3)))


@dataclass
class SceneObject:
    """An object that stands still or moves in a straight line, in world coordinates.

    Attributes:
        category: One of ``CATEGORIES``.
        position: x and y in the middle of the scene, in metres.
        velocity: x and y, in metres per second.
        yaw: Counter-clockwise, in radians.
        wlh: Width, length, height in metres.
        points: Number of LiDAR points in each of its boxes.
        keyframes: Indices of the keyframes in which it is annotated.
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
        """Corners (8, 3): front before back, then left before right, then top before bottom."""
        half = self.wlh[[1, 0, 2]] / 2
        turn = Quaternion(axis=[0, 0, 1], angle=self.yaw).rotation_matrix
        return CORNERS * half @ turn.T + self.center(seconds)


class Trajectory:
    """Trajectory of the car: a circle at constant speed, with a small pitch oscillation.

    Args:
        start: Initial x and y in metres.
        middle: Time in seconds at which the objects are placed around the car.
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


def place_objects(
    rng: np.random.Generator,
    trajectory: Trajectory,
    keyframes: int,
    count: int,
    reach: float = math.inf,
    top_speed: float = 3.0,
) -> list[SceneObject]:
    """Places objects of every category around the car, within its evaluation range.

    Three of five move, with a speed and direction that depend on nothing else.

    Args:
        rng: Source of randomness.
        trajectory: The car's trajectory.
        keyframes: Number of keyframes.
        count: Number of objects besides one of every category.
        reach: Maximum distance in the middle of the scene, in metres.
        top_speed: Maximum speed in metres per second.
    """
    center, heading = trajectory.pose(trajectory.middle)
    taken: list[tuple[np.ndarray, float]] = []
    things = []
    names = [*CATEGORIES, *rng.choice(list(CATEGORIES)[:-1], count)]
    # The largest first: later there would be no space for them.
    for name in sorted(names, key=lambda name: -CATEGORIES[name][1]):
        width, length, height, *_, farthest = CATEGORIES[name]
        wlh = np.array([width, length, height]) * rng.uniform(0.9, 1.1, 3)
        for _ in range(200):
            angle = rng.uniform(-math.pi, math.pi)
            # Keeps long objects from filling a camera's image.
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
        things.append(SceneObject(name, position, velocity, yaw, wlh, points, range(keyframes)))
    return things


def add_corner_cases(things: list[SceneObject]) -> None:
    """Makes objects have no or too few points, or one annotation, if their class has another."""
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


def sensor_pose(name: str) -> tuple[tuple[float, float, float], Quaternion]:
    """Translation and rotation from a sensor to the car; cameras are x right, y down, z forward."""
    if name == LIDAR:
        return LIDAR_POSE
    yaw = math.radians(CAMERAS[name][0])
    forward = Quaternion(matrix=np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]))
    position = (0.5 + 1.2 * math.cos(yaw), 0.5 * math.sin(yaw), 1.5)
    return position, Quaternion(axis=[0, 0, 1], angle=yaw) * forward


def colour(category: str, brightness: float) -> tuple[int, ...]:
    hue = list(CATEGORIES).index(category) / len(CATEGORIES)
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.85, brightness))[::-1]


def draw(
    things: list[SceneObject],
    seconds: float,
    to_world: np.ndarray,
    intrinsics: np.ndarray,
    size: tuple[int, int],
) -> np.ndarray:
    """Draws an image in BGR: sky, chequered ground, and the boxes' faces from far to near.

    Args:
        things: The objects.
        seconds: Time from the middle of the scene.
        to_world: Camera to world transform (4, 4).
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
        # Coordinates far outside would exceed OpenCV's range.
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


def lidar_points(things: list[SceneObject], seconds: float, to_lidar: np.ndarray) -> np.ndarray:
    """Points inside the boxes in the format of nuScenes: x, y, z, intensity, ring."""
    rng = np.random.default_rng(0)
    clouds = [np.zeros((1, 3))]
    for thing in things:
        corners = thing.corners(seconds)
        weights = rng.dirichlet(np.ones(8), thing.points)
        clouds.append(weights @ corners @ to_lidar[:3, :3].T + to_lidar[:3, 3])
    points = np.concatenate(clouds)
    return np.pad(points, ((0, 0), (0, 2))).astype(np.float32)

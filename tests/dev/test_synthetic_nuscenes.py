"""The synthetic nuScenes: what its objects' velocities depend on. tests/bev reads its files."""

import numpy as np
import pytest

pytestmark = pytest.mark.mmdet3d

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed")


def test_velocities_cannot_be_seen_in_one_image(generator):
    """Speeds do not depend on the class; directions not on the orientation or the position."""
    scene = generator("driving_scene")
    trajectory = scene.Trajectory(np.zeros(2), 1.0)
    position = trajectory.pose(trajectory.middle)[0][:2]
    things = [
        thing
        for seed in range(120)
        for thing in scene.place_objects(
            np.random.default_rng(seed), trajectory, 4, 0, reach=12, top_speed=9
        )
    ]
    velocities = np.array([thing.velocity for thing in things])
    speeds = np.linalg.norm(velocities, axis=1)
    assert (speeds > 0).mean() == pytest.approx(0.6, abs=0.06)
    names = np.array([thing.category for thing in things])
    for name in scene.CATEGORIES:
        own = speeds[names == name]
        # Four standard errors.
        assert own.mean() == pytest.approx(speeds.mean(), abs=4 * speeds.std() / len(own) ** 0.5)
    yaws = np.array([thing.yaw for thing in things])
    headings = np.stack((np.cos(yaws), np.sin(yaws)), axis=1)
    away = np.array([thing.position - position for thing in things])
    for direction in (headings, away / np.linalg.norm(away, axis=1, keepdims=True)):
        along = (velocities * direction).sum(1)
        assert abs(along.mean()) < 4 * along.std() / len(along) ** 0.5


def test_versions_have_a_number_of_scenes(generator, tmp_path):
    generate = generator("synthetic_nuscenes").generate
    with pytest.raises(ValueError, match=r"mini_train has 8 scenes, got 9"):
        generate(tmp_path / "set", train=9)
    assert not (tmp_path / "set").exists()

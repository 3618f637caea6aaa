"""Cameras, pyramids and boxes for the tests of BEVFormerV2."""

import math

import torch

RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
# Yaw in degrees of CAM_FRONT, FRONT_RIGHT, FRONT_LEFT, BACK, BACK_LEFT, BACK_RIGHT.
YAWS = (0.0, -56.5, 55.5, 180.0, 108.5, -110.5)
STRIDES = (8, 16, 32, 64)


def surround_cameras(image_size, *, turn=0.0):
    """LiDAR to pixels for six cameras around a car, (6, 4, 4), all turned by some radians."""
    height, width = image_size
    matrices = []
    for degrees in YAWS:
        yaw = math.radians(degrees) + turn
        right = [math.cos(yaw), math.sin(yaw), 0.0]
        forward = [-math.sin(yaw), math.cos(yaw), 0.0]
        lidar_to_camera = torch.eye(4)
        lidar_to_camera[:3, :3] = torch.tensor([right, [0.0, 0.0, -1.0], forward])
        lidar_to_camera[:3, 3] = torch.tensor([0.0, -0.3, -0.8])
        intrinsics = torch.eye(4)
        intrinsics[0, 0] = intrinsics[1, 1] = 0.79 * width
        intrinsics[0, 2], intrinsics[1, 2] = width / 2, 0.36 * height
        matrices.append(intrinsics @ lidar_to_camera)
    return torch.stack(matrices)


def pyramid(batch, channels, image_size):
    """Random maps of six cameras, (B, 6, S, C), and the (H, W) of their levels."""
    shapes = [(-(-image_size[0] // s), -(-image_size[1] // s)) for s in STRIDES]
    return torch.randn(batch, 6, sum(h * w for h, w in shapes), channels), shapes

"""nuScenes for BEVFormerV2: infos, frames, transforms, metric."""

"""The sparse voxel engine: voxelise, plan, then execute."""

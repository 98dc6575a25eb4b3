"""The maths of merging: each method's schema and how it lowers to operations, and the kernels that compute them.

Knows no files, no graph and no YAML, and imports nothing else of mergeflow. Only `kernels/` needs torch.
"""

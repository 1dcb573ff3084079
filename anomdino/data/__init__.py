"""Pasting outlier objects into inlier scenes, and the composed training set."""

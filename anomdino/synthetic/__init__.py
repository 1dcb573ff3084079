"""Procedural road scenes with pixel-exact labels: the embedded default data set."""

from anomdino.synthetic.dataset import outlier, scene, write_synthetic

__all__ = ["outlier", "scene", "write_synthetic"]

"""Procedural road scenes with pixel-exact labels: the embedded default of the pipeline."""

from anomdino.scenes.sets import write_synthetic

__all__ = ["write_synthetic"]

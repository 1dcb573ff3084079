"""The object detector: mmdet's MM-Grounding-DINO with orthogonal uncertainty-aware fusion (docs/method.md 2).

Nothing here imports mmdet until a detector is built, trained or loaded.
"""

"""AnomDINO: find what no class list knows on the road, to the pixel.

The package is a library: it knows nothing of DVC (see ``pipeline/``). Importing it is cheap; the heavy parts
(torch, mmdet, transformers, matplotlib) are imported by the modules that need them.

Conventions, everywhere: anomaly scores are float32 and higher means more anomalous; labels are uint8 with 0 for
in-distribution, 1 for anomaly and 255 for void; boxes are xyxy in pixels of the original image, half-open, float32;
images are uint8 (H, W, 3) in RGB order.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]

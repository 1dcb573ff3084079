"""The field's metrics on numpy arrays: exact functions, and mergeable states that need one frame at a time.

Usable without the rest of the package; nothing here imports torch.
"""

from anomdino.metrics.components import ComponentMetrics, ComponentState, frame_components, predicted_mask
from anomdino.metrics.curve import Curve, exact_curve
from anomdino.metrics.instances import InstanceMetrics, InstanceState, components_as_instances
from anomdino.metrics.protocols import PerImageMetrics, per_image_metrics, pixel_metrics
from anomdino.metrics.results import PixelMetrics
from anomdino.metrics.s2m import S2mState
from anomdino.metrics.smiyc import SmiycPixels
from anomdino.metrics.sorting import SortedScores, sort_scores
from anomdino.metrics.streaming import StreamingPixels

__all__ = [
    "ComponentMetrics",
    "ComponentState",
    "Curve",
    "InstanceMetrics",
    "InstanceState",
    "PerImageMetrics",
    "PixelMetrics",
    "S2mState",
    "SmiycPixels",
    "SortedScores",
    "StreamingPixels",
    "components_as_instances",
    "exact_curve",
    "frame_components",
    "per_image_metrics",
    "pixel_metrics",
    "predicted_mask",
    "sort_scores",
]

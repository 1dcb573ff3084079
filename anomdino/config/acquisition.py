"""The `data.registry` block: which published data sets and weights are fetched, and how."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from anomdino.config.base import Block

Item = Literal[
    "s2m_val",
    "s2m_train",
    "rpl_seed",
    "rpl_corocl",
    "wide_resnet38_cityscapes",
    "mm_grounding_dino_t",
    "bert_base_uncased",
    "cityscapes",
    "coco_outliers",
    "camvid",
    "road_anomaly",
    "smiyc_anomaly_track",
    "smiyc_obstacle_track",
    "fishyscapes_laf",
    "lost_and_found",
]


PAPER_ITEMS: tuple[Item, ...] = (
    "cityscapes",
    "coco_outliers",
    "road_anomaly",
    "smiyc_anomaly_track",
    "smiyc_obstacle_track",
    "rpl_corocl",
    "wide_resnet38_cityscapes",
    "mm_grounding_dino_t",
    "bert_base_uncased",
)


class RegistryConfig(Block):
    """Published data sets and weights (`data.source: registry`)."""

    items: list[Item] = Field(default_factory=lambda: list(PAPER_ITEMS), min_length=1)
    """What is fetched; `anomdino data list` shows all names."""
    file: str = ""
    """Another registry file than the packaged one, for teams with copies of their own."""
    from_dir: str = ""
    """Folder with files that were downloaded by hand; they pass the same checks. Empty: nothing by hand."""
    downloads: str = "data/downloads"
    """Where downloaded archives are kept, so that nothing is downloaded twice."""
    mirror: str = ""
    """Address of an own copy of the files; `<mirror>/<file name>` is asked before all other sources."""
    offline: bool = False
    """true: never use the network; fail at once with the list of what is missing."""
    time_limit: float = Field(86400, gt=0)
    """Seconds after which the download of one file is given up, all retries included."""
    keep_unpacked: bool = False
    """Keep archives unpacked beside the downloads; faster when items change, at the cost of disk space."""

    @field_validator("mirror")
    @classmethod
    def _mirror_is_an_address(cls, mirror: str) -> str:
        parts = urlsplit(mirror)
        if mirror and not (parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0):
            raise ValueError(f"'{mirror}' is no address; write it with http:// or https://")
        return mirror

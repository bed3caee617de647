"""The run that needs nothing but this package: real scans of handwritten digits through the backbone that ships."""

from __future__ import annotations

from flows.config import Head2ToeConfig
from pipeline.extraction_parameters import ExtractionParameters
from pipeline.selection import SelectionParameters

BACKBONE = "test_resnet"
WEIGHTS = "shipped"


def demo_config(root: str, weights: str = WEIGHTS) -> Head2ToeConfig:
    """Return the parameters of the demo.

    Parameters
    ----------
    root : str
        Folder or URL under which stores and reports lie.
    weights : str
        ``shipped``, ``random:SEED``, ``pretrained`` or a checkpoint file.
    """
    return Head2ToeConfig(
        root=root,
        extraction=ExtractionParameters(backbone=BACKBONE, weights=weights, data="digits"),
        selection=SelectionParameters(),
    )

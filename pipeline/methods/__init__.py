"""Methods that are compared: each has a grid of settings, and fits on some samples to predict others."""

from __future__ import annotations

from pipeline.methods.all_layers import AllLayers
from pipeline.methods.fine_tuning import FineTuning, Scratch
from pipeline.methods.head2toe import Head2Toe
from pipeline.methods.interface import Method, Prediction, Samples, Settings
from pipeline.methods.linear import Linear
from pipeline.methods.oracle import Oracle, control

__all__ = [
    "AllLayers",
    "FineTuning",
    "Head2Toe",
    "Linear",
    "Method",
    "Oracle",
    "Prediction",
    "Samples",
    "Scratch",
    "Settings",
    "control",
]

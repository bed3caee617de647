"""Methods that are compared: each has a grid of settings, and fits on some samples to predict others."""

from __future__ import annotations

from pipeline.methods.head2toe import Head2Toe
from pipeline.methods.interface import Method, Prediction, Samples, Settings
from pipeline.methods.linear import Linear

__all__ = ["Head2Toe", "Linear", "Method", "Prediction", "Samples", "Settings"]

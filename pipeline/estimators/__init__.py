"""Head2Toe as scikit-learn knows it: a selector and a classifier, on arrays and on stores."""

from pipeline.estimators.classifier import Head2ToeEstimator
from pipeline.estimators.data import StoreSamples
from pipeline.estimators.selector import Head2ToeSelector

__all__ = ["Head2ToeEstimator", "Head2ToeSelector", "StoreSamples"]

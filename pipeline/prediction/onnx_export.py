"""The classifier as one ONNX graph, for runtimes without PyTorch."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.prediction.classifier import Head2ToeClassifier
from pipeline.taps import Capture
from store.errors import InvalidInputError

ONNX = "model.onnx"
OPSET = 18


class _Whole(nn.Module):
    """A classifier that runs its backbone to the end: what captures graphs cannot follow an early stop.

    What no logit depends on is not in the graph all the same.
    """

    def __init__(self, classifier: Head2ToeClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        classifier = self.classifier
        with Capture(classifier.backbone, classifier.layers) as capture:
            return classifier.logits(classifier.choose(capture(images)))


def write_onnx(classifier: Head2ToeClassifier, path: Path) -> None:
    """Write the classifier as ONNX: ``images`` (batch, channels, height, width) float32 to ``logits`` (batch, class).

    Layers beyond the deepest selected one are not in the graph. Preprocessing is not, either; ``head2toe.json`` says
    what it is. Everything is computed in float32, but features are rounded as in the store.

    Parameters
    ----------
    classifier : Head2ToeClassifier
        What to write; it is moved to the CPU.
    path : Path
        The file.

    Raises
    ------
    InvalidInputError
        If the packages are not installed, or the backbone has an operation that ONNX does not know.
    """
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise InvalidInputError(
            f"ONNX needs the package {missing[0]!r}; install this package with its extra: 'head2toe-store[onnx]'."
        )
    # It says of every operation what it does not simplify.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    # Two images, since a batch of one may be taken for a constant.
    images = torch.zeros((2, *classifier.recipe.preprocessing.input_size))
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Whole(classifier.cpu()).eval(),
                (images,),
                str(path),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                opset_version=OPSET,
                external_data=False,
                dynamo=True,
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InvalidInputError(f"backbone {classifier.recipe.backbone!r} cannot become ONNX: {reason}.") from error

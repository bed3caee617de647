"""The exported folder: a JSON document, tensors in safetensors, a model card, and nothing that runs when read.

- ``head2toe.json``: the recipe, with the SHA-256 of each file of tensors
- ``head.safetensors``: indices, coef, intercept and, for standardize, mean and scale
- ``backbone.safetensors``: if asked for, or if the weights are a file of the user's own
- ``model.onnx``: if asked for
- ``README.md``: the model card
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline.prediction.card import model_card
from pipeline.prediction.classifier import Head2ToeClassifier
from pipeline.prediction.onnx_export import ONNX, write_onnx
from pipeline.prediction.recipe import Recipe
from pipeline.prediction.restoring import is_file, restore_backbone
from store.errors import InvalidInputError

RECIPE, HEAD, BACKBONE, CARD = "head2toe.json", "head.safetensors", "backbone.safetensors", "README.md"
MOST_RECIPE_BYTES = 16 * 2**20
"""A document is a few kilobytes, with 10,000 classes a few hundred."""


def export_classifier(
    classifier: Head2ToeClassifier,
    folder: str | os.PathLike[str],
    *,
    include_backbone: bool | None = None,
    onnx: bool = False,
) -> Path:
    """Write a classifier as one folder, which appears only once it is whole.

    Parameters
    ----------
    classifier : Head2ToeClassifier
        What to write.
    folder : str or path
        Where; it must not exist, or be empty.
    include_backbone : bool, optional
        Whether the backbone's weights are written, too. Without them they are fetched again by name and must have the
        digest that is written. If not given, only weights from a file are included: nobody else has them.
    onnx : bool
        Whether the whole is written as ``model.onnx``, too, from preprocessed images to logits.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InvalidInputError
        If the folder has something in it or cannot be written, or ONNX is not installed.
    """
    target = Path(folder)
    recipe = classifier.recipe
    include = BACKBONE in foresee_export(classifier, target, include_backbone=include_backbone)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise InvalidInputError(f"cannot write {str(target)!r}: {error.strerror or error}.") from error
    try:
        # Not save_file, whose files nobody else may read.
        (work / HEAD).write_bytes(save(_own(classifier)))
        if include:
            state = classifier.backbone.state_dict()
            weights = {name: tensor.contiguous().cpu() for name, tensor in state.items()}
            (work / BACKBONE).write_bytes(save(weights))
        files = {path.name: _sha256(path) for path in sorted(work.iterdir())}
        # The path of a file that is included says something of the machine and nothing to a reader.
        written = recipe.model_copy(update={"files": files, "weights": BACKBONE if include else recipe.weights})
        (work / RECIPE).write_text(written.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if onnx:
            write_onnx(classifier, work / ONNX)
        (work / CARD).write_text(model_card(written, onnx=onnx), encoding="utf-8")
        work.chmod(0o777 & ~_umask())
        work.rename(target)
    except OSError as error:
        raise InvalidInputError(f"cannot write {str(target)!r}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def foresee_export(
    classifier: Head2ToeClassifier,
    folder: str | os.PathLike[str],
    *,
    include_backbone: bool | None = None,
    onnx: bool = False,
) -> tuple[str, ...]:
    """Return the names of the files that `export_classifier` would write; nothing is written.

    Raises
    ------
    InvalidInputError
        If the folder has something in it.
    """
    target = Path(folder)
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise InvalidInputError(f"{str(target)!r} is there already; give --output a folder that is new or empty.")
    include = is_file(classifier.recipe.weights) if include_backbone is None else include_backbone
    return tuple(sorted((CARD, RECIPE, HEAD, *[BACKBONE] * include, *[ONNX] * onnx)))


def read_artifact(folder: str | os.PathLike[str], *, weights: str | None = None) -> Head2ToeClassifier:
    """Return the classifier in an exported folder.

    Parameters
    ----------
    folder : str or path
        What `export_classifier` wrote.
    weights : str, optional
        In place of where the document says that the backbone's weights are.

    Raises
    ------
    InvalidInputError
        If the folder is damaged or not ours, or the backbone cannot be had or is not the one of the head.
    """
    place = Path(folder)
    recipe = _read_recipe(place / RECIPE)
    included = place / BACKBONE if BACKBONE in recipe.files else None
    tensors = _read_tensors(place / HEAD, recipe)
    try:
        recipe.check(tensors)
    except InvalidInputError as error:
        raise InvalidInputError(_damaged(place / HEAD, str(error))) from error
    if weights is None and included is not None:
        _check_digest(included, recipe)
        weights = str(included)
    found = weights or recipe.weights
    backbone = restore_backbone(recipe.backbone, found, recipe.backbone_spec, recipe.preprocessing)
    return Head2ToeClassifier(backbone, recipe.model_copy(update={"weights": found, "files": {}}), tensors)


def _own(classifier: Head2ToeClassifier) -> dict[str, Tensor]:
    """Return the numbers of the head, without the backbone's."""
    return {name: tensor.contiguous().cpu() for name, tensor in classifier.named_buffers(recurse=False)}


def _read_recipe(path: Path) -> Recipe:
    try:
        if path.stat().st_size > MOST_RECIPE_BYTES:
            raise InvalidInputError(_damaged(path, f"it is larger than {MOST_RECIPE_BYTES:,} bytes."))
        return Recipe.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise InvalidInputError(_damaged(path, f"{where}: {first['msg']}.")) from error
    except InvalidInputError as error:
        raise error if str(path) in str(error) else InvalidInputError(_damaged(path, str(error))) from error
    except OSError as error:
        raise InvalidInputError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error


def _read_tensors(path: Path, recipe: Recipe) -> dict[str, Tensor]:
    _check_digest(path, recipe)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidInputError(_damaged(path, f"{error}.")) from error


def _check_digest(path: Path, recipe: Recipe) -> None:
    try:
        found = _sha256(path)
    except OSError as error:
        raise InvalidInputError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from error
    if found != recipe.files.get(path.name):
        raise InvalidInputError(_damaged(path, f"it does not have the digest that {RECIPE} says."))


def _damaged(path: Path, how: str) -> str:
    return f"{str(path)!r} is damaged or no part of an exported classifier: {how.rstrip('.')}; export it again."


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    """Return what new folders lack: a temporary folder lacks all rights of others, an exported one should not."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

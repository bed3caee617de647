"""Commands that use a head on new images: `predict` and `export`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.completion import complete_head, complete_store, complete_weights
from flows.console import MISTAKE, ProgressBars, human_bytes, insist, print_facts, print_json, print_table, say
from flows.options import DryRun, Json, StoreArgument
from flows.outputs import check_folder
from store.errors import InvalidInputError

if TYPE_CHECKING:
    from pipeline.prediction import Predictions

MOST_NAMED = 20
ENDINGS = (".csv", ".json")
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="W",
        help="The backbone's weights, if no longer where they were: a file, 'pretrained' or 'shipped'.",
        autocompletion=complete_weights,
    ),
]
HeadOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIGEST",
        help="Head of the store, or its beginning; the newest on a selection.",
        autocompletion=complete_head,
    ),
]


def predict(
    place: Annotated[
        str,
        typer.Argument(
            metavar="HEAD",
            help="An activation store, of which --head says the head, or a folder that `export` wrote.",
            autocompletion=complete_store,
        ),
    ],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE…", help="Image files, and folders of them.")],
    head: HeadOption = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all probabilities to a .csv or .json file.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes shown per image.")] = 1,
    weights: Weights = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per forward pass; 16 on the CPU, 64.")] = None,
    device: Annotated[str, typer.Option(help="'auto' (a GPU if there is one), 'cpu', 'cuda:1', …")] = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that read images; one per core.")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Classify new images; the backbone runs only as deep as the deepest layer that the head reads.

    Without --head it is the newest on a selection, which is named on standard error. Images that cannot be used are
    named there, too, the others are classified, and the exit code is 2.

    For example:
      head2toe predict demo/fa7c photo.jpg folder
      head2toe predict demo/fa7c --head 3f2a photo.jpg
      head2toe predict digits-classifier folder --output labels.csv
    """
    from pipeline.prediction import load_classifier, predict_images
    from pipeline.prediction.images import find_images

    if output is not None and output.suffix.lower() not in ENDINGS:
        raise InvalidInputError(f"--output {str(output)!r} ends in {output.suffix!r}; endings are .csv and .json.")
    if output is not None:
        check_folder(output)
    classifier = load_classifier(place, head, weights=weights, announce=say)
    trained: str = classifier.recipe.lineage["head"]
    if dry_run:
        names, problems = find_images(images)
        facts: dict[str, Any] = {
            "images": len(names),
            "head": trained,
            "deepest_layer": classifier.recipe.layers[-1].name,
            "output": None if output is None else str(output),
            "replaces_output": output is not None and output.exists(),
        }
        if as_json:
            print_json({**facts, "errors": [{"image": name, "reason": problem} for name, problem in problems]})
        else:
            print_facts({name: value for name, value in facts.items() if value is not None})
        _end(problems, len(names))
        return
    with ProgressBars() as progress:
        found = predict_images(
            classifier, images, batch_size=batch_size, device=device, workers=workers, progress=progress
        )
    if output is not None:
        _write(output, found, trained)
    if as_json:
        print_json(_document(found, trained))
    elif found.predictions:
        print_table(None, ("image", "class", "probability"), _rows(found, top))
    _end(found.problems, len(found.predictions))


def _end(problems: list[tuple[str, str]], n_good: int) -> None:
    """End with the exit code of a mistake, if some images cannot be used, after naming them."""
    for name, problem in problems[:MOST_NAMED]:
        insist(f"error: image {name!r} {problem}.")
    if problems:
        more = len(problems) - MOST_NAMED
        rest = f" ({more:,} more than are named here; --json names all)" if more > 0 else ""
        insist(f"error: {len(problems):,} of the images cannot be used{rest}; {n_good:,} are done.")
        raise typer.Exit(MISTAKE)


def export(
    uri: StoreArgument,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Where it goes; new, or empty.")],
    head: HeadOption = None,
    include_backbone: Annotated[
        bool | None,
        typer.Option(
            "--include-backbone/--no-include-backbone",
            help="Put the backbone's weights in; only those from a file are, if not said.",
        ),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write model.onnx, from preprocessed images to logits.")] = (
        False
    ),
    weights: Weights = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write a head and all it needs as one folder, which `predict` reads anywhere: no pickle, and a model card.

    Without --head it is the newest on a selection, which is named on standard error.

    For example:
      head2toe export demo/fa7c --output digits-classifier
      head2toe export demo/fa7c --head 3f2a --output digits-classifier
    """
    from pipeline.prediction import export_classifier, foresee_export, load_classifier

    classifier = load_classifier(uri, head, weights=weights, announce=say)
    files: dict[str, int | None]
    if dry_run:
        planned = foresee_export(classifier, output, include_backbone=include_backbone, onnx=onnx)
        files = dict.fromkeys(planned)
    else:
        folder = export_classifier(classifier, output, include_backbone=include_backbone, onnx=onnx)
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    recipe = classifier.recipe
    facts: dict[str, Any] = {
        "folder": str(output),
        "head": recipe.lineage["head"],
        "features": recipe.n_selected,
        "layers": len(recipe.layers),
        "deepest_layer": recipe.layers[-1].name,
        "classes": len(recipe.class_names),
        "accuracy": recipe.accuracy,
    }
    if as_json:
        print_json({**facts, "files": files})
        return
    facts["accuracy"] = {split: f"{100 * value:.1f} %" for split, value in recipe.accuracy.items()}
    sizes = {name: "to be written" if size is None else human_bytes(size) for name, size in files.items()}
    print_facts({**facts, "files": sizes})


def _rows(found: Predictions, top: int) -> list[tuple[str, str, str]]:
    rows = []
    for one in found.predictions:
        best = (-one.probabilities).argsort(kind="stable")[:top]
        rows += [
            ("" if rank else one.image, found.class_names[k], f"{100 * one.probabilities[k]:.1f} %")
            for rank, k in enumerate(best)
        ]
    return rows


def _document(found: Predictions, head: str) -> dict[str, Any]:
    return {
        "head": head,
        "classes": list(found.class_names),
        "predictions": [
            {
                "image": one.image,
                "label": one.label,
                "probability": one.probability,
                "probabilities": [float(p) for p in one.probabilities],
            }
            for one in found.predictions
        ],
        "errors": [{"image": name, "reason": problem} for name, problem in found.problems],
    }


def _write(path: Path, found: Predictions, head: str) -> None:
    """Write all probabilities; the file is there only once it is whole."""
    text = io.StringIO(newline="")
    if path.suffix.lower() == ".csv":
        rows = csv.writer(text)
        rows.writerow(("image", "label", "probability", *(f"probability of {name}" for name in found.class_names)))
        rows.writerows((o.image, o.label, o.probability, *map(float, o.probabilities)) for o in found.predictions)
    else:
        import json

        json.dump(_document(found, head), text, indent=1, ensure_ascii=False)
    work = path.with_name(f".{path.name}.partial")
    try:
        work.write_text(text.getvalue(), encoding="utf-8", newline="")
        work.replace(path)
    except OSError as error:
        raise InvalidInputError(f"cannot write {str(path)!r}: {error.strerror or error}.") from error


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (predict, export):
        app.command()(command)

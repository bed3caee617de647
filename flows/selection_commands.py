"""Commands that work on a store's features: `select` and `refit`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from flows.catalogue_commands import Json, StoreArgument
from flows.console import ProgressBars, human_bytes, print_facts, print_json, print_table


class Normalization(StrEnum):
    """Choices of ``--normalization``."""

    unit_norm = "unit_norm"
    standardize = "standardize"
    none = "none"


def select(
    uri: StoreArgument,
    fraction: Annotated[
        float | None, typer.Option(help="Share of all features to keep, in (0, 1]; default 0.05.")
    ] = None,
    keep: Annotated[int | None, typer.Option(help="Number of features to keep, instead of a fraction.")] = None,
    penalty_ratio: Annotated[
        float | None, typer.Option(help="λ relative to the least one that keeps nothing; default 0.1.")
    ] = None,
    penalty: Annotated[float | None, typer.Option(help="λ as an absolute coefficient, instead of a ratio.")] = None,
    normalization: Annotated[Normalization, typer.Option(help="What the head sees.")] = Normalization.standardize,
    split: Annotated[str, typer.Option(help="Training samples.")] = "train",
    as_json: Json = False,
) -> None:
    """Rank all features by exact group lasso, keep the best, and print the selection with its certificate.

    Example: head2toe select stores/<fingerprint>.zarr --fraction 0.01
    """
    from pipeline.selection import SelectionParameters, select_features
    from store import open_store
    from store.aliases import resolve_store

    parameters = SelectionParameters(
        fraction=fraction,
        keep=keep,
        penalty_ratio=penalty_ratio,
        penalty=penalty,
        normalization=normalization.value,
        split=split,
    )
    store = open_store(resolve_store(uri))
    with ProgressBars() as progress:
        selection = select_features(store, parameters, progress)
    counts = selection.per_layer(store)
    facts = {
        "selection": selection.digest,
        "kept": len(selection.indices),
        "of": store.n_features,
        "support": int((selection.relevance > 0).sum()),
        "reused": selection.reused,
        "seconds": selection.seconds,
    }
    if as_json:
        print_json({**facts, "certificate": selection.certificate, "per_layer": counts})
        return
    print_facts(facts)
    print_table("certificate", ("", ""), [(k, str(v)) for k, v in selection.certificate.items()])
    print_table("kept by layer", ("layer", "kept"), [(k, f"{v:,}") for k, v in counts.items() if v])


def refit(
    uri: StoreArgument,
    selection: Annotated[str | None, typer.Option(help="Digest of a selection, or its beginning.")] = None,
    linear: Annotated[bool, typer.Option("--linear", help="Use the last embedding instead: the baseline.")] = False,
    normalization: Annotated[
        Normalization, typer.Option(help="What the baseline sees; a selection keeps its own.")
    ] = Normalization.standardize,
    max_iterations: Annotated[int, typer.Option(min=1, help="Upper bound of L-BFGS iterations.")] = 500,
    seed: Annotated[int, typer.Option(help="Chooses the validation samples.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a head on the selected columns only, and print its accuracy.

    Example: head2toe refit stores/<fingerprint>.zarr --selection 3f2a
    """
    from pipeline.refit import RefitParameters
    from pipeline.refit import refit as refit_stage
    from pipeline.selection import read_selection
    from store import open_store
    from store.aliases import resolve_store

    if (selection is None) != linear:
        raise typer.BadParameter("give either --selection ID or --linear; `head2toe show STORE` lists the selections.")
    store = open_store(resolve_store(uri))
    parameters = RefitParameters(max_iterations=max_iterations, seed=seed)
    if selection is not None:
        chosen = read_selection(store, selection)
        head = refit_stage(
            store,
            chosen.indices,
            features={"selection": chosen.digest},
            normalization=chosen.normalization,
            parameters=parameters,
        )
    else:
        name = store.embedding
        head = refit_stage(
            store,
            store.layer_indices(name),
            features={"layer": name},
            normalization=normalization.value,
            parameters=parameters,
        )
    facts = {"head": head.digest, "features": len(head.indices), "reused": head.reused, **head.facts}
    if as_json:
        print_json(facts)
        return
    facts["accuracy"] = {split: f"{100 * head.accuracy[split]:.1f} %" for split in store.splits}
    facts["bytes_read"] = human_bytes(head.facts["bytes_read"])
    print_facts(facts)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (select, refit):
        app.command()(command)

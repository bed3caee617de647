"""Commands that work on a store's features: `select` and `refit`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.catalogue_commands import Json, StoreArgument
from flows.console import ProgressBars, human_bytes, print_facts, print_json, print_table, say

if TYPE_CHECKING:
    from store import ActivationStore

SCORERS = "group_lasso, adam, l1, l2, variance, chi2, f_classif, mutual_info, extra_trees, random, or a plug-in's"
NORMALIZATIONS = "standardize, unit_norm (the paper's) or none"
Join = Annotated[
    list[str] | None,
    typer.Option(metavar="STORE", help="Another store of the same images, whose features come after; repeatable."),
]


def select(
    uri: StoreArgument,
    fraction: Annotated[
        str | None, typer.Option(metavar="F", help="Share of all features to keep, in (0, 1]; default 0.05.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(metavar="K", help="Number of features to keep, instead of a fraction.")
    ] = None,
    scorer: Annotated[str, typer.Option(metavar="SCORER", help=f"{SCORERS}.")] = "group_lasso",
    penalty_ratio: Annotated[
        str | None,
        typer.Option(metavar="R", help="λ relative to the least one that keeps nothing; group_lasso, l1: 0.1."),
    ] = None,
    penalty: Annotated[
        str | None, typer.Option(metavar="L", help="λ as an absolute coefficient; adam, l2: 1e-4.")
    ] = None,
    normalization: Annotated[
        str, typer.Option(metavar="N", help=f"What the head sees: {NORMALIZATIONS}.")
    ] = "standardize",
    split: Annotated[str, typer.Option(help="Training samples.")] = "train",
    tolerance: Annotated[
        str | None,
        typer.Option(metavar="T", help="group_lasso: relative duality gap, 1e-4; l1: violation over λ, 1e-3."),
    ] = None,
    steps: Annotated[str | None, typer.Option(metavar="N", help="Steps of adam; default 500.")] = None,
    learning_rate: Annotated[str | None, typer.Option(metavar="RATE", help="Of adam at first; default 0.1.")] = None,
    seed: Annotated[
        str | None, typer.Option(metavar="N", help="Of adam, extra_trees, mutual_info and random; default 0.")
    ] = None,
    average_over: Annotated[
        str | None, typer.Option(metavar="N", help="Average the scores of so many seeds; default 1.")
    ] = None,
    offset: Annotated[str, typer.Option(metavar="K", help="Skip so many of the best features.")] = "0",
    layer_mean: Annotated[
        str, typer.Option(metavar="A", help="Move scores this far, from 0 to 1, towards the mean of their layer.")
    ] = "0",
    whole_layers: Annotated[bool, typer.Option("--whole-layers", help="Keep the layers of the best mean.")] = False,
    join: Join = None,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="What may be held in memory besides the program itself, such as 500MB.")
    ] = "2GiB",
    dask_address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Let the workers of a running Dask scheduler read the store."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Rank all features, by exact group lasso or another scorer, keep the best, and print the selection.

    Options that do not matter to the scorer are refused; docs/selection.md says what each scorer does.

    Example: head2toe select stores/<fingerprint>.zarr --fraction 0.01
    """
    given = locals()
    from pipeline.selection import SelectionParameters, select_features

    # Text is parsed where a configuration's values are, so that both are refused with the same sentence.
    known = SelectionParameters.model_fields
    parameters = SelectionParameters.model_validate({name: value for name, value in given.items() if name in known})
    store = _open(uri, join)
    with ProgressBars() as progress:
        selection = select_features(store, parameters, progress, memory=memory, dask_address=dask_address, announce=say)
    counts = selection.per_layer(store)
    facts = {
        "selection": selection.digest,
        "scorer": selection.scorer,
        "kept": len(selection.indices),
        "of": store.n_features,
        "support": selection.support,
        "reused": selection.reused,
        "seconds": selection.seconds,
    }
    if as_json:
        print_json({**facts, "certificate": selection.certificate, "per_layer": counts})
        return
    print_facts({name: value for name, value in facts.items() if value is not None})
    _print_certificate(selection.certificate)
    print_table("kept by layer", ("layer", "kept"), [(k, f"{v:,}") for k, v in counts.items() if v])


def _open(uri: str, join: list[str] | None) -> ActivationStore:
    """Open a store, or several as one."""
    from pipeline.joined_store import join_stores
    from store import open_store
    from store.aliases import resolve_store

    return join_stores([open_store(resolve_store(each)) for each in (uri, *(join or ()))])


def _print_certificate(certificate: Mapping[str, Any]) -> None:
    """Print what proves a selection, or that nothing does."""
    shown = {key: value for key, value in certificate.items() if value != ""}
    title: str | None = "certificate"
    if shown.get("note", "").startswith("no certificate"):
        title = None
        typer.echo(shown.pop("note") + ".")
        del shown["certified"]
    if shown:
        print_table(title, ("", ""), [(key, _figure(key, value)) for key, value in shown.items()])


def _figure(key: str, value: Any) -> str:
    """Return a value for people: sizes with their unit, figures of four digits, parts of seconds as hundredths."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {part:.2f}" for key, part in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return human_bytes(value) if "bytes" in key else f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def refit(
    uri: StoreArgument,
    selection: Annotated[str | None, typer.Option(help="Digest of a selection, or its beginning.")] = None,
    selection_from: Annotated[
        str | None,
        typer.Option(metavar="STORE", help="Another store of the same layers, in which the selection was made."),
    ] = None,
    linear: Annotated[bool, typer.Option("--linear", help="Use the last embedding instead: the baseline.")] = False,
    normalization: Annotated[
        str, typer.Option(metavar="N", help=f"What the baseline sees: {NORMALIZATIONS}; a selection keeps its own.")
    ] = "standardize",
    optimizer: Annotated[
        str, typer.Option(metavar="O", help="lbfgs, stopped by held-out samples, or adam, the paper's recipe.")
    ] = "lbfgs",
    max_iterations: Annotated[
        str | None, typer.Option(metavar="N", help="Upper bound of iterations of lbfgs; default 500.")
    ] = None,
    validation_fraction: Annotated[
        str | None, typer.Option(metavar="V", help="Share of samples that stops lbfgs; default 0.2, none is 0.")
    ] = None,
    patience: Annotated[
        str | None, typer.Option(metavar="N", help="Iterations of lbfgs without a better validation loss; default 15.")
    ] = None,
    learning_rate: Annotated[str | None, typer.Option(metavar="RATE", help="Of adam at first; default 0.01.")] = None,
    steps: Annotated[str | None, typer.Option(metavar="N", help="Steps of adam; default 500.")] = None,
    seed: Annotated[str, typer.Option(metavar="N", help="Of what is held out, or of adam's draws.")] = "0",
    join: Join = None,
    as_json: Json = False,
) -> None:
    """Train a head on the selected columns only, and print its accuracy.

    Options that do not matter to the optimizer are refused; docs/refit.md says what each does.

    Example: head2toe refit stores/<fingerprint>.zarr --selection 3f2a
    """
    given = locals()
    from pipeline.refit import RefitParameters
    from pipeline.refit import refit as refit_stage
    from pipeline.selection import selection_features
    from store import open_store
    from store.aliases import resolve_store

    if (selection is None) != linear:
        raise typer.BadParameter("give either --selection ID or --linear; `head2toe show STORE` lists the selections.")
    if selection is None and selection_from is not None:
        raise typer.BadParameter("--selection-from says where the --selection is; there is none with --linear.")
    known = RefitParameters.model_fields
    parameters = RefitParameters.model_validate({name: value for name, value in given.items() if name in known})
    store = _open(uri, join)
    if selection is not None:
        origin = store if selection_from is None else open_store(resolve_store(selection_from))
        chosen, features = selection_features(store, selection, origin)
        head = refit_stage(
            store,
            chosen.indices,
            features=features,
            normalization=chosen.normalization,
            parameters=parameters,
            train=chosen.split,
        )
    else:
        name = store.embedding
        head = refit_stage(
            store,
            store.layer_indices(name),
            features={"layer": name},
            normalization=normalization,
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

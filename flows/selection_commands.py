"""Commands that work on a store's features: `select` and `refit`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.completion import (
    NORMALIZATIONS,
    SCORERS,
    complete_normalization,
    complete_optimizer,
    complete_scorer,
    complete_selection,
    complete_store,
)
from flows.console import ProgressBars, human_bytes, print_facts, print_json, print_table, say
from flows.options import DryRun, Json, StoreArgument

if TYPE_CHECKING:
    from store import ActivationStore

SCORING, ABLATIONS, TRAINING, COMPUTING = "Options of scorers", "Ablations", "Options of optimizers", "Computing"
"""Headings of the help."""
NORMALIZED = f"{', '.join(NORMALIZATIONS)}; unit_norm is the paper's"
Join = Annotated[
    list[str] | None,
    typer.Option(
        metavar="STORE",
        help="Another store of the same images, whose features come after; repeatable.",
        autocompletion=complete_store,
    ),
]


def select(
    uri: StoreArgument,
    fraction: Annotated[
        str | None, typer.Option(metavar="F", help="Share of all features to keep, in (0, 1]; default 0.05.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(metavar="K", help="Number of features to keep, instead of a fraction.")
    ] = None,
    scorer: Annotated[
        str,
        typer.Option(metavar="SCORER", help=f"{', '.join(SCORERS)}, or a plug-in's.", autocompletion=complete_scorer),
    ] = "group_lasso",
    penalty_ratio: Annotated[
        str | None,
        typer.Option(
            metavar="R",
            help="λ relative to the least one that keeps nothing; group_lasso, l1: 0.1.",
            rich_help_panel=SCORING,
        ),
    ] = None,
    penalty: Annotated[
        str | None,
        typer.Option(metavar="L", help="λ as an absolute coefficient; adam, l2: 1e-4.", rich_help_panel=SCORING),
    ] = None,
    normalization: Annotated[
        str,
        typer.Option(metavar="N", help=f"What the head sees: {NORMALIZED}.", autocompletion=complete_normalization),
    ] = "standardize",
    split: Annotated[str, typer.Option(help="Training samples.")] = "train",
    target_size: Annotated[
        str | None, typer.Option(metavar="T", help="Only layers of this size, of a store that has several.")
    ] = None,
    tolerance: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="group_lasso: relative duality gap, 1e-4; l1: violation over λ, 1e-3.",
            rich_help_panel=SCORING,
        ),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="N", help="Steps of adam; default 500.", rich_help_panel=SCORING)
    ] = None,
    learning_rate: Annotated[
        str | None, typer.Option(metavar="RATE", help="Of adam at first; default 0.1.", rich_help_panel=SCORING)
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Of adam, extra_trees, mutual_info and random; default 0.", rich_help_panel=SCORING
        ),
    ] = None,
    average_over: Annotated[
        str | None,
        typer.Option(metavar="N", help="Average the scores of so many seeds; default 1.", rich_help_panel=SCORING),
    ] = None,
    offset: Annotated[
        str, typer.Option(metavar="K", help="Skip so many of the best features.", rich_help_panel=ABLATIONS)
    ] = "0",
    layer_mean: Annotated[
        str,
        typer.Option(
            metavar="A",
            help="Move scores this far, from 0 to 1, towards the mean of their layer.",
            rich_help_panel=ABLATIONS,
        ),
    ] = "0",
    whole_layers: Annotated[
        bool, typer.Option("--whole-layers", help="Keep the layers of the best mean.", rich_help_panel=ABLATIONS)
    ] = False,
    join: Join = None,
    memory: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="What may be held in memory besides the program itself, such as 500MB.",
            rich_help_panel=COMPUTING,
        ),
    ] = "2GiB",
    dask_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Let the workers of a running Dask scheduler read the store.",
            rich_help_panel=COMPUTING,
        ),
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Rank all features, by exact group lasso or another scorer, keep the best, and print the selection.

    Options that do not matter to the scorer are refused; docs/selection.md says what each scorer does.

    For example:
      head2toe select stores/3f2a --fraction 0.01
      head2toe select stores/3f2a --scorer variance --keep 500
    """
    given = locals()
    from pipeline.selection import SelectionParameters, select_features

    # Text is parsed where a configuration's values are, so that both are refused with the same sentence.
    known = SelectionParameters.model_fields
    parameters = SelectionParameters.model_validate({name: value for name, value in given.items() if name in known})
    store = _open(uri, join)
    if dry_run:
        from flows.foreseeing import show_selection
        from pipeline.foreseeing import foresee_selection

        show_selection(foresee_selection(store, parameters, memory=memory), as_json)
        return
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
    _print_facts(facts)
    _print_certificate(selection.certificate)
    print_table("kept by layer", ("layer", "kept"), [(k, f"{v:,}") for k, v in counts.items() if v])


def _open(uri: str, join: list[str] | None) -> ActivationStore:
    """Open a store, or several as one."""
    from pipeline.joined_store import join_stores
    from store import open_store
    from store.aliases import resolve_store

    return join_stores([open_store(resolve_store(each)) for each in (uri, *(join or ()))])


def _print_facts(facts: Mapping[str, Any]) -> None:
    """Print the facts that there are; the time is that of the computation, which may be an earlier command's."""
    shown = {name: value for name, value in facts.items() if value is not None}
    print_facts(
        {("computed in" if k == "seconds" else k): f"{v:.2f} s" if k == "seconds" else v for k, v in shown.items()}
    )


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
    selection: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Digest of a selection, or its beginning; the newest.", autocompletion=complete_selection
        ),
    ] = None,
    selection_from: Annotated[
        str | None,
        typer.Option(metavar="STORE", help="Another store of the same layers, in which the selection was made."),
    ] = None,
    linear: Annotated[bool, typer.Option("--linear", help="Use the last embedding instead: the baseline.")] = False,
    normalization: Annotated[
        str,
        typer.Option(
            metavar="N",
            help=f"What the baseline sees: {NORMALIZED}; a selection keeps its own.",
            autocompletion=complete_normalization,
        ),
    ] = "standardize",
    optimizer: Annotated[
        str,
        typer.Option(
            metavar="O",
            help="lbfgs, stopped by held-out samples, or adam, the paper's recipe.",
            autocompletion=complete_optimizer,
        ),
    ] = "lbfgs",
    max_iterations: Annotated[
        str | None,
        typer.Option(metavar="N", help="Upper bound of iterations of lbfgs; default 500.", rich_help_panel=TRAINING),
    ] = None,
    validation_fraction: Annotated[
        str | None,
        typer.Option(
            metavar="V", help="Share of samples that stops lbfgs; default 0.2, none is 0.", rich_help_panel=TRAINING
        ),
    ] = None,
    patience: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Iterations of lbfgs without a better validation loss; default 15.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    learning_rate: Annotated[
        str | None, typer.Option(metavar="RATE", help="Of adam at first; default 0.01.", rich_help_panel=TRAINING)
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="N", help="Steps of adam; default 500.", rich_help_panel=TRAINING)
    ] = None,
    seed: Annotated[
        str, typer.Option(metavar="N", help="Of what is held out, or of adam's draws.", rich_help_panel=TRAINING)
    ] = "0",
    join: Join = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a head on the selected columns only, and print its accuracy.

    Without --selection it is the newest of the store, which is named on standard error. Options that do not matter to
    the optimizer are refused; docs/refit.md says what each does.

    For example:
      head2toe refit stores/3f2a
      head2toe refit stores/3f2a --selection 8c01
      head2toe refit stores/3f2a --linear
    """
    given = locals()
    from pipeline.newest import newest_selection
    from pipeline.refit import RefitParameters
    from pipeline.refit import refit as refit_stage
    from pipeline.selection import selection_features
    from store import open_store
    from store.aliases import resolve_store

    if linear and selection is not None:
        raise typer.BadParameter("give either --selection ID or --linear; `head2toe show STORE` lists the selections.")
    if linear and selection_from is not None:
        raise typer.BadParameter("--selection-from says where the --selection is; there is none with --linear.")
    known = RefitParameters.model_fields
    parameters = RefitParameters.model_validate({name: value for name, value in given.items() if name in known})
    store = _open(uri, join)
    what: dict[str, Any] = {"parameters": parameters}
    if linear:
        indices = store.layer_indices(store.embedding)
        what |= {"features": {"layer": store.embedding}, "normalization": normalization}
    else:
        origin = store if selection_from is None else open_store(resolve_store(selection_from))
        name = newest_selection(origin) if selection is None else selection
        chosen, features = selection_features(store, name, origin)
        indices = chosen.indices
        if selection is None:
            of = f"{len(indices):,} features by {chosen.scorer}"
            say(f"taking the newest selection, {chosen.digest}: {of}; --selection ID takes another.")
        what |= {"features": features, "normalization": chosen.normalization, "train": chosen.split}
    if dry_run:
        from flows.foreseeing import show_head
        from pipeline.foreseeing import foresee_refit

        show_head(foresee_refit(store, len(indices), **what), as_json)
        return
    head = refit_stage(store, indices, **what)
    facts = {
        "head": head.digest,
        "selection": what["features"].get("selection"),
        "features": len(head.indices),
        "reused": head.reused,
        **head.facts,
    }
    if as_json:
        print_json(facts)
        return
    if linear:
        del facts["selection"]
    facts["accuracy"] = {split: f"{100 * head.accuracy[split]:.1f} %" for split in store.splits}
    facts["bytes_read"] = human_bytes(head.facts["bytes_read"])
    _print_facts(facts)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (select, refit):
        app.command()(command)

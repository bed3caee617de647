"""Commands about the stores under a root: `list`, `show`, `verify`, `remove`, `alias` and `import`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.console import ProgressBars, human_bytes, print_facts, print_json, print_table, say
from store.errors import DamagedStoreError, InvalidInputError

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
StoreArgument = Annotated[
    str,
    typer.Argument(
        metavar="STORE", help="Path or URL of an activation store, ROOT/ALIAS, or ROOT/beginning of its fingerprint."
    ),
]
RootArgument = Annotated[str, typer.Argument(metavar="ROOT", help="Folder or URL under which stores lie.")]


class DType(StrEnum):
    """Choices of ``--dtype``."""

    float16 = "float16"
    float32 = "float32"


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the application."""
    app.command(name="import")(import_command)
    app.command(name="list")(list_command)
    app.command()(show)
    app.command()(verify)
    app.command()(alias)
    app.command()(remove)


# -------------------------------------------------------------------- list


def list_command(root: RootArgument, as_json: Json = False) -> None:
    """List the stores under a root; a damaged one with the reason.

    Example: head2toe list demo
    """
    from store.catalogue import list_stores

    rows = list_stores(root)
    if as_json:
        print_json(rows)
        return
    if not rows:
        say(f"no stores under {root!r}.")
        return
    # A column that would be empty is left out: a terminal has few.
    columns = {
        "store": [_short_name(row) for row in rows],
        "alias": [", ".join(row["aliases"]) for row in rows],
        "backbone": [str(row.get("backbone") or "") for row in rows],
        "data": [str(row.get("data") or "") for row in rows],
        "samples": [f"{sum(row['splits'].values()):,}" if "splits" in row else "" for row in rows],
        "features": [f"{row['features']:,}" if "features" in row else "" for row in rows],
        "size": [human_bytes(row["bytes"]) if "bytes" in row else "" for row in rows],
        "age": [_age(row.get("created")) for row in rows],
        "state": [row["state"] for row in rows],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    print_table(None, tuple(shown), list(zip(*shown.values(), strict=True)))
    for short, row in zip(columns["store"], rows, strict=True):
        if "reason" in row:
            typer.echo(f"{short}: {row['reason']}")


def _short_name(row: Mapping[str, Any]) -> str:
    """Return what names the store under its root: a fingerprint's beginning, or the whole name."""
    name = str(row["uri"]).rstrip("/").rpartition("/")[2].removesuffix(".zarr")
    return name[:8] if name == row.get("fingerprint") else name


def _age(created: Any, now: datetime | None = None) -> str:
    """Return how long ago an ISO date was, such as ``3 h``; nothing for what is no date."""
    try:
        then = datetime.fromisoformat(str(created))
        seconds = ((now or datetime.now(UTC)) - then).total_seconds()
    except (ValueError, TypeError):
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return "now"


# -------------------------------------------------------------------- show


def show(uri: StoreArgument, as_json: Json = False) -> None:
    """Show what a store holds: identity, layers, and a tree of what was computed from it.

    Example: head2toe show demo/3f2a
    """
    from store import open_store
    from store.aliases import list_aliases, resolve_store, split_uri
    from store.catalogue import count_results, describe_results
    from store.spec import ExtractionSpec

    store = open_store(resolve_store(uri), allow_incomplete=True)
    root, name = split_uri(store.uri)
    aliases = [a.name for a in list_aliases(root).values() if a.store == name] if root is not None else []
    missing = store.missing()
    state = "incomplete" if missing else "complete"
    layers = {layer.name: layer.n_features for layer in store.layers.values()}
    results, points = describe_results(store), count_results(store.objects, "points")
    if as_json:
        flat = {
            kind: [{"digest": r["digest"], **r.get("inputs", r), **r.get("facts", {})} for r in found]
            for kind, found in results.items()
        }
        print_json(
            {
                **store.summary,
                "spec": store.spec.model_dump(mode="json"),
                "aliases": aliases,
                "state": state,
                "missing": missing,
                "layer_features": layers,
                "provenance": store.provenance,
                **flat,
                "points": points,
            }
        )
        return
    facts = {**store.summary, "bytes": human_bytes(store.n_bytes), "state": state}
    if isinstance(store.spec, ExtractionSpec):
        from pipeline.preprocessing import describe  # it loads PyTorch

        facts["preprocessing"] = describe(store.spec.preprocessing)
    if aliases:
        facts["alias"] = ", ".join(aliases)
    print_facts(facts)
    print_table("layers", ("layer", "features"), [(k, f"{v:,}") for k, v in layers.items()])
    _print_lineage(store.fingerprint, store.provenance.get("parent"), results, points)


def _print_lineage(
    fingerprint: str, parent: Any, results: Mapping[Any, Sequence[Mapping[str, Any]]], points: int
) -> None:
    """Print a tree: the store this one was made from, the store, statistics, selections with heads, protocols."""
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    trunk = top = Tree(Text(f"store {fingerprint}"))
    if parent:
        known = parent.get("fingerprint") or parent.get("uri") if isinstance(parent, Mapping) else parent
        top = Tree(Text(f"store {known} (parent)"))
        trunk = top.add(Text(f"store {fingerprint}"))
    for found in results["statistics"]:
        trunk.add(Text(_sentence("statistics", found, _of_statistics)))
    branches = {
        found["digest"]: trunk.add(Text(_sentence("selection", found, _of_selection)))
        for found in results["selections"]
    }
    for found in results["heads"]:
        features = found.get("inputs", {}).get("features", {})
        above = branches.get(features.get("selection"), trunk) if isinstance(features, Mapping) else trunk
        above.add(Text(_sentence("head", found, _of_head)))
    for found in results["protocols"]:
        trunk.add(Text(_sentence("protocol", found, _of_protocol)))
    if points:
        trunk.add(Text(f"{_counted(points, 'point')} of protocols: settings tried on a fold"))
    Console(highlight=False).print(top)


def _sentence(kind: str, found: Mapping[str, Any], describe: Any) -> str:
    if "damaged" in found:
        return f"{kind} {found['digest']}: damaged"
    return f"{kind} {found['digest']}: {describe(found['inputs'], found['facts'])}"


def _of_statistics(inputs: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    return f"of split {inputs.get('split')}, {_number(facts.get('constant_features'))} constant features"


def _of_selection(inputs: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    ranking = {**inputs.get("ranking", {}), **inputs}
    support = "" if facts.get("support") is None else f"{_number(facts['support'])} in the support, "
    kept = f"{_number(inputs.get('keep'))} features kept"
    return f"{kept}, {support}{ranking.get('normalization')}, by {ranking.get('scorer')}"


def _of_head(inputs: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    accuracy = ", ".join(f"{split} {100 * value:.1f} %" for split, value in facts.get("accuracy", {}).items())
    features = inputs.get("features", {})
    on = f", on layer {features['layer']}" if features.get("layer") else ""
    origin = f", selected on store {features['store']}" if features.get("store") else ""
    return f"accuracy {accuracy}{on}{origin}"


def _of_protocol(inputs: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    named = {"validation": facts.get("validation_accuracy"), "test": facts.get("accuracy")}
    accuracy = ", ".join(f"{name} {100 * value:.1f} %" for name, value in named.items() if value is not None)
    tried = _counted(len(facts.get("points", ())), "setting")
    return f"{inputs.get('method')}, accuracy {accuracy}, best of {tried} on {inputs.get('folds')} folds"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"


# -------------------------------------------------------------------- verify


def verify(
    uri: StoreArgument,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mark damaged blocks, so that the next extraction rewrites exactly these.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read everything in a store and name each part that is damaged or missing; exit code 2 if there is one.

    Example: head2toe verify demo/3f2a --repair
    """
    from pipeline.verification import mark_for_rewriting, verify_store
    from store import open_store
    from store.aliases import resolve_store

    place = resolve_store(uri)
    try:
        store = open_store(place, allow_incomplete=True)
    except DamagedStoreError as error:
        if as_json:
            whole = {"what": "metadata", "name": "zarr.json", "message": str(error), "repairable": False}
            print_json({"uri": place, "problems": [whole], "marked": []})
        if repair:
            raise DamagedStoreError(f"--repair cannot mend this: {error}") from error
        raise
    with ProgressBars() as progress:
        problems = verify_store(store, progress)
    marked = mark_for_rewriting(store, problems) if repair else []
    if as_json:
        found = [{"what": p.what, "name": p.name, "message": p.message, "repairable": p.repairable} for p in problems]
        print_json({"uri": store.uri, "problems": found, "marked": [p.name for p in marked]})
    else:
        for problem in problems:
            typer.echo(str(problem))
    if marked:
        say(
            f"marked {_counted(len(marked), 'part')} for rewriting: "
            f"{', '.join(p.name for p in marked)}; run the same extraction or import again, it writes only what is "
            "missing."
        )
    if problems:
        beyond = sum(not p.repairable for p in problems) if repair else 0
        rest = f", {beyond} of which --repair cannot mend" if beyond else ""
        raise DamagedStoreError(f"{_counted(len(problems), 'problem')} found in {store.uri!r}{rest}.")
    say(f"{store.uri} is complete and undamaged.")


# -------------------------------------------------------------------- remove and alias


def remove(
    uri: StoreArgument,
    force: Annotated[bool, typer.Option("--force", help="Also if it has selections, heads or protocols.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a store with its results and aliases; refuses one with results worth keeping, and what is no store.

    Example: head2toe remove demo/3f2a --force
    """
    from store.aliases import resolve_store
    from store.removal import remove_store

    removed = remove_store(resolve_store(uri), force=force)
    if as_json:
        print_json(vars(removed) | {"aliases": list(removed.aliases)})
        return
    gone = [_counted(getattr(removed, f"{kind}s"), kind) for kind in ("selection", "head", "protocol")]
    gone += [f"alias {name}" for name in removed.aliases]
    say(f"removed {removed.uri} with {', '.join(gone)}.")


def alias(
    root: RootArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits and '_.-'.")],
    uri: Annotated[
        str | None, typer.Argument(metavar="STORE", help="A store under ROOT, by path, alias or fingerprint.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Move an alias that names another store.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Take the name away; the store stays.")] = False,
    as_json: Json = False,
) -> None:
    """Give a store a name, which then stands for it as ROOT/NAME.

    Example: head2toe alias demo digits 3f2a
    """
    from store.aliases import remove_alias, set_alias
    from store.objects import join

    if (uri is None) != delete:
        raise InvalidInputError("give either the STORE that the alias shall name, or --delete.")
    if uri is None:
        remove_alias(root, name)
        if as_json:
            print_json({"name": name, "deleted": True})
        else:
            say(f"alias {name} is gone; the store it named is not.")
        return
    made = set_alias(root, name, uri, force=force)
    if as_json:
        print_json(made.model_dump(mode="json"))
    else:
        say(f"{join(root, name)} names store {made.fingerprint}.")


# -------------------------------------------------------------------- import


def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE.npz", help="Arrays by layer, and labels; see below.")],
    root: Annotated[str, typer.Option(help="Folder or URL under which the store is written.")],
    class_names: Annotated[
        str | None, typer.Option(help="Names by class index: separated by commas, or a text file of one per line.")
    ] = None,
    dtype: Annotated[DType, typer.Option(help="Type of the stored values.")] = DType.float16,
    embedding: Annotated[str | None, typer.Option(help="Layer that `refit --linear` uses.")] = None,
    name: Annotated[str | None, typer.Option(help="Alias that the store gets under the root.")] = None,
    as_json: Json = False,
) -> None:
    """Make a store from activations computed elsewhere, and print its URI.

    FILE.npz holds arrays named SPLIT/LAYER of shape (sample, feature), SPLIT/labels, and optionally SPLIT/ids;
    without 'SPLIT/' in any name there is one split, train. Importing a file twice writes nothing the second time.

    Example: head2toe import features.npz --root stores --name mine
    """
    from pipeline.importing import import_file
    from store.aliases import check_alias, set_alias

    if name is not None:
        check_alias(name)
    names = None if class_names is None else _class_names(class_names)
    with ProgressBars() as progress:
        done = import_file(file, root, class_names=names, dtype=dtype.value, embedding=embedding, progress=progress)
    if name is not None:
        set_alias(root, name, done.uri)
    say(f"imported {done.imported:,} samples; {done.reused:,} were in the store already.")
    if as_json:
        print_json({**vars(done), "alias": name})
    else:
        typer.echo(done.uri)


def _class_names(text: str) -> list[str]:
    path = Path(text)
    try:
        if path.is_file():
            return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"class names cannot be read from {text!r}: {error}.") from error
    return [part.strip() for part in text.split(",")]


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"

"""Commands that look at the stores under a root: `list` and `show`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import typer

from flows.console import counted, human_bytes, print_facts, print_json, print_table, say
from flows.options import Json, RootArgument, StoreArgument


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the application."""
    app.command(name="list")(list_command)
    app.command()(show)


# -------------------------------------------------------------------- list


def list_command(root: RootArgument, as_json: Json = False) -> None:
    """List the stores under a root; a damaged one with the reason.

    For example:
      head2toe list demo
      head2toe list s3://bucket/stores --json
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

    For example:
      head2toe show demo/3f2a
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
        trunk.add(Text(f"{counted(points, 'point')} of protocols: settings tried on a fold"))
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
    tried = counted(len(facts.get("points", ())), "setting")
    return f"{inputs.get('method')}, accuracy {accuracy}, best of {tried} on {inputs.get('folds')} folds"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"

"""What a report says in words: what was run, what the certificate proves, where the time went, where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.account import Account
from pipeline.report.heads import Row
from pipeline.selection import Selection
from store.activations import ActivationStore
from store.spec import ExtractionSpec
from store.units import human_bytes

NAMED = 12
"""Classes whose names are listed."""

Facts = dict[str, str]
"""Sentences, or phrases, by what they are about."""


def about_weights(weights: str) -> list[str]:
    """Return what a reader of the figures must know of a backbone's weights."""
    if not weights.startswith("random"):
        return []
    return [
        "The backbone has random weights, not trained ones: the figures show that the pipeline works, not how well "
        "the method transfers; use --weights shipped or pretrained for that."
    ]


def describe_run(store: ActivationStore, selection: Selection, inputs: Mapping[str, Any], rows: Sequence[Row]) -> Facts:
    """Return what was run, from the backbone to the heads.

    Parameters
    ----------
    store : ActivationStore
        The activations.
    selection : Selection
        What was kept.
    inputs : mapping
        What the selection was computed from.
    rows : sequence of Row
        The heads.
    """
    s, made = store.summary, store.provenance
    names = ", ".join(store.class_names[:NAMED]) + (", …" if len(store.class_names) > NAMED else "")
    facts = {
        "backbone": f"{s['backbone']}, weights {s['weights']}" if s["weights"] else str(s["backbone"]),
        "data": f"{s['data'] or 'unnamed'}, {s['classes']:,} classes: {names}",
        "samples": ", ".join(f"{name} {n:,}" for name, n in s["splits"].items()),
    }
    layers, pooled = list(store.layers), ""
    if isinstance(store.spec, ExtractionSpec):
        rule = store.spec.pooling
        sizes = " and ".join(f"{size:,}" for size in rule.target_sizes)
        pooled = f", pooled towards {sizes} features per layer{f' by {rule.plugin.name}' if rule.plugin else ''}"
    size = f"{s['features']:,} features of {s['layers']:,} layers, {layers[0]} to {layers[-1]}"
    facts["activations"] = f"{size}{pooled}; {s['dtype']}, {human_bytes(s['bytes'])}"
    facts["selection"] = _selection(store, selection, inputs)
    if rows:
        facts["heads"] = "; ".join(f"{row.method}: {row.refit}" for row in rows)
    if made.get("device"):
        how = [f"{name.replace('_', ' ')} {made[name]}" for name in ("batch_size", "autocast") if name in made]
        facts["computed on"] = ", ".join([str(made["device"]), *how])
    return facts


def _selection(store: ActivationStore, selection: Selection, inputs: Mapping[str, Any]) -> str:
    ranking = {k: v for k, v in inputs["ranking"].items() if v is not None and k not in {"scorer", "normalization"}}
    ablations = {k: v for k, v in inputs.items() if k not in {"ranking", "keep", "normalization", "joined"}}
    options = ", ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in {**ranking, **ablations}.items())
    kept = len(selection.indices)
    share = f"{kept:,} features kept ({100 * kept / store.n_features:.3g} %)"
    return f"{selection.scorer}, {selection.normalization}, {options}; {share}"


def explain_certificate(selection: Selection) -> Facts:
    """Return what proves a selection, a sentence each; of a heuristic, that nothing does, and what there is to know."""
    c = selection.certificate
    if "duality_gap" not in c:
        note = str(c.get("note") or "no certificate")
        return {"proof": f"{note[0].upper()}{note[1:]}.", **_figures(c)}
    ratio = c["penalty"] / c["penalty_max"] if c["penalty_max"] else float("inf")
    verdict = (
        f"Yes: over all {c['n_features']:,} features this is the optimum, up to the gap and the violation below."
        if c["certified"]
        else f"No: the tolerances were not met{': ' + c['note'] if c['note'] else ''}."
    )
    facts = {
        "certified": verdict,
        "penalty": f"λ = {c['penalty']:.4g}, which is {ratio:.3g} of λ_max, the least that selects nothing.",
        "duality gap": f"The objective, {c['objective']:.4g}, is at most {c['duality_gap']:.2g} above the least "
        f"possible: {100 * c['relative_gap']:.2g} % of the objective without features, {c['null_objective']:.4g}.",
        "worst violation": f"No feature violates the optimality conditions by more than {c['kkt_violation']:.2g} of λ.",
        "support": f"{c['support_size']:,} features have a row that is not zero; they rank first.",
        "passes": f"All features were read {_times(c['passes'])}, those held in memory once more: "
        f"{human_bytes(c['bytes_read'])} in all.",
        "columns": f"{c['cached_columns']:,} were held in memory at the end, {human_bytes(c['cached_bytes'])}.",
    }
    if "process_peak_bytes" in c:  # earlier versions did not measure it
        facts["peak memory"] = f"{human_bytes(c['process_peak_bytes'])}, of the whole process and all it had done."
    if c["certified"] and c["note"]:
        facts["note"] = f"{c['note'][0].upper()}{c['note'][1:]}."
    return facts


def _figures(certificate: Mapping[str, Any]) -> Facts:
    left_out = {"certified", "note", "seconds"}
    return {k.replace("_", " "): _value(v, k) for k, v in certificate.items() if k not in left_out and v != ""}


def _value(value: Any, name: str = "") -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return human_bytes(value) if "bytes" in name else f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number:,} times")


class Stage(NamedTuple):
    """A stage: what computing it took, what it took in this run, both in seconds if known, and its parts in words."""

    name: str
    computed: float | None
    run: float | None
    parts: str


def list_stages(
    store: ActivationStore, selection: Selection, rows: Sequence[Row], seconds: Mapping[str, float]
) -> list[Stage]:
    """Return where the time went, by stage.

    Parameters
    ----------
    store : ActivationStore
        Its commit records say what the extraction took.
    selection : Selection
        Knows its time.
    rows : sequence of Row
        The heads.
    seconds : mapping of str to float
        What each stage took in this run, in which what was stored already was not computed again; may be empty.
    """
    spent = _extraction(store)
    extracted = isinstance(store.spec, ExtractionSpec)
    found = {
        "extraction" if extracted else "import": (sum(spent.values()) or None, _shares(spent) if extracted else "")
    }
    parts = selection.certificate.get("seconds") or {}
    # A ranking that was there already cost its time in an earlier selection.
    earlier = sum(parts.values()) > 1.1 * selection.seconds + 0.1
    found["statistics"] = (None, "")
    found["selection"] = (selection.seconds, ("of an earlier selection: " if earlier else "") + _shares(parts))
    for name, wanted in (("linear", False), ("refit", True)):
        own = [row for row in rows if ("selection" in row.inputs["features"]) == wanted]
        if own:
            found[name] = (sum(row.facts["seconds"] for row in own), ", ".join(row.method for row in own))
    stages = [Stage(name, took, seconds.get(name), text) for name, (took, text) in found.items()]
    return [stage for stage in stages if stage.computed is not None or stage.run is not None]


def _extraction(store: ActivationStore) -> dict[str, float]:
    account = Account()
    for split in store.splits.values():
        for block in range(split.n_blocks):
            account.add(store.record(split.name, block))
    return account.seconds


def _shares(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values())
    return ", ".join(f"{name} {100 * s / total:.0f} %" for name, s in seconds.items()) if total else ""


def lineage(store: ActivationStore, selection: Selection, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Yield what every box comes from, by digests, from the images to the heads."""
    spec = store.spec
    if isinstance(spec, ExtractionSpec):
        yield "weights", spec.backbone.weights_digest
    for name, split in spec.data.splits.items():
        yield f"images of {name}", split.manifest_digest
    yield "store", store.fingerprint
    if store.provenance.get("parent"):
        yield "grown from store", str(store.provenance["parent"])
    yield "place", store.uri
    yield "created", store.created
    yield "selection", selection.digest
    for row in rows:
        yield f"head, {row.method}", row.digest
    versions = store.provenance.get("versions")
    if isinstance(versions, Mapping):
        yield "versions", ", ".join(f"{name} {number}" for name, number in versions.items())


def human_seconds(seconds: float) -> str:
    """Return a time such as ``0.4 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 0.1:
        return "under 0.1 s" if seconds > 0 else "0 s"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"

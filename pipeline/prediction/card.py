"""The model card of an exported classifier: what it is, where it comes from, how well it does, how to use it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence

from pipeline.prediction.recipe import Recipe
from pipeline.preprocessing import describe

MOST_CLASSES = 200
_MARKUP = re.compile(r"([\\`*_\[\]|~$])")


def model_card(recipe: Recipe, *, onnx: bool = False) -> str:
    """Return the card in Markdown, with the metadata block that model hubs read.

    Names of classes and data are escaped: they are text, never markup.
    """
    lineage, spec = recipe.lineage, recipe.backbone_spec
    features = lineage.get("features", {})
    chosen = f"selection {features['selection']}" if "selection" in features else f"layer {features.get('layer')}"
    included = "in this folder" if recipe.files.keys() - {"head.safetensors"} else f"{recipe.weights!r}, not included"
    facts = {
        "backbone": f"{recipe.backbone}, frozen, up to {recipe.layers[-1].name}",
        "backbone weights": f"{included}; digest {spec.weights_digest}, checked when loaded",
        "preprocessing": describe(recipe.preprocessing),
        "features": f"{recipe.n_selected:,} of {len(recipe.layers)} layers, {recipe.normalization}",
        "classes": f"{len(recipe.class_names):,}",
    }
    history = {
        "data": lineage.get("data"),
        "activation store": lineage.get("store"),
        "features from": chosen + (f" of store {features['store']}" if "store" in features else ""),
        "head": lineage.get("head"),
        "trained on": f"split {lineage.get('train')}",
        "training": json.dumps(lineage.get("parameters", {})),
        "store made": lineage.get("made"),
        "versions": ", ".join(f"{name} {number}" for name, number in lineage.get("versions", {}).items()),
    }
    samples = lineage.get("samples", {})
    scores = [(split, f"{samples.get(split, 0):,}", f"{100 * v:.1f} %") for split, v in recipe.accuracy.items()]
    files = [("`head2toe.json`", "everything but the numbers"), ("`head.safetensors`", "the head's numbers")]
    files += [("`backbone.safetensors`", "the backbone's weights")] if "backbone.safetensors" in recipe.files else []
    files += [("`model.onnx`", "all of it, from preprocessed images to logits")] if onnx else []
    shown = recipe.class_names[:MOST_CLASSES]
    more = f" … and {len(recipe.class_names) - len(shown):,} more" if len(shown) < len(recipe.class_names) else ""
    return "\n".join(
        [
            "---",
            "library_name: head2toe-store",
            "pipeline_tag: image-classification",
            "tags: [head2toe, transfer-learning, timm]",
            "---",
            f"# {_text(recipe.backbone)} with a Head2Toe head for {len(recipe.class_names):,} classes",
            "",
            "A linear classifier on features of several layers of a frozen backbone (Evci et al., *Head2Toe*, 2022). "
            "The backbone runs only as deep as the deepest layer used.",
            "",
            *_table(("", ""), facts.items()),
            "",
            "## Use",
            "",
            "```bash",
            "head2toe predict THIS_FOLDER photo.jpg folder/",
            "```",
            "",
            "```python",
            "from pipeline.prediction import load_classifier, predict_images",
            "",
            'classifier = load_classifier("THIS_FOLDER")  # a torch.nn.Module: preprocessed images to logits',
            'for prediction in predict_images(classifier, ["photo.jpg"]).predictions:',
            "    print(prediction.image, prediction.label, prediction.probability)",
            "```",
            "",
            "## Accuracy",
            "",
            "Share of samples classified right; the head was trained on the split "
            f"{_text(lineage.get('train'))}, of which the figure says little.",
            "",
            *_table(("split", "samples", "accuracy"), scores),
            "",
            "## Lineage",
            "",
            *_table(("", ""), history.items()),
            "",
            "## Layers used",
            "",
            *_table(
                ("layer", "features used", "of"),
                [(layer.name, f"{layer.n_selected:,}", f"{layer.n_features:,}") for layer in recipe.layers],
            ),
            "",
            "## Classes",
            "",
            ", ".join(map(_text, shown)) + more,
            "",
            "## Limits",
            "",
            "It answers with one of these classes whatever the image shows, and its probabilities hold at best for "
            "images like those it was trained on. Licences of the backbone's weights and of the training images apply.",
            "",
            "## Files",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {what} |" for name, what in files),
            "",
        ]
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [header, ["---"] * len(header)]
    text = [["" if cell is None else _text(cell) for cell in row] for row in rows]
    return ["| " + " | ".join(cells) + " |" for cells in (*lines, *text)]


def _text(value: object) -> str:
    """Return text that Markdown and HTML show as it is, in one line."""
    return _MARKUP.sub(r"\\\1", html.escape(" ".join(str(value).split()), quote=False))

"""Commands that look at a backbone and write a store: `taps` and `extract`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from flows.catalogue_commands import DType, Json
from flows.console import ProgressBars, extraction_sentence, human_bytes, print_facts, print_json, print_table, say


class ClsToken(StrEnum):
    """Choices of ``--cls-token``."""

    pooled = "pooled"
    separate = "separate"
    only = "only"


Taps = Annotated[list[str], typer.Option(help="Preset, module name or shell-style pattern; repeatable.")]
Exclude = Annotated[list[str], typer.Option(help="Pattern of taps to leave out; repeatable.")]
TargetSizes = Annotated[
    list[int], typer.Option("--target-size", min=1, help="Features aimed at per layer; repeatable.")
]
ImageSize = Annotated[int | None, typer.Option(min=1, help="Height and width in pixels; the backbone's own.")]
ClsTokenOption = Annotated[ClsToken, typer.Option(help="What becomes of prefix tokens.")]
DATA_HELP = "'digits', an .npz file, or a folder: <class>/…, or train/<class>/… and test/<class>/…, or VTAB-1k lists."
DEFAULT_TAPS, NO_PATTERNS, DEFAULT_TARGET_SIZES = ["head2toe"], list[str](), [512]


def taps(
    backbone: Annotated[str, typer.Argument(help="timm model name, such as resnet50.")],
    target_size: TargetSizes = DEFAULT_TARGET_SIZES,
    taps: Taps = DEFAULT_TAPS,
    exclude: Exclude = NO_PATTERNS,
    cls_token: ClsTokenOption = ClsToken.pooled,
    image_size: ImageSize = None,
    as_json: Json = False,
) -> None:
    """Show what would be captured: layers, shapes, features and bytes per image. Needs no weights.

    Example: head2toe taps resnet50 --target-size 8192
    """
    from pipeline.backbones import model_structure, resolve_preprocessing
    from pipeline.taps import plan_layers, resolve_taps
    from store.spec import PoolingSpec

    model = model_structure(backbone, image_size)
    asked = None if image_size is None else (3, image_size, image_size)
    input_size = resolve_preprocessing(model, input_size=asked).input_size
    chosen = resolve_taps(model, tuple(taps), tuple(exclude))
    pooling = PoolingSpec(target_sizes=tuple(target_size), cls_token=cls_token.value)
    layers = plan_layers(model, chosen, pooling, input_size)
    rows: list[dict[str, Any]] = [
        {
            "layer": layer.name,
            "shape": list(layer.shape),
            "layout": layer.layout,
            "features": layer.n_features,
            "bytes_per_image": 2 * layer.n_features,
        }
        for layer in layers
    ]
    total = sum(layer.n_features for layer in layers)
    if as_json:
        print_json({"backbone": backbone, "input_size": list(input_size), "features": total, "layers": rows})
        return
    print_table(
        f"{backbone} at {'×'.join(map(str, input_size))}",
        ("layer", "shape", "layout", "features", "bytes/image"),
        [
            (
                r["layer"],
                "×".join(map(str, r["shape"])),
                r["layout"],
                f"{r['features']:,}",
                human_bytes(r["bytes_per_image"]),
            )
            for r in rows
        ],
    )
    print_facts({"layers": len(layers), "features": total, "per image": f"{human_bytes(2 * total)} in float16"})


def extract(
    backbone: Annotated[str, typer.Option(help="timm model name, such as resnet50.a1_in1k.")],
    data: Annotated[str, typer.Option(help=DATA_HELP)],
    root: Annotated[str, typer.Option(help="Folder or URL under which the store is written.")],
    weights: Annotated[
        str, typer.Option(help="'pretrained', a .safetensors or .pth file, or 'random:SEED'.")
    ] = "pretrained",
    taps: Taps = DEFAULT_TAPS,
    exclude: Exclude = NO_PATTERNS,
    target_size: TargetSizes = DEFAULT_TARGET_SIZES,
    cls_token: ClsTokenOption = ClsToken.pooled,
    dtype: Annotated[DType, typer.Option(help="Type of the stored values.")] = DType.float16,
    image_size: ImageSize = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 64,
    block_size: Annotated[
        int | None, typer.Option(min=1, help="Samples per committed block; chosen if not given.")
    ] = None,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'cuda:1', ….")] = "auto",
    extend: Annotated[
        str | None,
        typer.Option(metavar="STORE", help="A store of fewer of these images; only what is new is extracted."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write an activation store, or what is missing of it, and print its URI.

    Example: head2toe extract --backbone resnet18 --weights random:0 --data digits --root stores
    """
    from pipeline.extraction import extract as extract_stage
    from pipeline.planning import ExtractionParameters
    from store.aliases import resolve_store

    parameters = ExtractionParameters(
        backbone=backbone,
        data=data,
        weights=weights,
        taps=tuple(taps),
        exclude=tuple(exclude),
        target_sizes=tuple(target_size),
        cls_token=cls_token.value,
        dtype=dtype.value,
        image_size=image_size,
        batch_size=batch_size,
        block_size=block_size,
        device=device,
        extend=None if extend is None else resolve_store(extend),
    )
    with ProgressBars() as progress:
        done = extract_stage(parameters, root, progress)
    say(extraction_sentence(done.extracted, done.reused, done.seconds_saved))
    if as_json:
        print_json(vars(done))
    else:
        typer.echo(done.uri)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (taps, extract):
        app.command()(command)

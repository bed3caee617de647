"""Commands that look at a backbone and write a store: `taps` and `extract`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer

from flows.completion import (
    complete_backbone,
    complete_data,
    complete_pooling,
    complete_store,
    complete_tap,
    complete_weights,
)
from flows.console import (
    ProgressBars,
    extraction_sentence,
    forecast_lines,
    human_bytes,
    print_facts,
    print_json,
    print_table,
    say,
    say_forecast,
    say_notes,
)
from flows.options import DryRun, DType, Json
from store.errors import InvalidInputError

IMAGES, COMPUTING = "Reading images", "Computing"
"""Headings of the help."""


class OnBadImage(StrEnum):
    """Choices of ``--on-bad-image``."""

    stop = "stop"
    skip = "skip"


class Autocast(StrEnum):
    """Choices of ``--autocast``."""

    auto = "auto"
    none = "none"
    bf16 = "bf16"
    fp16 = "fp16"


class ClsToken(StrEnum):
    """Choices of ``--cls-token``."""

    pooled = "pooled"
    separate = "separate"
    only = "only"


Taps = Annotated[
    list[str],
    typer.Option(
        help="Preset (head2toe, blocks, embedding, logits, input, or a plug-in's), module name or shell-style pattern; "
        "repeatable.",
        autocompletion=complete_tap,
    ),
]
Exclude = Annotated[list[str], typer.Option(help="Pattern of taps to leave out; repeatable.")]
TargetSizes = Annotated[
    list[int], typer.Option("--target-size", min=1, help="Features aimed at per layer; repeatable.")
]
ImageSize = Annotated[int | None, typer.Option(min=1, help="Height and width in pixels; the backbone's own.")]
ClsTokenOption = Annotated[ClsToken, typer.Option(help="What becomes of prefix tokens.")]
Pooling = Annotated[
    str,
    typer.Option(metavar="NAME", help="'average', the paper's, or a plug-in's.", autocompletion=complete_pooling),
]
DATA_HELP = (
    "'digits', 'offline/<task>', an .npz file, a folder (<class>/…, or train/<class>/… and test/<class>/…, or VTAB-1k "
    "lists), a name as timm has it: torch/cifar10, hfds/<repository>, wds/<folder>, or a plug-in's."
)
DEFAULT_TAPS, NO_PATTERNS, DEFAULT_TARGET_SIZES = ["head2toe"], list[str](), [512]


def taps(
    backbone: Annotated[
        str, typer.Argument(help="timm model name, such as resnet50.", autocompletion=complete_backbone)
    ],
    target_size: TargetSizes = DEFAULT_TARGET_SIZES,
    taps: Taps = DEFAULT_TAPS,
    exclude: Exclude = NO_PATTERNS,
    cls_token: ClsTokenOption = ClsToken.pooled,
    pooling: Pooling = "average",
    image_size: ImageSize = None,
    as_json: Json = False,
) -> None:
    """Show what would be captured: layers, shapes, features and bytes per image. Needs no weights.

    For example:
      head2toe taps resnet50 --target-size 8192
      head2toe taps vit_base_patch16_224 --taps blocks --exclude 'blocks.0*'
    """
    from pipeline.backbones import model_structure
    from pipeline.preprocessing import resolve_preprocessing
    from pipeline.probing import trace
    from pipeline.taps import plan_layers, plan_pooling, resolve_taps

    model = model_structure(backbone, image_size)
    asked = None if image_size is None else (3, image_size, image_size)
    input_size = resolve_preprocessing(model, input_size=asked).input_size
    calls = trace(model, input_size)
    chosen = resolve_taps(model, tuple(taps), tuple(exclude), input_size, calls)
    rule = plan_pooling(pooling, target_size, cls_token.value)
    layers = plan_layers(model, chosen, rule, input_size, calls)
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
    backbone: Annotated[
        str, typer.Option(help="timm model name, such as resnet50.a1_in1k.", autocompletion=complete_backbone)
    ],
    data: Annotated[str, typer.Option(help=DATA_HELP, autocompletion=complete_data)],
    root: Annotated[str, typer.Option(help="Folder or URL under which the store is written.")],
    weights: Annotated[
        str,
        typer.Option(
            help="'pretrained', 'shipped', a .safetensors or .pth file, or 'random:SEED'.",
            autocompletion=complete_weights,
        ),
    ] = "pretrained",
    taps: Taps = DEFAULT_TAPS,
    exclude: Exclude = NO_PATTERNS,
    target_size: TargetSizes = DEFAULT_TARGET_SIZES,
    cls_token: ClsTokenOption = ClsToken.pooled,
    pooling: Pooling = "average",
    dtype: Annotated[DType, typer.Option(help="Type of the stored values.")] = DType.float16,
    image_size: ImageSize = None,
    preprocessing: Annotated[
        str,
        typer.Option(
            help="'timm', the backbone's own, or 'vtab', a plain resize to values in [-1, 1].", rich_help_panel=IMAGES
        ),
    ] = "timm",
    interpolation: Annotated[
        str | None, typer.Option(help="Resampling filter, such as bilinear.", rich_help_panel=IMAGES)
    ] = None,
    crop_mode: Annotated[
        str | None,
        typer.Option(help="'center' or 'border' as in timm; 'squash' is a plain resize.", rich_help_panel=IMAGES),
    ] = None,
    crop_pct: Annotated[
        float | None, typer.Option(help="Share of the resized image that the crop keeps.", rich_help_panel=IMAGES)
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="Per channel, of values in [0, 1], such as 0.5,0.5,0.5.", rich_help_panel=IMAGES)
    ] = None,
    std: Annotated[str | None, typer.Option(help="Per channel, as --mean.", rich_help_panel=IMAGES)] = None,
    data_root: Annotated[
        str | None, typer.Option(help="Where the data of a library's name is or is kept.", rich_help_panel=IMAGES)
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Let torchvision fetch data that is not there.", rich_help_panel=IMAGES)
    ] = False,
    split: Annotated[
        list[str],
        typer.Option(
            metavar="OURS=THEIRS", help="A library's split for train, test or val; repeatable.", rich_help_panel=IMAGES
        ),
    ] = NO_PATTERNS,
    input_key: Annotated[
        str | None, typer.Option(help="Column or part that holds the image (hfds, wds).", rich_help_panel=IMAGES)
    ] = None,
    target_key: Annotated[
        str | None, typer.Option(help="Column or field that holds the label (hfds, wds).", rich_help_panel=IMAGES)
    ] = None,
    on_bad_image: Annotated[
        OnBadImage,
        typer.Option(help="Stop with the list of images that cannot be used, or skip them.", rich_help_panel=IMAGES),
    ] = OnBadImage.stop,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images per forward pass; found by trying if not given.", rich_help_panel=COMPUTING),
    ] = None,
    autocast: Annotated[
        Autocast,
        typer.Option(
            help="Type of the backbone's products; 'auto' is fp16 on a GPU, none on a CPU.", rich_help_panel=COMPUTING
        ),
    ] = Autocast.auto,
    channels_last: Annotated[
        bool,
        typer.Option("--channels-last/--no-channels-last", help="Memory layout of maps.", rich_help_panel=COMPUTING),
    ] = True,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the backbone, which takes minutes.", rich_help_panel=COMPUTING)
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that read images; one per core.", rich_help_panel=COMPUTING)
    ] = None,
    block_size: Annotated[
        int | None,
        typer.Option(min=1, help="Samples per committed block; chosen if not given.", rich_help_panel=COMPUTING),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="'auto' (all GPUs), 'cpu', 'cuda:1', …; several, 'cuda:0,cuda:1', each by a process.",
            rich_help_panel=COMPUTING,
        ),
    ] = "auto",
    dask_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Scheduler of a Dask cluster whose workers do the work.", rich_help_panel=COMPUTING
        ),
    ] = None,
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/K",
            help="Write part I of K; other processes or machines write the others.",
            rich_help_panel=COMPUTING,
        ),
    ] = "1/1",
    dry_run: DryRun = False,
    extend: Annotated[
        str | None,
        typer.Option(
            metavar="STORE",
            help="A store of fewer of these images; only what is new is extracted.",
            autocompletion=complete_store,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write an activation store, or what is missing of it, and print its URI.

    For example:
      head2toe extract --backbone test_resnet --weights shipped --data digits --root stores
      head2toe extract --backbone resnet50.a1_in1k --data photos --root stores --dry-run
    """
    from pipeline.extraction import extract as extract_stage
    from pipeline.extraction import foresee
    from pipeline.extraction_parameters import ExtractionParameters
    from pipeline.sharding import Shard
    from store.aliases import resolve_store

    parameters = ExtractionParameters(
        backbone=backbone,
        data=data,
        weights=weights,
        taps=tuple(taps),
        exclude=tuple(exclude),
        target_sizes=tuple(target_size),
        cls_token=cls_token.value,
        pooling=pooling,
        dtype=dtype.value,
        image_size=image_size,
        preprocessing=preprocessing,
        interpolation=interpolation,
        crop_mode=crop_mode,
        crop_pct=crop_pct,
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        data_root=data_root,
        download=download,
        splits=_pairs("--split", split),
        input_key=input_key,
        target_key=target_key,
        on_bad_image=on_bad_image.value,
        batch_size=batch_size,
        autocast=autocast.value,
        channels_last=channels_last,
        compile=compile,
        workers=workers,
        block_size=block_size,
        device=device,
        dask_address=dask_address,
        extend=None if extend is None else resolve_store(extend),
    )
    part = Shard.parse(shard)
    if dry_run:
        with ProgressBars() as progress:
            found = foresee(parameters, root, progress, shard=part)
        say_notes(found.notes)
        if as_json:
            print_json(asdict(found))
        else:
            typer.echo("\n".join(forecast_lines(found)))
        return
    with ProgressBars() as progress:
        done = extract_stage(parameters, root, progress, shard=part, announce=say_forecast)
    say_notes(note for note in done.remarks if note not in done.forecast.notes)
    say(extraction_sentence(done.extracted, done.reused, done.seconds_saved, done.left_to_others))
    say_notes(filter(None, (done.bottleneck,)))
    if as_json:
        print_json(asdict(done))
    else:
        typer.echo(done.uri)


def _numbers(option: str, given: str | None) -> tuple[float, ...] | None:
    if given is None:
        return None
    try:
        return tuple(float(number) for number in given.split(","))
    except ValueError:
        raise InvalidInputError(f"{option} {given!r} is not a list of numbers such as 0.5,0.5,0.5.") from None


def _pairs(option: str, given: list[str]) -> dict[str, str] | None:
    pairs = [(ours.strip(), theirs.strip()) for ours, _, theirs in (pair.partition("=") for pair in given)]
    for pair, (ours, theirs) in zip(given, pairs, strict=True):
        if not ours or not theirs:
            raise InvalidInputError(f"{option} {pair!r} is not of the form train=NAME.")
    if len(dict(pairs)) != len(pairs):
        raise InvalidInputError(f"{option} names a split twice: {', '.join(given)}.")
    return dict(pairs) or None


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (taps, extract):
        app.command()(command)

"""The command `head2toe`. Stage commands call the stages directly; only `run` and `demo` start Prefect."""

from __future__ import annotations

import signal
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from flows.catalogue_commands import DType, Json, StoreArgument, register
from flows.console import ProgressBars, human_bytes, print_facts, print_json, print_table, say
from store.errors import Head2ToeError

if TYPE_CHECKING:
    from flows.config import Head2ToeConfig
    from flows.head2toe import RunSummary

MISTAKE = 2
"""Exit code for what the user can mend, an interrupted extraction included."""


class Normalization(StrEnum):
    """Choices of ``--normalization``."""

    unit_norm = "unit_norm"
    standardize = "standardize"
    none = "none"


class ClsToken(StrEnum):
    """Choices of ``--cls-token``."""

    pooled = "pooled"
    separate = "separate"
    only = "only"


class _Commands(TyperGroup):
    """Turns a user's mistake into one sentence on standard error and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except ValidationError as error:
            from flows.config import explain

            _fail(f"{explain(error)}")
        except Head2ToeError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            _fail("stopped; what was finished is kept, run the same command again to go on.")


def _fail(sentence: str) -> NoReturn:
    say(f"error: {sentence}")
    raise typer.Exit(MISTAKE)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Adapt a frozen vision backbone to many tasks: extract every layer once, select features, refit a head.",
)

Taps = Annotated[list[str], typer.Option(help="Preset, module name or shell-style pattern; repeatable.")]
Exclude = Annotated[list[str], typer.Option(help="Pattern of taps to leave out; repeatable.")]
TargetSizes = Annotated[
    list[int], typer.Option("--target-size", min=1, help="Features aimed at per layer; repeatable.")
]
ImageSize = Annotated[int | None, typer.Option(min=1, help="Height and width in pixels; the backbone's own.")]
ClsTokenOption = Annotated[ClsToken, typer.Option(help="What becomes of prefix tokens.")]
DATA_HELP = "'digits', an .npz file, or a folder: <class>/…, or train/<class>/… and test/<class>/…, or VTAB-1k lists."
DEFAULT_TAPS, NO_PATTERNS, DEFAULT_TARGET_SIZES = ["head2toe"], list[str](), [512]


@app.command()
def demo(
    root: Annotated[str, typer.Option(help="Where stores and reports go.")] = "demo",
    weights: Annotated[
        str, typer.Option(help="'random:SEED', 'pretrained' (needs a network), or a file.")
    ] = "random:0",
    as_json: Json = False,
) -> None:
    """Run the whole pipeline on scikit-learn's handwritten digits; a second run extracts nothing.

    Example: head2toe demo --root demo
    """
    from flows.demo import demo_config

    _run(demo_config(root, weights), as_json)


@app.command()
def run(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="Parameters of the run; see configs/demo.yaml.")
    ],
    as_json: Json = False,
) -> None:
    """Run the whole pipeline as a Prefect flow.

    Example: head2toe run configs/demo.yaml
    """
    from flows.config import load_config

    _run(load_config(config), as_json)


@app.command()
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


@app.command()
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
    from pipeline.extraction import ExtractionParameters
    from pipeline.extraction import extract as extract_stage
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
    say(_extraction_sentence(done.extracted, done.reused, done.seconds_saved))
    if as_json:
        print_json(vars(done))
    else:
        typer.echo(done.uri)


@app.command()
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


@app.command()
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


def _run(config: Head2ToeConfig, as_json: bool) -> None:
    from flows.runtime import run_flow

    summary = run_flow(config)
    for note in summary.notes:
        say(f"note: {note}")
    say(_extraction_sentence(summary.extracted, summary.reused, summary.seconds_saved))
    if as_json:
        print_json(summary.model_dump(mode="json"))
        return
    _print_summary(summary)


def _print_summary(summary: RunSummary) -> None:
    print_table(
        None,
        ("method", "features", "test accuracy", "seconds"),
        [
            (r.method, f"{r.features:,}", f"{100 * r.accuracy['test']:.1f} %", f"{r.seconds:.1f}")
            for r in summary.results
        ],
    )
    print_facts({"store": summary.store, "selection": summary.selection, "report": summary.report})


def _extraction_sentence(extracted: int, reused: int, seconds_saved: float) -> str:
    if not reused:
        return f"extracted {extracted:,} samples."
    return f"extracted {extracted:,} samples; {reused:,} were in the store already, which saved {seconds_saved:.1f} s."


register(app)


def main() -> None:
    """Run the command line; SIGTERM stops it as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    app()

"""The manners of the command line: examples, JSON, quiet, dry runs, suggestions, colours, exit codes, completion."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from classifiers import DATA
from typer.testing import CliRunner

from flows import completion
from flows.cli import EXIT_CODES, app
from flows.console import QUIET

ROOT = Path(__file__).parents[2]
RUNNER = CliRunner()
COMMANDS = typer.main.get_command(app).commands
EXTRACTION = COMMANDS["extract"].params
NO_JSON = {"serve": "it does not end, and yields nothing"}
NO_DRY_RUN = {
    "taps": "writes nothing",
    "list": "writes nothing",
    "show": "writes nothing",
    "doctor": "leaves nothing of what it writes",
    "serve": "writes what the runs that it is asked for write",
}
SMALL = ["--image-size", "32", "--target-size", "64", "--taps", "layer4.*", "--taps", "embedding", "--device", "cpu"]


def run(*arguments: str | Path, code: int = 0, env: dict[str, str] | None = None) -> tuple[str, str]:
    """Run a command in this process; returns standard output and standard error."""
    result = RUNNER.invoke(app, [str(argument) for argument in arguments], env=env)
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def options(command: str) -> set[str]:
    return {option for parameter in COMMANDS[command].params for option in parameter.opts}


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return everything below a folder: when it was changed, and what it holds."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


# -------------------------------------------------------------------- help


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help_has_examples_that_parse(name: str | None) -> None:
    out, _ = run(*([name] if name else []), "--help")
    block = out.partition("  For example:\n")[2].partition("\n\n")[0]
    examples = [line.strip() for line in block.splitlines()]
    assert examples
    for example in examples:
        program, command, *words = shlex.split(example)
        assert program == "head2toe"
        assert name in (None, command)
        parsed = COMMANDS[command].make_context(command, words)
        # What is given must have gone somewhere.
        given = [str(value) for value in parsed.params.values() if value not in (None, False, [], ())]
        for word in words:
            assert word.startswith("--") or any(word in value for value in given), f"{word} of {example}"


def test_options_of_long_commands_are_grouped() -> None:
    out, _ = run("extract", "--help")
    usual, reading, computing = (out.index(f"\n{title}:\n") for title in ("Options", "Reading images", "Computing"))
    assert usual < out.rindex("--root ") < reading < out.rindex("--crop-pct ") < computing < out.rindex("--workers ")
    shown = re.findall(r"^  (?:-\w, )?(--[\w-]+)", out, re.MULTILINE)
    assert sorted(shown) == sorted(["--help", *(next(o for o in p.opts if o[1] == "-") for p in EXTRACTION)])


def test_every_command_can_say_json_quiet_and_if_it_writes_dry_run_or_is_known_not_to() -> None:
    assert {name for name in COMMANDS if "--json" not in options(name)} == NO_JSON.keys()
    assert {name for name in COMMANDS if "--dry-run" not in options(name)} == NO_DRY_RUN.keys()
    assert {name for name in COMMANDS if not {"--quiet", "-q"} <= options(name)} == set()


# -------------------------------------------------------------------- stores to work on


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with images, activations, a configuration, and a store of the images with a selection and a head."""
    place: Path = tmp_path_factory.mktemp("work")
    arrays = {}
    for name in ("train", "test"):
        split = DATA.splits[name]
        arrays[f"x_{name}"] = np.stack([np.asarray(split.image(i)) for i in range(len(split))])
        arrays[f"y_{name}"] = np.asarray(split.labels)
    np.savez(place / "images.npz", **arrays)
    DATA.splits["test"].image(0).save(place / "photo.png")
    rng = np.random.default_rng(0)
    features = {"train/conv": rng.normal(size=(12, 5)).astype(np.float32), "train/labels": np.arange(12) % 2}
    np.savez(place / "features.npz", **features)
    text = (
        "root: stores\nextraction: {backbone: test_resnet, weights: 'random:0', data: images.npz, image_size: 32, "
        "target_sizes: [64], taps: ['layer4.*', embedding], device: cpu}\nselection: {scorer: variance, keep: 20}\n"
        "refit: {max_iterations: 5, validation_fraction: 0}\n"
    )
    (place / "run.yaml").write_text(text)
    tasks = "root: stores\ntasks: [{name: noise, data: images.npz}]\nmethods: {Linear: {method: linear}}\n"
    extraction = text.partition("\n")[2].partition("\n")[0].replace(" data: images.npz,", "")
    (place / "tasks.yaml").write_text(f"{tasks}{extraction}\n")
    shutil.copy(ROOT / "prefect.yaml", place)
    with _in(place):
        extract = ["extract", "--backbone", "test_resnet", "--weights", "random:0", "--data", "images.npz", *SMALL]
        uri = run(*extract, "--root", "stores", "-q")[0].strip()
        run("alias", "stores", "noise", Path(uri).stem)
        chosen = json.loads(run("select", uri, "--scorer", "variance", "--keep", "20", "--json")[0])
        fast = ["--max-iterations", "5", "--validation-fraction", "0"]
        run("refit", uri, "--selection", chosen["selection"], *fast, "--json")
    return place


@contextmanager
def _in(folder: Path) -> Any:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture
def inside(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    return workplace


# -------------------------------------------------------------------- dry runs

EXTRACT = ["extract", "--backbone", "test_resnet", "--weights", "random:0", "--data", "images.npz", "--root", "stores"]
DRY: list[tuple[list[str], str, Callable[[Any], bool]]] = [
    ([*EXTRACT, *SMALL], "0 samples to extract, 33 there already", lambda d: d["left"] == 0),
    ([*EXTRACT, *SMALL, "--taps", "layer1.*"], "33 samples to extract", lambda d: d["left"] == 33),
    (["run", "run.yaml"], "on 20 features, there already", lambda d: d["heads"]["Head2Toe"]["there"]),
    (["select", "stores/noise", "--scorer", "variance", "--keep", "20"], "there already", lambda d: d["there"]),
    (
        ["select", "stores/noise", "--scorer", "variance", "--keep", "9"],
        "a ranking that is there",
        lambda d: d["ranked"],
    ),
    (["select", "stores/noise", "--fraction", "0.1"], "to be computed", lambda d: not d["ranked"]),
    (["refit", "stores/noise", "--linear"], "to be trained; reads", lambda d: d["bytes_read"] > 0),
    (["predict", "stores/noise", "photo.png", "--output", "out.csv"], "out.csv", lambda d: d["images"] == 1),
    (["export", "stores/noise", "--output", "new"], "head.safetensors", lambda d: "README.md" in d["files"]),
    (["evaluate", "tasks.yaml", "--output", "tables"], "there", lambda d: d[0]["fits"]["Linear"] == 10),
    (["import", "features.npz", "--root", "stores"], "imported 12 samples", lambda d: d["imported"] == 12),
    (["report", "stores/noise"], "stores/reports/", lambda d: len(d["heads"]) == 1),
    (["alias", "stores", "other", "noise"], "names store", lambda d: d["name"] == "other"),
    (["alias", "stores", "noise", "--delete"], "alias noise is gone", lambda d: d["deleted"]),
    (["remove", "stores/noise", "--force"], "1 selection, 1 head", lambda d: d["aliases"] == ["noise"]),
    (["verify", "stores/noise", "--repair"], "", lambda d: d["problems"] == [] and d["dry_run"]),
    (["init", "new.yaml", "--data", "images.npz"], "data: images.npz", lambda d: not d["written"]),
    (["deploy"], "deployment selection/selection    to be made", lambda d: d["work pool"]["gpu"] == "to be made"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "said", "holds"), DRY, ids=[f"{i}-{row[0][0]}" for i, row in enumerate(DRY)])
def test_a_dry_run_says_what_would_be_done_as_one_document_too_and_changes_nothing(
    inside: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str, holds: Callable[[Any], bool]
) -> None:
    if arguments == ["deploy"]:
        monkeypatch.setattr("flows.deploying.open_server", _empty_server)
    before = tree(inside)
    assert said in run(*arguments, "--dry-run")[0]
    document, err = run(*arguments, "--dry-run", "--json", "--quiet")
    assert holds(json.loads(document))
    assert err == ""
    assert tree(inside) == before


@contextmanager
def _empty_server() -> Any:
    """Stand in for a Prefect server that has no work pool and no deployment."""
    from prefect.exceptions import ObjectNotFound

    class Client:
        def read_work_pool(self, name: str) -> None:
            raise ObjectNotFound(KeyError(name))

        read_deployment_by_name = read_work_pool

    yield Client()


@pytest.mark.slow
def test_a_dry_run_of_a_repair_names_what_it_would_mark_and_marks_nothing(inside, tmp_path) -> None:
    [uri] = inside.glob("stores/*.zarr")
    shutil.copytree(uri, tmp_path / "copy.zarr")
    next((tmp_path / "copy.zarr").glob("test/layers/*/c/0/0")).unlink()
    before = tree(tmp_path)
    out, err = run("verify", tmp_path / "copy.zarr", "--repair", "--dry-run", "--json", code=2)
    assert json.loads(out)["marked"] == ["test/0"]
    assert "would mark 1 part for rewriting" in err
    assert tree(tmp_path) == before
    run("verify", tmp_path / "copy.zarr", "--repair", code=2)
    assert tree(tmp_path) != before


def test_every_command_that_writes_is_among_the_dry_runs_above() -> None:
    assert {row[0][0] for row in DRY} | {"demo"} == COMMANDS.keys() - NO_DRY_RUN.keys()


@pytest.mark.slow
def test_a_dry_run_of_the_demo_plans_what_the_demo_does(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    out, _ = run("demo", "--dry-run")
    assert "1,797 samples to extract" in out
    assert "then: a selection of" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_dry_run_refuses_what_the_command_refuses(inside) -> None:
    refused = [
        (["remove", "stores/noise"], "has 1 selection and 1 head"),
        (["alias", "stores", "x/y", "noise"], "cannot be used"),
        (["export", "stores/noise", "--output", "stores"], "is there already"),
        (["predict", "stores/noise", "photo.png", "--output", "no/such/x.csv"], "there is no folder 'no/such'"),
        (["select", "stores/noise", "--fraction", "2"], "fraction is"),
        (["select", "stores/noise", "--memory", "lots"], "is not a size"),
        (["select", "stores/noise", "--split", "tran"], "did you mean 'train'?"),
        (["refit", "stores/noise", "--linear", "--normalization", "unitnorm"], "unit_norm"),
        (["init", "run.yaml"], "is there already"),
    ]
    before = tree(inside)
    for arguments, message in refused:
        for dry in ([], ["--dry-run"]):
            out, err = run(*arguments, *dry, code=2)
            assert message in err
            assert out == ""
    assert tree(inside) == before


# -------------------------------------------------------------------- quiet and JSON


@pytest.mark.slow
def test_quiet_before_and_after_the_command_leaves_results_and_errors(inside) -> None:
    _, err = run("import", "features.npz", "--root", "q0")
    assert "reading split train: 12 of 12" in err
    assert "imported 12 samples" in err
    for number, (before, after, env) in enumerate(((["-q"], [], {}), ([], ["--quiet"], {}), ([], [], {QUIET: "1"}))):
        out, err = run(*before, "import", "features.npz", "--root", f"q{number + 1}", *after, env=env)
        assert out.strip().startswith(f"q{number + 1}/")
        assert err == ""
        _, err = run(*before, "show", "nowhere", *after, env=env, code=2)
        assert err.startswith("error: no activation store")
        assert os.environ.get(QUIET) is None
    _, err = run("import", "features.npz", "--root", "q0", env={QUIET: "0"})
    assert "were in the store already" in err


# -------------------------------------------------------------------- suggestions


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["selct"], "Did you mean 'select'"),
        (["select", "x", "--fractoin", "0.1"], "--fraction"),
        (
            ["extract", "--backbone", "x", "--data", "y", "--root", "z", "--dtype", "float61"],
            "'--dtype': 'float61' is not",
        ),
        (["show", "stores/nois"], "did you mean 'noise'?"),
        (["alias", "stores", "nois", "--delete"], "did you mean 'noise'?"),
        (["select", "stores/noise", "--scorer", "varience"], "did you mean 'variance'?"),
        (["select", "stores/noise", "--normalization", "unitnorm"], "did you mean 'unit_norm'?"),
        (["refit", "stores/noise", "--linear", "--optimizer", "lbfg"], "did you mean 'lbfgs'?"),
        (["import", "features.npz", "--root", "r", "--embedding", "cnov"], "did you mean 'conv'?"),
        (["init", "new.yaml", "--backbone", "test_resnt"], "did you mean 'test_resnet'"),
        (["evaluate", "tasks.yaml", "--tasks", "nois", "--dry-run"], "did you mean 'noise'?"),
        (["evaluate", "tasks.yaml", "--set", "protocol.fold=3", "--dry-run"], "did you mean 'folds'?"),
        (["--log-level", "inf", "list", "stores"], "did you mean 'info'?"),
    ],
)
def test_a_slip_of_the_finger_is_answered_with_what_is_near(inside, arguments, message) -> None:
    _, err = run(*arguments, code=2)
    assert message in " ".join(err.split())
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extraction: {backbon: x, data: y}", "extraction.backbon is not a known parameter"),
        ("extraction: {backbone: x, data: y, dtyp: float16}", "did you mean 'dtype'"),
        ("extraction: {backbone: x, data: y, dtype: float6}", "did you mean 'float16'"),
        ("extraction: {backbone: x, data: y}\nselection: {penalti_ratio: 1}", "did you mean 'penalty_ratio'"),
        ("rooot: here", "did you mean 'root'"),
        (
            "suite: offline\nmethods: {Linear: {method: linear}}",
            "a configuration for `head2toe evaluate`; run `head2toe",
        ),
    ],
)
def test_keys_and_values_of_a_configuration_too(tmp_path, text, message) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert message in run("run", tmp_path / "c.yaml", code=2)[1]


# -------------------------------------------------------------------- colours


def _shown(command: list[str], **environment: str) -> str:
    """Return what a command writes to a terminal."""
    here, there = pty.openpty()
    clean = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"}}
    env = {**clean, "TERM": "xterm-256color", "COLUMNS": "120", **environment}
    child = subprocess.Popen(command, stdin=there, stdout=there, stderr=there, env=env)
    os.close(there)
    text = b""
    while True:
        try:
            part = os.read(here, 4096)
        except OSError:  # the end, on Linux
            break
        if not part:
            break
        text += part
    os.close(here)
    child.wait(60)
    return text.decode()


@pytest.mark.slow
def test_colours_are_for_terminals_only_and_not_for_everyone(workplace) -> None:
    coloured = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|38|9[0-7])")
    command = [sys.executable, "-c", "from flows.cli import main; main()", "list"]
    good, bad = [*command, str(workplace / "stores")], [*command, str(workplace / "nowhere")]
    for arguments, text in ((good, "complete"), (bad, "does not exist")):
        shown = _shown(arguments)
        assert text in shown
        assert coloured.search(shown)
        plain = _shown(arguments, NO_COLOR="1")
        assert text in plain
        assert not coloured.search(plain)
        piped = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert text in piped.stdout + piped.stderr
        assert "\x1b" not in piped.stdout + piped.stderr


# -------------------------------------------------------------------- exit codes


def test_exit_codes_are_documented_where_people_look() -> None:
    shown = run("--help")[0].partition("Exit codes:\n")[2]
    assert [int(line.split()[0]) for line in shown.splitlines() if line.strip()[:1].isdigit()] == list(EXIT_CODES)
    document = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", document, re.MULTILINE)] == list(EXIT_CODES)


@pytest.mark.slow
def test_a_fault_of_the_program_is_1_and_a_mistake_2(inside, monkeypatch) -> None:
    def broken(root: str) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("store.catalogue.list_stores", broken)
    result = RUNNER.invoke(app, ["list", "stores"])
    assert (result.exit_code, str(result.exception)) == (1, "a bug")
    assert RUNNER.invoke(app, ["list"]).exit_code == 2
    assert RUNNER.invoke(app, ["show", "nowhere"]).exit_code == 2


# -------------------------------------------------------------------- completion


def completed(line: str) -> list[str]:
    """Return what Bash is offered at the end of a line."""
    words = line.split(" ")
    asked = {"_HEAD2TOE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = RUNNER.invoke(app, [], prog_name="head2toe", env=asked)
    assert result.exit_code == 0, result.output
    return result.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("head2toe ver", ["verify"]),
        ("head2toe select x --scorer gr", ["group_lasso"]),
        ("head2toe select x --normalization un", ["unit_norm"]),
        ("head2toe select x --penalty-", ["--penalty-ratio"]),
        ("head2toe extract --backbone test_r", ["test_resnet"]),
        ("head2toe extract --weights sh", ["shipped"]),
        ("head2toe extract --dtype float3", ["float32"]),
        ("head2toe taps x --taps emb", ["embedding"]),
        ("head2toe refit x --optimizer l", ["lbfgs"]),
        ("head2toe run r", ["run.yaml"]),
        ("head2toe evaluate st", ["stores/"]),
        ("head2toe show stores/no", ["stores/noise"]),
        ("head2toe predict stores/n", ["stores/noise"]),
        ("head2toe show s3://bucket/", []),
        ("head2toe show no/such/place/", []),
        ("head2toe verify x --q", ["--quiet"]),
    ],
)
def test_words_and_values_are_completed(inside, line, offered) -> None:
    assert completed(line) == offered


@pytest.mark.slow
def test_stores_and_their_results_are_offered_by_fingerprint_and_digest(inside) -> None:
    [uri] = inside.glob("stores/*.zarr")
    assert completed(f"head2toe show stores/{uri.name[:4]}") == [f"stores/{uri.name}"]
    [selection], [head] = ([p.name for p in uri.glob(f"results/{kind}/*")] for kind in ("selections", "heads"))
    for name in ("noise", uri.stem[:5], uri.name):
        assert completed(f"head2toe refit stores/{name} --selection {selection[:2]}") == [selection]
        assert completed(f"head2toe export stores/{name} --head ") == [head]
    assert completed("head2toe refit nowhere --selection ") == []


def test_what_is_completed_is_what_there_is() -> None:
    from pipeline.heads import OPTIMIZERS
    from pipeline.normalization import Normalization
    from pipeline.places import PRESETS
    from pipeline.scorers import SCORERS
    from pipeline.weights import shipped_backbones

    assert tuple(SCORERS) == completion.SCORERS
    assert set(completion.NORMALIZATIONS) == set(Normalization.__args__)
    assert tuple(OPTIMIZERS) == completion.OPTIMIZERS
    assert set(completion.PRESETS) == set(PRESETS)
    assert completion.complete_backbone("") == list(shipped_backbones())


def test_completion_needs_neither_numpy_nor_torch_nor_prefect_nor_zarr() -> None:
    code = """
import sys
sys.argv = ["head2toe"]
from flows.cli import app
try:
    app(prog_name="head2toe")
except SystemExit:
    sys.exit(bool({"numpy", "torch", "prefect", "zarr"} & set(sys.modules)))
"""
    asked = {"_HEAD2TOE_COMPLETE": "complete_bash", "COMP_WORDS": "head2toe select x --scorer l", "COMP_CWORD": "4"}
    environment = {**os.environ, **asked}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["l1", "l2"]


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_of_a_shell_asks_for_completions(shell) -> None:
    result = RUNNER.invoke(app, [], prog_name="head2toe", env={"_HEAD2TOE_COMPLETE": f"source_{shell}"})
    assert result.exit_code == 0
    assert f"_HEAD2TOE_COMPLETE=complete_{shell}" in result.stdout
    if shell == "bash":
        asked = 'COMP_WORDS=(head2toe docto); COMP_CWORD=1; _head2toe_completion head2toe; echo "${COMPREPLY[@]}"'
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        command = ["bash", "--norc", "-c", f"{result.stdout}\n{asked}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path})
        assert done.stdout.split() == ["doctor"]
    else:
        answer = RUNNER.invoke(
            app,
            [],
            prog_name="head2toe",
            env={"_HEAD2TOE_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "head2toe docto"},
        )
        assert answer.stdout.startswith('_arguments \'*: :(("doctor":')

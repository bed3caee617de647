"""The command line from the outside: results on standard output, one sentence and exit code 2 for mistakes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.stopping import command_line

RUNNER = CliRunner()
EXTRACT = ["extract", "--backbone", "test_resnet", "--weights", "random:0", "--data", "digits", "--image-size", "32"]


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    """Run a command in this process; returns standard output and standard error."""
    result = RUNNER.invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def extracted(tmp_path_factory) -> str:
    out, err = run(*EXTRACT, "--root", str(tmp_path_factory.mktemp("root")))
    assert "extracted 1,797 samples" in err
    return out.strip()


@pytest.mark.slow
def test_stages_run_one_after_the_other_from_the_command_line(extracted) -> None:
    selected = json.loads(run("select", extracted, "--fraction", "0.05", "--json")[0])
    assert selected["certificate"]["certified"] is True
    assert selected["certificate"]["kkt_violation"] <= 1e-3
    head = json.loads(run("refit", extracted, "--selection", selected["selection"][:6], "--json")[0])
    linear = json.loads(run("refit", extracted, "--linear", "--json")[0])
    assert head["accuracy"]["test"] > linear["accuracy"]["test"]
    shown = json.loads(run("show", extracted, "--json")[0])
    assert shown["state"] == "complete"
    assert {h["digest"] for h in shown["heads"]} == {head["head"], linear["head"]}
    listed = json.loads(run("list", str(Path(extracted).parent), "--json")[0])
    assert [row["uri"] for row in listed] == [extracted]
    assert "complete and undamaged" in run("verify", extracted)[1]


def test_tables_for_people(extracted) -> None:
    run("select", extracted, "--keep", "7")
    assert "layer2.0.act1" in run("show", extracted)[0]
    assert "test_resnet" in run("list", str(Path(extracted).parent))[0]
    out, _ = run("taps", "test_resnet", "--target-size", "512")
    assert "layer4.0.act2" in out
    assert "7,768" in out


def test_taps_as_json_add_up() -> None:
    found = json.loads(run("taps", "test_vit", "--json")[0])
    assert found["features"] == sum(layer["features"] for layer in found["layers"])


def damaged(uri: str, copy: Path, what: str) -> str:
    """Return a copy of a store with one fault."""
    import shutil

    shutil.copytree(uri, copy)
    if what == "incomplete":
        (copy / "blocks/test/000000.json").unlink()
    elif what == "damaged":
        chunk = copy / "train/layers/logits/c/0/0"
        chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
        raw = bytearray(chunk.read_bytes())
        raw[0] ^= 1
        chunk.write_bytes(raw)
    else:
        document = json.loads((copy / "zarr.json").read_text())
        document["attributes"]["format_version"] = 99
        (copy / "zarr.json").write_text(json.dumps(document))
    return str(copy)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("incomplete", "is incomplete, blocks missing in test: 0 of 1"),
        ("damaged", "is damaged: chunk train/layers/logits/c/0/0"),
        ("version", "has format version 99"),
    ],
)
def test_stores_that_cannot_be_used_are_explained(extracted, tmp_path, fault, message) -> None:
    uri = damaged(extracted, tmp_path / "copy.zarr", fault)
    _, err = run("select", uri, "--penalty-ratio", "0.37", code=2)
    assert err.startswith("error: ") or "\nerror: " in err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "resnet5O", "--data", "digits"], "did you mean 'resnet5"),
        (["--backbone", "test_resnet", "--data", "digits", "--taps", "blocks.*"], "blocks.*"),
        (["--backbone", "test_resnet", "--data", "no/such/folder"], "no/such/folder"),
        (["--backbone", "test_resnet", "--data", "EMPTY"], "EMPTY"),
        (["--backbone", "test_resnet", "--data", "digits", "--weights", "missing.pth"], "missing.pth"),
        (["--backbone", "test_resnet", "--data", "digits", "--weights", "random:x"], "random:0"),
        (["--backbone", "test_resnet", "--data", "digits", "--device", "abacus"], "abacus"),
    ],
)
def test_arguments_that_cannot_be_used_are_explained(tmp_path, monkeypatch, arguments, message) -> None:
    (tmp_path / "EMPTY").mkdir()
    monkeypatch.chdir(tmp_path)
    weights = [] if "--weights" in arguments else ["--weights", "random:0"]
    _, err = run("extract", "--root", "root", "--image-size", "32", *weights, *arguments, code=2)
    assert message in err
    assert err.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    assert not (tmp_path / "root").exists()


def test_a_root_that_is_not_writable_is_refused_before_any_work(tmp_path) -> None:
    tmp_path.chmod(0o500)
    # The superuser may write anywhere but into the kernel's own file system.
    root = "/proc/head2toe" if os.geteuid() == 0 else str(tmp_path / "root")
    assert "choose a root that is writable" in run(*EXTRACT, "--root", root, code=2)[1]


def test_a_root_that_is_a_file_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    assert "it is a file" in run(*EXTRACT, "--root", str(tmp_path / "file"), code=2)[1]


@pytest.mark.parametrize("fraction", ["0", "1.5", "-0.1", "nan"])
def test_a_fraction_outside_its_range_is_refused_by_value(extracted, fraction) -> None:
    _, err = run("select", extracted, "--fraction", fraction, code=2)
    assert "fraction is" in err
    assert "should be" in err


def test_unknown_selection_and_contradicting_options_are_explained(extracted) -> None:
    assert "does not exist" in run("refit", extracted, "--selection", "zzz", code=2)[1]
    assert "either --selection ID or --linear" in run("refit", extracted, "--linear", "--selection", "z", code=2)[1]
    assert "no activation store" in run("show", "nowhere", code=2)[1]
    assert "does not exist or is empty" in run("list", "nowhere", code=2)[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extraction: {backbone: test_resnet, data: digits}\nselection: {fraction: 2}", "selection.fraction is 2"),
        ("root: here", "extraction is missing"),
        ("extraction: {backbone: test_resnet, data: digits, size: 3}", "extraction.size is not a known parameter"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_configuration_that_is_not_valid_is_explained_without_starting_prefect(tmp_path, text, message) -> None:
    (tmp_path / "c.yaml").write_text(text)
    _, err = run("run", str(tmp_path / "c.yaml"), code=2)
    assert message in err
    assert "Prefect" not in err


def test_verify_names_damage_and_fails(extracted, tmp_path) -> None:
    out, err = run("verify", damaged(extracted, tmp_path / "copy.zarr", "damaged"), code=2)
    assert "train/layers/logits/c/0/0" in out
    assert "1 problem found" in err


def test_help_names_every_command_and_starts_neither_torch_nor_prefect() -> None:
    code = """
import sys
sys.argv = ["head2toe", "--help"]
from flows.cli import app
from flows.stopping import command_line
try:
    app()
except SystemExit:
    sys.exit(bool({"torch", "prefect"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    commands = "demo run init doctor taps extract select refit predict export report evaluate import list show verify"
    commands += " alias remove deploy serve"
    for command in commands.split():
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("flow", ["selection", "refit"])
def test_a_flow_that_only_reads_stores_starts_without_what_runs_backbones(flow) -> None:
    code = f"import sys, flows.{flow}; print(sorted({{'timm', 'torchvision', 'sklearn'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "device"), [(signal.SIGINT, "cpu"), (signal.SIGTERM, "cpu,cpu")])
def test_ctrl_c_in_mid_extraction_keeps_what_is_committed_and_prints_the_command_that_resumes(
    tmp_path, number, device
) -> None:
    arguments = [*EXTRACT, "--root", str(tmp_path / "a root"), "--block-size", "50", "--batch-size", "5"]
    arguments += ["--device", device]
    command = [sys.executable, "-c", "from flows.cli import main; main()", *arguments]
    tmp_path /= "a root"
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (records := list(tmp_path.glob("*.zarr/blocks/*/*.json"))):
        assert child.poll() is None, "the extraction ended before it could be stopped"
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    assert "blocks are committed in" in err
    assert "Traceback" not in err
    line = err.partition("To go on, run:\n")[2].strip()
    assert shlex.split(line) == ["head2toe", *arguments]
    kept = {path: path.read_bytes() for path in records}
    _, err = run(*shlex.split(line)[1:])
    assert "were in the store already" in err
    assert all(path.read_bytes() == raw for path, raw in kept.items())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_says_what_is_kept_and_how_to_go_on(tmp_path, number) -> None:
    """As a terminal does, the signal goes to every process of the command, Prefect's server included."""
    (tmp_path / "c.yaml").write_text(
        f"root: {tmp_path}/root\nextraction: {{backbone: test_resnet, weights: 'random:0', data: digits, "
        "image_size: 32, block_size: 50, batch_size: 5}"
    )
    command = [sys.executable, "-c", "from flows.cli import main; main()", "run", str(tmp_path / "c.yaml")]
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    while not list(tmp_path.glob("root/*.zarr/blocks/*/*.json")):
        assert child.poll() is None, "the extraction ended before it could be stopped"
        time.sleep(0.01)
    if number == signal.SIGINT:
        os.killpg(child.pid, number)
    else:
        child.send_signal(number)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 128 + number
    assert "Traceback" not in err
    assert "Aborted" not in err
    assert err.endswith(f"To go on, run:\n  head2toe run {tmp_path}/c.yaml\n")


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path) -> None:
    arguments = [*EXTRACT, "--root", str(tmp_path / "root"), "--dry-run", "--shard", "1/3"]
    found = json.loads(run(*arguments, "--json")[0])
    assert found["samples"] == {"train": 1000, "test": 797}
    assert found["left"] + found["left_to_others"] == 1797
    out, _ = run(*arguments)
    for text in ("samples: train 1,000, test 797; layers: ", "to be written; ", "free at the root", "to other shards"):
        assert text in out
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("shard", ["0/4", "5/4", "a/b"])
def test_a_shard_that_is_none_is_refused_by_its_text(tmp_path, shard) -> None:
    _, err = run(*EXTRACT, "--root", str(tmp_path / "root"), "--shard", shard, code=2)
    assert f"shard '{shard}' is not NUMBER/COUNT" in err


def test_the_command_to_go_on_with_is_quoted_and_named_so_that_the_shell_finds_it(tmp_path, monkeypatch) -> None:
    program = tmp_path / "head2toe"
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(program), "list", "it's here", "--json"])
    monkeypatch.setenv("PATH", "")
    assert shlex.split(command_line()) == sys.argv
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command_line() == """head2toe list 'it'"'"'s here' --json"""
    monkeypatch.setattr(sys, "argv", ["-c", "list"])
    assert command_line() == "head2toe list"

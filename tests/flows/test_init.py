"""Configuration files: written with comments, described by published schemas, checked by them as by the models."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from typer.testing import CliRunner

from flows.cli import app
from flows.config import Head2ToeConfig, load_config
from flows.demo import demo_config
from flows.init import ELSEWHERE, NAMES
from flows.reading import models_in, read_model
from flows.schema import Kind, model_of, schema_of, text_of
from pipeline.evaluation import METHODS, EvaluationConfig

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = {
    "demo.yaml": Kind.run,
    "position.yaml": Kind.run,
    "offline.yaml": Kind.evaluation,
    "vtab1k/resnet50.yaml": Kind.evaluation,
    "vtab1k/vit_b16.yaml": Kind.evaluation,
}
NO_CONFIGURATION = {"zombie-runs.yaml"}
RUNNER = CliRunner()


def run(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """Run a command in this process; returns standard output and standard error."""
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def keys(kind: type[BaseModel], above: str = "") -> set[str]:
    """Return the dotted keys of a model and of those it always holds."""
    found = set[str]()
    for name, field in kind.model_fields.items():
        found.add(f"{above}{name}")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= keys(field.annotation, f"{above}{name}.")
    return found


def given(document: dict[str, Any], above: str = "") -> set[str]:
    """Return the dotted keys of a document, down to where methods have their names."""
    found = set[str]()
    for name, value in document.items():
        found.add(f"{above}{name}")
        if isinstance(value, dict) and name != "methods":
            found |= given(value, f"{above}{name}.")
    return found


# -------------------------------------------------------------------- schemas


@pytest.mark.parametrize("kind", Kind)
def test_published_schemas_are_those_of_the_models(kind: Kind) -> None:
    published = CONFIGS / f"{kind}.schema.json"
    assert published.read_text(encoding="utf-8") == text_of(kind), "run `python -m flows.schema`"
    Draft202012Validator.check_schema(json.loads(published.read_text(encoding="utf-8")))
    out, _ = run("init", "--schema", *(["--evaluation"] if kind is Kind.evaluation else []))
    assert out == published.read_text(encoding="utf-8")


def test_every_configuration_names_its_schema_and_is_valid_by_it() -> None:
    there = {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml")}
    assert there == FILES.keys() | NO_CONFIGURATION
    for name, kind in FILES.items():
        path = CONFIGS / name
        text = path.read_text(encoding="utf-8")
        mark, equals, schema = text.partition("\n")[0].partition("$schema=")
        assert (mark, equals) == ("# yaml-language-server: ", "$schema=")
        assert (path.parent / schema).resolve() == (CONFIGS / f"{kind}.schema.json").resolve()
        Draft202012Validator(schema_of(kind)).validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        (Kind.run, "rooot", "here"),
        (Kind.run, "extraction.backbon", "x"),
        (Kind.run, "extraction.dtype", "float61"),
        (Kind.run, "selection.fraction", 2),
        (Kind.run, "refit.max_iterations", 0),
        (Kind.evaluation, "seeds", []),
        (Kind.evaluation, "extraction.device", 3),
        (Kind.evaluation, "methods.Linear.method", "liner"),
        (Kind.evaluation, "methods.Linear.fractions", [0.1]),
        (Kind.evaluation, "methods.Head2Toe.fractions", "many"),
    ],
)
def test_schema_and_model_refuse_the_same(tmp_path, kind: Kind, place: str, value: Any) -> None:
    name = "demo.yaml" if kind is Kind.run else "offline.yaml"
    document = yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
    changed = copy.deepcopy(document)
    *parents, last = place.split(".")
    part = changed
    for parent in parents:
        part = part[parent]
    part[last] = value
    assert not Draft202012Validator(schema_of(kind)).is_valid(changed)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(changed))
    command = ["run"] if kind is Kind.run else ["evaluate", "--tasks", "digits"]
    assert "error: configuration" in run(*command, tmp_path / "c.yaml", "--dry-run", code=2)[1]


# -------------------------------------------------------------------- init


def test_what_init_writes_is_the_demo_with_every_key_explained(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    out, err = run("init")
    assert out == "run.yaml\n"
    assert "head2toe run run.yaml --dry-run" in err
    text = Path("run.yaml").read_text(encoding="utf-8")
    assert load_config(Path("run.yaml")) == demo_config("head2toe-data")
    assert given(yaml.safe_load(text)) == keys(Head2ToeConfig)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 110
    for part in ("extraction", "selection", "refit"):
        assert lines[lines.index(f"{part}:") - 1].startswith("# ")


def test_an_evaluation_too_with_every_method(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert json.loads(run("init", "--evaluation", "--json")[0])["path"] == "evaluation.yaml"
    text = Path("evaluation.yaml").read_text(encoding="utf-8")
    config = read_model(Path("evaluation.yaml"), EvaluationConfig, "")
    assert [p.method for p in config.methods.values()] == ["linear", "head2toe"]
    assert len(config.all_tasks) == 16
    assert keys(EvaluationConfig) - given(yaml.safe_load(text)) == ELSEWHERE[Kind.evaluation]
    assert NAMES.keys() == METHODS.keys()
    # Without the marks of the comments, all methods have all their options, and valid ones.
    start = text.index("methods:\n")
    block = text[start : text.index("\n\n", start)].replace("    # ", "    ").replace("  # ", "  ")
    methods = yaml.safe_load(block)["methods"]
    for parameters in methods.values():
        kind = METHODS[parameters.pop("method")]
        assert kind.options.model_fields.keys() == parameters.keys()
        kind.options.model_validate(parameters)
    assert len(methods) == len(METHODS)
    Draft202012Validator(schema_of(Kind.evaluation)).validate(yaml.safe_load(text))


def test_init_looks_at_data_and_backbone_before_it_writes_them_in(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        Path("photos", name).mkdir(parents=True)
        for number in range(2):
            Path("photos", name, f"{number}.png").write_bytes(b"looked at later")
    assert "did you mean 'resnet50'" in run("init", "--backbone", "resnet5O", code=2)[1]
    assert "no/photos" in run("init", "--data", "no/photos", code=2)[1]
    assert not Path("run.yaml").exists()
    run("init", "a.yaml", "--data", "photos", "--backbone", "resnet18", "--root", "s3://bucket/stores")
    extraction = load_config(Path("a.yaml")).extraction
    assert (extraction.data, extraction.backbone, extraction.weights) == ("photos", "resnet18", "pretrained")
    assert load_config(Path("a.yaml")).root == "s3://bucket/stores"
    run("init", "b.yaml", "--evaluation", "--data", "photos", "--backbone", "test_vit", "--weights", "random:1")
    config = read_model(Path("b.yaml"), EvaluationConfig, "")
    assert [(task.name, task.data) for task in config.all_tasks] == [("photos", "photos")]
    assert config.extraction.weights == "random:1"


def test_a_file_that_is_there_is_replaced_by_force_only(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("mine")
    assert "is there already; give --force" in run("init", code=2)[1]
    assert Path("run.yaml").read_text() == "mine"
    run("init", "--force")
    assert load_config(Path("run.yaml")).extraction.backbone == "test_resnet"
    assert "cannot write 'no/such/run.yaml': there is no folder 'no/such'" in run("init", "no/such/run.yaml", code=2)[1]


def test_models_are_found_within_types() -> None:
    assert list(models_in(tuple[dict[str, Head2ToeConfig] | None, ...])) == [Head2ToeConfig]
    assert {model_of(kind) for kind in Kind} == {Head2ToeConfig, EvaluationConfig}

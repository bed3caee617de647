"""A package outside of this one adds a scorer, a preset, data and a pooling rule, as docs/extending.md says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from pipeline.datasets import load_data
from pipeline.plugins import find_plugin, plugin_names
from pipeline.pooling import Pooling, check_pooling, pool, pooled_size
from pipeline.probing import trace
from pipeline.scorers import SCORERS, Scorer, find_scorer
from pipeline.selection import SelectionParameters, select_features
from pipeline.taps import Capture, plan_layers, plan_pooling, resolve_taps
from store import open_store
from store.errors import InvalidInputError
from store.spec import PoolingSpec, canonical_json

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PROJECT = tomllib.loads(next(text for language, text in BLOCKS if language == "toml"))["project"]
POINTS: dict[str, dict[str, str]] = PROJECT["entry-points"]
CODE = {text.split()[1]: text for language, text in BLOCKS if language == "python"}

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package as an installer lays it out, into a folder of its own; it is gone after the test."""
    modules = set(sys.modules)

    def lay(
        points: dict[str, dict[str, str]], code: dict[str, str], name: str = "my-head2toe", version: str = "1.0"
    ) -> Path:
        folder = tmp_path / f"{name}-{version}-{len(list(tmp_path.iterdir()))}"
        for path, text in code.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in named.items()) for group, named in points.items()]
        (about / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
        monkeypatch.syspath_prepend(str(folder))
        return folder

    yield lay
    for name in set(sys.modules) - modules:
        if name.split(".")[0] in ("my_head2toe", "other"):
            del sys.modules[name]


def other(**code: str) -> dict[str, str]:
    return {f"other/{name}.py": text for name, text in code.items()}


# ---------------------------------------------------------------- the package of the page


def test_the_page_shows_one_of_each() -> None:
    assert {group.removeprefix("head2toe.") for group in POINTS} == {
        "scorers", "tap_presets", "data_sources", "poolings"
    }  # fmt: skip
    assert {value.split(":")[0].replace(".", "/") + ".py" for p in POINTS.values() for value in p.values()} == set(CODE)


def test_nothing_is_imported_before_it_is_asked_for(install: Install) -> None:
    install(POINTS, CODE)
    assert plugin_names("scorer") == ["class_gap"]
    assert find_scorer("variance") is SCORERS["variance"]
    assert load_data("digits").name == "digits"
    assert "my_head2toe" not in sys.modules
    find_scorer("class_gap")
    assert "my_head2toe.scorers" in sys.modules
    assert "my_head2toe.taps" not in sys.modules


def test_a_scorer_ranks_and_its_version_is_part_of_the_selection(install: Install, store, values) -> None:
    install(POINTS, CODE)
    parameters = SelectionParameters(scorer="class_gap", keep=10)
    first = select_features(store, parameters)
    assert first.certificate == {
        "certified": False, "note": "no certificate: class_gap is a heuristic", "classes": 3
    }  # fmt: skip
    x, y = values["train"].astype(float), store.labels("train")
    means = [x[y == k].mean(axis=0) for k in range(3)]
    expected = (max(m[first.indices[0]] for m in means) - min(m[first.indices[0]] for m in means)) / x[
        :, first.indices[0]
    ].std()
    assert first.relevance.max() == pytest.approx(expected, rel=1e-4)
    assert select_features(store, parameters).reused
    install(POINTS, CODE, version="1.1")
    second = select_features(store, parameters)
    assert not second.reused
    assert second.digest != first.digest
    assert parameters.ranking()["plugin"] == {"name": "class_gap", "distribution": "my-head2toe", "version": "1.1"}
    assert "plugin" not in SelectionParameters().ranking()


def test_a_preset_names_taps_that_are_kept_once_in_order(install: Install) -> None:
    from pipeline.backbones import model_structure

    install(POINTS, CODE)
    model = model_structure("test_resnet", None)
    found = [tap.name for tap in resolve_taps(model, ["pre_logits", "stages", "layer1"])]
    assert found == [*(stage["module"] for stage in model.feature_info), "pre_logits"]
    with pytest.raises(InvalidInputError, match="tap 'stagse' matches no module; did you mean 'stages'"):
        resolve_taps(model, ["stagse"])


def test_a_source_gives_data_by_the_rest_of_its_name(install: Install, tmp_path: Path, monkeypatch) -> None:
    install(POINTS, CODE)
    data = load_data("stripes/7")
    assert (data.name, data.class_names, len(data.splits["train"])) == ("stripes/7", ("across", "down"), 14)
    assert len(load_data("stripes").splits["test"]) == 100
    with pytest.raises(
        InvalidInputError, match=r"source 'stripes' of my-head2toe 1\.0 failed with ValueError: invalid"
    ):
        load_data("stripes/few")
    with pytest.raises(InvalidInputError, match="give 'digits', 'offline/<task>', 'stripes', a folder"):
        load_data("strips")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stripes").mkdir()
    with pytest.raises(InvalidInputError, match="stripes"):  # an existing folder goes first, and this one is empty
        load_data("stripes")


def test_a_rule_pools_maps_and_its_version_is_part_of_the_fingerprint(install: Install) -> None:
    from pipeline.backbones import model_structure

    install(POINTS, CODE)
    spec = plan_pooling("maximum", [64])
    assert json.loads(canonical_json(spec)) == {
        "target_sizes": [64],
        "cls_token": "pooled",
        "plugin": {"name": "maximum", "distribution": "my-head2toe", "version": "1.0"},
    }
    assert "plugin" not in canonical_json(plan_pooling("average", [64]))
    assert PoolingSpec.model_validate_json(canonical_json(spec)) == spec
    structure = model_structure("test_resnet", None)
    size = (3, 64, 64)
    calls = trace(structure, size)
    taps = resolve_taps(structure, ["layer2", "embedding"], (), size, calls)
    (layer, vector) = plan_layers(structure, taps, spec, size, calls)
    model = structure.to_empty(device="cpu").eval()
    seen = []
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
        for name, buffer in model.named_buffers():
            buffer.fill_(0.0 if name.endswith("mean") else 1)
    model.get_submodule("layer2").register_forward_hook(lambda _, __, out: seen.append(out))
    with Capture(model, [layer, vector]) as capture:
        found = capture(torch.randn(2, *size))
    channels, height, _ = layer.shape
    side = min(int((64 // channels) ** 0.5), height)
    assert found[layer.name].shape == (2, layer.n_features) == (2, channels * side * side)
    assert torch.equal(found[layer.name], torch.nn.functional.adaptive_max_pool2d(seen[0], side).flatten(1))
    install(POINTS, CODE, version="2.0")
    with pytest.raises(
        InvalidInputError, match=r"'maximum' of my-head2toe 1.0, not that of my-head2toe 2.0, is needed"
    ):
        plan_layers(structure, taps, spec, size, calls)


def test_tokens_reach_a_rule_as_a_column_and_prefix_tokens_as_asked_for(install: Install) -> None:
    install(POINTS, CODE)
    found = find_plugin("pooling", "maximum")
    assert found is not None
    x = torch.randn(2, 10, 4)
    assert torch.equal(pool(x, "tokens", 4, "pooled", 1, found.value), x.amax(1))
    separate = torch.cat([x[:, 0], x[:, 1:].amax(1)], 1)
    assert torch.equal(pool(x, "tokens", 4, "separate", 1, found.value), separate)
    assert torch.equal(pool(x, "tokens", 4, "only", 1, found.value), x[:, 0])
    for cls_token, count in (("pooled", 4), ("separate", 8), ("only", 4)):
        assert pooled_size((10, 4), "tokens", 4, cls_token, 1, found.value) == count


@pytest.mark.slow
def test_the_commands_of_the_page(install: Install, tmp_path: Path) -> None:
    """The longest one in a process of its own, where nothing has been imported yet."""
    environment = {**os.environ, "PYTHONPATH": str(install(POINTS, CODE))}
    words = "extract --backbone test_resnet --weights shipped --data stripes/20 --taps stages --pooling maximum"
    head2toe = [sys.executable, "-c", "from flows.cli import main; main()", *words.split()]
    options = ["--image-size", "32", "--root", str(tmp_path / "stores")]
    done = subprocess.run([*head2toe, *options], capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    selected = CliRunner().invoke(app, f"select {done.stdout.strip()} --scorer class_gap --keep 20 --json")
    assert json.loads(selected.stdout)["kept"] == 20
    shown = CliRunner().invoke(app, "taps test_resnet --taps stages --pooling maximum --image-size 32 --json")
    layers = {row["layer"]: row["features"] for row in json.loads(shown.stdout)["layers"]}
    assert {name: layer.n_features for name, layer in open_store(done.stdout.strip()).layers.items()} == layers


# ---------------------------------------------------------------- names, and packages that are broken


def test_a_name_that_means_something_already_is_refused_and_others_go_on(install: Install) -> None:
    install({"head2toe.scorers": {"variance": "other.a:x"}, "head2toe.data_sources": {"digits": "other.a:x"}}, {})
    again = "; uninstall one of them, or rename its entry point in group 'head2toe.scorers'"
    with pytest.raises(
        InvalidInputError, match=f"'variance' is given by my-head2toe 1.0 and means something else here already{again}"
    ):
        SelectionParameters(scorer="variance")
    with pytest.raises(InvalidInputError, match=r"data source 'digits' is given by my-head2toe 1\.0 and means"):
        load_data("digits")
    assert find_scorer("random") is SCORERS["random"]
    for name in ("mine", "theirs"):
        install({"head2toe.scorers": {"twice": "other.a:x"}}, {}, name=name)
    with pytest.raises(InvalidInputError, match=r"scorer 'twice' is given by theirs 1\.0 and mine 1\.0; uninstall one"):
        find_scorer("twice")


def test_a_preset_named_as_a_module_is_refused_where_the_module_is_meant(install: Install) -> None:
    from pipeline.backbones import model_structure

    install({"head2toe.tap_presets": {"layer1": "other.a:x"}}, {})
    model = model_structure("test_resnet", None)
    with pytest.raises(
        InvalidInputError, match=r"tap preset 'layer1' is given by my-head2toe 1\.0 and means something"
    ):
        resolve_taps(model, ["layer1"])
    assert [tap.name for tap in resolve_taps(model, ["layer[1]"])] == ["layer1"]


BROKEN = {
    "absent": "scorer 'absent' of my-head2toe 1.0 failed with ModuleNotFoundError: No module named 'other.absent'",
    "nameless": "failed with AttributeError: module 'other.scorers' has no attribute 'nameless'; repair or uninstall",
    "function": "scorer 'function' of my-head2toe 1.0 is a function; it must be a pipeline.scorers.Scorer",
    "greedy": "scorer 'greedy' of my-head2toe 1.0 has an option 'depth', which selections do not have; valid are",
    "proud": "scorer 'proud' of my-head2toe 1.0 says that it is exact; only group_lasso comes with a certificate",
    "short": r"scorer 'short' of my-head2toe 1.0 cannot be used: its relevance, of shape \(3,\), must be finite and of",
    "endless": r"cannot be used: its relevance, of shape \(127,\), must be finite and of shape \(127,\)",
    "odd": "scorer 'odd' of my-head2toe 1.0 failed with TypeError: Object of type set is not JSON serializable",
    "failing": "scorer 'failing' of my-head2toe 1.0 failed with ZeroDivisionError: division by zero; repair or uninst",
}
SCORER_CODE = """
import numpy as np
from pipeline.scorers import Scorer
def function(task): return None
def ones(task): return np.ones(task.source.n_features)
greedy = Scorer(function, {"depth": 3})
proud = Scorer(function, exact=True)
short = Scorer(lambda task: (np.ones(3), {}))
endless = Scorer(lambda task: (ones(task) * np.inf, {}))
odd = Scorer(lambda task: (ones(task), {"seen": {1}}))
failing = Scorer(lambda task: 1 / 0)
"""


def test_a_broken_scorer_is_one_sentence_that_names_its_package(install: Install, store) -> None:
    points = {name: f"other.{'absent' if name == 'absent' else 'scorers'}:{name}" for name in BROKEN}
    install({"head2toe.scorers": points}, other(scorers=SCORER_CODE))
    for name, message in BROKEN.items():
        with pytest.raises(InvalidInputError, match=message):
            select_features(store, SelectionParameters(scorer=name))
    assert not select_features(store, SelectionParameters(scorer="random", keep=3)).reused


def test_a_mistake_in_a_plugin_ends_a_command_with_exit_code_2(install: Install) -> None:
    install({"head2toe.poolings": {"none": "other.a:x"}}, other(a="x = 3\n"))
    done = CliRunner().invoke(app, ["taps", "test_resnet", "--pooling", "none"])
    assert done.exit_code == 2
    assert "pooling 'none' of my-head2toe 1.0 is a int; it must be a pipeline.pooling.Pooling." in done.stderr
    done = CliRunner().invoke(app, ["taps", "test_resnet", "--pooling", "avrage"])
    assert done.exit_code == 2
    assert "pooling 'avrage' is unknown; did you mean 'average'?" in done.stderr


DATA_CODE = """
import numpy as np
from pipeline.datasets import from_arrays
x = np.zeros((4, 8, 8), np.uint8)
def number(rest): return 3
def untrained(rest): return from_arrays({"test": x}, {"test": [0, 0, 1, 1]})
"""
PRESET_CODE = """
def empty(model): return []
def unknown(model): return ["layer9"]
def nested(model): return ["empty"]
"""


def test_broken_data_and_presets_are_named(install: Install) -> None:
    from pipeline.backbones import model_structure

    install(
        {
            "head2toe.data_sources": {name: f"other.data:{name}" for name in ("number", "untrained")},
            "head2toe.tap_presets": {name: f"other.taps:{name}" for name in ("empty", "unknown", "nested")},
        },
        other(data=DATA_CODE, taps=PRESET_CODE),
    )
    with pytest.raises(InvalidInputError, match=r"source 'number' of my-head2toe 1\.0 cannot be used: it gives a int"):
        load_data("number")
    with pytest.raises(InvalidInputError, match=r"it has the splits \['test'\] and no 'train'"):
        load_data("untrained")
    model = model_structure("test_resnet", None)
    for name, message in (
        ("empty", "preset 'empty' of my-head2toe 1.0 cannot be used: it gives no list of names"),
        ("unknown", "cannot be used: tap 'layer9' matches no module; did you mean 'layer4'"),
        ("nested", "it names the preset 'empty' of a plug-in; name taps instead"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            resolve_taps(model, [name])


# ---------------------------------------------------------------- the contract of a pooling rule


def _mean(x: torch.Tensor, target_size: int) -> torch.Tensor:
    return x.mean((2, 3))


def _channels(channels: int, height: int, width: int, target_size: int) -> int:
    return channels


RULES = {
    "the rule changes the tensor": Pooling(lambda x, t: x.clamp_(min=0).mean((2, 3)), _channels),
    "the rule gives other values the second time": Pooling(lambda x, t: _mean(x, t) + torch.rand(1), _channels),
    "depends on the other images of the batch": Pooling(lambda x, t: _mean(x, t) - x.mean(), _channels),
    "makes values that are not finite": Pooling(lambda x, t: _mean(x, t).log(), _channels),
    r"makes a tensor of shape \(3, 4\) of one of \(3, 4, 6, 5\), and says that its shape is \(3, 120\)": Pooling(
        _mean, lambda c, h, w, t: c * h * w
    ),
    r"says that \(4, 6, 5\) yields 4.0 features; give a whole number from 1": Pooling(_mean, lambda c, h, w, t: c / 1),
}


@pytest.mark.parametrize("message", RULES)
def test_a_rule_that_breaks_a_promise_of_stores_is_refused_at_planning(message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        check_pooling(RULES[message], (4, 6, 5), "nchw", 16, "pooled", 0)


def test_a_rule_that_keeps_its_promises_is_taken_in_every_layout() -> None:
    rule = Pooling(_mean, _channels)
    for shape, layout in (((4, 6, 5), "nchw"), ((6, 5, 4), "nhwc"), ((9, 4), "tokens"), ((4,), "vector")):
        check_pooling(rule, shape, layout, 16, "separate", int(layout == "tokens"))  # type: ignore[arg-type]
    assert Scorer(lambda task: (None, {})).plugin is None

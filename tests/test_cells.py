"""Keys: everything that decides a result is in them, and nothing else."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sffbench import cells, data, suite
from sffbench.errors import InputError
from sffbench.suite import Places, RunSpec, Suite, canonical_json, digest

Cells = Callable[..., list[RunSpec]]

EXAMPLE = {
    "model": {
        "name": "ttm",
        "preset": "r2-512-96",
        "config": "c" * 64,
        "weights": "e" * 64,
        "options": {},
    },
    "data": {"name": "ETTh1", "source": "real", "sha256": "d" * 64},
    "task": {"name": "forecast", "horizon": 96},
    "lookback": 512,
    "strategy": {
        "name": "sff",
        "version": 1,
        "fields": {"lr": None, "alpha": 0.7},
        "plugin": None,
    },
    "lr": 1e-4,
    "protocol": {
        "name": "standard",
        "version": 1,
        "ranked": True,
        "max_steps": 300,
        "epochs": None,
        "batch_size": 256,
        "optimizer": "adamw",
        "lr": None,
        "weight_decay": 0.01,
        "schedule": "cosine",
        "clip_norm": 1.0,
        "loss": "own",
        "validate_every": 50,
        "num_validation": 4096,
        "num_snapshots": 2,
        "patience": None,
        "oracle": False,
        "num_test": None,
        "lookback": None,
    },
    "precision": "float32",
    "seed": 0,
}


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, (*path, name))
    else:
        yield path


def _changed(cell: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    changed = copy.deepcopy(cell)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = "another"
    return changed


def test_the_key_of_the_example_cell_is_pinned() -> None:
    assert RunSpec(EXAMPLE, "sff").key == "a35ec6cfa16feee3481954f4"


def test_the_key_of_a_trial_is_pinned() -> None:
    search = {"trial": 1, "trials": 2, "of": EXAMPLE["strategy"]}
    search |= {"points": [{"lr": 1e-4}, {"lr": 1e-3}]}
    assert RunSpec(EXAMPLE | {"search": search}, "sff").key == "a59c8dbe75a6b52be3bab521"


def test_a_generated_cell_has_the_layout_of_the_example(cells_of: Cells) -> None:
    (spec,) = cells_of(strategies=["sff"], protocol="standard", budget={})
    assert set(_leaves(spec.cell)) == set(_leaves(EXAMPLE))
    assert spec.cell["protocol"] == EXAMPLE["protocol"]
    assert spec.cell["strategy"] == EXAMPLE["strategy"]


@pytest.mark.parametrize("path", list(_leaves(EXAMPLE)), ids=".".join)
def test_every_field_of_the_cell_changes_the_key(path: tuple[str, ...]) -> None:
    assert digest(_changed(EXAMPLE, path)) != digest(EXAMPLE)


def test_the_order_of_fields_does_not_change_the_key() -> None:
    turned = json.loads(json.dumps(EXAMPLE), object_pairs_hook=lambda pairs: dict(pairs[::-1]))
    assert list(turned) != list(EXAMPLE)
    assert digest(turned) == digest(EXAMPLE)


def test_a_key_survives_a_trip_through_json(cells_of: Cells) -> None:
    for spec in cells_of(strategies=["sff", "last-value"]):
        assert digest(json.loads(json.dumps(spec.cell))) == spec.key


def test_a_key_refuses_what_json_cannot_say() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"alpha": float("nan")})


@pytest.mark.parametrize(
    "change",
    [
        {"strategies": [{"name": "full", "lr": 0.5}]},
        {"strategies": ["sff"]},
        {"seeds": [1]},
        {"horizons": [7]},
        {"datasets": ["ETTh2"]},
        {"protocol": "standard"},
        {"budget": {"max_steps": 5, "batch_size": 16, "validate_every": 2, "num_validation": 64}},
        {"budget": {}},
    ],
    ids=str,
)
def test_what_a_suite_asks_for_changes_the_key(cells_of: Cells, change: dict[str, Any]) -> None:
    assert cells_of(**change)[0].key != cells_of()[0].key


@pytest.mark.parametrize("field", list(EXAMPLE["protocol"]))  # type: ignore[call-overload]
def test_an_edited_protocol_never_serves_an_old_record(
    cells_of: Cells, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    from sffbench import protocol

    old = protocol.get("standard")
    edits: dict[str, Any] = {
        "name": "renamed",
        "ranked": False,
        "optimizer": "adam",
        "schedule": "halving",
        "loss": "forecast",
        "oracle": True,
        "epochs": 3,
        "lookback": 17,
        "lr": 0.5,
    }
    edit = {field: edits[field] if field in edits else (getattr(old, field) or 0) + 1}
    if field in ("epochs", "max_steps"):
        edit = {"max_steps": None, "epochs": None} | edit
    before = cells_of(protocol="standard", budget={})[0].key
    edited = protocol.Protocol(**(old.model_dump() | edit))
    monkeypatch.setitem(protocol._PROTOCOLS, "standard", edited)
    assert cells_of(protocol="standard", budget={})[0].key != before


def test_a_raised_strategy_version_changes_the_key(
    cells_of: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sffbench import strategies

    before = cells_of()[0].key
    monkeypatch.setattr(strategies.strategy_class("full"), "version", 2)
    assert cells_of()[0].key != before


def _copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_the_key_does_not_depend_on_where_the_weights_lie(
    cells_of: Cells, small_ttm: Path, tmp_path: Path
) -> None:
    moved = _copy(small_ttm, tmp_path / "elsewhere")
    assert cells_of(models=[{"name": "ttm", "source": str(moved)}])[0].key == cells_of()[0].key


def test_other_weights_or_another_config_change_the_key(
    cells_of: Cells, small_ttm: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = _copy(small_ttm, tmp_path / "edited")
    models = [{"name": "ttm", "source": str(folder)}]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dropout": 0.3}))
    with_config = cells_of(models=models)[0].key
    state = load_file(folder / "model.safetensors")
    name = next(iter(state))
    state[name].flatten()[0].add_(1e-3)
    save_file(state, folder / "model.safetensors")
    with_weights = cells_of(models=models)[0].key
    assert len({cells_of()[0].key, with_config, with_weights}) == 3


def test_a_config_written_with_other_spaces_is_the_same_config(
    cells_of: Cells, small_ttm: Path, tmp_path: Path
) -> None:
    folder = _copy(small_ttm, tmp_path / "spaced")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, indent=4, sort_keys=True))
    assert cells_of(models=[{"name": "ttm", "source": str(folder)}])[0].key == cells_of()[0].key


def _real_cells(fields: dict[str, Any], folder: Path) -> list[RunSpec]:
    return cells.expand(Suite(**fields), Places(data=str(folder)))


def test_an_edited_data_file_changes_the_key_and_its_folder_does_not(
    suite_fields: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    fields = suite_fields(data="real", strategies=["last-value"])
    for folder, content in (("a", b"date,OT\n"), ("b", b"date,OT\n"), ("c", b"date,OT\n1,2\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ETTh1.csv").write_bytes(content)
    a, b, c = (_real_cells(fields, tmp_path / folder)[0].key for folder in "abc")
    assert a == b
    assert a != c


def test_synthetic_and_real_data_have_different_keys(
    suite_fields: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "ETTh1.csv").write_bytes(b"date,OT\n")
    real = _real_cells(suite_fields(data="real", strategies=["last-value"]), tmp_path)[0]
    twin = _real_cells(suite_fields(strategies=["last-value"]), tmp_path)[0]
    assert real.key != twin.key
    assert twin.cell["data"]["sha256"] == data.content_hash("ETTh1", "", "synthetic")


def test_no_path_and_no_hardware_is_in_a_cell(
    cells_of: Cells, small_ttm: Path, tmp_path: Path
) -> None:
    from sffbench import measure
    from sffbench.measure import pick_device

    text = canonical_json(cells_of()[0].cell)
    facts = measure.environment(pick_device("cpu"))
    hardware = [facts["device_name"], facts["torch"], facts["python"], facts["sffbench"]]
    for word in [str(small_ttm), str(tmp_path.anchor + "tmp"), "cpu", *hardware]:
        assert str(word) not in text


def test_a_label_is_not_in_the_key(cells_of: Cells) -> None:
    (plain,) = cells_of()
    (named,) = cells_of(strategies=[{"name": "full", "label": "everything"}])
    assert named.label == "everything"
    assert plain.key == named.key


def test_duplicates_collapse(cells_of: Cells) -> None:
    specs = cells_of(
        datasets=["ETTh1", "etth1", "ETTh1"],
        seeds=[0, 0],
        horizons=[8, 8],
        strategies=["full", {"name": "full"}, {"name": "full", "label": "again"}],
    )
    assert len(specs) == 1


def test_two_strategies_under_one_label_are_refused(cells_of: Cells) -> None:
    with pytest.raises(InputError, match="share the label 'mine'"):
        cells_of(
            strategies=[
                {"name": "sff", "alpha": 0.5, "label": "mine"},
                {"name": "sff", "alpha": 0.6, "label": "mine"},
            ]
        )


def test_a_label_names_the_fields_that_differ_from_their_defaults(cells_of: Cells) -> None:
    specs = cells_of(strategies=["sff", {"name": "sff", "alpha": 0.5, "lr": None}])
    assert [spec.label for spec in specs] == ["sff", "sff alpha=0.5"]


def test_what_no_seed_can_change_runs_once(cells_of: Cells) -> None:
    specs = cells_of(
        seeds=[3, 4], strategies=["zero-shot", "last-value", "full", {"name": "sff", "seeds": [9]}]
    )
    assert [(s.label, s.cell["seed"]) for s in specs] == [
        ("zero-shot", 3),
        ("last-value", 3),
        ("full", 3),
        ("full", 4),
        ("sff", 9),
    ]


def test_naive_rows_run_once_for_all_models(cells_of: Cells, small_ttm: Path) -> None:
    models = [
        {"name": "ttm", "source": str(small_ttm)},
        {"name": "ttm", "source": str(small_ttm), "options": {"dropout": 0.5}},
    ]
    specs = cells_of(models=models, strategies=["last-value", "full"])
    assert [spec.label for spec in specs] == ["last-value", "full", "full"]
    assert specs[0].cell["model"]["name"] == "none"


def test_a_naive_row_sees_no_more_than_it_needs(cells_of: Cells) -> None:
    last, seasonal = cells_of(strategies=["last-value", "seasonal-naive"])
    assert (last.cell["lookback"], seasonal.cell["lookback"]) == (1, 24)
    assert last.cell["lr"] is None


@pytest.mark.parametrize(
    ("strategy", "protocol", "lr"),
    [
        ("full", "quick", cells.DEFAULT_LR),
        ("full", "sff-paper", 3e-5),
        ({"name": "full", "lr": 0.5}, "sff-paper", 0.5),
        ("linear-probe", "quick", 1e-3),
        ("zero-shot", "sff-paper", None),
    ],
)
def test_the_strategy_then_the_protocol_then_the_card_sets_the_learning_rate(
    cells_of: Cells, strategy: Any, protocol: str, lr: float | None
) -> None:
    assert cells_of(strategies=[strategy], protocol=protocol, budget={})[0].cell["lr"] == lr


def test_the_lookback_is_the_protocols_unless_the_model_takes_less(cells_of: Cells) -> None:
    assert cells_of(protocol="sff-paper", budget={})[0].cell["lookback"] == 32


PLUGIN = """
from typing import ClassVar
from sffbench.strategies import Strategy


class Mine(Strategy):
    '''A plug-in.'''

    name: ClassVar[str] = "mine"
    gain: float{default}
"""


def _plugin(folder: Path, default: str = " = 1.0", end: str = "") -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "mine.py"
    path.write_text(PLUGIN.format(default=default) + end)
    return str(path)


def _plugin_key(cells_of: Cells, path: str) -> str:
    from sffbench import strategies
    from sffbench.strategies.base import registry

    key = cells_of(plugins=(path,), strategies=["mine"])[0].key
    del registry()["mine"]  # as a new process would begin
    strategies._LOADED.clear()
    return key


@pytest.mark.usefixtures("forget_strategies")
def test_an_edited_plugin_changes_the_key_and_its_folder_does_not(
    cells_of: Cells, tmp_path: Path
) -> None:
    first = _plugin_key(cells_of, _plugin(tmp_path / "a"))
    moved = _plugin_key(cells_of, _plugin(tmp_path / "b"))
    edited = _plugin_key(cells_of, _plugin(tmp_path / "a", end="# a word\n"))
    assert first == moved
    assert first != edited


@pytest.mark.usefixtures("forget_strategies")
def test_a_plugin_edited_after_it_was_loaded_keeps_the_key_of_the_code_that_runs(
    cells_of: Cells, tmp_path: Path
) -> None:
    path = _plugin(tmp_path)
    before = cells_of(plugins=(path,), strategies=["mine"])[0].key
    _plugin(tmp_path, end="# edited\n")
    assert cells_of(strategies=["mine"])[0].key == before
    with pytest.raises(InputError, match="edited since it was loaded"):
        cells_of(plugins=(path,), strategies=["mine"])


@pytest.mark.usefixtures("forget_strategies")
def test_a_plugin_field_without_a_default_is_given_by_the_suite(
    cells_of: Cells, tmp_path: Path
) -> None:
    path = _plugin(tmp_path, default="")
    (spec,) = cells_of(plugins=(path,), strategies=[{"name": "mine", "gain": 2.0}])
    assert spec.label == "mine gain=2.0"
    assert spec.cell["strategy"]["fields"]["gain"] == 2.0
    with pytest.raises(InputError, match="'gain' is missing"):
        cells_of(strategies=["mine"])


def test_one_seed_cannot_hide_in_two_suites(cells_of: Cells) -> None:
    """The suite's own name is not in the key: two suites share what they have in common."""
    assert cells_of(name="other")[0].key == cells_of()[0].key


def test_a_spec_says_in_a_line_what_it_is(cells_of: Cells) -> None:
    assert cells_of()[0].describe() == "ttm:custom ETTh1 H=8 full seed 0"


def test_the_digest_is_24_hexadecimal_digits() -> None:
    assert len(suite.digest({})) == 24
    assert int(suite.digest({}), 16) >= 0

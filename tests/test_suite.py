"""Suite files: what is refused and in which words, shards, and the suites that we ship."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sffbench import cells, suite
from sffbench.errors import InputError
from sffbench.suite import Places, RunSpec, Suite

GOOD = """
name = "mine"
protocol = "standard"
data = "synthetic"
models = ["ttm:tiny"]
datasets = ["ETTh1"]
strategies = ["full"]
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """write(text): a suite file; returns its path."""

    def to_file(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return to_file


def test_a_suite_fills_in_its_defaults(write: Callable[[str], str]) -> None:
    loaded = suite.load(write(GOOD))
    assert (loaded.horizons, loaded.seeds, loaded.tasks) == ((96,), (0,), ("forecast",))
    assert loaded.models[0].name == "ttm:tiny"
    assert loaded.strategies == ({"name": "full"},)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('protcol = "quick"', "unknown key in suite .*'protcol'; did you mean 'protocol'"),
        ("[budget]\nmax_step = 3", "'max_step'; did you mean 'max_steps'"),
        ("[budget]\nmax_steps = 'many'", "budget.max_steps = 'many'"),
        ("horizons = []", "horizons: needs at least one entry"),
        ("seeds = []", "seeds: needs at least one entry"),
        ("tasks = []", "tasks: needs at least one entry"),
        ('tasks = ["classify"]', "tasks.0 = 'classify'.*forecast"),
        ("horizons = [96, 0]", "horizon 0: must be at least 1"),
        ("horizons = [96.5]", "horizons.0 = 96.5"),
        ("seeds = 3", "seeds = 3"),
        ("seeds = ['a']", "seeds.0 = 'a'"),
        ('measure = "size"', "measure = 'size'.*accuracy"),
        ('precision = "int4"', "precision = 'int4'"),
        ("[search]\ntrial = 3", "'trial'; did you mean 'trials'"),
        ("[search]\ntrials = 0", "search.trials = 0"),
    ],
)
def test_a_wrong_key_or_value_is_one_line_that_says_what_is_allowed(
    write: Callable[[str], str], change: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        suite.load(write(GOOD + change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('data = "synthetic"', 'data = "fake"', "data = 'fake'.*'real' or 'synthetic'"),
        ("protocol =", "protocl =", "'protocl'; did you mean 'protocol'"),
        ('data = "synthetic"', "", "'data' is missing"),
        ('models = ["ttm:tiny"]', "models = []", "models: needs at least one entry"),
        ('models = ["ttm:tiny"]', 'models = "ttm:tiny"', "models = 'ttm:tiny'"),
        ('models = ["ttm:tiny"]', "models = [3]", "models.0 = 3"),
        (
            'models = ["ttm:tiny"]',
            'models = [{ name = "ttm", sorce = "x" }]',
            "'sorce'; did you mean 'source'",
        ),
        ('datasets = ["ETTh1"]', "datasets = []", "datasets: needs at least one entry"),
        ('strategies = ["full"]', "strategies = []", "strategies: needs at least one entry"),
        ('strategies = ["full"]', "strategies = [3]", "strategies.0 = 3"),
        ('name = "mine"', "name = mine", "not valid TOML"),
        ('name = "mine"', 'name = "mine"\nname = "yours"', "not valid TOML"),
    ],
)
def test_a_wrong_entry_is_one_line(
    write: Callable[[str], str], old: str, new: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        suite.load(write(GOOD.replace(old, new)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "standart"}, "unknown protocol 'standart'; did you mean 'standard'"),
        ({"models": ["tmm:tiny"]}, "unknown model 'tmm'; did you mean 'ttm'"),
        ({"models": ["ttm"]}, "needs a checkpoint folder or a preset"),
        ({"models": [{"name": "ttm", "source": "/nowhere"}]}, "no checkpoint folder"),
        ({"datasets": ["ETTh3"]}, "unknown dataset 'ETTh3'; did you mean"),
        ({"strategies": ["ful"]}, "unknown strategy 'ful'; did you mean 'full'"),
        ({"strategies": [{"alpha": 0.7}]}, "needs a `name`"),
        ({"strategies": [{"name": "sff", "alfa": 1}]}, "'alfa'; did you mean 'alpha'"),
        ({"strategies": [{"name": "sff", "alpha": 1.5}]}, "alpha = 1.5"),
        ({"strategies": [{"name": "sff", "alpha": float("nan")}]}, "alpha = nan"),
        ({"strategies": [{"name": "full", "lr": -1.0}]}, "lr = -1.0: must be a positive"),
        ({"strategies": [{"name": "full", "lr": 0.0}]}, "lr = 0.0: must be a positive"),
        ({"strategies": [{"name": "full", "lr": float("nan")}]}, "lr = nan: must be a positive"),
        ({"strategies": [{"name": "full", "seeds": []}]}, "list of whole numbers"),
        ({"strategies": [{"name": "full", "seeds": 3}]}, "list of whole numbers"),
        ({"strategies": [{"name": "full", "seeds": ["a"]}]}, "list of whole numbers"),
        ({"budget": {"max_steps": 0}}, "max_steps = 0: must be at least 1"),
        ({"budget": {"num_validation": 0}}, "num_validation = 0: must be at least 1"),
        ({"budget": {"max_steps": 1, "epochs": 1}}, "exactly one of max_steps, epochs and train_s"),
        ({"data": "real"}, "--data-dir or SFFBENCH_DATA"),
    ],
)
def test_what_only_expansion_can_see_is_refused_in_one_line(
    cells_of: Callable[..., list[RunSpec]], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        cells_of(**change)
    assert "\n" not in str(caught.value)


def test_an_unknown_suite_names_the_nearest_and_a_missing_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown suite 'quik'; did you mean 'quick'"):
        suite.load("quik")
    with pytest.raises(InputError, match="no such file"):
        suite.load(str(tmp_path / "absent.toml"))
    with pytest.raises(InputError, match="no such file"):
        suite.load(str(tmp_path) + "/")


def test_a_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not valid TOML"):
        suite.load(str(path))


def test_real_data_in_a_folder_without_files_names_the_fetch_command(
    suite_fields: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="sffbench fetch ETTh1"):
        cells.expand(Suite(**suite_fields(data="real")), Places(data=str(tmp_path)))


def _numbered(count: int) -> list[RunSpec]:
    return [RunSpec({"number": number}, "full") for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, 7, 12])
@pytest.mark.parametrize("total", [1, 2, 5, 20])
def test_shards_partition_the_cells_exactly(count: int, total: int) -> None:
    specs = _numbered(count)
    parts = [suite.shard(specs, f"{index}/{total}") for index in range(1, total + 1)]
    keys = [spec.key for part in parts for spec in part]
    assert sorted(keys) == sorted(spec.key for spec in specs)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "1/2/3", "a/b", "1/0", "-1/2", "²/3", "", "/"])
def test_a_wrong_shard_is_one_line(part: str) -> None:
    with pytest.raises(InputError, match="shard"):
        suite.shard(_numbered(3), part)


def test_the_shipped_suites_load_and_say_their_own_file_name() -> None:
    assert {"quick", "ttm-r2", "ttm-r2-alpha"} <= set(suite.names())
    for name in suite.names():
        loaded = suite.load(name)
        assert loaded.name == name
        suite.resolved_protocol(loaded)


def test_the_quick_suite_expands_to_every_cell_once() -> None:
    from sffbench.models import checkpoint

    if not (checkpoint.PACKAGED / "ttm-tiny").is_dir():
        pytest.skip("the packaged weights are not made yet")
    specs = cells.expand(suite.load("quick"), Places())
    # six data sets x (one naive row + eight models x four strategies)
    assert len(specs) == 6 * (1 + 8 * 4)
    assert len({spec.key for spec in specs}) == len(specs)


@pytest.mark.parametrize(("name", "count"), [("ttm-r2", 96), ("ttm-r2-alpha", 18)])
def test_the_real_suites_expand_to_every_cell_once(
    name: str, count: int, real_data: Path, checkpoints: Path
) -> None:
    specs = cells.expand(suite.load(name), Places(data=str(real_data)))
    # ttm-r2: six data sets x (2 naive + zero-shot + smoothed + 4 strategies x 3 seeds)
    assert len({spec.key for spec in specs}) == len(specs) == count

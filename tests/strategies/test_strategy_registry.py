"""Names, fields and plug-in files: what is registered, what is refused, in which words."""

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import ValidationError

from sffbench import strategies
from sffbench.errors import InputError
from sffbench.strategies import Strategy

BUILT_IN = {
    "zero-shot",
    "smoothed-zero-shot",
    "from-scratch",
    "full",
    "linear-probe",
    "sff",
    "last-value",
    "seasonal-naive",
    "window-mean",
    "shrink",
    "sff-noise",
    "sff-permuted",
    "sff-rescaled",
    "shrink-and-perturb",
    "gaussian-noise",
    "l2-sp",
    "mixout",
    "weight-decay",
    "dropout",
    "dlinear",
    "patchtst",
}

PLUGIN = """
from typing import ClassVar
from sffbench.strategies import Strategy


class Mine(Strategy):
    '''A plug-in.'''

    name: ClassVar[str] = "{name}"
"""

pytestmark = pytest.mark.usefixtures("forget_strategies")


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_built_in_strategies_are_found_by_their_files() -> None:
    assert set(strategies.names()) >= BUILT_IN
    assert strategies.names() == sorted(strategies.names())


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_strategy_is_documented_versioned_and_its_own_namesake(name: str) -> None:
    cls = strategies.strategy_class(name)
    assert cls.name == name
    assert cls.version >= 1
    assert cls.__doc__
    assert cls.__doc__ != Strategy.__doc__
    assert cls.__name__.lower() == name.replace("-", "")


def test_the_headline_alpha_is_the_released_one() -> None:
    assert strategies.identity(strategies.get("sff"))["fields"] == {"lr": None, "alpha": 0.7}


def test_a_field_that_came_later_is_in_the_key_only_where_it_is_set() -> None:
    class Grown(Strategy):
        name: ClassVar[str] = "grown"
        added: ClassVar[frozenset[str]] = frozenset({"late"})
        early: int = 1
        late: int = 2

    def fields(**given: int) -> dict[str, object]:
        found: dict[str, object] = strategies.identity(strategies.get("grown", **given))["fields"]
        return found

    assert fields() == fields(late=2) == {"lr": None, "early": 1}
    assert fields(late=3) == {"lr": None, "early": 1, "late": 3}
    assert fields(early=1) == fields()


def test_an_unknown_name_or_field_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'linear-probe'"):
        strategies.get("linear_probe")
    with pytest.raises(InputError, match="'alhpa'; did you mean 'alpha'"):
        strategies.get("sff", alhpa=0.5)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), "high", None])
def test_an_alpha_outside_0_to_1_is_one_line(alpha: object) -> None:
    with pytest.raises(InputError, match="alpha") as caught:
        strategies.get("sff", alpha=alpha)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lr", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["full", "linear-probe"])
def test_a_learning_rate_that_is_not_positive_is_one_line(name: str, lr: float) -> None:
    with pytest.raises(InputError, match="must be a positive number"):
        strategies.get(name, lr=lr)


def test_a_strategy_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        strategies.get("sff").alpha = 0.5  # type: ignore[attr-defined]


def test_a_class_without_a_name_of_its_own_is_not_registered() -> None:
    before = strategies.names()

    class Quiet(strategies.strategy_class("full")):  # type: ignore[misc]
        pass

    assert strategies.names() == before
    assert strategies.strategy_class("full") is not Quiet


@pytest.mark.parametrize("name", ["Full", "my strategy", "", "MINE"])
def test_a_name_is_lower_case_words_joined_by_hyphens(name: str) -> None:
    with pytest.raises(ValueError, match="lower case words"):
        type("Mine", (Strategy,), {"name": name, "__annotations__": {"name": ClassVar[str]}})


def test_a_plugin_file_registers_its_strategies(tmp_path: Path) -> None:
    assert strategies.load_plugin(write(tmp_path, PLUGIN.format(name="mine"))) == ["mine"]
    assert "mine" in strategies.names()
    assert strategies.identity(strategies.get("mine"))["plugin"] is not None
    assert strategies.identity(strategies.get("full"))["plugin"] is None


def test_a_plugin_loaded_twice_runs_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    text = PLUGIN.format(name="mine") + f"\nopen({str(log)!r}, 'a').write('x')\n"
    path = write(tmp_path, text)
    assert strategies.load_plugin(path) == strategies.load_plugin(path) == ["mine"]
    assert log.read_text() == "x"


def test_one_file_may_hold_several_strategies(tmp_path: Path) -> None:
    text = PLUGIN.format(name="one") + PLUGIN.format(name="two").replace("Mine", "Other")
    assert strategies.load_plugin(write(tmp_path, text)) == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "registers no strategy"),
        ("", "registers no strategy"),
        ("raise RuntimeError('boom\\nand more')\n", "RuntimeError: boom"),
        ("def broken(:\n", "SyntaxError"),
        ("import not_a_module_of_ours\n", "ModuleNotFoundError"),
        (PLUGIN.format(name="full"), "'full' is already registered by sffbench.strategies.full"),
        (PLUGIN.format(name="Loud"), "lower case words"),
        (PLUGIN.format(name="mine") + "    gain = 3\n", "PydanticUserError"),
        (PLUGIN.format(name="mine") + "\nassert False\n", "AssertionError"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    before = strategies.names()
    with pytest.raises(InputError, match=message) as caught:
        strategies.load_plugin(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "mine.py") in str(caught.value)
    assert strategies.names() == before


@pytest.mark.parametrize("name", ["absent.py", ".", "mine.txt"])
def test_a_plugin_that_is_no_python_file_is_one_line(tmp_path: Path, name: str) -> None:
    write(tmp_path, "hello", "mine.txt")
    with pytest.raises(InputError, match="plug-in"):
        strategies.load_plugin(tmp_path / name)


def test_one_name_from_two_files_is_refused(tmp_path: Path) -> None:
    strategies.load_plugin(write(tmp_path, PLUGIN.format(name="mine"), "a.py"))
    with pytest.raises(InputError, match="'mine' is already registered"):
        strategies.load_plugin(write(tmp_path, PLUGIN.format(name="mine") + "# b\n", "b.py"))


def test_a_mended_plugin_loads_after_it_failed(tmp_path: Path) -> None:
    path = write(tmp_path, PLUGIN.format(name="mine") + "\nassert False\n")
    with pytest.raises(InputError):
        strategies.load_plugin(path)
    path.write_text(PLUGIN.format(name="mine"))
    assert strategies.load_plugin(path) == ["mine"]


def test_what_a_plugin_prints_while_loading_stays_off_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strategies.load_plugin(write(tmp_path, PLUGIN.format(name="mine") + "\nprint('hello')\n"))
    assert capsys.readouterr() == ("", "hello\n")


def test_an_installed_package_registers_by_its_entry_point(tmp_path: Path) -> None:
    write(tmp_path, PLUGIN.format(name="packaged"), "outside.py")
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sffbench.strategies]\nmine = outside:Mine\n")
    code = (
        "from sffbench import strategies as s; "
        "print('packaged' in s.names(), s.identity(s.get('packaged'))['plugin'] is not None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(tmp_path)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "True"]

"""The conformance kit: every shipped strategy passes, every cheat is caught in words."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sffbench import models, strategies
from sffbench.conformance import check
from sffbench.conformance.checking import findings, text
from sffbench.errors import InputError

PLUGINS = Path(__file__).parents[1] / "plugins"
CHEATS = str(PLUGINS / "cheats.py")
NEEDS_LINKS = "chain"  # a strategy only with its links: tests/strategies/test_chain.py
FAST = ("full", "sff", "linear-probe", "zero-shot", "last-value")


def failures(name: str, model: str = "ttm:tiny", plugins: tuple[str, ...] = ()) -> dict[str, str]:
    found = check(name, model=model, plugins=plugins)
    return {one.rule: one.words for one in found if one.verdict == "failed"}


@pytest.mark.parametrize("name", FAST)
def test_a_shipped_strategy_conforms(name: str) -> None:
    assert failures(name) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*strategies.names()} - {*FAST, NEEDS_LINKS}))
def test_every_shipped_strategy_conforms(name: str) -> None:
    assert failures(name) == {}


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(set(models.names()) - {"ttm"}))
@pytest.mark.parametrize("name", ["sff", "lora"])
def test_the_headline_conforms_on_every_model(name: str, model: str) -> None:
    assert failures(name, f"{model}:tiny") == {}


@pytest.mark.usefixtures("forget_strategies")
def test_an_honest_plug_in_passes() -> None:
    rows = findings(str(PLUGINS / "scaled_head.py"), "ttm:tiny")
    assert {row["strategy"] for row in rows} == {"scaled-head"}
    assert {row["verdict"] for row in rows} == {"passed"}
    assert "nothing failed" in text(rows)


@pytest.mark.usefixtures("forget_strategies")
@pytest.mark.parametrize(
    ("name", "rule", "words"),
    [
        ("trains-on-validation", "validation rows", "trained on rows kept for selection"),
        ("sees-test", "test rows", "it has seen them"),
        ("unrestored", "validation leaves no trace", "not restored after eval_model"),
        ("dicey", "repeats", "two runs of one seed differ"),
        ("dicey", "global generator", "prepare draws from the global generator"),
        ("careless", "ctx.pretrained", "was written to"),
        ("careless", "training mode", "left in eval mode"),
        ("careless", "coverage", "no optimiser group holds"),
        ("unfaithful", "result", "is a Linear, no LTSM"),
        ("unfaithful", "seed", "but another seed changes"),
    ],
)
def test_a_cheat_is_caught(name: str, rule: str, words: str) -> None:
    assert words in failures(name, plugins=(CHEATS,))[rule]


@pytest.mark.usefixtures("forget_strategies")
def test_changed_buffers_are_named() -> None:
    words = failures("careless", "moment:tiny", (CHEATS,))["buffers"]
    assert words == "patch_embedding.position_embedding.pe is no weight, and has changed"


@pytest.mark.usefixtures("forget_strategies")
def test_a_strategy_that_raises_is_a_finding(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(
        "from sffbench.strategies import Strategy\n"
        "class Broken(Strategy):\n"
        "    name = 'broken'\n"
        "    def prepare(self, model, ctx):\n"
        "        raise KeyError('no such layer')\n"
    )
    (last,) = [row for row in findings(str(file), "ttm:tiny") if row["rule"] == "runs"]
    assert last["verdict"] == "failed"
    assert "no such layer" in last["words"]


@pytest.mark.parametrize(
    ("target", "words"), [("ful", "full"), ("nothere.py", "no such file")], ids=["name", "file"]
)
def test_what_is_not_there_is_one_line(target: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        findings(target, "ttm:tiny")


@pytest.mark.slow
def test_the_verb_prints_json_and_exits_by_the_verdict() -> None:
    command = [sys.executable, "-c", "from sffbench.cli import main; main()", "check", "--json"]
    good = subprocess.run([*command, "full"], capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stderr
    assert {row["verdict"] for row in json.loads(good.stdout)} == {"passed"}
    bad = subprocess.run([*command, CHEATS], capture_output=True, text=True, check=False)
    assert bad.returncode == 1, bad.stderr
    wrong = subprocess.run([*command, "ful"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "'full'" in wrong.stderr

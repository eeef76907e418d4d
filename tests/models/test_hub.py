"""`fetch` of weights from a hub on this machine: what is brought, locked, and found by `load`."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fetched import CONFIG, REPOSITORY, WEIGHTS, WHOLE, content, get, refused, sha256
from hub_stand_in import Hub
from safetensors.torch import load_file, save

from sffbench import models
from sffbench.errors import InputError
from sffbench.models import lockfile

# -- what is brought -----------------------------------------------------------------------------


def test_a_fetched_preset_loads_by_its_name_and_by_its_hub_id(hub: Hub, cache: Path):
    result = get()
    assert result.action == "downloaded"
    assert result.path == cache / "ttm-stand-in"
    assert result.sha256 == sha256(WEIGHTS)
    past, whole = torch.randn(1, 2, 512), models.load("ttm:tiny")
    for model in (models.load("ttm:stand-in"), models.load("ttm", "acme/ttm")):
        assert torch.equal(model.forecast(past, 96), whole.forecast(past, 96))
    described = models.describe("ttm:stand-in")
    assert described == models.describe("ttm", "acme/ttm") == models.describe("ttm:tiny")


def test_only_what_is_needed_is_brought_and_locked(hub: Hub, cache: Path):
    commit = hub.commit("acme/ttm", REPOSITORY | {"pytorch_model.bin": b"not needed"})
    assert get().commit == commit
    assert content(cache).keys() == {
        "ttm-stand-in.lock.json",
        "ttm-stand-in/config.json",
        "ttm-stand-in/model.safetensors",
    }
    lock = json.loads((cache / "ttm-stand-in.lock.json").read_text())
    assert lock["commit"] == commit
    assert (lock["hub"], lock["revision"], lock["preset"]) == ("acme/ttm", "main", "ttm:stand-in")
    assert lock["origin"] == f"{hub.url}/acme/ttm"
    assert lock["files"] == {
        name: {"size_bytes": len(data), "sha256": sha256(data)}
        for name, data in (("config.json", CONFIG), ("model.safetensors", WEIGHTS))
    }


def test_a_branch_and_a_folder_of_a_repository_are_presets_of_their_own(hub: Hub, cache: Path):
    other = save({key: t + 1 for key, t in load_file(WHOLE / "model.safetensors").items()})
    commit = hub.commit("acme/ttm", REPOSITORY | {"model.safetensors": other}, "512-96-b")
    assert get("ttm:branch").commit == commit
    assert get("ttm:branch").sha256 == sha256(other)
    assert get("ttm:stand-in").sha256 == sha256(WEIGHTS)
    small = {f"sizes/small/{name}": data for name, data in REPOSITORY.items()}
    hub.commit("acme/many", small | {"config.json": b"{}", "model.safetensors": b"of another size"})
    assert get("ttm:folder").sha256 == sha256(WEIGHTS)
    assert content(cache / "ttm-folder") == {"config.json": CONFIG, "model.safetensors": WEIGHTS}
    models.load("ttm:folder")


def test_a_hub_id_without_a_revision_means_main_and_with_one_that_branch(hub: Hub, cache: Path):
    hub.commit("acme/ttm", REPOSITORY, "512-96-b")
    get("ttm:branch")
    with pytest.raises(InputError, match="run `sffbench fetch ttm:stand-in`"):
        models.load("ttm", "acme/ttm")
    models.load("ttm", "acme/ttm@512-96-b")
    models.load("ttm:branch", "acme/ttm@512-96-b")
    with pytest.raises(InputError, match="is not what ttm:tiny is published as"):
        models.load("ttm:tiny", "acme/ttm")
    with pytest.raises(InputError, match="no preset of ttm has that hub id"):
        models.load("ttm", "acme/ttm@512-96-c")


def test_shards_are_brought_with_their_index(hub: Hub, cache: Path):
    state = load_file(WHOLE / "model.safetensors")
    halves = {f"model-{i}.safetensors": list(state)[i::2] for i in range(2)}
    files = {name: save({key: state[key] for key in keys}) for name, keys in halves.items()}
    index = {"weight_map": {key: name for name, keys in halves.items() for key in keys}}
    listed = {"config.json": CONFIG, "model.safetensors.index.json": json.dumps(index).encode()}
    hub.commit("acme/ttm", files | listed | {"model-7.safetensors": b"of no shard"})
    get()
    assert content(cache / "ttm-stand-in") == files | listed
    loaded = models.load("ttm:stand-in").state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_shards_that_the_repository_lacks_are_named(hub: Hub, cache: Path):
    index = json.dumps({"weight_map": {"a": "model-9.safetensors"}}).encode()
    hub.commit("acme/ttm", {"config.json": CONFIG, "model.safetensors.index.json": index})
    assert "names 'model-9.safetensors', which acme/ttm lacks" in refused()
    assert not (cache / "ttm-stand-in").exists()


def test_a_preset_may_say_which_files_it_is(hub: Hub, cache: Path, tmp_path: Path):
    torch.save(load_file(WHOLE / "model.safetensors"), tmp_path / "saved")
    weights = (tmp_path / "saved").read_bytes()
    hub.commit("acme/alone", REPOSITORY | {"torch_model.ckpt": weights})
    get("ttm:alone")
    assert content(cache / "ttm-alone") == {"torch_model.ckpt": weights}
    past = torch.randn(1, 1, 512)
    expected = models.load("ttm:tiny").forecast(past, 96)
    assert torch.equal(models.load("ttm", "acme/alone").forecast(past, 96), expected)
    hub.commit("acme/alone", REPOSITORY)
    shutil.rmtree(cache)
    assert refused("ttm:alone") == "ttm:alone: acme/alone has no file torch_model.ckpt"


# -- compared ever after -------------------------------------------------------------------------


def test_a_second_fetch_transfers_nothing(hub: Hub, cache: Path):
    first = get()
    before, transferred = content(cache), len(hub.transferred("/resolve/"))
    assert get() == dataclasses.replace(first, action="present")
    assert content(cache) == before
    assert len(hub.transferred("/resolve/")) == transferred


def test_what_is_there_needs_no_hub(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch):
    get()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert get().action == "present"


@pytest.mark.parametrize("change", ["altered", "gone", "new"])
def test_a_folder_that_changed_on_this_machine_is_refused(change: str, hub: Hub, cache: Path):
    get()
    target = cache / "ttm-stand-in" / "model.safetensors"
    if change == "altered":
        target.write_bytes(WEIGHTS[:-1] + b"?")
    elif change == "gone":
        target.unlink()
    else:
        (cache / "ttm-stand-in" / "other.pth").write_bytes(b"")
    before = content(cache)
    message = refused()
    assert "is not what was fetched first: " in message
    assert {"altered": "SHA-256", "gone": "is gone", "new": "other.pth is new"}[change] in message
    assert content(cache) == before


def test_a_branch_that_moved_with_other_files_is_refused_and_nothing_changes(hub: Hub, cache: Path):
    old = get().commit
    new = hub.commit("acme/ttm", REPOSITORY | {"model.safetensors": WEIGHTS + b" "})
    before = content(cache)
    message = refused()
    assert f"'main' is {new[:12]} now, not {old[:12]}" in message
    assert "model.safetensors has changed; the first one is kept" in message
    assert content(cache) == before
    hub.commit("acme/ttm", REPOSITORY | {"config.json": CONFIG + b" "})
    assert "config.json has changed" in refused()


def test_a_branch_that_moved_with_the_same_files_is_a_note(hub: Hub, cache: Path):
    first = get()
    new = hub.commit("acme/ttm", REPOSITORY | {"README.md": b"# another"})
    again = get()
    assert again.note == (
        f"acme/ttm: 'main' is {new[:12]} now, not {first.commit[:12]}; the files are the same"
    )
    assert (again.action, again.commit) == ("present", first.commit)


def test_a_folder_that_was_removed_comes_back_at_the_locked_commit(hub: Hub, cache: Path):
    first = get()
    before = content(cache)
    hub.commit("acme/ttm", REPOSITORY | {"model.safetensors": WEIGHTS + b" "})
    shutil.rmtree(first.path)
    assert get() == first
    assert content(cache) == before


def test_a_locked_commit_that_the_hub_lost_is_said(hub: Hub, cache: Path):
    first = get()
    shutil.rmtree(first.path)
    hub.repositories["acme/ttm"].commits.clear()
    hub.commit("acme/ttm", REPOSITORY)
    assert f"has no commit {first.commit[:12]} any more, which was fetched first" in refused()


def test_other_bytes_of_the_locked_commit_are_refused(hub: Hub, cache: Path):
    first = get()
    shutil.rmtree(first.path)
    lock = (cache / "ttm-stand-in.lock.json").read_bytes()
    hub.repositories["acme/ttm"].commits[first.commit]["model.safetensors"] = WEIGHTS + b" "
    message = refused()
    assert "not what was fetched first, by" in message
    assert "model.safetensors has SHA-256" in message
    assert content(cache) == {"ttm-stand-in.lock.json": lock}


def test_a_damaged_lock_says_so(hub: Hub, cache: Path):
    get()
    for damage in ("", "{}", "[]", '{"files": {"a": 1}}'):
        (cache / "ttm-stand-in.lock.json").write_text(damage)
        assert "lock.json is damaged; delete it and its folder" in refused()


def test_a_folder_put_into_the_cache_by_hand_is_locked_as_it_is(hub: Hub, cache: Path):
    shutil.copytree(WHOLE, cache / "ttm-stand-in")
    assert get().action == "present"
    lock = lockfile.read(cache / "ttm-stand-in.lock.json")
    assert lock is not None
    assert (lock.origin, lock.commit) == ("found in place", None)
    (cache / "ttm-stand-in" / "config.json").write_bytes(CONFIG + b" ")
    assert "config.json has SHA-256" in refused()


# -- load ----------------------------------------------------------------------------------------


def test_load_names_the_fetch_that_is_missing_and_never_downloads(hub: Hub, cache: Path):
    for call in (
        lambda: models.load("chronos", "amazon/chronos-bolt-small"),
        lambda: models.load("chronos:bolt-small"),
        lambda: models.load("chronos:bolt-small", "amazon/chronos-bolt-small"),
        lambda: models.describe("chronos", "amazon/chronos-bolt-small"),
    ):
        one_line(call, "run `sffbench fetch chronos:bolt-small`, or give the folder that holds")
    one_line(
        lambda: models.load("chronos", "amazon/chronos-blot-small"),
        "did you mean 'amazon/chronos-bolt-small'?",
    )
    one_line(lambda: models.load("ttm", "some/folder"), "no checkpoint folder at 'some/folder'")
    one_line(lambda: models.load("chronos:blt-small"), "did you mean 'bolt-small'?")
    assert not hub.seen


def one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_id_is_found_on_a_shelf_of_ones_own(
    hub: Hub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(WHOLE, tmp_path / "shelf" / "ttm-stand-in")
    monkeypatch.setenv("SFFBENCH_CHECKPOINTS", str(tmp_path / "shelf"))
    models.load("ttm", "acme/ttm")
    assert not hub.seen


# -- the command ---------------------------------------------------------------------------------

PROGRAM = """
import dataclasses, sys
from sffbench import models
presets = models.get("ttm").presets
presets["stand-in"] = dataclasses.replace(presets["tiny"], hub="acme/ttm")
from sffbench.cli import main
sys.argv = ["sffbench", *sys.argv[1:]]
main()
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, "fetch", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_prints_what_it_brought(hub: Hub, cache: Path):
    done = run("ttm:stand-in", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = json.loads(done.stdout)
    assert row == {
        "name": "ttm:stand-in",
        "file": str(cache / "ttm-stand-in"),
        "sha256": sha256(WEIGHTS),
        "action": "downloaded",
        "commit": hub.repositories["acme/ttm"].branches["main"],
    }


def test_the_command_takes_data_sets_and_presets_at_once(hub: Hub, cache: Path, tmp_path: Path):
    shutil.copytree(WHOLE, tmp_path / "shelf" / "ttm-stand-in")
    source, data = str(tmp_path / "shelf"), str(tmp_path / "data")
    done = run("ttm:stand-in", "ETTh1", "--from", source, "--data-dir", data)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip() == f"sffbench: ETTh1: no file ETTh1.csv in or below {source}"
    assert (cache / "ttm-stand-in").is_dir()  # what could be had is there all the same


def test_the_command_fails_in_one_line_with_code_2(hub: Hub, cache: Path):
    hub.status["/api/models/"] = 500
    done = run("ttm:stand-in")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "sffbench: acme/ttm: the hub answered 500 Internal Server Error\n"

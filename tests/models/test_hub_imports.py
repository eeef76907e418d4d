"""`fetch` without a hub: presets that are elsewhere, and folders that are imported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from fetched import CONFIG, WEIGHTS, WHOLE, content, get, refused, sha256
from hub_stand_in import Hub
from safetensors.torch import load_file, save

from sffbench import models
from sffbench.models import lockfile


def test_presets_that_are_on_no_hub_say_where_they_are(hub: Hub, cache: Path):
    assert refused("ttm:elsewhere") == (
        "ttm:elsewhere is not on the hub: get theirs.ckpt from a place of theirs, "
        "then `sffbench fetch ttm:elsewhere --from FOLDER`"
    )
    assert "nor do its authors say where else" in refused("ttm:nowhere")
    assert not hub.seen
    for name in ("timer:1.0", "timer:1.0-imputation", "timer:1.0-anomaly", "units:x32"):
        assert models.preset(name).origin in refused(name)
    packaged = get("ttm:tiny")
    assert (packaged.action, packaged.path) == ("present", WHOLE)


def test_a_preset_is_on_the_hub_or_elsewhere_and_never_both():
    for name in models.names():
        for key, card in models.get(name).presets.items():
            assert not (card.hub and card.origin), f"{name}:{key}"
            assert not (card.origin and not card.files), f"{name}:{key}"
            assert key != "tiny" or not (card.hub or card.origin)


@pytest.mark.parametrize("place", ["", "ttm-stand-in", "ttm"])
def test_a_folder_is_imported_from_where_it_is_or_by_its_name(
    place: str, hub: Hub, cache: Path, tmp_path: Path
):
    source = tmp_path / "shelf" / place
    shutil.copytree(WHOLE, source)
    (source / "README.md").write_text("not needed")
    result = get(from_dir=tmp_path / "shelf")
    assert (result.action, result.commit, result.sha256) == ("imported", None, sha256(WEIGHTS))
    assert content(cache / "ttm-stand-in") == {"config.json": CONFIG, "model.safetensors": WEIGHTS}
    lock = lockfile.read(cache / "ttm-stand-in.lock.json")
    assert lock is not None
    assert (lock.origin, lock.hub) == (str(source), None)
    assert not hub.seen
    assert get().action == "present"


def test_an_import_takes_the_file_that_its_preset_names(hub: Hub, cache: Path, tmp_path: Path):
    state = load_file(WHOLE / "model.safetensors")
    prefixed = {f"model.{key}": tensor for key, tensor in state.items()}
    torch.save({"state_dict": prefixed}, tmp_path / "theirs.ckpt")
    torch.save({}, tmp_path / "others.ckpt")
    get("ttm:elsewhere", from_dir=tmp_path)
    assert content(cache / "ttm-elsewhere").keys() == {"theirs.ckpt"}
    loaded = models.load("ttm:elsewhere").state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_an_import_that_does_not_load_is_refused_and_leaves_nothing(
    hub: Hub, cache: Path, tmp_path: Path
):
    source = tmp_path / "source"
    shutil.copytree(WHOLE, source)
    cases: list[tuple[str, bytes, str]] = [
        ("model.safetensors", WEIGHTS[:-5], "is truncated or no safetensors file"),
        ("model.safetensors", save({"a": torch.ones(2)}), "missing backbone"),
        ("config.json", json.dumps(json.loads(CONFIG) | {"d_model": 7}).encode(), "d_model is 7"),
    ]
    for name, data, message in cases:
        whole = (source / name).read_bytes()
        (source / name).write_bytes(data)
        assert message in refused(from_dir=source)
        (source / name).write_bytes(whole)
        assert content(cache) == {}
    assert "no model.safetensors in" in refused(from_dir=tmp_path)
    assert "no such folder" in refused(from_dir=tmp_path / "absent")


def test_an_import_is_compared_with_the_lock_as_well(hub: Hub, cache: Path, tmp_path: Path):
    shutil.rmtree(get().path)
    state = load_file(WHOLE / "model.safetensors")
    (tmp_path / "config.json").write_bytes(CONFIG)
    (tmp_path / "model.safetensors").write_bytes(save({k: t + 1 for k, t in state.items()}))
    assert "not what was fetched first, by" in refused(from_dir=tmp_path)
    get(from_dir=WHOLE)

"""Records on disk: whole or absent, never lost, never rerun, attempts counted."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sffbench import store as stores
from sffbench.errors import InputError
from sffbench.store import MAX_ATTEMPTS, Store, check_writable, read_record, write_json


def _record(status: str = "ok", **changes: Any) -> dict[str, Any]:
    return {
        "status": status,
        "key": "cell",
        "performance_key": "here",
        "finished_at": "2026-01-01T00:00:00+00:00",
    } | changes


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_a_record_comes_back_as_it_was_written(store: Store) -> None:
    record = _record(metrics={"mse": 0.1 + 0.2, "per": [1e-30, None]}, reason="ü ≤ 3")
    path = store.write(record)
    assert path == store.root / "runs" / "cell" / "here.json"
    assert store.find("cell") == record
    assert _files(store.root) == ["runs/cell/here.json"]


def test_an_unknown_key_has_no_record(store: Store) -> None:
    assert store.find("cell") is None
    assert store.state("cell") == "missing"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_crash_before_the_rename_leaves_the_old_record_and_no_litter(
    store: Store, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    store.write(_record(metrics={"mse": 1.0}))

    def broken(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    owner = os if failing == "fsync" else Path
    monkeypatch.setattr(owner, failing, broken)
    with pytest.raises(InputError, match=r"cannot write .*Input/output error"):
        store.write(_record(metrics={"mse": 2.0}))
    monkeypatch.undo()
    found = store.find("cell")
    assert found is not None
    assert found["metrics"]["mse"] == 1.0
    assert _files(store.root) == ["runs/cell/here.json"]


def test_a_process_killed_between_write_and_rename_leaves_no_record(tmp_path: Path) -> None:
    code = (
        "import os, sys, signal, pathlib\n"
        "from sffbench.store import Store\n"
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"Store(pathlib.Path(sys.argv[1])).write({_record()!r})\n"
    )
    died = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert died.returncode == -signal.SIGKILL
    store = Store(tmp_path)
    assert len(_files(tmp_path)) == 1  # the temporary file, which no reader takes for a record
    assert store.find("cell") is None
    store.write(_record())
    assert store.state("cell") == "ok"


@pytest.mark.parametrize("keep", [0, 1, 20, -2])
def test_a_truncated_record_is_no_record(store: Store, keep: int) -> None:
    path = store.write(_record())
    path.write_text(path.read_text()[:keep])
    assert store.find("cell") is None


@pytest.mark.parametrize("text", ["[]", "null", "3", '"ok"', "{}", '{"status": "ok"}', "\x00\x00"])
def test_json_that_is_no_record_is_no_record(store: Store, text: str) -> None:
    path = store.write(_record())
    path.write_text(text)
    assert store.find("cell") is None


def test_bytes_that_are_no_text_are_no_record(store: Store) -> None:
    path = store.write(_record())
    path.write_bytes(b"\xff\xfe\xfa")
    assert read_record(path) is None


def test_a_record_that_json_cannot_hold_is_refused_and_leaves_nothing(store: Store) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.write(_record(metrics={"mse": float("nan")}))
    assert _files(store.root) == []


def test_ok_supersedes_failed_and_a_later_failure_does_not_hide_it(store: Store) -> None:
    store.write(_record("failed", performance_key="old"))
    store.write(_record("ok", performance_key="new"))
    assert _files(store.root) == ["runs/cell/new.json"]
    store.write(_record("failed", performance_key="later", finished_at="2027-01-01T00:00:00+00:00"))
    assert store.state("cell") == "ok"


def test_successes_on_two_devices_stay_side_by_side(store: Store) -> None:
    store.write(_record(performance_key="cpu"))
    store.write(_record(performance_key="cuda", finished_at="2026-01-02T00:00:00+00:00"))
    assert len(_files(store.root)) == 2
    found = store.find("cell")
    assert found is not None
    assert found["performance_key"] == "cuda"


def test_a_success_on_this_device_replaces_the_failure_in_its_own_file(store: Store) -> None:
    store.write(_record("failed"))
    assert store.state("cell") == "failed"
    store.write(_record("ok"))
    assert store.state("cell") == "ok"


def test_a_store_is_merged_by_copying_files(tmp_path: Path) -> None:
    left, right = Store(tmp_path / "left"), Store(tmp_path / "right")
    left.write(_record(key="a"))
    right.write(_record(key="b"))
    for path in (right.root / "runs").rglob("*.json"):
        target = left.root / path.relative_to(right.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert left.state("a") == left.state("b") == "ok"


def test_attempts_count_starts_without_an_end(store: Store) -> None:
    assert store.attempts("cell") == 0
    assert [store.mark_started("cell") for _ in range(3)] == [1, 2, 3]
    assert store.attempts("cell") == 3 == MAX_ATTEMPTS


def test_a_record_clears_the_attempts_of_its_cell_alone(store: Store) -> None:
    store.mark_started("cell")
    store.mark_started("other")
    store.write(_record("failed"))
    assert (store.attempts("cell"), store.attempts("other")) == (0, 1)


def test_forgiving_takes_back_one_start(store: Store) -> None:
    store.mark_started("cell")
    store.mark_started("cell")
    store.forgive("cell")
    assert store.attempts("cell") == 1
    store.forgive("cell")
    store.forgive("cell")
    assert store.attempts("cell") == 0
    assert _files(store.root) == []


def test_forgiving_all_takes_back_every_start(store: Store) -> None:
    for _ in range(3):
        store.mark_started("cell")
    store.forgive_all("cell")
    store.forgive_all("cell")
    assert store.attempts("cell") == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"attempt": "x"}', '{"attempt": null}'])
def test_a_damaged_marker_counts_nothing(store: Store, text: str) -> None:
    store.mark_started("cell")
    (store.root / "started" / "cell.json").write_text(text)
    assert store.attempts("cell") == 0
    assert store.mark_started("cell") == 1


def test_a_folder_that_can_be_written_is_left_clean(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "results")
    assert _files(tmp_path) == []


def test_a_results_path_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(InputError, match="cannot write") as caught:
        check_writable(tmp_path / "results")
    assert "\n" not in str(caught.value)


def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        root = Path("/proc/sffbench")  # nobody may write there, not even root
        if not root.parent.is_dir():
            pytest.skip("permissions do not bind the superuser, and there is no /proc")
    else:
        root = tmp_path
        root.chmod(0o500)
    with pytest.raises(InputError, match="cannot write"):
        check_writable(root)


def test_a_full_disk_is_one_line_and_leaves_no_litter(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stores.os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write .*No space left on device"):
        write_json(store.root / "record.json", {})
    assert _files(store.root) == []


def test_a_write_that_really_runs_out_of_room_is_one_line(tmp_path: Path) -> None:
    """A limit on the size of files does to this process what a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(InputError, match="cannot write"):
            write_json(tmp_path / "record.json", {"curve": list(range(1000))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert _files(tmp_path) == []


def test_a_record_ends_with_a_newline_and_is_readable_by_people(store: Store) -> None:
    text = store.write(_record()).read_text()
    assert text.endswith("}\n")
    assert len(text.splitlines()) > len(_record())
    assert json.loads(text) == _record()

"""`fetch` where something fails: connections, bytes, gates, disks; what had come is kept."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from fetched import CONFIG, WEIGHTS, content, get, refused
from hub_stand_in import Hub
from huggingface_hub import constants

from sffbench import models
from sffbench.errors import InputError
from sffbench.models import hub as client
from sffbench.models.fetch import fetch


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, as of a large file, and no pause between attempts."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.mark.usefixtures("blocks")
def test_a_cut_connection_is_taken_up_where_it_ended(hub: Hub, cache: Path):
    hub.cut_bytes = 200_000
    get()
    assert (cache / "ttm-stand-in" / "model.safetensors").read_bytes() == WEIGHTS
    ranges = hub.transferred("model.safetensors")
    assert ranges[0] is None
    assert len(ranges) > 2
    assert all(asked is not None for asked in ranges[1:])


@pytest.mark.usefixtures("blocks")
def test_a_fetch_that_died_is_continued_by_the_next_one(hub: Hub, cache: Path):
    hub.cut_bytes = 0
    hub.status["config.json"] = 500
    assert "the hub answered 500" in refused()
    hub.status.clear()
    hub.cut_bytes = None
    part = cache / "ttm-stand-in.part"
    (part / "model.safetensors.part").write_bytes(WEIGHTS[:300_000])
    with pytest.raises(InputError, match=r"no weights of ttm:stand-in on this machine"):
        models.load("ttm:stand-in")
    get()
    assert hub.transferred("model.safetensors") == ["bytes=300000-"]
    assert content(cache / "ttm-stand-in") == {"config.json": CONFIG, "model.safetensors": WEIGHTS}
    assert not part.exists()


@pytest.mark.parametrize("half", [WEIGHTS[:1000][::-1], WEIGHTS + b"more", WEIGHTS[::-1]])
def test_a_half_of_another_version_is_begun_anew(half: bytes, hub: Hub, cache: Path):
    (cache / "ttm-stand-in.part").mkdir(parents=True)
    (cache / "ttm-stand-in.part" / "model.safetensors.part").write_bytes(half)
    (cache / "ttm-stand-in.part" / "config.json").write_bytes(b"{}")
    (cache / "ttm-stand-in.part" / "of yesterday.bin").write_bytes(b"")
    get()
    assert content(cache / "ttm-stand-in") == {"config.json": CONFIG, "model.safetensors": WEIGHTS}


def test_a_file_that_arrives_damaged_is_refused_and_removed(hub: Hub, cache: Path):
    for name in ("config.json", "model.safetensors"):
        hub.garbled = {name}
        message = refused()
        assert f"acme/ttm: {name} arrived damaged (the hub's" in message
        assert not [path for path in content(cache) if name in path]
    hub.garbled = set()
    assert get().action == "downloaded"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (500, "acme/ttm: the hub answered 500 Internal Server Error"),
        (503, "acme/ttm: the hub answered 503 Service Unavailable"),
        (403, "acme/ttm: the hub answered 403 Forbidden; is the token in HF_TOKEN right?"),
    ],
)
def test_an_error_of_the_hub_is_one_line(status: int, message: str, hub: Hub, cache: Path):
    hub.status["/api/models/"] = status
    assert refused() == message
    assert not [path for path in content(cache) if "lock" in path]


def test_no_connection_is_one_line(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    message = refused()
    assert message.startswith("acme/ttm: no connection to http://127.0.0.1:9 (")
    assert "import a folder with --from" in message


def test_a_gated_repository_needs_the_token_and_takes_it(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.token = "hf_secret"
    message = refused()
    assert message == (
        "acme/ttm: config.json is gated: accept its terms on the hub, then set HF_TOKEN to a token "
        "of yours"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert get().action == "downloaded"
    assert "hf_secret" not in "".join(str(value) for value in content(cache).values())


def test_what_the_hub_does_not_have_is_said(hub: Hub, cache: Path):
    branches = hub.repositories["acme/ttm"].branches
    branches["other"] = branches.pop("main")
    assert refused() == "acme/ttm has no revision 'main'"
    del hub.repositories["acme/ttm"]
    assert refused() == (
        "acme/ttm: the hub has no such repository (401 Unauthorized); a private one needs a token "
        "in HF_TOKEN"
    )
    hub.commit("acme/ttm", {"README.md": b"", "config.json": CONFIG})
    assert refused() == "no model.safetensors in acme/ttm at main, nor another file of weights"


def test_an_endpoint_that_is_no_hub_is_said(hub: Hub, cache: Path):
    hub.status["/api/models/"] = 200
    assert f"acme/ttm: {hub.url} does not answer as a hub" in refused()


def test_a_full_disk_is_said_before_and_while_it_fills(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(client.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    message = refused()
    assert f"acme/ttm needs {len(CONFIG) + len(WEIGHTS):,} bytes" in message
    assert "has 1,000 left: make room, or set SFFBENCH_CACHE" in message
    assert not hub.transferred("/resolve/")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(client.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(client, "_continue", full)
    assert refused() == (
        "acme/ttm: config.json: the disk is full; what has come is kept, run again"
    )


def test_a_cache_that_cannot_be_written_is_said(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    cache.parent.mkdir()
    cache.write_text("a file in the way")
    assert refused().startswith(f"ttm:stand-in: {cache / 'ttm-stand-in.part'}: ")


def test_one_failure_does_not_stop_the_others(hub: Hub, cache: Path):
    with pytest.raises(InputError) as caught:
        fetch(["ttm:alone", "ttm:stand-in", "ttm:nope"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("acme/alone: the hub has no such repository")
    assert lines[1].startswith("unknown preset of ttm 'nope'")
    assert (cache / "ttm-stand-in").is_dir()

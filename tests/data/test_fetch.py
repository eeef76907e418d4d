"""`fetch` against a server on this machine: resume, restart, corruption, import, first digests."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sffbench.data.checksum import record_path
from sffbench.data.fetch import fetch
from sffbench.errors import InputError

CONTENT = bytes(range(256)) * 4000  # a megabyte, so that it takes several blocks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content`; `cut` bytes end a transfer early, `ranges` False ignores Range."""

    content = CONTENT
    cut: int | None = None
    ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requested: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/toy.csv"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requested.append(asked)
        if self.path != "/toy.csv":
            self.send_error(404)
            return
        match = re.fullmatch(r"bytes=(\d+)-", asked or "") if self.server.ranges else None
        start = int(match[1]) if match else 0
        if match and start >= len(self.server.content):
            self.send_error(416)
            return
        body = self.server.content[start:]
        self.send_response(206 if match else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut])

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fetch_toy(root: Path, **options: object):
    (result,) = fetch(["toy"], root, progress=False, **options)
    return result


def test_a_download_has_the_bytes_and_leaves_nothing_else(toy, server: Server, tmp_path: Path):
    toy(url=server.url, sha256=(SHA256,))
    result = fetch_toy(tmp_path / "new" / "folder")
    assert result.path.read_bytes() == CONTENT
    assert (result.name, result.sha256, result.action) == ("Toy", SHA256, "downloaded")
    assert files(tmp_path / "new" / "folder") == ["toy.csv"]


def test_a_file_that_is_there_is_not_fetched_again(toy, server: Server, tmp_path: Path):
    toy(url=server.url, sha256=(SHA256,))
    fetch_toy(tmp_path)
    assert fetch_toy(tmp_path).action == "present"
    assert server.requested == [None]


def test_a_broken_transfer_says_so_and_the_next_one_resumes(toy, server: Server, tmp_path: Path):
    toy(url=server.url, sha256=(SHA256,))
    server.cut = 300_000
    with pytest.raises(InputError, match=r"after 300000 of 1024000 bytes\); 300000 bytes are kept"):
        fetch_toy(tmp_path)
    assert files(tmp_path) == ["toy.csv.part"]
    server.cut = None
    assert fetch_toy(tmp_path).path.read_bytes() == CONTENT
    assert server.requested == [None, "bytes=300000-"]
    assert files(tmp_path) == ["toy.csv"]


def test_a_server_without_ranges_starts_over(toy, server: Server, tmp_path: Path):
    toy(url=server.url, sha256=(SHA256,))
    (tmp_path / "toy.csv.part").write_bytes(CONTENT[:1000])
    server.ranges = False
    assert fetch_toy(tmp_path).path.read_bytes() == CONTENT


def test_a_whole_part_file_only_needs_its_name(toy, server: Server, tmp_path: Path):
    toy(url=server.url, sha256=(SHA256,))
    (tmp_path / "toy.csv.part").write_bytes(CONTENT)
    assert fetch_toy(tmp_path).path.read_bytes() == CONTENT
    assert server.requested == ["bytes=1024000-"]


@pytest.mark.parametrize("num_bytes", [1000, 2_000_000])
def test_a_part_file_of_something_else_is_thrown_away(toy, server, tmp_path, num_bytes: int):
    toy(url=server.url, sha256=(SHA256,))
    (tmp_path / "toy.csv.part").write_bytes(b"x" * num_bytes)
    assert fetch_toy(tmp_path).path.read_bytes() == CONTENT
    assert server.requested == [f"bytes={num_bytes}-", None]


def test_a_corrupt_file_is_refused_with_one_line_and_nothing_left(toy, server, tmp_path: Path):
    toy(url=server.url, sha256=(SHA256,))
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(InputError) as caught:
        fetch_toy(tmp_path)
    assert re.fullmatch(
        rf"Toy: refused {server.url}: its SHA-256 \w{{12}}\.\.\. is not the catalog's, "
        rf"{SHA256[:12]}\.\.\.",
        str(caught.value),
    )
    assert files(tmp_path) == []


def test_a_wrong_file_already_there_is_not_overwritten(toy, server: Server, tmp_path: Path):
    toy(url=server.url, sha256=(SHA256,))
    (tmp_path / "toy.csv").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"toy\.csv is there, but its SHA-256 .* move it away"):
        fetch_toy(tmp_path)
    assert (tmp_path / "toy.csv").read_bytes() == b"mine"


def test_a_page_that_is_missing_names_the_way_out(toy, server: Server, tmp_path: Path):
    toy(url=server.url + "x", sha256=(SHA256,))
    with pytest.raises(InputError, match=r"404.*`sffbench fetch Toy --from FOLDER`"):
        fetch_toy(tmp_path)
    assert files(tmp_path) == []


def test_a_data_set_without_a_url_names_the_way_out(toy, tmp_path: Path):
    toy(source="a drawer")
    with pytest.raises(InputError, match=r"no public URL \(source: a drawer\).*--from FOLDER"):
        fetch_toy(tmp_path)


def test_without_a_known_digest_the_first_one_is_recorded_and_compared(toy, server, tmp_path):
    toy(url=server.url)
    path = fetch_toy(tmp_path).path
    first = json.loads(record_path(path).read_text())
    assert (first["sha256"], first["origin"]) == (SHA256, server.url)
    path.unlink()
    server.content = b"changed upstream"
    with pytest.raises(InputError, match="is not that of the first fetch"):
        fetch_toy(tmp_path)
    assert files(tmp_path) == ["toy.csv.sha256.json"]


def test_without_a_known_digest_nothing_is_resumed(toy, server: Server, tmp_path: Path):
    toy(url=server.url)
    (tmp_path / "toy.csv.part").write_bytes(b"the beginning of another version")
    assert fetch_toy(tmp_path).path.read_bytes() == CONTENT
    assert server.requested == [None]


def test_import_takes_the_sound_copy_below_a_folder(toy, tmp_path: Path):
    toy(sha256=(SHA256,))
    source = tmp_path / "archive"
    (source / "nested").mkdir(parents=True)
    (source / "toy.csv").write_bytes(b"a wrong one, nearer")
    (source / "nested" / "toy.csv").write_bytes(CONTENT)
    result = fetch_toy(tmp_path / "root", from_dir=source)
    assert (result.action, result.path.read_bytes()) == ("imported", CONTENT)
    assert files(tmp_path / "root") == ["toy.csv"]


def test_importing_a_corrupt_file_is_refused_and_leaves_nothing(toy, tmp_path: Path):
    toy(sha256=(SHA256,))
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "toy.csv").write_bytes(b"corrupt")
    with pytest.raises(InputError, match=r"Toy: refused .* is not the catalog's"):
        fetch_toy(tmp_path / "root", from_dir=tmp_path / "from")
    assert files(tmp_path / "root") == []


def test_importing_everything_takes_what_is_there(toy, tmp_path: Path):
    toy(sha256=(SHA256,))
    (tmp_path / "toy.csv").write_bytes(CONTENT)
    results = fetch([], tmp_path / "root", from_dir=tmp_path, progress=False)
    assert [result.name for result in results] == ["Toy"]


@pytest.mark.parametrize(
    ("wanted", "folder", "reason"),
    [
        ([], "", "holds no file of the catalog"),
        (["toy"], "", "no file toy.csv in or below"),
        (["toy"], "absent", "no such folder"),
        (["tpy"], "", "did you mean 'Toy'"),
    ],
)
def test_nothing_to_import_is_one_clear_line(toy, tmp_path, wanted, folder, reason):
    toy()
    with pytest.raises(InputError, match=reason):
        fetch(wanted, tmp_path / "root", from_dir=tmp_path / folder, progress=False)


def test_one_failure_does_not_stop_the_others(toy, server: Server, tmp_path: Path):
    toy(name="Bad", file="bad.csv", url=server.url, sha256=("0" * 64,))
    toy(url=server.url, sha256=(SHA256,))
    with pytest.raises(InputError, match=r"^Bad: refused [^\n]*$"):
        fetch(["Bad", "Toy"], tmp_path, progress=False)
    assert files(tmp_path) == ["toy.csv"]


def test_progress_goes_to_stderr_only(toy, server: Server, tmp_path: Path, capsys):
    toy(url=server.url, sha256=(SHA256,))
    fetch(["toy"], tmp_path, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Toy" in captured.err

"""Helpers of the tests of `fetch`: the repository that is fetched, and what comes of it.

result = get("ttm:stand-in")                     # of the fixtures `hub` and `cache`
message = refused("ttm:stand-in")                # the one line of a fetch that fails
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from sffbench.errors import InputError
from sffbench.models import checkpoint
from sffbench.models.fetch import Fetched, fetch

WHOLE = checkpoint.PACKAGED / "ttm-tiny"
CONFIG, WEIGHTS = ((WHOLE / name).read_bytes() for name in ("config.json", "model.safetensors"))
REPOSITORY = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "README.md": b"# ours"}


def get(name: str = "ttm:stand-in", **options: Any) -> Fetched:
    (result,) = fetch([name], **options)
    return result


def refused(name: str = "ttm:stand-in", **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        fetch([name], **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 450
    return message


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

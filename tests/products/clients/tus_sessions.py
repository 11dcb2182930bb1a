"""Uploads by tus, all at once, with its Python client; one JSON document on stdout says what came of each.

    python tus_sessions.py URL NUMBER

The client sends each chunk on a connection of its own and keeps no cookies. Every upload is interrupted and resumed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from tusclient.client import TusClient

DEADLINE_S = 30.0
CHUNK = 40_000
SIZE = 5 * CHUNK + 1234
METADATA = {"filename": "f", "filetype": "application/octet-stream"}


def session(url: str, number: int) -> dict[str, Any]:
    """Return what came of one upload."""
    content = hashlib.shake_128(str(number).encode()).digest(SIZE)
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            uploader = TusClient(f"{url}/files/").uploader(file.name, chunk_size=CHUNK, metadata=METADATA)
            uploader.upload(stop_at=2 * CHUNK)
            again = TusClient(f"{url}/files/").uploader(file.name, chunk_size=CHUNK, url=uploader.url)
            assert again.offset == 2 * CHUNK, again.offset
            again.upload()
            kept = requests.get(f"{again.url}/kept", timeout=DEADLINE_S).json()
            assert kept["sha256"] == hashlib.sha256(content).hexdigest(), "something else was kept"
            ended = requests.delete(again.url, headers={"Tus-Resumable": "1.0.0"}, timeout=DEADLINE_S)
            assert ended.status_code == 204, f"DELETE: {ended.status_code}"
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what came of this session
            return {"pids": [], "error": f"{type(error).__name__}: {error}"}
    return {"pids": [kept["pid"]], "error": None}


def main(url: str, number: int) -> None:
    """Print what came of *number* uploads."""
    with ThreadPoolExecutor(number) as pool:
        print(json.dumps(list(pool.map(lambda each: session(url, each), range(number)))))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

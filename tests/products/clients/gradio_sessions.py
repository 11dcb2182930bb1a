"""Sessions of Gradio's own Python client, all at once: each chats and sends a file, then says who has answered it.

Arguments: the URL and how many. Prints a JSON list with an entry for each: the pids, and what went wrong or null.
"""

import json
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gradio_client import Client, handle_file

MESSAGES = 5
SIZE = 300_000


def session(url: str) -> dict[str, Any]:
    """Be one session."""
    pids: set[int] = set()
    error = None
    try:
        client = Client(url, verbose=False)
        for count in range(1, MESSAGES + 1):
            said = client.predict("word", api_name="/answer")
            said = said[0] if isinstance(said, (list, tuple)) else said
            assert f"count {count} " in said, f"{said!r} is not answer {count}"
            pids.add(int(re.findall(r"pid (\d+)", said)[0]))
        with tempfile.NamedTemporaryFile(suffix=".txt") as file:
            file.write(b"x" * SIZE)
            file.flush()
            arrived = client.predict(handle_file(file.name), api_name="/took")
        assert f":{SIZE} " in arrived, arrived
        pids.add(int(re.findall(r"pid (\d+)", arrived)[0]))
    except Exception as caught:  # noqa: BLE001  # whatever it is, the session has failed
        error = f"{type(caught).__name__}: {caught}"
    return {"pids": sorted(pids), "error": error}


if __name__ == "__main__":
    with ThreadPoolExecutor(int(sys.argv[2])) as pool:
        print(json.dumps(list(pool.map(session, [sys.argv[1]] * int(sys.argv[2])))))

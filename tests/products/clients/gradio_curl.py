"""Clients of Gradio as it documents them for curl: a POST that answers with an id, a GET of the result by that id.

Arguments: the URL and how many. Prints a JSON list with an entry for each: the pids, and what went wrong or null. Each
request is a curl of its own, which keeps neither a cookie nor a connection.
"""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

POST = ("--header", "content-type: application/json", "--data", '{"data": ["word"]}')


def curl(*arguments: str) -> str:
    """Return what one curl prints."""
    command = ["curl", "--silent", "--show-error", "--no-buffer", "--max-time", "20", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout


def session(url: str) -> dict[str, Any]:
    """Be one client."""
    try:
        event = json.loads(curl(f"{url}/gradio_api/call/answer", *POST))["event_id"]
        said = curl(f"{url}/gradio_api/call/answer/{event}")
        assert "event: complete" in said, said
        return {"pids": [int(re.findall(r"pid (\d+)", said)[0])], "error": None}
    except Exception as caught:  # noqa: BLE001  # whatever it is, the session has failed
        return {"pids": [], "error": f"{type(caught).__name__}: {caught}"}


if __name__ == "__main__":
    with ThreadPoolExecutor(4) as pool:
        print(json.dumps(list(pool.map(session, [sys.argv[1]] * int(sys.argv[2])))))

"""Clients that are programs: one process plays all sessions of a run and prints what came of each.

Owns how such a program is run and what it says. The programs in clients/ print a JSON list with an entry for each
session: the pids of who has answered it, and what went wrong or null. The one of Socket.IO is that of the chat.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Any, Final

import pytest

from tests.harness import HERE
from tests.products.stage import Client, Outcome, python

DEADLINE_S: Final = 300.0  # for a whole program; each session has a shorter one of its own
PROGRAMS: Final = HERE / "products" / "clients"
SOCKETIO: Final = HERE / "clients" / "socketio_client.js"


def by_program(name: str, interpreter: str = "") -> Client:
    """Return the client that the program *name* in clients/ is, run by *interpreter* or the products' Python."""

    def client(url: str, sessions: int) -> Outcome:
        outcome = Outcome()
        for number, session in enumerate(said(interpreter or python(), str(PROGRAMS / name), url, str(sessions))):
            note(outcome, number, set(session["pids"]), session["error"])
        return outcome

    return client


def by_socketio(url: str, sessions: int) -> Outcome:
    """Play the chat with the client of Socket.IO: by polls, by polls and then a websocket, by a websocket alone."""
    outcome = Outcome()
    command = ("node", str(SOCKETIO), url, "--mode", "mixed", "--clients", str(sessions), "--deadline", "60")
    for number, seen in enumerate(said(*command)["clients"]):
        note(outcome, number, {worker["pid"] for worker in seen["workers"]}, seen["error"])
    return outcome


def said(*command: str) -> Any:
    """Return the JSON document that *command* prints; skip the test without what it takes, fail where `CI` is set."""
    if command[0] == "node" and not (shutil.which("node") and (SOCKETIO.parent / "node_modules").is_dir()):
        if os.environ.get("CI"):
            pytest.fail("there is no `node`, or `npm ci --prefix tests/clients` has not been run")
        pytest.skip("`node` and `npm ci --prefix tests/clients`")
    run = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=DEADLINE_S)
    return json.loads(run.stdout)


def note(outcome: Outcome, number: int, pids: set[int], error: str | None) -> None:
    """Add what came of session *number*."""
    if error or len(pids) != 1:
        outcome.failures.append(f"session {number}: {error or f'answered by {len(pids)} processes'}")
    else:
        outcome.pids |= pids

"""What the commands of the control socket mean: `limpet status`, `reload` and the like, as the supervisor obeys them.

Owns the names and the answers. The supervisor does what is asked; how an answer looks on a terminal is cli.py's.

1. No command waits: who wants to see the end of a change asks again, by its number (`change`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limpet import report
from limpet.control import Message
from limpet.errors import LimpetError

if TYPE_CHECKING:
    from limpet.supervisor import Supervisor


def answer(server: Supervisor, request: Message) -> Message:
    """Obey *request* and return the answer to it."""
    try:
        return _answer(server, request)
    except LimpetError as error:
        return {"error": error.message, "hint": error.hint}


def _answer(server: Supervisor, request: Message) -> Message:
    match request.get("command"):
        case "status":
            return report.status(server)
        case "where":
            return report.where(server, request)
        case "stop":
            server.stop(wait_for_connections=bool(request.get("wait_for_connections")))
            return {"stopping": True}
        case "reload":
            return server.reload().summary()
        case "change":
            change = server.rolling.changes.find(request.get("number"))
            return change.summary() if change else {"error": f"there is no change `{request.get('number')}`"}
    return {"error": f"this server does not know the command `{request.get('command')}`"}

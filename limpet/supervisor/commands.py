"""What the commands of the control socket mean: `limpet status`, `reload` and the like, as the supervisor obeys them.

Owns the names and the answers. The supervisor does what is asked; how an answer looks on a terminal is
cli/commands.py's.

1. No command waits: who wants to see the end of a change asks again, by its number (`change`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from limpet.errors import ControlError, LimpetError, reason
from limpet.fleet.member import Member
from limpet.operate import status
from limpet.operate.control_socket import Message
from limpet.system import stack

if TYPE_CHECKING:
    from limpet.supervisor.supervisor import Supervisor

log = logging.getLogger("limpet")


def answer(server: Supervisor, request: Message) -> Message:
    """Obey *request* and return the answer to it."""
    try:
        return _answer(server, request)
    except LimpetError as error:
        return {"error": error.message, "hint": error.hint}


def _answer(server: Supervisor, request: Message) -> Message:
    match request.get("command"):
        case "status":
            return status.status(server)
        case "figures":
            return status.figures(server)
        case "events":
            after = request.get("after")
            return {"events": server.beside.events.after(after if isinstance(after, int) else 0)}
        case "routing":
            return status.routing(server)
        case "where":
            return status.where(server, request)
        case "stop":
            server.stop(wait_for_connections=bool(request.get("wait_for_connections")))
            return {"stopping": True}
        case "scale":
            return server.scaling.request(request.get("slots")).summary()
        case "reload":
            return _reload(server, request.get("slot"))
        case "drain" | "undrain" as command:
            return _hold(server, _slot(server, request.get("slot")), command == "drain")
        case "stack":
            return _stack(server, request)
        case "change":
            change = server.rolling.changes.find(request.get("number"))
            return change.summary() if change else {"error": f"there is no change `{request.get('number')}`"}
    return {"error": f"this server does not know the command `{request.get('command')}`"}


def _reload(server: Supervisor, slot: object) -> Message:
    """Begin to renew the workers of all slots, or that of *slot*."""
    if slot is None:
        return server.reload().summary()
    number = _slot(server, slot).number
    if not server.serving or server.stopping:
        raise ControlError(f"the server {'stops' if server.stopping else 'is starting'}")
    return server.rolling.request(f"reload of worker {number}", [number], 1).summary()


def _stack(server: Supervisor, request: Message) -> Message:
    """Have the worker of a slot write its stacks, or with `read` return what it has written."""
    member = _slot(server, request.get("slot"))
    child = member.child
    if child is None or child.stack_fd is None:
        raise ControlError(f"slot {member.number} has no worker that is ready")
    try:
        if request.get("read"):
            return {"pid": child.pid, "stack": stack.read(child.pid, child.stack_fd)}
        stack.ask(child.pid, child.stack_fd)
    except OSError as error:
        raise ControlError(f"cannot look at {member}: {reason(error)}") from None
    return {"pid": child.pid}


def _hold(server: Supervisor, slot: Member, held: bool) -> Message:
    """Send no new clients to *slot*, or do so again."""
    if server.backend.name == "kernel":
        raise ControlError(
            "the kernel backend goes by addresses alone, and knows no new clients",
            hint="`--backend dispatcher`; `limpet reload` renews workers on each backend",
        )
    if slot.is_held != held:
        slot.is_held = held
        log.info("worker %d %s new clients", slot.number, "gets no" if held else "gets")
        server.tell_workers()
    return {"slot": slot.number, "state": slot.word}


def _slot(server: Supervisor, number: object) -> Member:
    """Return the slot with this *number*. Raises ControlError."""
    found = next((slot for slot in server.slots if slot.number == number), None)
    if found is None:
        raise ControlError(f"there is no slot {number}", hint="`limpet status` shows all slots")
    return found

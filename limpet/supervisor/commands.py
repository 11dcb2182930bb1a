"""What the commands of the control socket mean, such as `limpet status` and `limpet reload`.

Owns the commands and their answers. The actors do the work. cli/commands.py decides how an answer looks on a terminal.
operate/control_socket.py calls it for each request.

1. No command waits. To learn the end of a change, a client asks again with its number (`change`).
2. Every request is checked before anything is done (operate/requests.py). An exception becomes an answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from limpet.errors import ControlError, LimpetError, reason
from limpet.events import Recent
from limpet.fleet.changes import Change
from limpet.fleet.fleet import Fleet
from limpet.fleet.member import Member
from limpet.operate import requests, status
from limpet.operate.control_socket import Message
from limpet.supervisor.announcing import Announcer
from limpet.supervisor.rolling import Rolling
from limpet.supervisor.scaling import Scaling
from limpet.system import stack

log = logging.getLogger("limpet")


class Commands:
    """The commands of one server."""

    def __init__(
        self,
        fleet: Fleet,
        rolling: Rolling,
        scaling: Scaling,
        announcer: Announcer,
        events: Recent,
        *,
        reload: Callable[[], Change],
        stop: Callable[[bool], None],
        admin_url: Callable[[], str | None],
    ) -> None:
        """*reload* starts to renew all workers.

        *stop* starts to stop; its argument says whether to wait for connections.
        """
        self._fleet = fleet
        self._rolling = rolling
        self._scaling = scaling
        self._announcer = announcer
        self._events = events
        self._reload = reload
        self._stop = stop
        self._admin_url = admin_url

    def answer(self, request: Message) -> Message:
        """Carry out *request* and return the answer."""
        try:
            return self._answer(requests.checked(request))
        except LimpetError as error:
            return {"error": error.message, "hint": error.hint}
        except Exception:
            log.exception("the command `%s` failed", request.get("command"), extra={"event": "command_failed"})
            return {"error": "the command failed in the server", "hint": "the server's log shows the traceback"}

    def _answer(self, request: Message) -> Message:
        fleet = self._fleet
        match request["command"]:
            case "status":
                return status.status(fleet, self._admin_url())
            case "figures":
                return status.figures(fleet)
            case "events":
                return {"events": self._events.after(request.get("after", 0))}
            case "routing":
                return status.routing(fleet)
            case "where":
                return status.where(fleet, request["keys"])
            case "stack":
                return self._stack(request)
            case "change":
                return self._change(request["number"])
        return self._act(request)

    def _act(self, request: Message) -> Message:
        """Carry out a command that changes something."""
        match request["command"]:
            case "stop":
                self._stop(request.get("wait_for_connections", False))
                return {"stopping": True}
            case "scale":
                return self._scaling.request(request["slots"]).summary()
            case "reload":
                return self._renew(request.get("slot"))
            case "drain" | "undrain" as command:
                return self._hold(self._fleet.slot(request["slot"]), command == "drain")
        raise AssertionError(f"operate/requests.py allows `{request['command']}`, but no code here answers it")

    def _change(self, number: int) -> Message:
        change = self._fleet.changes.find(number)
        if change is None:
            raise ControlError(f"there is no change `{number}`")
        return change.summary()

    def _renew(self, slot: object) -> Message:
        """Start to renew the workers of all slots, or only that of *slot*."""
        if slot is None:
            return self._reload().summary()
        number = self._fleet.slot(slot).number
        self._fleet.refuse_unless_serving()
        return self._rolling.request(f"reload of worker {number}", [number], 1).summary()

    def _stack(self, request: Message) -> Message:
        """Have the worker of a slot write its stacks, or with `read` return what it has written."""
        member = self._fleet.slot(request["slot"])
        child = member.child
        if child is None or not child.shows_stack:
            raise ControlError(f"slot {member.number} has no ready worker")
        try:
            if request.get("read"):
                return {"pid": child.pid, "stack": stack.read(child.stack_fd)}
            stack.ask(child.pid, child.stack_fd)
        except OSError as error:
            raise ControlError(f"cannot read the stacks of {member}: {reason(error)}") from None
        return {"pid": child.pid}

    def _hold(self, slot: Member, held: bool) -> Message:
        """Stop sending new clients to *slot*, or send them again."""
        if self._fleet.backend.name == "kernel":
            raise ControlError(
                "the kernel backend cannot drain a slot: it routes by address and cannot tell which clients are new",
                hint="`--backend dispatcher`; to replace workers, `limpet reload` works on each backend",
            )
        if slot.is_held != held:
            slot.is_held = held
            log.info(
                "worker %d gets %s new clients",
                slot.number,
                "no" if held else "again",
                extra={"event": "slot_drains" if held else "slot_undrained", **slot.about()},
            )
            self._announcer.tell_workers(time.monotonic())
        answer: Message = {"slot": slot.number, "state": slot.word}
        if all(each.is_held for each in self._fleet.slots[: self._fleet.router.slots]):
            answer["note"] = "all slots are drained, so new clients still go to all of them"
        return answer

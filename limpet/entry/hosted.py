"""The supervisor as the child of a program that called `limpet.listen`: `python -m limpet.entry.hosted FD`.

Owns the first steps: what the program has written into descriptor FD (supervisor/program_link.py) is read, and a server
is put together from it. A failure goes up the line to the program.
"""

from __future__ import annotations

import json
import signal
import socket
import sys

from limpet.config.settings import Settings
from limpet.errors import LimpetError
from limpet.ipc.control_link import Link
from limpet.supervisor import bootstrap
from limpet.supervisor.program_link import Program
from limpet.system import descriptors


def main() -> int:
    """Be the supervisor that a program asked for; return the exit code."""
    descriptors.have_standard_streams()
    fd = int(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the thread that started this process may have blocked some
    with open(fd, "rb") as file:
        told = json.loads(file.read())
    descriptors.keep_from_programs([told["line"]])
    program = Program(Link(socket.socket(fileno=told["line"])))
    try:
        bootstrap.run(Settings.from_json(told["settings"]), program)
    except LimpetError as error:
        program.failed(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

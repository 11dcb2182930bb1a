"""The supervisor as the child of a program that called `limpet.listen`: `python -m limpet.entry.hosted FD`.

Owns its first steps: it reads what the program wrote into descriptor FD (supervisor/program_link.py) and runs a server
with these settings (supervisor/bootstrap.py). embed/handle.py starts it. A failure is sent to the program.
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
from limpet.system import descriptors, memfile


def main() -> int:
    """Run the supervisor that a program asked for, and return its exit code."""
    descriptors.have_standard_streams()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the thread that started this process may have blocked signals
    told = json.loads(memfile.read(int(sys.argv[1])))
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

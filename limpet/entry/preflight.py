"""Whether this version can import the application, tried in its own program: `python -m limpet.entry.preflight FD`.

Owns the last part of the trial of an upgrade (supervisor/upgrade.py). A supervisor never imports the application, so
the trial executes this program in its place. The program ends by printing PASSED if the import succeeded. It serves
nothing and starts nothing.
"""

from __future__ import annotations

import os
import sys
import traceback

from limpet.config.settings import Settings
from limpet.errors import LimpetError
from limpet.servers import application
from limpet.supervisor.upgrade import PASSED
from limpet.system import descriptors, memfile
from limpet.worker import user_code


def main() -> int:
    """Import what the settings name. Return the exit code if that fails; if it succeeds, end the process."""
    descriptors.have_standard_streams()
    settings = Settings.from_json(memfile.read(int(sys.argv[1])).decode())
    user_code.look_in(settings.app_dir)  # as in the children
    try:
        application.check(settings)
    except LimpetError as error:
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        sys.stderr.write(error.render())
        return error.exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(1, PASSED.encode())
    os._exit(0)  # do not wait for threads that the application started


if __name__ == "__main__":
    sys.exit(main())

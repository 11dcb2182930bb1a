"""The entry of the command line: `limpet`, and `python -m limpet`.

Owns what cannot wait until the command line has been imported, which takes some tenths of a second.
"""

import sys

from limpet.system import descriptors, signals


def main() -> int:
    """Run the command line; return the exit code."""
    signals.hold_as_first_process()
    descriptors.have_standard_streams()
    from limpet.cli import commands  # only now

    return commands.main()


if __name__ == "__main__":
    sys.exit(main())

"""The name under which a program that imported an older version starts its server."""

import sys

from limpet.entry.hosted import main

if __name__ == "__main__":
    sys.exit(main())

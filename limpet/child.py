"""The name under which a running older version starts its children."""

import sys

from limpet.entry.child import main

if __name__ == "__main__":
    sys.exit(main())

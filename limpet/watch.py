"""The name under which a running older version starts the process that watches files."""

import sys

from limpet.operate.watch import main

if __name__ == "__main__":
    sys.exit(main())

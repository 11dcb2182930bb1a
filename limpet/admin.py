"""The name under which a running older version starts its admin process."""

import sys

from limpet.operate.admin.serving import main

if __name__ == "__main__":
    sys.exit(main())

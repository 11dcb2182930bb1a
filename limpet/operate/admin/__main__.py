"""The entry point of the admin process."""

from __future__ import annotations

import sys

from limpet.operate.admin.serving import main

if __name__ == "__main__":
    sys.exit(main())

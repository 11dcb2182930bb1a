"""`python -m limpet` is `limpet`."""

import sys

from limpet.cli import main

sys.exit(main())

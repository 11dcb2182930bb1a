"""`python -m limpet` is `limpet`."""

import sys

from limpet.cli.commands import main

sys.exit(main())

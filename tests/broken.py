"""An application that cannot be imported, since its configuration is missing."""

import os

SETTING = os.environ["TEST_NO_SUCH_VARIABLE"]

"""What holds for all tests."""

import signal

from hypothesis import settings

settings.register_profile("limpet", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("limpet")

# Who starts the tests in the background of a script has SIGINT ignored, and so has whatever a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

"""What holds for all tests."""

import signal

from hypothesis import settings

settings.register_profile("limpet", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("limpet")

# Who starts the tests in the background of a script, or with nohup, has these ignored, as has whatever a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

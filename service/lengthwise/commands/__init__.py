"""The commands of the program.

Of `serve` the signals are held from here on, before anything else is imported: SIGHUP never ends it, and SIGTERM and
SIGINT wait until it can end in order (`release`).
"""

import signal
import sys

HELD = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT) if hasattr(signal, "SIGHUP") else ()

if sys.argv[1:2] == ["serve"] and HELD:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it reads the models, there is nothing to read again
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)

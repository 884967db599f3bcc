"""The commands of the program.

Of `serve` the signals are held from here on, before anything else is imported: SIGHUP never ends it, and SIGTERM and
SIGINT wait until all is imported, and it can end in order.
"""

import signal
import sys

HELD = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT) if hasattr(signal, "SIGHUP") else ()

if sys.argv[1:2] == ["serve"] and HELD:
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)

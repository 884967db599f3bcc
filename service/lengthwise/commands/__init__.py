"""The commands of the program.

For `serve`, signals are blocked before anything else is imported: SIGHUP must never end it, and SIGTERM and SIGINT wait
until all is imported and the process can end in order.
"""

import signal
import sys

HELD = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT) if hasattr(signal, "SIGHUP") else ()

if sys.argv[1:2] == ["serve"] and HELD:
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)

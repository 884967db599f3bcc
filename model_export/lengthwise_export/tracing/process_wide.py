"""The lock for everything in the exporter that changes the whole process for a while.

A trace replaces functions of torch, and a check installs global hooks: exports and checks in several threads run one
after the other. Code outside this package that uses torch in another thread is not protected.
"""

from __future__ import annotations

import threading
from typing import Final

PROCESS_WIDE: Final = threading.RLock()
"""Held while a process-wide change is in force. Reentrant, because these changes are nested."""

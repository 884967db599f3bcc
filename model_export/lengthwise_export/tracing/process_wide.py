"""The lock of everything in the exporter that changes the whole process for a while.

A trace replaces functions of torch and names in the user's module, and a check switches off torch's fast path and
installs global hooks. Other threads would see all of these changes. So each of them holds `PROCESS_WIDE`, and exports
and checks in several threads run one after the other. Code outside this package that uses torch in another thread is
not protected.
"""

from __future__ import annotations

import threading
from typing import Final

PROCESS_WIDE: Final = threading.RLock()
"""Held while a process-wide change is in force. Reentrant, because these changes are nested."""

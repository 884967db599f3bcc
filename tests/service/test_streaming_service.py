"""States through whole services: a model directory, keys that are read again, workers, and many keys interleaved."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.repository import loading
from lengthwise.batching.limits import BatchLimits

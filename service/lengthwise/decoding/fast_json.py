"""The plainest body: one sequence of plain numbers for the default model, and nothing else. Most bodies are.

Its numbers are read in C (`_fast_json.c`), from the text to float32 at once. What a general parser makes of a body on
the way, a tree, doubles, a skeleton to hold the tree against, costs more in cache misses than reading itself. An
installation without a compiler has no such module; there `json_body` reads these bodies as it reads all others.
"""

from __future__ import annotations

from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from lengthwise.decoding.calls import Call, Catalog, Described, Item
from lengthwise.decoding.validation import Form
from lengthwise.errors import RequestError

try:
    from lengthwise.decoding import _fast_json
except ImportError:  # mypy knows the module from its stub; at run time an installation may be without it
    _fast_json = None  # type: ignore[assignment]

M = TypeVar("M", bound=Described)

COMPILED: Final = _fast_json is not None
"""Whether the module in C is there."""
MOST_BYTES: Final = 65_536
"""For a longer body the others would wait, as nothing else runs while it is read: the worst of so many take 3 ms."""


def read(body: bytes, catalog: Catalog[M], form: Form) -> Call[M] | None:
    """The call of a body that is one sequence and nothing else; None of any other, and where a careful look is needed.

    Args:
        body: As sent.
        catalog: Where the default model is found.
        form: How the body is laid out.
    """
    if not COMPILED or len(body) > MOST_BYTES or not body.startswith(b'{"' + form.key):
        return None
    try:
        model = catalog.find(None, None)
    except RequestError:
        return None
    manifest = model.manifest
    wants = manifest.input
    if wants.features is None:
        found = _fast_json.read_tokens(body, form.key, wants.vocabulary or 1, manifest.max_length)
        if found is None:
            return None
        tokens: NDArray[np.int64] = np.frombuffer(found, np.int64)
        return Call(model, (Item(tokens, len(tokens)),), pointer=form.pointer)
    found = _fast_json.read_values(body, form.key, wants.features, manifest.max_length)
    if found is None:
        return None
    values: NDArray[np.float32] = np.frombuffer(found, np.float32).reshape(-1, wants.features)
    return Call(model, (Item(values, len(values)),), pointer=form.pointer)

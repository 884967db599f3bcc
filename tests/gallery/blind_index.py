"""The gallery's models that know nothing of lengths: those that can be given lengths, and those that cannot.

Each torch module is a name in a file of `torch_blind/` or `torch_unmendable/`, as in `index`; its `forward` takes the
steps alone. Each ONNX model is a function of `onnx_blind.py` or `onnx_unmendable.py`, and has one
input. What a mended model must answer for a sequence is what the original answers for it alone, at its own length.

`test_blind_gallery_is_true.py` proves what is said here by running the models, without any checker.
"""

from __future__ import annotations

import dataclasses

from tests.gallery.index import room

TORCH_BLIND = tuple(
    dataclasses.replace(exhibit, published=exhibit.file.name.startswith("published_"))
    for exhibit in room("torch_blind", "uncheckable", second=None, reason=("length",))
)
ONNX_BLIND = room("onnx_blind", "uncheckable", second=None, reason=("length",))
TORCH_UNMENDABLE, ONNX_UNMENDABLE = (
    room(f"{kind}_unmendable", "uncheckable", second=None) for kind in ("torch", "onnx")
)

BLIND = TORCH_BLIND + ONNX_BLIND
"""What can be mended."""

UNMENDABLE = TORCH_UNMENDABLE + ONNX_UNMENDABLE
"""What cannot, and must be refused."""

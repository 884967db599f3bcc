"""The gallery's Keras models, as their users write them, and the right verdict on each.

Each is a factory of `keras_leaking.py`, `keras_sound.py`, `keras_blind.py` or `keras_refused.py` that seeds itself.
Where no model can give what a user has on disk, there is a function `save_NAME(path)` instead.

A model has its mask from `Masking` or `Embedding(mask_zero=True)`, or computes one from the values that these would
mask. So its padding is that value, and a leak is an answer that such padding changes. Models in `keras_blind/` have no
mask at all. What counts as the operator where a leak begins is told in `index`; here it is a layer, by its name.

`test_keras_gallery_is_true.py` proves the verdicts with Keras, without any checker.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path

from tests.gallery.index import Exhibit, Verdict, sources


@dataclass(frozen=True, slots=True)
class KerasExhibit(Exhibit):
    """One Keras model and what a right report says about it."""

    mask_value: float = 0.0  # what its `Masking` or `Embedding` masks
    cause: tuple[str, ...] = ()
    """For a leak: its cause contains one of these, in small letters: the layer that drops the mask or ignores it."""
    custom: bool = False  # it needs a class of its own: a file of it cannot be read without
    suffix: str = ".keras"  # of the file that it is saved as

    def save(self, folder: Path) -> Path:
        """Writes the model as its user would, and says where."""
        path = folder / f"{self.name}{self.suffix}"
        save = getattr(importlib.import_module(f"tests.gallery.{self.room}"), f"save_{self.name}", None)
        if save is not None:
            save(path)
        else:
            self.make().save(path)
        return path


def _room(room: str, verdict: Verdict) -> tuple[KerasExhibit, ...]:
    """The models of a room, with what `exhibit` says of each."""
    models = ((name.removeprefix("save_"), said) for name, (*_, said) in sources(room).items())
    return tuple(KerasExhibit(room, name, **{"verdict": verdict, **said}) for name, said in sorted(models))


KERAS_LEAKING = _room("keras_leaking", "leak")
KERAS_SOUND = _room("keras_sound", "sound")
KERAS_BLIND = _room("keras_blind", "leak")
KERAS_REFUSED = _room("keras_refused", "uncheckable")

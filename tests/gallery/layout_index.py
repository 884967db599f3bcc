"""The gallery of models for other layouts: padded on the left or on both sides, or packed in one row."""

from tests.gallery import layout_graphs, left_models, packed_models
from tests.gallery.layout_models import EXHIBITS, LayoutExhibit

__all__ = ["EXHIBITS", "LayoutExhibit", "layout_graphs", "left_models", "packed_models"]

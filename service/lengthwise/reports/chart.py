"""A chart as SVG: bars and lines over two axes, placed by shares from 0 (left, bottom) to 1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from lengthwise.reports.page import Html, element

Axis = tuple[str, Sequence[tuple[float, str]]]  # what it shows, and its marks: places from 0 to 1, and their texts

_RIGHT: Final = 30
_TOP: Final = 20


class Chart:
    """A chart to draw into, its sizes in pixels; `up` is the axis at the left, with a line for each mark."""

    def __init__(self, width: float, height: float, across: Axis, up: Axis | None = None) -> None:
        self.width, self.height = width, height
        self._left, self._bottom = (16, 22) if up is None else (64, 52)
        self._parts: list[Html] = []
        title, marks = up or ("", ())
        for share, text in marks:
            self.line([(0, share), (1, share)], "var(--line)", stroke_width=1)
            self.text(0, share, text, "end", right=-6, down=4)
        for share, text in across[1]:
            self.text(share, 0, text, down=18)
        if title:
            at = f"rotate(-90 14 {_TOP + height / 2})"
            self._parts.append(element("text", title, x=14, y=_TOP + height / 2, transform=at, text_anchor="middle"))
        if across[0]:
            self.text(0.5, 0, across[0], down=40)

    def line(self, points: Iterable[tuple[float, float]], color: str, **attributes: object) -> None:
        """A line through points."""
        drawn = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in points)
        attributes = {"fill": "none", "stroke": color, "stroke_width": 2, **attributes}
        self._parts.append(element("polyline", points=drawn, **attributes))

    def bar(self, left: float, right: float, top: float, *content: object, **attributes: object) -> None:
        """A bar from the bottom; `content` may be its `title`."""
        x, y = self._x(left), self._y(top)
        size = {"width": f"{self._x(right) - x:.1f}", "height": f"{self._y(0) - y:.1f}"}
        self._parts.append(element("rect", *content, x=f"{x:.1f}", y=f"{y:.1f}", **size, **attributes))

    def text(
        self, x: float, y: float, text: object, anchor: str = "middle", *, right: float = 0, down: float = 0
    ) -> None:
        """A text at a place, moved by pixels."""
        at = {"x": f"{self._x(x) + right:.1f}", "y": f"{max(self._y(y) + down, 10):.1f}"}
        self._parts.append(element("text", text, **at, text_anchor=anchor))

    def figure(self, label: str, caption: object = None) -> Html:
        """The chart with its description for screen readers, and a caption."""
        size = {"width": self._left + self.width + _RIGHT, "height": _TOP + self.height + self._bottom}
        drawn = element("svg", *self._parts, **size, role="img", aria_label=label)
        return element("figure", drawn, "" if caption is None else element("figcaption", caption))

    def _x(self, share: float) -> float:
        return self._left + share * self.width

    def _y(self, share: float) -> float:
        return _TOP + (1 - share) * self.height

"""Reports of a check, of a leaking model and of a sound one."""

import math
from io import StringIO

from rich.console import Console, RenderableType

from lengthwise_export.checking.compared_runs import OperatorSpread
from lengthwise_export.checking.leaks import Leak
from lengthwise_export.checking.report import CheckedSizes, Report, TrialResult
from lengthwise_export.checking.rule import Cause
from lengthwise_export.tracing.source_lines import CodeLocation

LEAK = Leak(
    operator="pool: mean",
    kind="mean",
    location=CodeLocation("models/net.py", 12, "return h.mean(1)  # <all>", "forward"),
    cause=Cause("It divides by the width.", "h.sum(1) / lengths[:, None]", "LW201"),
    cause_at="models/net.py:9",
    difference=math.inf,
    trial="padded wider",
    spread=(
        OperatorSpread("rnn: lstm", (0.0, 0.0, 0.01, math.inf)),
        OperatorSpread("pool: mean", (0.3,)),
        OperatorSpread("x" * 80, (math.nan,)),
    ),
    length=2,
)
REPORT = Report(
    "leak",
    "the answer changes with: padded wider",
    (LEAK,),
    (
        TrialResult("padded wider", "width", 0.25, False),
        TrialResult("unbatched, 1 step", "batch", None, True, "too short"),
    ),
    ("the model raises past a width of 40",),
    40,
    ran=CheckedSizes((1, 7), (1, 2, 3, 23), (1, 2)),
    target="net:make",
)
NODE = Leak("Mean_3", "ReduceMean", None, Cause("why", "fix"), None, 0.5, "padded wider")


SOUND = Report(
    "sound",
    "no answer changed in 4 trials",
    trials=(
        TrialResult("padded wider", "width", 0.0, True),
        TrialResult("unbatched, 2 steps", "batch", 7.8e-08, True),
        TrialResult("padded one step wider", "width", 3e-08, True),
        TrialResult("unbatched, 1 step", "batch", None, True, "too short"),
    ),
)


def plain(shown: RenderableType) -> str:
    """What a terminal shows, as text without line breaks."""
    file = StringIO()
    Console(file=file, width=1000, color_system=None).print(shown, crop=False)
    return file.getvalue()

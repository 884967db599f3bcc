"""Measures the service on this machine's GPU: `python -m benchmarks.gpu`; `--help` says the options.

On a machine without one, `--provider cpu` runs the same code on the CPU, and labels what it finds as that.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "runs" / "gpu-models"
RESULTS = ROOT / "benchmarks" / "results"
WANTED = {
    "numpy": "numpy",
    "onnxruntime": "onnxruntime-gpu",
    "orjson": "orjson",
    "pydantic": "pydantic",
    "prometheus_client": "prometheus-client",
}
"""Without these nothing runs: each module, and the package that brings it. torch, onnx and matplotlib are missed in
single figures only."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    missing = _missing()
    if missing:
        _say(f"not installed: {', '.join(missing)}; benchmarks/README.md says how to bring it")
        return 2
    # Only now: they import what was just looked for.
    from benchmarks.gpu import device, plots, summary
    from benchmarks.gpu.prepare import prepare
    from benchmarks.gpu.runner import Run
    from benchmarks.gpu.sections import SECTIONS

    if options.prepare:
        for line in prepare(options.models):
            _say(line)
        return 0
    names = [section.name for section in SECTIONS]
    chosen = (
        options.only.split(",") if options.only else [name for name in names if name not in options.skip.split(",")]
    )
    if unknown := [name for name in chosen if name not in names]:
        _say(f"no such section: {', '.join(unknown)}; there are: {', '.join(names)}")
        return 2
    name = device.name(options.provider)
    if name is None:
        _say("no GPU answers here; --provider cpu runs the same code on the CPU, and labels its figures so")
        return 2
    if not (options.models / "lognormal" / "1" / "model.onnx").is_file():
        _say(f"there is no graph in {options.models}: python -m benchmarks.gpu --prepare makes it, where torch 2.13 is")
        return 2
    out = options.out or (
        RESULTS / f"{device.slug(name)}.json" if options.provider == "cuda" else ROOT / "runs" / "gpu-on-cpu.json"
    )
    run = Run(
        options.provider, name, options.models, out, options.quick, options.seed, 60 * options.budget_minutes, _say
    )
    results = run.all([section for section in SECTIONS if section.name in chosen], resume=options.resume)
    text = summary.text(results)
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    try:
        drawn = plots.draw(results, out.with_suffix(""))
    except Exception as error:  # the figures are there: a picture can be drawn from them elsewhere
        _say(f"no plots: {error!r}")
        drawn = []
    print(text, end="")
    _say(f"written: {', '.join(str(path) for path in (out, out.with_suffix('.md'), *drawn))}")
    return 0 if all(found["status"] == "measured" for found in results["sections"].values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda", help="where to measure [cuda]")
    parser.add_argument("--prepare", action="store_true", help="make the graphs, where the exporter is, and end")
    parser.add_argument("--quick", action="store_true", help="a short look at everything, to see that it runs")
    parser.add_argument("--budget-minutes", type=float, default=25.0, help="for all sections together [25]")
    parser.add_argument("--only", default="", help="these sections alone, commas between")
    parser.add_argument("--skip", default="", help="not these sections")
    parser.add_argument("--resume", action="store_true", help="keep what the file of results holds, measure the rest")
    parser.add_argument("--models", type=Path, default=MODELS, help="holds the graphs [runs/gpu-models]")
    parser.add_argument("--out", type=Path, help="file of results [benchmarks/results/DEVICE.json]")
    parser.add_argument("--seed", type=int, default=0, help="of sequences and arrivals [0]")
    return parser


def _missing() -> list[str]:
    from importlib.util import find_spec

    return [package for module, package in WANTED.items() if find_spec(module) is None]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    # Ended from outside, it ends the section that runs, which would else go on.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())

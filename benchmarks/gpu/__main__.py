"""Measures the service on this machine's GPU: `python -m benchmarks.gpu`; `--help` lists the options.

On a machine without one, `--provider cpu` runs the same code on the CPU, and its page says so.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "runs" / "gpu-models"
WANTED = {
    "numpy": "numpy",
    "onnxruntime": "onnxruntime-gpu",
    "orjson": "orjson",
    "pydantic": "pydantic",
    "prometheus_client": "prometheus-client",
}
"""Modules that every section needs, and the packages that bring them. torch and onnx are needed for single figures."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    missing = [package for module, package in WANTED.items() if find_spec(module) is None]
    if missing:
        _say(f"not installed: {', '.join(missing)}; benchmarks/README.md says how to bring it")
        return 2
    # Imported here: they need the packages above.
    from benchmarks import pages
    from benchmarks.gpu import device, summary
    from benchmarks.gpu.packed import prepare
    from benchmarks.gpu.runner import GpuRun
    from benchmarks.gpu.section import SECTIONS

    if options.prepare:
        for line in prepare(options.models):
            _say(line)
        return 0
    names = [section.name for section in SECTIONS]
    chosen = options.only.split(",") if options.only else names
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
    on_gpu = options.provider == "cuda"
    out = options.out or ROOT / "runs" / f"gpu-{device.slug(name) if on_gpu else 'on-cpu'}.json"
    page = ROOT / pages.RESULTS / f"{device.slug(name)}.md" if on_gpu and not options.out else out.with_suffix(".md")
    seconds = 60 * options.budget_minutes
    run = GpuRun(options.provider, name, options.models, out, options.quick, options.seed, seconds, _say)
    results = run.all([section for section in SECTIONS if section.name in chosen], resume=options.resume)
    text = summary.page(results)
    pages.write(page, text)
    print(text, end="")
    _say(f"written: {out}, {page}")
    return 0 if all(entry["status"] == "measured" for entry in results["sections"].values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda", help="where to measure [cuda]")
    parser.add_argument("--prepare", action="store_true", help="make the graphs, where the exporter is, and end")
    parser.add_argument("--quick", action="store_true", help="a short run, to see that the code runs")
    parser.add_argument("--budget-minutes", type=float, default=15.0, help="for all sections together [15]")
    parser.add_argument("--only", default="", help="only these sections, with commas between")
    parser.add_argument("--resume", action="store_true", help="keep the sections in the results file, run the others")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the graphs [runs/gpu-models]")
    parser.add_argument("--out", type=Path, help="results as JSON, with a page beside it [runs/gpu-DEVICE.json]")
    parser.add_argument("--seed", type=int, default=0, help="of the sequences [0]")
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    # When this process is ended, it ends the section that runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())

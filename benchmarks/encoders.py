"""Encoders of transformers, checked with `assert_padding_safe`. `python -m benchmarks.encoders`.

Each is a class of the package transformers with a small configuration and random weights: what padding does follows
from the code, not from the weights. Needs `pip install transformers`, which is no dependency of this project.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import track

from benchmarks import machine, output, pages
from lengthwise.commands.command import Command
from lengthwise.errors import LengthwiseError
from lengthwise_export.interface.api import CheckReport
from lengthwise_export.testing import PaddingUnsafeError, assert_padding_safe

PAGE = pages.RESULTS / "encoders.md"
VOCABULARY = 64
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 160,
}
"""The keys of a configuration, where the class has them."""
LONGEST = 100
"""Longest sequence of a model of words."""
LONGEST_SOUND = 400
"""Longest sequence of a model of sounds, which needs more for its convolutions."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """One class of transformers.

    Attributes:
        name: What people call it.
        model: The class of the model; its configuration class is `model.config_class`.
        configuration: Keys of its configuration, besides `SMALL`.
        options: Options of the check.
        common: Whether the configuration has the keys of `SMALL`.
    """

    name: str
    model: str
    configuration: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    common: bool = True

    def build(self) -> torch.nn.Module:
        """The model with random weights, always the same."""
        import transformers

        kind = getattr(transformers, self.model)
        torch.manual_seed(0)
        configuration = kind.config_class(**(SMALL if self.common else {}), **self.configuration)
        return kind(configuration).eval()


_SOUND: dict[str, Any] = {
    "conv_dim": (16, 16, 16),
    "conv_kernel": (8, 3, 3),
    "conv_stride": (4, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
    "do_stable_layer_norm": True,
}
_OF_WORDS: dict[str, Any] = {"max_length": LONGEST, "vocabulary": VOCABULARY}
_OF_SOUNDS: dict[str, Any] = {"max_length": LONGEST_SOUND, "features": 1}

ENCODERS: tuple[Encoder, ...] = (
    Encoder("BERT", "BertForSequenceClassification", options=_OF_WORDS),
    Encoder(
        "DistilBERT",
        "DistilBertForSequenceClassification",
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": VOCABULARY},
        _OF_WORDS,
        common=False,
    ),
    Encoder("RoBERTa", "RobertaForSequenceClassification", options=_OF_WORDS),
    Encoder("ALBERT", "AlbertForSequenceClassification", {"embedding_size": 16}, _OF_WORDS),
    Encoder("ELECTRA", "ElectraForSequenceClassification", {"embedding_size": 16}, _OF_WORDS),
    Encoder(
        "DeBERTa v2",
        "DebertaV2ForSequenceClassification",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
        _OF_WORDS,
    ),
    Encoder("MPNet", "MPNetForSequenceClassification", options=_OF_WORDS),
    Encoder("Longformer", "LongformerForSequenceClassification", {"attention_window": 16}, _OF_WORDS),
    Encoder("BigBird", "BigBirdForSequenceClassification", {"attention_type": "original_full"}, _OF_WORDS),
    Encoder("ModernBERT", "ModernBertForSequenceClassification", {"pad_token_id": 0}, _OF_WORDS),
    Encoder(
        "XLNet",
        "XLNetForSequenceClassification",
        {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "vocab_size": VOCABULARY},
        _OF_WORDS,
        common=False,
    ),
    Encoder(
        "T5 encoder",
        "T5EncoderModel",
        {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": VOCABULARY},
        _OF_WORDS,
        common=False,
    ),
    Encoder(
        "GPT-2 (last token)",
        "GPT2ForSequenceClassification",
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": VOCABULARY, "n_positions": 160, "pad_token_id": 0},
        _OF_WORDS,
        common=False,
    ),
    Encoder("FNet", "FNetForSequenceClassification", options={**_OF_WORDS, "second": "none"}),
    Encoder(
        "Wav2Vec2, group norm",
        "Wav2Vec2ForSequenceClassification",
        {**_SOUND, "feat_extract_norm": "group"},
        _OF_SOUNDS,
    ),
    Encoder(
        "Wav2Vec2, layer norm",
        "Wav2Vec2ForSequenceClassification",
        {**_SOUND, "feat_extract_norm": "layer"},
        _OF_SOUNDS,
    ),
    Encoder(
        "HuBERT, group norm", "HubertForSequenceClassification", {**_SOUND, "feat_extract_norm": "group"}, _OF_SOUNDS
    ),
    Encoder(
        "HuBERT, layer norm", "HubertForSequenceClassification", {**_SOUND, "feat_extract_norm": "layer"}, _OF_SOUNDS
    ),
    Encoder(
        "PatchTST",
        "PatchTSTForClassification",
        {
            "num_input_channels": 3,
            "context_length": 32,
            "patch_length": 8,
            "patch_stride": 8,
            "d_model": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "ffn_dim": 32,
        },
        {"max_length": LONGEST, "features": 3},
        common=False,
    ),
)


@dataclass(frozen=True, slots=True)
class JudgedEncoder:
    """What the check says about one encoder.

    Attributes:
        name: What people call it.
        model: Its class.
        verdict: Of the report; `refused` if it could not be loaded.
        said: For a leak, the first operator with its line; otherwise the reason.
    """

    name: str
    model: str
    verdict: str
    said: str


def judge(encoder: Encoder) -> JudgedEncoder:
    """Checks one encoder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            report = assert_padding_safe(encoder.build(), strict=True, **encoder.options)
        except PaddingUnsafeError as error:
            report = error.report
        except LengthwiseError as error:
            return JudgedEncoder(encoder.name, encoder.model, "refused", _one_line(str(error)))
    return JudgedEncoder(encoder.name, encoder.model, report.verdict, _said(report))


def _said(report: CheckReport) -> str:
    if not report.leaks:
        return "" if report.verdict == "sound" else _one_line(report.reason)
    leak = report.leaks[0]
    where = "" if leak.location is None else f", `{leak.location.source}`"
    return f"{leak.operator}{where}"


def _one_line(said: str) -> str:
    """A message in one line, with the paths of installed packages without their folder."""
    return " ".join(re.sub(r"\S*site-packages/", "", said).split())


def page(facts: dict[str, Any], rows: Sequence[JudgedEncoder], version: str) -> str:
    """A line for each encoder."""
    lines = [(row.name, f"`{row.model}`", row.verdict, row.said.replace("|", "\\|")) for row in rows]
    counts = {
        verdict: sum(row.verdict == verdict for row in rows) for verdict in dict.fromkeys(row.verdict for row in rows)
    }
    together = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    how = (
        f"`python -m benchmarks.encoders`: transformers {version}, small configurations, random weights, with "
        f"`assert_padding_safe(model, strict=True)`; sequences of up to {LONGEST} tokens or steps, {LONGEST_SOUND} "
        f"samples for sounds. {together}. For a leak: the first operator whose output changes at a valid step, and its "
        "line. "
        "Behind convolutions with a stride no step can be told from padding, so for the models of sounds it is the "
        "first operator without an axis of steps; what leaks is the norm of their feature extractor over all steps: "
        "with `feat_extract_norm='layer'`, and nothing else changed, they are sound."
    )
    heads = ("encoder", "class", "verdict", "first operator, or why")
    return pages.page(facts, "Encoders of transformers", how, pages.table(heads, lines))


@click.command(cls=Command)
@click.option("--only", default="", help="Encoders whose name contains this.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts as JSON.")
@click.option("--out", type=output.PagePath(dir_okay=False), help=f"Page to write, {PAGE} for one.")
def main(only: str, as_json: bool, out: Any) -> None:
    """Says for encoders of transformers whether padding changes their answers, and where it begins."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise click.ClickException("transformers is not installed: pip install transformers") from error
    transformers.logging.set_verbosity_error()
    logging.getLogger("lengthwise").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    facts = machine.facts()
    chosen = [encoder for encoder in ENCODERS if only.lower() in encoder.name.lower()]
    rows = [judge(encoder) for encoder in track(chosen, "encoders checked", console=Console(stderr=True))]
    text = page(facts, rows, transformers.__version__)
    if out is not None:
        pages.write(out, text)
    click.echo(json.dumps([asdict(row) for row in rows], indent=2) if as_json else text)


if __name__ == "__main__":
    main()

"""A user's file with a module that leaks, and the command that checks a project with it."""

import click.testing

from lengthwise.commands.cli import main

LEAKING = """
import torch
from torch import nn

class Leaking(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x, lengths):
        return self.head(x.mean(1))
"""


def run_check(*words: str) -> click.testing.Result:
    """The result of `lengthwise check` with these words, in the working directory."""
    return click.testing.CliRunner().invoke(main, ["check", *words])

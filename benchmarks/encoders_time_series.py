"""Classifiers of time series, made again from what their papers and Time-Series-Library's README say.

    steps --embedding--> encoder, without a mask --times the mask--> zeros up to the longest --flattened--> classes

None of their code is here. Those whose layers have a weight for each step of the longest sequence get the steps with
zeros up to it, and no mask. The library pads every batch so; the encoders that take any width get a batch as wide as
it is, which gives the same answer where an encoder does not read padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, fft, nn
from torch.nn import functional

from benchmarks.encoders_models import FEATURES

LONGEST: Final = 256
SIZE: Final = 16
CLASSES: Final = 3
PATCH: Final = 16
MODES: Final = 8
"""Frequencies that FEDformer keeps."""

STRONGEST: Final = 3
"""Delays of Autoformer, periods of TimesNet."""


class Classifier(nn.Module):
    """An encoder of `ENCODERS`, and the head that all of them have."""

    def __init__(self, encoder: str) -> None:
        super().__init__()
        self.encoder, self.whole = ENCODERS[encoder](), encoder in WHOLE
        self.head = nn.Linear(self.encoder(torch.zeros(1, LONGEST, FEATURES)).numel(), CLASSES)

    def forward(self, steps: Tensor, padding_mask: Tensor) -> Tensor:
        """Scores `[rows, classes]` of `[rows, width, features]` and a mask `[rows, width]`, 1 at valid steps."""
        padding = (0, 0, 0, LONGEST - steps.shape[1])
        if self.whole:
            return self.head(self.encoder(functional.pad(steps, padding)).flatten(1))
        states = functional.gelu(self.encoder(steps)) * padding_mask.unsqueeze(-1)
        return self.head(functional.pad(states, padding).flatten(1))


class Embedding(nn.Module):
    """A convolution over three steps, around the ends, and sines of the position."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Conv1d(FEATURES, SIZE, 3, padding=1, padding_mode="circular", bias=False)

    def forward(self, steps: Tensor) -> Tensor:
        """States `[rows, width, size]` of `[rows, width, features]`."""
        angles = torch.arange(steps.shape[1])[:, None] / 10_000 ** (torch.arange(0, SIZE, 2) / SIZE)
        return self.values(steps.mT).mT + torch.stack((angles.sin(), angles.cos()), -1).flatten(1)


class Layer(nn.Module):
    """A mixer of steps and a network for each step, both beside what they read."""

    def __init__(self, mixer: nn.Module, norm: Callable[[], nn.Module] = lambda: nn.LayerNorm(SIZE)) -> None:
        super().__init__()
        self.mixer, self.first, self.second = mixer, norm(), norm()
        self.network = nn.Sequential(nn.Linear(SIZE, 2 * SIZE), nn.GELU(), nn.Linear(2 * SIZE, SIZE))

    def forward(self, states: Tensor) -> Tensor:
        """States of the same shape."""
        states = self.first(states + self.mixer(states))
        return self.second(states + self.network(states))


class Attention(nn.Module):
    """Attention of all steps to all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(SIZE, 3 * SIZE)

    def forward(self, states: Tensor) -> Tensor:
        """States of the same shape."""
        return self.mix(*self.projection(states).chunk(3, -1))

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The values, weighted."""
        return (query @ key.mT / math.sqrt(SIZE)).softmax(-1) @ value


class ProbSparse(Attention):
    """Informer: the queries that differ most from a mean attend; the others take the mean of the values."""

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The values, weighted for few queries."""
        width = query.shape[1]
        scores = query @ key.mT / math.sqrt(SIZE)
        active = (scores.amax(-1) - scores.mean(-1)).topk(min(width, 5 * math.ceil(math.log(width + 1)))).indices
        attended = scores.gather(1, active.unsqueeze(-1).expand(-1, -1, width)).softmax(-1) @ value
        means = value.mean(1, keepdim=True).expand_as(value)
        return means.scatter(1, active.unsqueeze(-1).expand_as(attended), attended)


class AutoCorrelation(Attention):
    """Autoformer: the values at the delays by which queries and keys agree most."""

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The values, rolled around and weighted."""
        width = query.shape[1]
        agreement = fft.irfft(fft.rfft(query, dim=1) * fft.rfft(key, dim=1).conj(), n=width, dim=1).mean(-1)
        strength, delays = agreement.topk(min(width, STRONGEST))
        steps = (torch.arange(width) + delays.unsqueeze(-1)) % width
        rolled = value.gather(1, steps.flatten(1).unsqueeze(-1).expand(-1, -1, SIZE)).unflatten(1, (-1, width))
        return (strength.softmax(-1)[:, :, None, None] * rolled).sum(1)


class Frequencies(nn.Module):
    """FEDformer: a few frequencies of the series, each with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(MODES, SIZE, SIZE, 2) / SIZE)

    def forward(self, states: Tensor) -> Tensor:
        """States of the same shape."""
        spectrum = fft.rfft(states, dim=1)[:, :MODES]
        weights = torch.view_as_complex(self.weights)[: spectrum.shape[1]]
        return fft.irfft(torch.einsum("rmi,mio->rmo", spectrum, weights), n=states.shape[1], dim=1)


class Seasonal(nn.Module):
    """Autoformer and FEDformer: what a moving average over 25 steps, with its ends repeated, leaves of a series."""

    def forward(self, states: Tensor) -> Tensor:
        """States of the same shape."""
        return states - functional.avg_pool1d(functional.pad(states.mT, (12, 12), mode="replicate"), 25, 1).mT


class Periods(nn.Module):
    """TimesNet: convolutions over the series folded at the strongest periods of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(SIZE)
        self.convolution = nn.Sequential(
            nn.Conv2d(SIZE, SIZE, 3, padding=1), nn.GELU(), nn.Conv2d(SIZE, SIZE, 3, padding=1)
        )

    def forward(self, states: Tensor) -> Tensor:
        """States of the same shape."""
        width = states.shape[1]
        amplitudes = fft.rfft(states, dim=1).abs().mean(-1)[:, 1:]
        strongest = amplitudes.mean(0).topk(min(STRONGEST, amplitudes.shape[1])).indices
        weights = amplitudes[:, strongest].softmax(-1)
        mixed = states
        for number, frequency in enumerate(strongest.tolist()):
            period = width // (frequency + 1)
            folded = functional.pad(states.mT, (0, -width % period)).unflatten(2, (-1, period))
            mixed = mixed + weights[:, number, None, None] * self.convolution(folded).flatten(2)[:, :, :width].mT
        return self.norm(mixed)


class NonStationary(nn.Module):
    """Attention over a series of mean 0 and deviation 1, which learns of both from two projections of the series."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.projection, self.norm = Embedding(), nn.Linear(SIZE, 3 * SIZE), nn.LayerNorm(SIZE)
        self.summary = nn.Linear(LONGEST, 1)
        self.scale, self.shift = nn.Linear(2 * FEATURES, 1), nn.Linear(2 * FEATURES, LONGEST)

    def forward(self, steps: Tensor) -> Tensor:
        """States `[rows, width, size]` of `[rows, width, features]`."""
        width = steps.shape[1]
        mean, deviation = steps.mean(1, keepdim=True), (steps.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        summary = self.summary(functional.pad(steps, (0, 0, 0, LONGEST - width)).mT).mT
        scale = self.scale(torch.cat((summary, deviation), -1)).clamp(max=5).exp()
        shift = self.shift(torch.cat((summary, mean), -1))[:, :, :width]
        states = self.embedding((steps - mean) / deviation)
        query, key, value = self.projection(states).chunk(3, -1)
        mixed = ((scale * (query @ key.mT) + shift) / math.sqrt(SIZE)).softmax(-1) @ value
        return self.norm(states + mixed)


class Patches(nn.Module):
    """PatchTST: each feature, with mean 0 and deviation 1, in overlapping patches that attend to one another."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(PATCH, SIZE)
        self.layers = nn.Sequential(Layer(Attention()), Layer(Attention()))
        self.positions = nn.Parameter(torch.randn(2 * LONGEST // PATCH, SIZE))

    def forward(self, steps: Tensor) -> Tensor:
        """States `[rows * features, patches, size]`, a row's one after another, with the rows apart."""
        normal = functional.layer_norm(steps.mT, (LONGEST,))
        patches = functional.pad(normal, (0, PATCH // 2), mode="replicate").unfold(2, PATCH, PATCH // 2)
        return self.layers((self.embedding(patches) + self.positions).flatten(0, 1)).unflatten(0, (-1, FEATURES))


class Segments(nn.Module):
    """Crossformer: segments of each feature attend along the series, then along the features."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.along, self.across = nn.Linear(PATCH, SIZE), Layer(Attention()), Layer(Attention())
        self.positions = nn.Parameter(torch.randn(LONGEST // PATCH, SIZE))

    def forward(self, steps: Tensor) -> Tensor:
        """States `[rows, segments, features, size]`."""
        segments = self.embedding(steps.mT.unflatten(2, (-1, PATCH))) + self.positions
        along = self.along(segments.flatten(0, 1)).unflatten(0, (-1, FEATURES))
        return self.across(along.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(steps), -1))


class Variates(nn.Module):
    """ITransformer: the whole series of a feature is one token; the features attend to one another."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(LONGEST, SIZE), Layer(Attention()), Layer(Attention()))

    def forward(self, steps: Tensor) -> Tensor:
        """States `[rows, features, size]`."""
        return self.layers(steps.mT)


class Linears(nn.Module):
    """DLinear: a linear layer over the steps of the moving average, another over what it leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.seasonal, self.seasons, self.trends = Seasonal(), nn.Linear(LONGEST, LONGEST), nn.Linear(LONGEST, LONGEST)

    def forward(self, steps: Tensor) -> Tensor:
        """States `[rows, features, steps]`."""
        seasonal = self.seasonal(steps)
        return self.seasons(seasonal.mT) + self.trends((steps - seasonal).mT)


class Chunks(nn.Module):
    """LightTS: networks over chunks of neighbours, and over chunks of steps at the same distance."""

    def __init__(self) -> None:
        super().__init__()
        self.neighbours, self.distant = nn.Linear(PATCH, SIZE), nn.Linear(LONGEST // PATCH, SIZE)

    def forward(self, steps: Tensor) -> Tensor:
        """States `[rows, features, chunks, 2 * size]`."""
        chunks = steps.mT.unflatten(2, (-1, PATCH))
        return torch.cat((self.neighbours(chunks).relu(), self.distant(chunks.mT).relu()), -1)


ENCODERS: Final[dict[str, Callable[[], nn.Module]]] = {
    "Transformer": lambda: nn.Sequential(Embedding(), Layer(Attention()), Layer(Attention())),
    "Informer": lambda: nn.Sequential(Embedding(), Layer(ProbSparse()), Layer(ProbSparse())),
    "Autoformer": lambda: nn.Sequential(Embedding(), *(Layer(AutoCorrelation(), Seasonal) for _ in range(2))),
    "FEDformer": lambda: nn.Sequential(Embedding(), *(Layer(Frequencies(), Seasonal) for _ in range(2))),
    "TimesNet": lambda: nn.Sequential(Embedding(), Periods(), Periods()),
    "Nonstationary_Transformer": NonStationary,
    "PatchTST": Patches,
    "Crossformer": Segments,
    "iTransformer": Variates,
    "DLinear": Linears,
    "LightTS": Chunks,
}
WHOLE: Final = {"PatchTST", "Crossformer", "iTransformer", "DLinear", "LightTS"}
"""Those with a weight for each step of the longest sequence: they get it whole, and take no mask."""

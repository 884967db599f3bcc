"""Operators whose bits depend on the batch, each in a small graph; and how many sequences get the same bits in it."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx

from lengthwise.padding import Steps, pad, steps_of
from lengthwise.runtime.manifest import GraphNames, Manifest, StepInput
from lengthwise.runtime.session import Session
from lengthwise.verification.random_sequences import draw
from tests.gallery.onnx_models import Array, Weights, integers, model, scalar

MANIFEST = Manifest(
    name="m",
    version=1,
    input=StepInput(features=4),
    labels=("a", "b"),
    max_length=200,
    graph=GraphNames(mask="mask", lengths=None),
)
LENGTHS = [*range(1, 40), 61, 64, 65, 90, 128, 130, 150]
SIGNATURE = "g (float[rows,width,4] values, bool[rows,width] mask) => (float[rows,2] logits)"

STEPS = """
[m] m3 = Unsqueeze (mask, two)
[mask_steps] v3 = Where (m3, values, nought)
[steep] w = MatMul (v3, K)
[hide] e = Where (m3, w, nought)
"""
HEAD = "\n[head] logits = MatMul (s, V)"
LARGEST = "[lower] el = Where (m3, e, low)\n[max] p = ReduceMax <keepdims = 0> (el, one)\n"
LARGEST_OF_OLD = "[lower] el = Where (m3, e, low)\n[max] p = ReduceMax <axes = [1], keepdims = 0> (el)\n"
CHANNELS = "[turn] c = Transpose <perm = [0, 2, 1]> (e)\n[mc] mc = Unsqueeze (mask, one)\n"
POOLED = "[hide_more] k = Where (mc, f, low)\n[pool] s = ReduceMax <keepdims = 0> (k, two)"


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of an operator in a graph."""

    body: str
    rewritten: str
    hidden: int = 16
    weights: dict[str, Array] = dataclasses.field(default_factory=dict)
    opset: int = 18

    @property
    def graph(self) -> onnx.ModelProto:
        """The whole graph."""
        w = Weights(0)
        weights: dict[str, Array] = {
            "zero": integers(0),
            "one": integers(1),
            "two": integers(2),
            "nought": np.zeros(1, np.float32),
            "low": np.full(1, -np.inf, np.float32),
            "K": w.normal(4, self.hidden),
            "V": w.normal(self.hidden, 2),
        }
        body = STEPS + self.body + HEAD
        return model(SIGNATURE, body, weights | self.weights, producer="test", opset=self.opset)


def filters(into: int, channels: int, *kernel: int) -> dict[str, Array]:
    w = Weights(1)
    return {"F": w.normal(into, channels, *kernel, scale=0.2), "b": w.normal(into)}


def convolution(kernel: int, group: int = 1, after: str = "[same] f = Identity (f1)") -> str:
    pads = f"[{kernel // 2}, {(kernel - 1) // 2}]"
    conv = f"[conv] f1 = Conv <kernel_shape = [{kernel}], pads = {pads}, group = {group}> (c, F, b)"
    return "\n".join((CHANNELS, conv, after, POOLED))


POSITIVE = "[abs] pa = Abs (p)\n[more] pm = Add (pa, some)\n[f] s = Log (pm)"
FOURTH = "[every] f = Slice (e, zero, far, one, four)\n[largest] r = ReduceMax (f, two)\n"
ATTENTION = """
[scores] q = MatMul (e, k)
[mc] mc = Unsqueeze (mask, one)
[lower] h = Where (mc, q, low)
[soft] a = Softmax (h)
[mixed] x = MatMul (a, e)
[lower_more] xl = Where (m3, x, low)
[max] s = ReduceMax <keepdims = 0> (xl, one)
"""

FORMS = {
    "a sum over the steps": Form("[pool] s = ReduceSum <keepdims = 0> (e, one)", "pool"),
    "a sum that keeps its axis": Form("[pool] k = ReduceSum (e, one)\n[drop] s = Squeeze (k, one)", "pool"),
    "a sum over the last axis": Form(
        CHANNELS + "[pool] s = ReduceSum <keepdims = 0> (c, last)", "pool", weights={"last": integers(-1)}
    ),
    "a sum with steps first": Form(
        "[t] t = Transpose <perm = [1, 0, 2]> (e)\n[pool] s = ReduceSum <keepdims = 0> (t, zero)", "pool"
    ),
    "a sum with steps first and rows last": Form(
        "[t] t = Transpose <perm = [1, 2, 0]> (e)\n[pool] x = ReduceSum <keepdims = 0> (t, zero)\n"
        "[s] s = Transpose <perm = [1, 0]> (x)",
        "pool",
    ),
    "a sum of one number a step": Form(
        "[large] r = ReduceMax <keepdims = 0> (e, two)\n[pool] x = ReduceSum (r, one)\n[s] s = Expand (x, wide)",
        "pool",
        weights={"wide": integers(1, 16)},
    ),
    "a sum with an axis of heads behind the steps": Form(
        "[h] h = Reshape (e, heads)\n[pool] x = ReduceSum <keepdims = 0> (h, one)\n[s] s = Reshape (x, flat)",
        "pool",
        weights={"heads": integers(0, 0, 4, 4), "flat": integers(0, -1)},
    ),
    "a sum over the steps and the features": Form(
        "[pool] x = ReduceSum <keepdims = 0> (e, both)\n[u] u = Unsqueeze (x, one)\n[s] s = Expand (u, wide)",
        "pool",
        weights={"both": integers(1, 2), "wide": integers(1, 16)},
    ),
    "a sum over the steps at an older opset": Form("[pool] s = ReduceSum <keepdims = 0> (e, one)", "pool", opset=13),
    "a mean of the features of one row": Form(
        LARGEST + "[mean] u = ReduceMean (p, one)\n[s] s = Sub (p, u)", "mean", hidden=17
    ),
    "a mean with axes as an attribute": Form(
        LARGEST_OF_OLD + "[mean] u = ReduceMean <axes = [-1]> (p)\n[s] s = Sub (p, u)", "mean", hidden=17, opset=17
    ),
    "a sum of the heads of one row": Form(
        LARGEST + "[h] h = Reshape (p, heads)\n[sum] u = ReduceSum <keepdims = 0> (h, one)\n"
        "[s] s = Concat <axis = 1> (u, u, u, u, u, u, u, u)",
        "sum",
        weights={"heads": integers(0, 8, 2)},
    ),
    "a convolution of many numbers": Form(convolution(9), "conv", weights=filters(16, 16, 9)),
    "a convolution and what follows it": Form(
        convolution(10, after="[bn] g = BatchNormalization (f1, b, b, b, v)\n[relu] f = Relu (g)"),
        "conv",
        weights=filters(16, 16, 10) | {"v": np.ones(16, np.float32)},
    ),
    "a convolution of channels that are no multiple of four": Form(
        convolution(9), "conv", hidden=18, weights=filters(18, 18, 9)
    ),
    "a convolution of a long kernel": Form(convolution(39), "conv", hidden=18, weights=filters(18, 18, 39)),
    "a convolution of groups of channels": Form(convolution(9, group=2), "conv", hidden=36, weights=filters(36, 18, 9)),
    "a convolution along two axes": Form(
        CHANNELS + "[up] c4 = Unsqueeze (c, three)\n[conv] f4 = Conv <kernel_shape = [7, 1], pads = [3, 0, 3, 0]> "
        "(c4, F, b)\n[down] f = Squeeze (f4, three)\n" + POOLED,
        "conv",
        hidden=33,
        weights=filters(33, 33, 7, 1) | {"three": integers(3)},
    ),
    "scores of many numbers": Form("[kt] k = Transpose <perm = [0, 2, 1]> (e)" + ATTENTION, "scores", hidden=200),
    "scores of many numbers, computed otherwise": Form(
        "[kt] t = Transpose <perm = [0, 2, 1]> (e)\n[tanh] k = Tanh (t)" + ATTENTION, "scores", hidden=200
    ),
    "a product of one row at every fourth step": Form(
        FOURTH + "[q] q = Transpose <perm = [0, 2, 1]> (r)\n[product] x = MatMul (q, f)\n[s] s = Squeeze (x, one)",
        "product",
        weights={"far": integers(1 << 30), "four": integers(4)},
    ),
    "a product of one column at every fourth step": Form(
        FOURTH + "[t] t = Transpose <perm = [0, 2, 1]> (f)\n[product] x = MatMul (t, r)\n[s] s = Squeeze (x, two)",
        "product",
        weights={"far": integers(1 << 30), "four": integers(4)},
    ),
    "a product of one row and one column at every fourth step": Form(
        FOURTH + "[q] q = Transpose <perm = [0, 2, 1]> (r)\n[product] x = MatMul (q, r)\n[s0] s0 = Squeeze (x, one)\n"
        "[s] s = Expand (s0, wide)",
        "product",
        weights={"far": integers(1 << 30), "four": integers(4), "wide": integers(1, 16)},
    ),
    "an Einsum that sums over the steps": Form('[sum] s = Einsum <equation = "btf->bf"> (e)', "sum"),
    "an Einsum of rows and weights": Form(
        LARGEST + '[mix] s = Einsum <equation = "bf, fg -> bg"> (p, Q)', "mix", weights={"Q": Weights(5).normal(16, 16)}
    ),
    "an Einsum of weights and rows": Form(
        LARGEST + '[mix] s = Einsum <equation = "gf,bf->bg"> (Q, p)', "mix", weights={"Q": Weights(5).normal(16, 16)}
    ),
    "an Einsum of two values and a sum": Form(
        LARGEST + '[mix] x = Einsum <equation = "bf,btg->bg"> (p, e)\n[s] s = Abs (x)', "mix"
    ),
    "an Einsum of weights of steps": Form(
        FOURTH + '[q] q = Squeeze (r, two)\n[mix] s = Einsum <equation = "bt,btf->bf"> (q, f)',
        "mix",
        weights={"far": integers(1 << 30), "four": integers(4)},
    ),
    "an Einsum of scores": Form(
        ATTENTION.replace("[scores] q = MatMul (e, k)", '[scores] q = Einsum <equation = "btf,bsf->bts"> (e, e)'),
        "scores",
        hidden=200,
    ),
    "a recurrent layer": Form(
        "[t] t = Transpose <perm = [1, 0, 2]> (e)\n[n6] n6 = Cast <to = 6> (mask)\n"
        "[n] n = ReduceSum <keepdims = 0> (n6, one)\n"
        '[rnn] y, yh = RNN <hidden_size = 16, direction = "bidirectional"> (t, W, R, B, n)\n'
        "[s] s = ReduceMax <keepdims = 0> (yh, zero)",
        "rnn",
        weights=Weights(3).recurrent(1, 16, 16, directions=2),
    ),
    "a logarithm": Form(LARGEST + POSITIVE, "f", hidden=5, weights={"some": scalar(0.1)}),
    "a logarithm at an older opset": Form(
        LARGEST_OF_OLD + POSITIVE, "f", hidden=5, weights={"some": scalar(0.1)}, opset=15
    ),
}
FORMS |= {
    name: Form(f"{LARGEST}[f] s = {name} (p)", "f", hidden=5) for name in ("Softplus", "Mish", "Sin", "Cos", "Atan")
}
FORMS |= {
    f"{name} of negative numbers": Form(f"{LARGEST}[less] n = Neg (p)\n[f] s = {name} (n)", "f", hidden=5)
    for name in ("Elu <alpha = 0.7>", "Selu", "Celu <alpha = 1.3>")
}


def sequences(lengths: Sequence[int] = LENGTHS, manifest: Manifest = MANIFEST) -> list[Steps]:
    return [steps_of(drawn) for drawn in draw(manifest, list(lengths), 0)]


def rows(session: Session, members: Sequence[Steps], manifest: Manifest = MANIFEST) -> list[Array]:
    """Each sequence's logits, without padding."""
    logits = session.run(pad(members, multiple=manifest.width_multiple)).logits
    per_step = manifest.task == "per-step"
    return [row[: len(steps)] if per_step else row for row, steps in zip(logits, members, strict=True)]


def same_bits(graph: onnx.ModelProto, members: Sequence[Steps], manifest: Manifest = MANIFEST) -> int:
    """How many sequences get the same bits in batches of 5 as unbatched."""
    session = Session(graph.SerializeToString(), manifest)
    unbatched = [rows(session, [steps], manifest)[0].tobytes() for steps in members]
    random = np.random.default_rng(1)
    order = random.permutation(len(members))
    together: dict[int, bytes] = {}
    for start in range(0, len(order), 5):
        places = order[start : start + 5].tolist()
        answers = rows(session, [members[place] for place in places], manifest)
        together |= {place: answer.tobytes() for place, answer in zip(places, answers, strict=True)}
    return sum(unbatched[place] == bits for place, bits in together.items())

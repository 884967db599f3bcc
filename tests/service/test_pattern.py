"""What a mask may be made of, so that a trial at a few lengths shows what it does at all of them."""

import numpy as np
import onnx
import pytest

from lengthwise.runtime.onnx import onnx_graph
from lengthwise.runtime.onnx.pattern import NotFound, Pattern, are_equal_by_nodes

OTHERS = ("ConstantOfShape", "Mul", "Transpose")
FORMS = {
    "most = Constant <value_ints = [16]> ()": True,
    "most = Constant <value_ints = [500]> ()": False,
    "most = ConstantOfShape <value = int64[1] {16}> (one)": True,
    "most = ConstantOfShape (one)": True,
    "most = ConstantOfShape <value = int64[1] {500}> (one)": False,
    "most = ConstantOfShape <value = uint64[1] {500}> (one)": False,
    "few = Constant <value_ints = [16]> () most = Mul (few, few)": False,
    "few = Constant <value_ints = [16]> () width = Shape (values) most = Mul (few, width)": True,
    "most = Shape (values)": True,
    "most = Shape (table)": False,
    "turned = Transpose (table) most = Shape (turned)": False,
    "long = Cast <to = 11> (lengths) most = Cast <to = 7> (long)": True,
    "short = Cast <to = 2> (lengths) most = Cast <to = 7> (short)": False,  # bytes: 256 is 0
    "short = Cast <to = 10> (lengths) most = Cast <to = 7> (short)": False,  # float16: 2049 is 2048
}


@pytest.mark.parametrize("form", FORMS)
def test_no_length_is_another_one_to_a_mask(form: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 18]>
        g (float[rows, width] values, int64[rows] lengths) => (bool[rows] mask) {{
            one = Constant <value_ints = [1]> ()
            {form}
            mask = Less (lengths, most)
        }}"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((500, 2), np.float32), "table"))
    pattern = Pattern(onnx_graph.read(model.SerializeToString()))
    if FORMS[form]:
        pattern.require_mask_of_lengths("mask", "lengths", further=OTHERS)
    else:
        with pytest.raises(NotFound):
            pattern.require_mask_of_lengths("mask", "lengths", further=OTHERS)


SECOND = {
    "two = Constant <value_ints = [3]> () less = Less (lengths, two) other = Unsqueeze (less, one)": True,
    "two = Constant <value_ints = [4]> () less = Less (lengths, two) other = Unsqueeze (less, one)": False,
    "two = Constant <value_ints = [3]> () less = LessOrEqual (lengths, two) other = Unsqueeze (less, one)": False,
    "two = Constant <value_ints = [3]> () less = Less (two, lengths) other = Unsqueeze (less, one)": False,
    "other = Unsqueeze (below, one)": True,
    "other = Identity (mask)": False,
    "alike = Cast <to = 7> (below) other = Cast <to = 9> (alike)": False,
}


@pytest.mark.parametrize("second", SECOND)
def test_masks_are_alike_if_the_same_is_made_of_the_same(second: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 18]>
        g (int64[rows] lengths) => (bool[rows, 1] mask, bool[rows, 1] other) {{
            one = Constant <value_ints = [1]> ()
            three = Constant <value_ints = [3]> ()
            below = Less (lengths, three)
            mask = Unsqueeze (below, one)
            {second}
        }}"""
    graph = onnx_graph.read(onnx.parser.parse_model(text).SerializeToString())
    assert are_equal_by_nodes(graph, ["mask", "other"]) == SECOND[second]

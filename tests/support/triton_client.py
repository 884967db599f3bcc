"""What a user of Triton's client does, over HTTP or gRPC: prints one line of JSON, what each call gave by its name.

`python triton_client.py http|grpc ADDRESS`, in a process of its own: the client's messages have the names of ours.
"""

import importlib
import json
import queue
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

kind, address = sys.argv[1:]
module = importlib.import_module(f"tritonclient.{kind}")
as_json = {"as_json": True} if kind == "grpc" else {}
MODEL = "japanese-vowels"
client = module.InferenceServerClient(address)
values = np.linspace(-1, 1, 2 * 3 * 12).reshape(2, 3, 12)
lengths = np.array([[3], [1]], dtype=np.int32)


def infer(rows: np.ndarray, ends: np.ndarray, datatype: str, *outputs: object, **options: Any) -> Any:
    inputs = [module.InferInput("values", rows.shape, datatype), module.InferInput("lengths", ends.shape, "INT32")]
    for tensor, array in zip(inputs, (rows, ends), strict=True):
        tensor.set_data_from_numpy(array)
    return client.infer(MODEL, inputs, outputs=outputs or None, **options)


def refused(call: Callable[[], object]) -> str:
    try:
        call()
    except module.InferenceServerException as error:
        return str(error.message())
    return "answered"


def streamed() -> dict[str, Any]:
    """Twenty requests on one stream, each third for a model that is not there: what came back, by id."""
    inputs = [module.InferInput("values", values.shape, "FP64"), module.InferInput("lengths", lengths.shape, "INT32")]
    for tensor, array in zip(inputs, (values, lengths), strict=True):
        tensor.set_data_from_numpy(array)
    results: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: results.put((result, error)))
    for number in range(20):
        client.async_stream_infer("none" if number % 3 == 0 else MODEL, inputs, request_id=str(number))
    found = [results.get(timeout=60) for _ in range(20)]
    client.stop_stream()
    answered = {result.get_response().id: result for result, error in found if error is None}
    return {
        "answered": sorted(answered, key=int),
        "refused": sum(error is not None and bool(error.message()) for _, error in found),
        "same": all(
            one.as_numpy("probabilities").tolist() == plain.as_numpy("probabilities").tolist()
            for one in answered.values()
        ),
    }


plain = infer(values.astype(np.float32), lengths.ravel(), "FP32")
other = infer(values, lengths, "FP64")
best = infer(values, lengths, "FP64", module.InferRequestedOutput("probabilities", class_count=3))
clipped = infer(values, lengths, "FP64", module.InferRequestedOutput("probabilities", class_count=100))
in_memory = module.InferRequestedOutput("probabilities")
in_memory.set_shared_memory("region", 100)
print(
    json.dumps(
        {
            "ready": [client.is_server_ready(), client.is_model_ready(MODEL), client.is_model_ready(MODEL, "1")],
            "not ready": [client.is_model_ready("none"), client.is_model_ready(MODEL, "7")],
            "extensions": sorted(client.get_server_metadata(**as_json)["extensions"]),
            "metadata": client.get_model_metadata(MODEL, **as_json),
            "config": client.get_model_config(MODEL, **as_json),
            "statistics": client.get_inference_statistics(MODEL, **as_json),
            "all statistics": client.get_inference_statistics(**as_json),
            "same bits": [
                plain.as_numpy(name).tolist() == other.as_numpy(name).tolist() for name in ("label", "score")
            ],
            "probabilities": plain.as_numpy("probabilities").tolist(),
            "best": [[text.decode() for text in row] for row in best.as_numpy("probabilities")],
            "clipped": list(clipped.as_numpy("probabilities").shape),
            "a sequence of requests": refused(lambda: infer(values, lengths, "FP64", sequence_id=7)),
            "streamed": streamed() if kind == "grpc" else None,
            "shared memory": refused(lambda: infer(values, lengths, "FP64", in_memory)),
        }
    )
)
client.close()

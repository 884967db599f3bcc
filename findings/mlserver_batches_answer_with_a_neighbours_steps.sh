#!/usr/bin/env bash
# MLServer 1.7.1's adaptive batching joins requests of different widths as if all had the width of the first.
#
# `max_batch_size` and `max_batch_time` join the `data` of the requests that wait, and take the shape of the first one for
# all. Where the numbers do not fit, every request of the batch gets 500, alone each gets 200. Where they happen to fit
# (1x4, 1x2 and 1x6 values are 3x4), all get 200: the last one with the mean of other values than it sent.
set -euo pipefail
folder=$(mktemp -d)
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mlserver==1.7.1 numpy==2.4.6
cd "$folder"
port=$((20000 + RANDOM % 20000))
cat > means.py <<'PYTHON'
from mlserver import MLModel, types
from mlserver.codecs import NumpyCodec


class Means(MLModel):
    """The mean of each row."""

    async def load(self) -> bool:
        return True

    async def predict(self, payload: types.InferenceRequest) -> types.InferenceResponse:
        values = NumpyCodec.decode_input(payload.inputs[0])
        means = NumpyCodec.encode_output("mean", values.mean(axis=1, keepdims=True))
        return types.InferenceResponse(model_name=self.name, outputs=[means])
PYTHON
echo '{"name": "means", "implementation": "means.Means", "max_batch_size": 8, "max_batch_time": 0.5}' > model-settings.json
echo "{\"host\": \"127.0.0.1\", \"http_port\": $port, \"grpc_port\": $((port + 1)), \"metrics_port\": $((port + 2)), \"parallel_workers\": 0}" > settings.json
PATH="$folder/venv/bin:$PATH" PYTHONPATH=. mlserver start . > log 2>&1 &
server=$!; trap 'kill $server 2> /dev/null || true; wait $server 2> /dev/null || true; rm -rf "$folder"' EXIT
venv/bin/python - "$port" <<'PYTHON'
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

URL = f"http://127.0.0.1:{sys.argv[1]}/v2/models/means"


def mean(width):
    """Status and answer for the row 1, 2, ... width."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, width], "data": [1.0 + step for step in range(width)]}
    body = json.dumps({"inputs": [tensor]}).encode()
    request = urllib.request.Request(f"{URL}/infer", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)["outputs"][0]["data"][0]
    except urllib.error.HTTPError as error:
        return error.code, None


def together(*widths):
    """The answers of rows that wait for the same batch, in the order in which they were sent."""
    with ThreadPoolExecutor(len(widths)) as threads:
        futures = []
        for width in widths:
            futures.append(threads.submit(mean, width))
            time.sleep(0.05)  # so that the order of arrival is this one
        return [future.result() for future in futures]


for _ in range(120):
    try:
        urllib.request.urlopen(f"{URL}/ready", timeout=5)
        break
    except OSError:
        time.sleep(0.5)
alone = [mean(width) for width in (4, 2, 6, 3, 5)]
print("alone, widths 4, 2, 6, 3, 5:", alone)
print("together, 3 and 3:", together(3, 3))
unfit, fit = together(3, 5), together(4, 2, 6)
print("together, 3 and 5:", unfit)
print("together, 4, 2 and 6:", fit, "(right: 2.5, 1.5, 3.5)")
assert alone == [(200, 2.5), (200, 1.5), (200, 3.5), (200, 2.0), (200, 3.0)]
assert unfit == [(500, None), (500, None)]
assert fit == [(200, 2.5), (200, 1.5), (200, 4.5)]
PYTHON

"""A device that is none: batches go through slots, buffers and buckets as on a GPU, and the CPU computes them."""

from lengthwise.runtime.provider import Device, Provider

FAKE = Provider(
    name="fake",
    execution_provider="CPUExecutionProvider",
    device_type="cpu",
    bits=True,
    wall_clock=True,
    in_flight=2,
    bound=True,
    session={"session.record_ep_graph_assignment_info": "1"},
)

ONE = (Device(FAKE, name="Fake", in_flight=2),)
TWO = (Device(FAKE, 0, "Fake", in_flight=2), Device(FAKE, 1, "Fake", in_flight=2))

ELSEWHERE = Device(
    Provider(
        name="elsewhere",
        # In every package for the CPU, and without a kernel for anything here: all nodes fall to the CPU.
        execution_provider="AzureExecutionProvider",
        device_type="cpu",
        bits=False,
        wall_clock=True,
        in_flight=1,
        session={"session.record_ep_graph_assignment_info": "1"},
    )
)

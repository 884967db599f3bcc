"""The messages of `open_inference.proto`, as classes that are made of its descriptor.

`make proto` writes the descriptor (`open_inference.binpb`) and the types of the classes (`open_inference_pb2.pyi`). A
generated module would ask for the protobuf of the machine on which it was generated, or a later one; a descriptor is
read by any.
"""

from pathlib import Path

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet

_SET = FileDescriptorSet.FromString(Path(__file__).with_name("open_inference.binpb").read_bytes())
_CLASSES = message_factory.GetMessages(_SET.file, descriptor_pool.Default())  # the default pool: reflection reads it
globals().update({name.rpartition(".")[2]: kind for name, kind in _CLASSES.items()})
DESCRIPTOR = descriptor_pool.Default().FindFileByName(_SET.file[0].name)

"""The door between XLA and a kernel: a handler of its foreign function interface.

XLA calls it with a frame of pointers; it answers what version it is of, and when it is to execute,
puts the numbers and addresses of the call into a context and runs the threads.
"""

from __future__ import annotations

from jaxrnn.backends.cpu import threads
from jaxrnn.backends.cpu.ir import INT, Function, Module

# Places in the structs of xla/ffi/api/c_api.h, version 0.x, in bytes. The structs only ever grow
# at their ends within a major version.
EXTENSION, STAGE, ARGUMENTS, RESULTS = 8, 32, 72, 112  # of XLA_FFI_CallFrame
DATA = 24  # of XLA_FFI_Buffer
KIND, METADATA = 8, 24  # of XLA_FFI_Metadata_Extension
MAJOR, MINOR = 24, 28  # of XLA_FFI_Metadata
VERSION = (0, 1)
EXECUTE = 3
METADATA_EXTENSION = 1


def write_handler(m: Module, name: str, numbers: int, inputs: int, outputs: int) -> None:
    """A handler whose first operand holds numbers, the first two of them how it is shared.

    They have 64 bits, each as two int32 one after the other: JAX may know no int64.

    Args:
        m: the module, with ``run``.
        name: of the handler.
        numbers: how many numbers there are, those of the sharing not counted.
        inputs: how many operands come after the numbers.
        outputs: how many results there are.
    """
    f = Function(m, name, [("frame", "ptr")], "ptr", attributes="")
    context = f.array(INT, threads.FIRST_FREE + numbers + inputs + outputs)
    read = lambda base, offset, kind: f.load(f.at(base, offset, 1), kind)  # noqa: E731
    extension = read("%frame", EXTENSION, "ptr")
    f.say(f"%asked = icmp ne ptr {extension}, null")
    f.say("br i1 %asked, label %extended, label %plain")
    f.label("extended")
    with f.when(f.compare("eq", read(extension, KIND, "i32"), METADATA_EXTENSION, "i32")):
        metadata = read(extension, METADATA, "ptr")
        f.store(str(VERSION[0]), f.at(metadata, MAJOR, 1), "i32")
        f.store(str(VERSION[1]), f.at(metadata, MINOR, 1), "i32")
        f.say("ret ptr null")
        f.label("never")
    f.say("br label %plain")
    f.label("plain")
    with f.when(f.compare("eq", read("%frame", STAGE, "i32"), EXECUTE, "i32")):
        operands, results = read("%frame", ARGUMENTS, "ptr"), read("%frame", RESULTS, "ptr")
        data = lambda buffers, i: read(f.load(f.at(buffers, i, 8), "ptr"), DATA, "ptr")  # noqa: E731
        config = data(operands, 0)
        given = []
        for i in range(numbers + 2):
            given.append(f.load(f.at(config, i, 8), INT))
        slot = lambda index: f.at(context, index, 8)  # noqa: E731
        f.store(f.mul(given[0], given[1]), slot(threads.THREADS), INT)
        f.store(given[0], slot(threads.ROW_GROUPS), INT)
        f.store(given[1], slot(threads.UNIT_GROUPS), INT)
        place = threads.FIRST_FREE
        for number in given[2:]:
            f.store(number, slot(place), INT)
            place += 1
        for buffers, count in ((operands, inputs), (results, outputs)):
            for i in range(count):
                f.store(data(buffers, i + (buffers == operands)), slot(place), "ptr")
                place += 1
        f.call("run", f"ptr {context}")
    f.done("null")

"""The instructions of a pickle, by their codes: a table, and the loop over it.

They are those of Python's own unpickler (its library's module `pickletools` lists and explains them), but see
`pickled_machine` for what they cannot do.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType

from mergeflow.models.pickled_machine import Machine, Meaning, Opaque
from mergeflow.models.pickled_stream import PickleStream

# 100,000 tensors take some 4 million.
MAX_INSTRUCTIONS = 6_000_000
MAX_NUMBER_BYTES = 1_024
MAX_INDEX = 2**32
MAX_PROTOCOL = 5


_Instruction = Callable[[Machine], None]


def _push(make: Callable[[Machine], object]) -> _Instruction:
    return lambda machine: machine.push(make(machine))


def _packed(layout: str) -> _Instruction:
    form = struct.Struct(layout)
    return _push(lambda machine: form.unpack(machine.stream.take(form.size))[0])


def _text(size: int) -> _Instruction:
    return _push(lambda machine: machine.stream.text(machine.counted(size)))


def _bytes(size: int) -> _Instruction:
    return _push(lambda machine: machine.counted(size))


def _tuple(count: int) -> _Instruction:
    def instruction(machine: Machine) -> None:
        machine.push(tuple(reversed([machine.pop() for _ in range(count)])))

    return instruction


def _opaque(what: str, taken: int = 0) -> _Instruction:
    """An instruction whose result is nothing to us, after `taken` values were taken for it."""

    def instruction(machine: Machine) -> None:
        for _ in range(taken):
            machine.pop()
        machine.push(Opaque(what))

    return instruction


def _opaque_to_mark(what: str) -> _Instruction:
    def instruction(machine: Machine) -> None:
        machine.pop_to_mark()
        machine.push(Opaque(what))

    return instruction


def _extension(size: int) -> _Instruction:
    def instruction(machine: Machine) -> None:
        machine.stream.take(size)
        machine.push(Opaque("a registered class"))

    return instruction


def _put(machine: Machine, index: int) -> None:
    machine.memo[index] = machine.top()


def _get(machine: Machine, index: int) -> None:
    if index not in machine.memo:
        raise machine.stream.damaged("it recalls a value that it never kept")
    machine.push(machine.memo[index])


def _whole_number(machine: Machine, text: str) -> int:
    """A number in letters. Python's own limit (4300 digits) holds too."""
    try:
        return int(text)
    except ValueError as error:
        raise machine.stream.damaged("a number in it is none") from error


def _index(machine: Machine) -> int:
    index = _whole_number(machine, machine.stream.line())
    if not 0 <= index < MAX_INDEX:
        raise machine.stream.damaged("it keeps a value at an impossible place")
    return index


def _int_line(machine: Machine) -> None:
    text = machine.stream.line()
    machine.push({"00": False, "01": True}[text] if text in ("00", "01") else _whole_number(machine, text))


def _long_line(machine: Machine) -> None:
    machine.push(_whole_number(machine, machine.stream.line().removesuffix("L")))


def _float_line(machine: Machine) -> None:
    try:
        machine.push(float(machine.stream.line()))
    except ValueError as error:
        raise machine.stream.damaged("a number in it is none") from error


def _text_line(machine: Machine) -> None:
    """Text between quotes, or with escapes: the latter only in names that no tensor has."""
    text = machine.stream.line()
    machine.push(Opaque("a text with escapes") if "\\" in text else text)


def _string_line(machine: Machine) -> None:
    _text_line(machine)
    value = machine.pop()
    machine.push(value[1:-1] if isinstance(value, str) else value)


def _long(size: int) -> _Instruction:
    def instruction(machine: Machine) -> None:
        count = machine.number(size)
        if count > MAX_NUMBER_BYTES:
            raise machine.stream.damaged(f"a whole number in it has {count} bytes")
        machine.push(int.from_bytes(machine.stream.take(count), "little", signed=True))

    return instruction


def _append(machine: Machine) -> None:
    value = machine.pop()
    items = machine.top()
    if isinstance(items, list):
        items.append(value)


def _appends(machine: Machine) -> None:
    values = machine.pop_to_mark()
    items = machine.top()
    if isinstance(items, list):
        items.extend(values)


def _set(machine: Machine, key: object, value: object) -> None:
    mapping = machine.top()
    # Other keys are no names, and numbers can be chosen so that each takes as long as all before it.
    if isinstance(mapping, dict) and (isinstance(key, str) or (isinstance(key, int) and abs(key) < MAX_INDEX)):
        mapping[key] = value


def _set_item(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    _set(machine, key, value)


def _set_items(machine: Machine) -> None:
    values = machine.pop_to_mark()
    for key, value in _pairs(machine, values):
        _set(machine, key, value)


def _dict(machine: Machine) -> None:
    values = machine.pop_to_mark()
    machine.push({})
    for key, value in _pairs(machine, values):
        _set(machine, key, value)


def _pairs(machine: Machine, values: list[object]) -> list[tuple[object, object]]:
    if len(values) % 2:
        raise machine.stream.damaged("a key in it has no value")
    return list(zip(values[::2], values[1::2], strict=True))


def _call(machine: Machine) -> None:
    arguments, function = machine.pop(), machine.pop()
    machine.push(machine.meaning.call(function, arguments))


def _call_with_keywords(machine: Machine) -> None:
    machine.pop()
    _call(machine)


def _name_in_lines(machine: Machine) -> None:
    module = machine.stream.line()
    machine.push(machine.meaning.name(module, machine.stream.line()))


def _name_on_stack(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise machine.stream.damaged("a name in it is no text")
    machine.push(machine.meaning.name(module, name))


def _instance(machine: Machine) -> None:
    module = machine.stream.line()
    name = machine.stream.line()
    machine.pop_to_mark()
    machine.push(Opaque(f"an object of {module}.{name}"))


def _protocol(machine: Machine) -> None:
    version = machine.number(1)
    if version > MAX_PROTOCOL:
        raise machine.stream.damaged(f"protocol {version} of pickles is unknown")


def _frame(machine: Machine) -> None:
    """Only a hint for reading: how many bytes belong together."""
    machine.stream.take(8)


def _drop_to_mark(machine: Machine) -> None:
    machine.pop_to_mark()


def _build(machine: Machine) -> None:
    """What would be set in an object is nothing to us."""
    machine.pop()


_STOP = ord(".")
_INSTRUCTIONS: Mapping[int, _Instruction] = MappingProxyType(
    {
        0x80: _protocol,
        0x95: _frame,
        ord("N"): _push(lambda _: None),
        0x88: _push(lambda _: True),
        0x89: _push(lambda _: False),
        ord("I"): _int_line,
        ord("L"): _long_line,
        ord("F"): _float_line,
        ord("J"): _packed("<i"),
        ord("K"): _packed("<B"),
        ord("M"): _packed("<H"),
        ord("G"): _packed(">d"),
        0x8A: _long(1),
        0x8B: _long(4),
        ord("V"): _text_line,
        ord("S"): _string_line,
        ord("X"): _text(4),
        0x8C: _text(1),
        0x8D: _text(8),
        ord("T"): _text(4),
        ord("U"): _text(1),
        ord("C"): _bytes(1),
        ord("B"): _bytes(4),
        0x8E: _bytes(8),
        0x96: _bytes(8),
        0x97: _opaque("a buffer outside of it"),
        0x98: _opaque("a buffer", taken=1),
        ord("("): Machine.mark,
        ord("0"): Machine.drop,
        ord("1"): _drop_to_mark,
        ord("2"): _push(Machine.top),
        ord(")"): _tuple(0),
        0x85: _tuple(1),
        0x86: _tuple(2),
        0x87: _tuple(3),
        ord("t"): _push(lambda machine: tuple(machine.pop_to_mark())),
        ord("]"): _push(lambda _: []),
        ord("l"): _push(Machine.pop_to_mark),
        ord("a"): _append,
        ord("e"): _appends,
        ord("}"): _push(lambda _: {}),
        ord("d"): _dict,
        ord("s"): _set_item,
        ord("u"): _set_items,
        0x8F: _opaque("a set"),
        0x90: _drop_to_mark,
        0x91: _opaque_to_mark("a set"),
        ord("p"): lambda machine: _put(machine, _index(machine)),
        ord("q"): lambda machine: _put(machine, machine.number(1)),
        ord("r"): lambda machine: _put(machine, machine.number(4)),
        0x94: lambda machine: _put(machine, len(machine.memo)),
        ord("g"): lambda machine: _get(machine, _index(machine)),
        ord("h"): lambda machine: _get(machine, machine.number(1)),
        ord("j"): lambda machine: _get(machine, machine.number(4)),
        ord("c"): _name_in_lines,
        0x93: _name_on_stack,
        ord("R"): _call,
        0x81: _call,
        0x92: _call_with_keywords,
        ord("i"): _instance,
        ord("o"): _opaque_to_mark("an object"),
        ord("b"): _build,
        0x82: _extension(1),
        0x83: _extension(2),
        0x84: _extension(4),
        ord("P"): lambda machine: machine.push(machine.meaning.persistent(machine.stream.line())),
        ord("Q"): lambda machine: machine.push(machine.meaning.persistent(machine.pop())),
    }
)


def interpret(stream: PickleStream, meaning: Meaning) -> object:
    """The value of the pickle that begins where `stream` stands; the stream then stands behind it.

    Raises:
        CheckpointError: it is damaged, or more than any model's.
    """
    machine = Machine(stream, meaning)
    for _ in range(MAX_INSTRUCTIONS):
        code = stream.take(1)[0]
        if code == _STOP:
            return machine.pop()
        instruction = _INSTRUCTIONS.get(code)
        if instruction is None:
            raise stream.damaged(f"{bytes([code])!r} is no instruction of a pickle")
        instruction(machine)
    raise stream.damaged("it has more instructions than any model's")

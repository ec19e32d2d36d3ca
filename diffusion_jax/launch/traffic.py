"""What a compiled program moves: bytes of memory, and bytes between devices.

It is read from the program as XLA prints it after optimisation, which is that of one device. XLA's own analysis counts
the body of a loop once; here it counts as often as the loop runs.

    memory       each instruction reads its operands and writes its result; a fusion is one instruction. Where only a
                 slice is read or updated, the slice counts. What lies beside the core (S(1) and above in a layout)
                 costs nothing.
    network      what a device receives at least, for n devices (Chan et al. 2007, "Collective communication"): of an
                 all-gather or all-to-all (n - 1) / n of the result, of a reduce-scatter (n - 1) / n of the operand, of
                 an all-reduce twice that, of a permutation all of it.

Both are less than what really happens: so the time that follows from them is a bound, and not a forecast.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "iota", "while", "conditional", "call",
}  # fmt: skip
SLICES = {"dynamic-slice", "slice", "gather"}
_NARROW = {"pred": 1.0, "token": 0.0, "s4": 0.5, "u4": 0.5, "s2": 0.25, "u2": 0.25}  # bytes; else the number of bits
NOTHING = r'custom_call_target="(AllocateBuffer|ConcatBitcast|AsyncCollectiveStart|AsyncCollectiveDone)"'
ARRAY = r"[a-z]\w*\[[\d,]*\](?:\{[^}]*\})?"
CALLED = r"(?:calls|to_apply)=%?([\w.\-]+)"
FUSED = ("fusion", "fusion-start", "async-start")
ROOM = r'custom_call_target="__cu\w+\$'  # of NVIDIA's libraries, whose last result is room to work in

_COLLECTIVES = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}


class Collective(NamedTuple):
    """All collectives of a kind among as many devices: how often they happen, and the bytes that a device receives."""

    kind: str
    devices: int
    times: int
    bytes: float


class Traffic(NamedTuple):
    """The bytes of memory that a device reads and writes, and what it receives."""

    memory: float
    collectives: list[Collective]

    @property
    def network(self) -> float:
        """Return all bytes that a device receives."""
        return sum(one.bytes for one in self.collectives)


class Instruction(NamedTuple):
    """One line of a program: `operands` are names or numbers, `around` the shapes of those that are names."""

    name: str
    shape: str
    code: str
    operands: tuple[str, ...]
    around: tuple[str, ...]
    rest: str
    root: bool


Computation = dict[str, Instruction]


def traffic_of(text: str) -> Traffic:
    """Count what a program moves, from `compiled.as_text()`."""
    program, entry = _read(text)
    partitions = re.search(r"num_partitions=(\d+)", text)
    devices = int(partitions[1]) if partitions else 1
    memory, found = 0.0, {}
    for one, times, fusion in _walk(program, entry, 1, fusion=None):
        if fusion is None:
            memory += times * _moved(program, one)
        kind = one.code.removesuffix("-start")
        if kind == "all-reduce" and fusion is not None and _cut(fusion, one.name):
            kind = "reduce-scatter"
        if kind in _COLLECTIVES:
            # One that is split into parts, to compute meanwhile, is written once for each; its channel is the same.
            channel = re.search(r"channel_id=(\d+)", one.rest)
            known = (channel[1] if channel else one.name, _sent(one))
            found[known] = (kind, _members(one.rest, devices), times, known[1])
    rows: dict[tuple[str, int], Collective] = {}
    for kind, members, times, sent in found.values():
        if members > 1:
            before = rows.get((kind, members), Collective(kind, members, 0, 0.0))
            received = before.bytes + times * _COLLECTIVES[kind](members) * sent
            rows[kind, members] = Collective(kind, members, before.times + times, received)
    return Traffic(memory, sorted(rows.values(), key=lambda row: -row.bytes))


def size_of(shape: str, *, anywhere: bool = False) -> float:
    """Return the bytes of an array, or of all arrays of a tuple, that lie in the main memory or `anywhere`."""
    total = 0.0
    for kind, lengths, layout in re.findall(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", shape):
        if anywhere or not re.search(r"S\([1-9]", layout):
            width = _NARROW.get(kind) or int((re.search(r"\d+", kind) or "0")[0]) / 8
            total += width * math.prod(int(length) for length in lengths.split(",") if length)
    return total


def _walk(program, name, times, *, fusion) -> Iterator[tuple[Instruction, int, Computation | None]]:
    """Yield every instruction, how often it happens, and the computation that it is fused in."""
    for one in program[name].values():
        yield one, times, fusion
        if one.code == "while":
            body, condition = (re.search(rf"{word}=%?([\w.\-]+)", one.rest) for word in ("body", "condition"))
            trips = _trips(one.rest, program[condition[1]]) if condition else 1
            if body:
                yield from _walk(program, body[1], times * trips, fusion=fusion)
        elif one.code == "conditional":
            names = re.findall(r"%([\w.\-]+)", one.rest)
            branches = [list(_walk(program, name, times, fusion=fusion)) for name in names if name in program]
            yield from max(branches, key=lambda branch: sum(n * size_of(i.shape) for i, n, _ in branch), default=[])
        elif one.code in ("call", *FUSED):
            called = re.search(CALLED, one.rest)
            if called and called[1] in program:
                yield from _walk(program, called[1], times, fusion=fusion if one.code == "call" else program[called[1]])


def _trips(rest, condition):
    """Return how often a loop runs: XLA notes it, or the condition compares with it."""
    known = re.search(r"known_trip_count\D*(\d+)", rest)
    limits = [int(one.operands[0]) for one in condition.values() if one.code == "constant" and _whole(one)]
    return int(known[1]) if known else max([limit for limit in limits if limit > 0], default=1)


def _whole(one):
    return bool(one.operands) and one.operands[0].isdigit()


def _moved(program, one):
    """Return the bytes that an instruction reads from the main memory and writes to it."""
    if one.code in FREE or one.code.endswith(("-done", "-update")):
        return 0.0
    if one.code in ("copy-start", "slice-start"):
        return _copied(one)
    if one.code == "custom-call" and re.search(NOTHING, one.rest):
        return 0.0
    if one.code in SLICES:
        return 2 * size_of(one.shape)
    if one.code == "dynamic-update-slice":
        return 2 * size_of(one.around[1])
    called = re.search(CALLED, one.rest)
    if one.code in FUSED and called:
        inner = program[called[1]]
        read = [min(size_of(shape), _touched(program, inner, place)) for place, shape in enumerate(one.around)]
        return sum(read) + _written(program, inner, _root(inner), _result(one))
    return size_of(_result(one)) + sum(map(size_of, one.around))


def _result(one):
    """Return the shape of what an instruction gives; one that is begun in the background names its operands first."""
    parts = _parts(one.shape)
    if one.code == "custom-call" and len(parts) > 1 and re.search(ROOM, one.rest) and parts[-1][:2] in ("s8", "u8"):
        return ",".join(parts[:-1])
    behind = one.code.endswith("-start") and one.code != "all-reduce-start" and len(parts) > 1
    return parts[1] if behind else one.shape


def _copied(one):
    """Return the bytes that a copy in the background reads and writes; its shape names both ends and a flag."""
    ends = re.findall(ARRAY, one.shape)[:2]
    source, target = ends if one.code == "slice-start" else reversed(ends)
    return (size_of(target, anywhere=True) if size_of(source) else 0.0) + size_of(target)


def _touched(program, inner, place):
    """Return the bytes that a fusion reads of its parameter at this place: of slices theirs, of anything else all."""
    names = [line.name for line in inner.values() if line.code == "parameter" and line.operands == (str(place),)]
    total = 0.0
    while names:
        name = names.pop()
        for line in inner.values():
            places = [number for number, operand in enumerate(line.operands) if operand == name]
            called = re.search(CALLED, line.rest) if line.code == "fusion" else None
            if not places:
                continue
            if line.code in SLICES and places == [0]:
                total += size_of(line.shape, anywhere=True)
            elif line.code == "bitcast":
                names.append(line.name)
            elif called:
                total += sum(_touched(program, program[called[1]], number) for number in places)
            elif line.code != "dynamic-update-slice" or places != [0]:
                return math.inf
    return total


def _written(program, inner, root, shape):
    """Return the bytes that a fusion with this root writes to a result of this shape."""
    while root is not None and root.code == "bitcast":
        root = inner.get(root.operands[0])
    called = re.search(CALLED, root.rest) if root is not None and root.code == "fusion" else None
    if called:
        return _written(program, program[called[1]], _root(program[called[1]]), shape)
    if root is not None and root.code == "dynamic-update-slice":
        return min(size_of(shape), size_of(root.around[1], anywhere=True))
    if root is not None and root.code == "tuple":
        pairs = zip(root.operands, _parts(shape), strict=False)
        return sum(_written(program, inner, inner.get(name), part) for name, part in pairs)
    return size_of(shape)


def _root(inner):
    return next((line for line in inner.values() if line.root), None)


def _sent(one):
    """Return the bytes that a collective is about: of what goes in or what comes out, the larger."""
    given = sum(size_of(shape, anywhere=True) for shape in one.around)
    result = size_of(one.shape, anywhere=True)
    return given if one.code.startswith("all-reduce") else max(given, result - given * one.code.endswith("-start"))


def _cut(fusion, name):
    """Say whether all that becomes of a result is a slice: how a compiler for TPUs writes a reduce-scatter."""
    users = [line for line in fusion.values() if name in line.operands]
    return bool(users) and all(
        line.code == "dynamic-slice" or (line.code == "get-tuple-element" and _cut(fusion, line.name)) for line in users
    )


def _members(rest, devices):
    """Return how many devices take part in one collective."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    if listed:
        return listed[1].count(",") + 1
    tiled = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
    if tiled:
        return int(tiled[1])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest)
    if named:
        sizes = dict(re.findall(r"('[^']*')=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'[^']*'", named[2]))
    return devices


def _read(text):
    """Return the computations of a program by name, and the name of that which it begins with."""
    program: dict[str, Computation] = {}
    entry, current = "", {}
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        opened = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if opened:
            current = program[opened[2]] = {}
            entry = opened[2] if opened[1] else entry
        found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$", line)
        if found:
            shape, rest = _balanced(found[3]) if found[3].startswith("(") else found[3].split(" ", 1)
            code, _, rest = rest.strip().partition("(")
            inside, rest = _balanced(f"({rest}")
            operands = tuple(re.findall(r"%([\w.\-]+)", inside) or re.findall(r"[\w.\-]+", inside))
            around = tuple(current[name].shape for name in operands if name in current)
            current[found[2]] = Instruction(found[2], shape, code, operands, around, rest, bool(found[1]))
    return program, entry


def _parts(shape):
    """Split the shape of a tuple into those of its entries; that of an array is its only one."""
    if not shape.startswith("("):
        return [shape]
    parts, depth = [""], 0
    for letter in shape[1:-1]:
        depth += (letter in "({[") - (letter in ")}]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _balanced(text):
    """Split what the parentheses at the beginning of a text hold, and they themselves, off the rest."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :]
    return text, ""

"""What the Triton kernels take on a problem, estimated by arithmetic: to rank tilings, and to compare backends.

A tiling costs what it computes (`vicinal.geometry.walks`: whole tiles, not only useful scores) and moves. Per step a
multiprocessor spends cycles on issuing instructions, on exponentials, on matrix products and on reading the step's
tokens through L2; resident programs, as many as registers and shared memory let in, overlap them and fill each other's
latencies; where there are few programs, one that is alone has no more than its own warps, and the longest decides. The
`Constants` are fits to timings on H200s (`docs/laboratory/triton.md`): 623 of 16 problems, 372 of small ones, and the
paper's sweep; other GPUs differ by what `vicinal.backends.gpu.hardware` has of them, and by what `vicinal.tuning.fit`
found. The register estimates are fits to what ptxas 12.8 reports, and `tests/backends/triton/kernels/test_compile.py`
guards them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import ceil, prod
from typing import Literal, NamedTuple

from vicinal.backends.gpu.hardware import Gpu, constants_of, gpu_of
from vicinal.backends.gpu.shapes import sampled_walks
from vicinal.backends.protocol import Direction
from vicinal.backends.triton.config import GradientTilings, Tiling
from vicinal.backends.triton.lines import TIME as LINES_TIME
from vicinal.backends.triton.lines import has_lines
from vicinal.geometry.unfold import replace_at, unfold
from vicinal.problem import Problem

Kernel = Literal["forward", "query", "key_value"]  # the kernels that take tilings

SPILLED = 7  # registers per thread beyond those there are: a few bytes of spills cost less than smaller tiles
AMD_REGISTERS = 2.0  # of those of the fits, which are NVIDIA's: below, gfx942 spills
KEPT = 30e6  # bytes of tensors that the cache keeps from one call to the next, about
MOVED = 0.875  # of the memory's bandwidth, reached
ISSUES = 4.0  # instructions per cycle
EXPONENTIALS = 16.0  # per cycle
LONG_ROW = 512  # bytes, `row_bytes` beyond which kernels whose tiles nothing chooses take half of them
START_BYTES = 128.0  # of start tiles per cycle and multiprocessor: L1 holds them
# Of the estimate, where tiles are of classes; 19 timings. Three of forward at head dim 64 are 0.81 to 0.90, six of the
# query gradient 0.93 in the mean: it is chosen where it was faster, and what was not timed stays as it was.
OF_CLASSES = {"forward": 0.84, "query": 0.975, "key_value": 0.8}


class Constants(NamedTuple):
    """What is fitted to timings of a GPU.

    Attributes:
        clock: cycles per second: 1.7e9 met the kernels timed alone, 1.4e9 the sweep.
        launch: seconds, of a kernel beyond its programs.
        forward_share, backward_share: of moving what the cache does not keep, in forward passes' tensors, what is not
            hidden behind the kernels.
        backward_factor: what a backward takes over its kernels' cycles.
        l2_bytes: per cycle and multiprocessor, and L1 helps.
        warpgroup_flops: matrix FLOPs per cycle reached with 16-bit operands, by a warpgroup's instructions.
        warp_flops: likewise, by a single warp's.
        split: products and instructions take so much longer where warps share their rows.
        together: of both gradients in one launch: registers of the larger, and delta computed twice.
        narrow: warpgroups' products slow down by this power of 64 / columns below 64.
        overlap: of what is not the bottleneck, what remains beside it in a lone program.
        step_instructions: per warp and step, besides those per score.
        program_instructions: per warp and program.
        mask_instructions: per score of a partial tile.
        step_latency: cycles of a step that other programs may fill; by kernel and stages in units of it.
        program_latency: likewise, of a program's start and end.
        forward, query, key_value: instructions of a kernel per score.
        query_2, query_3, key_value_2, key_value_3: latency of a step of so many stages.
    """

    clock: float = 1.6e9
    launch: float = 3e-7
    forward_share: float = 0.3
    backward_share: float = 0.25
    backward_factor: float = 1.05
    l2_bytes: float = 58.4
    warpgroup_flops: float = 3230.0
    warp_flops: float = 1140.0
    split: float = 1.22
    together: float = 1.33
    narrow: float = 0.387
    overlap: float = 0.369
    step_instructions: float = 41.3
    program_instructions: float = 219.0
    mask_instructions: float = 6.14
    step_latency: float = 634.0
    program_latency: float = 3710.0
    forward: float = 4.81
    query: float = 9.36
    key_value: float = 6.19
    query_2: float = 0.762
    query_3: float = 0.463
    key_value_2: float = 1.36
    key_value_3: float = 0.968

    def instructions(self, kernel: Kernel) -> float:
        """Of a kernel, per score."""
        return {"forward": self.forward, "query": self.query, "key_value": self.key_value}[kernel]

    def latency(self, kernel: Kernel, stages: int) -> float:
        """Of a step, in cycles."""
        if kernel == "forward":
            return self.step_latency
        each = {("query", 2): self.query_2, ("query", 3): self.query_3, ("key_value", 2): self.key_value_2}
        return self.step_latency * each.get((kernel, stages), self.key_value_3)


class Costs(NamedTuple):
    """What one kernel does with a tile.

    Attributes:
        products: matrix products of width head_dim and value_dim per step.
        registers: fits of registers per thread (per accumulator, per score, fixed), with warpgroup instructions.
        registers_without: the same with a single warp's instructions.
        demand: fits of what a single warp's instructions make a thread hold (per accumulator, per score, per element of
            the step, fixed): beyond the registers there are, it is spilled.
    """

    products: tuple[int, int]
    registers: tuple[float, float, float]
    registers_without: tuple[float, float, float]
    demand: tuple[float, float, float, float]


COSTS: dict[Kernel, Costs] = {
    "forward": Costs((1, 1), (1.4, 1.5, 52), (2.2, 2.6, 30), (2.2, 2.6, 0.0, 30)),
    "query": Costs((2, 1), (1.8, 2.1, 26), (2.2, 1.7, 58), (2.2, 1.7, 0.3, 58)),
    "key_value": Costs((2, 2), (1.2, 4.2, 38), (0.9, 3.2, 90), (1.0, 1.95, 0.35, 90)),
}


class Split(NamedTuple):
    """What it takes to multiply float32 in three products of TF32: operands are split in two.

    Attributes:
        flops: reached, of those with 16-bit operands.
        instructions: per element of the step, and per warp that splits it.
        registers: per element of the program's rows, and of the step, shared by its threads.
        shared: bytes per byte of the program's rows, besides what 16-bit operands take.
    """

    flops: float
    instructions: float
    registers: tuple[float, float]
    shared: float


THREE_PRODUCTS = {  # with warpgroup instructions, and without: fits to 154 timings of 3 problems on an H200
    True: Split(0.086, 3.2, (1.0, 0.9), 1.0),
    False: Split(0.2, 6.2, (0.94, 1.7), 0.3),
}


class ProgramShape(NamedTuple):
    """What of a tiling and a problem one program's cost depends on: `rows` of it, `columns` of a step."""

    rows: int
    columns: int
    warps: int
    stages: int
    head_dim: int
    value_dim: int
    itemsize: int
    gathers: bool  # biases from the table


class Program(NamedTuple):
    """What a program needs of a multiprocessor, and what a step does there, in its cycles.

    Attributes:
        registers: per thread.
        shared: bytes.
        warps: of it.
        at_once: programs that a multiprocessor has room for.
        products, issue, exponentials, loads: how long a step keeps busy what multiplies matrices, issues instructions,
            takes exponentials, and the way to L2.
        masking: instructions' cycles besides, of a partial step.
        latency: of a step.
        ends: instructions' cycles of the program's start and end.
        alone: latency of the program's start and end.
        overlap: see `Constants`.
    """

    registers: float
    shared: int
    warps: int
    at_once: int
    products: float
    issue: float
    masking: float
    exponentials: float
    loads: float
    latency: float
    ends: float
    alone: float
    overlap: float


@lru_cache(maxsize=16384)
def program(
    gpu: Gpu, kernel: Kernel, shape: ProgramShape, of_classes: bool = False, limit: int | None = None
) -> Program:
    """The estimate for one program; `limit`: registers of a thread, at most."""
    rows, columns, warps, stages, head_dim, value_dim, size, gathers = shape
    c = fitted(gpu)
    what, architecture, threads = COSTS[kernel], gpu.architecture, gpu.architecture.warp * warps
    d, dv = padded(head_dim), padded(value_dim)
    scores = rows * columns / threads
    accumulators = rows * {"forward": dv, "query": d, "key_value": d + dv}[kernel] / threads
    together = architecture.warpgroups and rows >= 64 and warps >= 4
    per_accumulator, per_score, fixed = what.registers if together else what.registers_without
    registers = per_accumulator * accumulators + per_score * scores + fixed
    if not together:
        per_element = (accumulators, scores, columns * (d + dv) / threads, 1.0)
        demand = sum(a * b for a, b in zip(what.demand, per_element))
        registers = max(registers, demand) if demand > most_registers(gpu) else registers
    registers += 0 if architecture.warpgroups else 30
    registers += 1.5 * scores if gathers else 0  # their places in the table, too: at one each NAT spills
    registers *= AMD_REGISTERS if architecture.warp == 64 else 1
    resident = rows * (d if kernel == "forward" else d + dv)  # elements
    shared = resident * size + stages * columns * ((d + dv) * size + (8 if kernel == "key_value" else 0))
    flops = min(c.warpgroup_flops if together else c.warp_flops, architecture.matrix_flops)
    splitting = 0.0
    if size == 4:
        split = THREE_PRODUCTS[together]
        by = 1 if together else min(warps, ceil(rows / 16))  # warps that split the same step
        registers += (split.registers[0] * resident + split.registers[1] * columns * (d + dv) * by) / threads
        shared += int(split.shared * resident * size)
        shared += 2 * size * columns * max(d, dv) if d != dv else 0  # where layouts are changed
        flops *= split.flops
        splitting = by * split.instructions * columns * (d + dv) / architecture.warp / ISSUES
    registers = registers if limit is None else min(registers, limit)
    products = 2 * rows * columns * (what.products[0] * d + what.products[1] * dv) / flops
    if together and columns < 64:
        products *= (64 / columns) ** c.narrow
    rescaled = accumulators if kernel == "forward" else 0
    issue = warps * (scores * c.instructions(kernel) + rescaled + c.step_instructions) / ISSUES + splitting
    masking = warps * scores * c.mask_instructions / ISSUES
    slower = c.split if rows < 16 * warps else 1.0
    return Program(
        registers,
        shared,
        warps,
        room(gpu, warps, registers, shared),
        products * slower,
        issue * slower,
        masking * slower,
        exponentials=rows * columns / EXPONENTIALS,
        loads=columns * (d + dv) * size / c.l2_bytes + (4 * rows * columns / START_BYTES if of_classes else 0),
        latency=c.latency(kernel, stages),
        ends=warps * c.program_instructions / ISSUES,
        alone=c.program_latency,
        overlap=c.overlap,
    )


class Estimate(NamedTuple):
    """What the programs of a tiling take.

    Attributes:
        program: one of them.
        partial: share of its steps that need a mask.
        programs: of the whole problem.
        steps: per program, on average, and the most that one takes.
        cycles: of a launch, until its last program ends.
    """

    program: Program
    partial: float
    programs: int
    steps: float
    most: int
    cycles: float = 0.0

    def beside(self, at_once: int) -> tuple[float, float]:
        """Cycles of a program where `at_once` of them share a multiprocessor: per step, and of all the rest."""
        p = self.program
        warps = p.warps * at_once
        quarters = warps / 4 if warps < 4 else 1.0  # of the multiprocessor that have a warp
        products, exponentials, loads = p.products / quarters, p.exponentials / quarters, p.loads
        issue = (p.issue + self.partial * p.masking) / quarters
        most = max(products, issue, exponentials, loads)
        rest = products + issue + exponentials + loads - most
        busy = most + p.overlap * rest / at_once**0.9
        return at_once * busy + p.latency, at_once * p.ends / quarters + p.alone


def estimate(problem: Problem, kernel: Kernel, tiling: Tiling) -> Estimate:
    """The estimate for one kernel."""
    if tiling.unfolded is not None:
        problem = unfolded(problem, tiling.unfolded)
    columns, tile, step = prod(tiling.step), tiling.tile, tiling.key_tile
    programs, steps, most, partial = 0, 0.0, 0, -1.0
    for heads, axes in sampled_walks(problem, kernel == "key_value"):
        tiles, each, longest, full = heads, 1.0, 1, 1.0
        for axis, size, taken in zip(axes, tile, step):
            own_tiles, own_steps, own_longest, own_full = axis.walk[size, taken]
            tiles, each, longest, full = tiles * own_tiles, each * own_steps, longest * own_longest, full * own_full
        if tiling.of_classes:  # token by token
            each, longest, full = float(ceil(each / columns)), ceil(longest / columns), 1.0
        programs, steps, most = programs + tiles, steps + tiles * each, max(most, longest)
        partial = 1 - full if partial < 0 else partial  # of the first neighborhood
    extra = -(-problem.additional // columns)
    one = program_of(problem, kernel, tiling)
    found = one, partial, problem.batch * programs, steps / programs + extra, most + extra
    cycles = launch_cycles(gpu_of(problem.device), one.at_once, Estimate(*found))
    if tiling.of_classes:
        cycles *= OF_CLASSES[kernel]
        if kernel == "forward" and has_lines(problem):
            cycles *= LINES_TIME[problem.head_dim]
    return Estimate(*found, cycles)


def program_of(problem: Problem, kernel: Kernel, tiling: Tiling) -> Program:
    """The estimate for one program of a tiling."""
    gathers = problem.has_rpb and not tiling.of_classes
    sizes = problem.head_dim, problem.value_dim, problem.dtype.itemsize, gathers
    shape = ProgramShape(prod(tiling.tile), prod(tiling.step), tiling.warps, tiling.stages, *sizes)
    return program(gpu_of(problem.device), kernel, shape, tiling.of_classes, tiling.registers)


def room(gpu: Gpu, warps: float, registers: float, shared: float) -> int:
    """How many programs a multiprocessor has room for; at least one."""
    architecture = gpu.architecture
    threads = architecture.warp * warps
    per_program = threads * min(max(registers, 32), architecture.thread_registers)
    each = architecture.registers / per_program, architecture.shared / shared, architecture.threads / threads
    return max(1, min(int(min(each)), architecture.programs))


def launch_cycles(gpu: Gpu, most_at_once: int, *kinds: Estimate) -> float:
    """Cycles until the last program ends of a launch of programs of these kinds.

    `most_at_once`: of the kind that takes the most room.
    """
    enough = ceil(sum([e.programs for e in kinds]) / gpu.processors)
    at_once = most_at_once if most_at_once < enough else max(1, enough)
    work = mean = most = 0.0
    for e in kinds:
        step, ends = e.beside(at_once)
        time, longest = e.steps * step + ends, e.most * step + ends
        work += e.programs * time
        mean, most = time if time > mean else mean, longest if longest > most else most
    return max(mean * ceil(work / (gpu.processors * at_once) / mean - 1e-9), most)


def backward_seconds(gpu: Gpu, query: Estimate, key_value: Estimate, together: bool) -> float:
    """Of both kernels of the backward pass; `together`: in one launch, with as many warps."""
    if together:
        at_once = min(query.program.at_once, key_value.program.at_once)
        return kernel_seconds(gpu, fitted(gpu).together * launch_cycles(gpu, at_once, query, key_value), 1)
    return kernel_seconds(gpu, query.cycles + key_value.cycles, 2)


def kernel_seconds(gpu: Gpu, cycles: float, launches: int) -> float:
    """Of kernels that take so many cycles."""
    c = fitted(gpu)
    return cycles / c.clock + launches * c.launch


def seconds(problem: Problem, direction: Direction, config: Tiling | GradientTilings) -> float:
    """An estimate of the time of a pass; against another backend's, only their ratio matters."""
    gpu = gpu_of(problem.device)
    if isinstance(config, Tiling):
        return pass_seconds(problem, direction, kernel_seconds(gpu, estimate(problem, "forward", config).cycles, 1))
    each = estimate(problem, "query", config.query), estimate(problem, "key_value", config.key_value)
    return pass_seconds(problem, direction, backward_seconds(gpu, *each, config.together))


def pass_seconds(problem: Problem, direction: Direction, kernels: float) -> float:
    """Of a pass whose kernels take so long."""
    gpu = gpu_of(problem.device)
    c = fitted(gpu)
    factor, share = (1.0, c.forward_share) if direction == "forward" else (c.backward_factor, c.backward_share)
    columns = problem.heads * (problem.head_dim + problem.value_dim) * 2
    tensors = problem.batch * prod(problem.lengths) * columns * problem.dtype.itemsize
    return factor * kernels + share * max(0.0, tensors - KEPT) / (MOVED * gpu.architecture.bandwidth)


def fitted(gpu: Gpu) -> Constants:
    """The constants of a GPU."""
    return constants_of(gpu, Constants, "triton")


def most_registers(gpu: Gpu) -> int:
    """Registers per thread, estimated, up to which a tiling is taken."""
    return gpu.architecture.thread_registers + SPILLED


@lru_cache(maxsize=1024)
def unfolded(problem: Problem, axis: int) -> Problem:
    """Of a problem with an axis seen as two, about the whole: all groups are as long as the longest."""
    longest = unfold(problem.neighborhood, problem.lengths, axis)[0]
    lengths = replace_at(longest.lengths, axis + 1, problem.neighborhood.axes[axis].dilation)
    return replace(problem, lengths=lengths, neighborhoods=(longest.neighborhood,))


def row_bytes(problem: Problem) -> int:
    """Of a key and its value, as kernels compute with them."""
    return (padded(problem.head_dim) + padded(problem.value_dim)) * problem.dtype.itemsize


def padded(size: int) -> int:
    """A head dim as kernels compute with it."""
    return max(16, 1 << (size - 1).bit_length())

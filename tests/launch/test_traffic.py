"""What programs move, counted as one would by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.launch.traffic import size_of, traffic_of

A, B = jnp.ones((64, 128)), jnp.ones((128, 32))
STACK = jnp.ones((7, 64, 64))
BYTES = 4


def text_of(function, *args, **jit):
    return jax.jit(function, **jit).lower(*args).compile().as_text() or ""


def moved(function, *args):
    return traffic_of(text_of(function, *args)).memory


def test_a_product_reads_its_factors_and_writes_its_result():
    assert moved(jnp.matmul, A, B) == BYTES * (64 * 128 + 128 * 32 + 64 * 32)


def test_what_is_fused_is_read_and_written_once():
    assert moved(lambda a: jnp.tanh(a * 2 + 1), A) == BYTES * 2 * 64 * 128


def test_a_loop_counts_as_often_as_it_runs_and_a_slice_is_no_more_than_a_slice():
    """The same product with more layers costs so much more for each, though every pass is handed all of them."""
    loop = lambda x, stack: jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, stack)[0]
    x = jnp.ones((64, 64))
    few, many = moved(loop, x, STACK), moved(loop, x, jnp.ones((21, 64, 64)))
    each = (many - few) / 14 / (BYTES * 64 * 64)
    # A product reads two and writes one; the slice, the tanh and the loop's own copies are at most as many again.
    assert 3 <= each <= 9


def test_an_update_of_a_slice_writes_the_slice():
    update = lambda row, big: jax.lax.dynamic_update_slice(big, row * 2, (3, 0))
    text = text_of(update, jnp.ones((1, 512)), jnp.ones((1024, 512)), donate_argnums=1)
    assert traffic_of(text).memory < 10 * BYTES * 512


@pytest.mark.parametrize(
    ("shape", "bytes_"),
    [
        ("f32[2,3]{1,0:T(8,128)}", 24),
        ("bf16[8]{0:T(8)S(1)}", 0),
        ("(s32[], pred[4]{0}, u4[8]{0})", 4 + 4 + 4),
        ("token[]", 0),
        ("c64[2]", 16),
        ("f8e4m3fn[16]", 16),
    ],
)
def test_sizes(shape, bytes_):
    assert size_of(shape) == bytes_


MESH = Mesh(np.asarray(jax.devices()[:8]), ("data",))
SPLIT, WHOLE = (NamedSharding(MESH, PartitionSpec(*axes)) for axes in (("data",), ()))
LENGTH = 8 * 1024


@pytest.mark.parametrize(
    ("function", "given", "wanted", "kind", "received"),
    [
        (lambda x: x * 2, SPLIT, WHOLE, "all-gather", 7 / 8 * BYTES * LENGTH),
        (lambda x: x.reshape(8, -1).sum(0), SPLIT, WHOLE, "all-reduce", 2 * 7 / 8 * BYTES * LENGTH / 8),
        (lambda x: x * 2, SPLIT, SPLIT, None, 0.0),
    ],
)
def test_what_a_device_receives(function, given, wanted, kind, received):
    x = jax.device_put(jnp.ones(LENGTH), given)
    traffic = traffic_of(text_of(function, x, out_shardings=wanted))
    assert [one.kind for one in traffic.collectives] == ([] if kind is None else [kind])
    assert traffic.network == pytest.approx(received)
    assert all((one.devices, one.times) == (8, 1) for one in traffic.collectives)


def test_a_collective_in_a_loop_counts_as_often_as_the_loop_runs():
    def loop(x):
        step = lambda x, _: (jax.lax.with_sharding_constraint(jnp.tanh(x), WHOLE), None)
        return jax.lax.scan(lambda x, _: (jax.lax.with_sharding_constraint(step(x, None)[0], SPLIT), None), x, None, 5)

    (one,) = traffic_of(text_of(loop, jax.device_put(jnp.ones(LENGTH), SPLIT))).collectives
    assert one.kind == "all-gather" and one.times == 5


# As the compiler for TPUs writes them: groups by axes of a mesh, what is asynchronous in parts of one channel.
ON_TPU = """
HloModule step, is_scheduled=true, num_partitions=16

%start (p: bf16[4,8]) -> bf16[64,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[64,8]{1,0} all-gather(%p), channel_id=3, replica_groups=mesh['a'=1,'b'=16] {'b'}
}

%done (p.2: bf16[4,8]) -> bf16[64,8] {
  %p.2 = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[64,8]{1,0} all-gather(%p.2), channel_id=3, replica_groups=mesh['a'=1,'b'=16] {'b'}
}

%condition (c: (s32[], bf16[4,8])) -> pred[] {
  %c = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(28)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (b: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %b = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%b), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%b), index=1
  %first = bf16[64,8]{1,0:T(8,128)S(1)} fusion(%x), kind=kCustom, calls=%start
  %second = bf16[64,8]{1,0:T(8,128)S(1)} fusion(%x), kind=kCustom, calls=%done
  %copy = (bf16[4,8]{1,0:S(1)}, bf16[4,8]{1,0}, u32[]{:S(2)}) copy-start(%x)
  ROOT %out = (s32[]{:T(128)}, /*index=1*/bf16[4,8]{1,0}) tuple(%i.2, %x)
}

ENTRY %main (arg: bf16[4,8]) -> bf16[4,8] {
  %arg = bf16[4,8]{1,0} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start.2 = (s32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%zero, %arg)
  %loop = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%start.2), condition=%condition, body=%body
  ROOT %result = bf16[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_program_for_tpus_is_read():
    traffic = traffic_of(ON_TPU)
    (one,) = traffic.collectives
    assert (one.kind, one.devices, one.times) == ("all-gather", 16, 28)
    assert one.bytes == 28 * 15 / 16 * 64 * 8 * 2
    # Each pass: both fusions read x from the main memory, and so does the copy, whose target lies beside the core.
    assert traffic.memory == 28 * 3 * 4 * 8 * 2


# A mesh that is not laid out in order, and sums of which each device keeps a slice: several at once, on a channel that
# another has.
SCATTERS = """
HloModule step, is_scheduled=true, num_partitions=16

%gather (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %g = bf16[16,8]{1,0} all-gather(%p), replica_groups=mesh['a'=4,'b'=4], device_ids=([4,4]T(1,0)) {'b'}
}

%all-reduce-scatter.1 (q: bf16[16,8]) -> bf16[4,8] {
  %q = bf16[16,8]{1,0} parameter(0)
  %sum.1 = bf16[16,8]{1,0} all-reduce(%q), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}
  %here = s32[] constant(4)
  ROOT %cut.1 = bf16[4,8]{1,0} dynamic-slice(%sum.1, %here, %here), dynamic_slice_sizes={4,8}
}

%all-reduce-scatter.2 (r: bf16[8,8], s: bf16[4,4]) -> (bf16[2,8], bf16[1,4]) {
  %r = bf16[8,8]{1,0} parameter(0)
  %s = bf16[4,4]{1,0} parameter(1)
  %sum.2 = (bf16[8,8]{1,0}, bf16[4,4]{1,0}) all-reduce(%r, %s), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}
  %one = bf16[8,8]{1,0} get-tuple-element(%sum.2), index=0
  %two = bf16[4,4]{1,0} get-tuple-element(%sum.2), index=1
  %here.2 = s32[] constant(1)
  %cut.2 = bf16[2,8]{1,0} dynamic-slice(%one, %here.2, %here.2), dynamic_slice_sizes={2,8}
  %cut.3 = bf16[1,4]{1,0} dynamic-slice(%two, %here.2, %here.2), dynamic_slice_sizes={1,4}
  ROOT %both = (bf16[2,8]{1,0}, bf16[1,4]{1,0}) tuple(%cut.2, %cut.3)
}

ENTRY %main (arg: bf16[4,8], small: bf16[4,4]) -> bf16[4,8] {
  %arg = bf16[4,8]{1,0} parameter(0)
  %small = bf16[4,4]{1,0} parameter(1)
  %whole = bf16[16,8]{1,0} fusion(%arg), kind=kCustom, calls=%gather
  %part = bf16[4,8]{1,0} fusion(%whole), kind=kCustom, calls=%all-reduce-scatter.1
  %eight = bf16[8,8]{1,0} slice(%whole), slice={[0:8], [0:8]}
  %parts = (bf16[2,8]{1,0}, bf16[1,4]{1,0}) fusion(%eight, %small), kind=kCustom, calls=%all-reduce-scatter.2
  ROOT %kept = bf16[4,8]{1,0} all-reduce(%part), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}
}
"""


def test_a_sum_of_which_each_keeps_a_slice_is_sent_once():
    wanted = {
        "all-gather": (4, 1, 3 / 4 * 16 * 8 * 2),
        "reduce-scatter": (4, 2, 3 / 4 * (16 * 8 + 8 * 8 + 4 * 4) * 2),
        "all-reduce": (4, 1, 2 * 3 / 4 * 4 * 8 * 2),
    }
    assert {kind: tuple(rest) for kind, *rest in traffic_of(SCATTERS).collectives} == wanted


# As the compiler for GPUs writes them: a fusion in the background names its operands before its result, and a library's
# product the room that it works in behind it.
ON_GPU = """
HloModule step, is_scheduled=true

%sliced (p: bf16[28,64], i: s32[]) -> bf16[1,64] {
  %p = bf16[28,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = bf16[1,64]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,64}
}

%updated (q: bf16[28,64], j: s32[], row: bf16[64]) -> bf16[28,64] {
  %q = bf16[28,64]{1,0} parameter(0)
  %row = bf16[64]{0} parameter(2)
  %rows = bf16[1,64]{1,0} bitcast(%row)
  %j = s32[] parameter(1)
  %zero.2 = s32[] constant(0)
  ROOT %update = bf16[28,64]{1,0} dynamic-update-slice(%q, %rows, %j, %zero.2)
}

%both (r: bf16[28,64], k: s32[]) -> (bf16[1,64], bf16[28,64]) {
  %r = bf16[28,64]{1,0} parameter(0)
  %k = s32[] parameter(1)
  %zero.3 = s32[] constant(0)
  %slice.2 = bf16[1,64]{1,0} dynamic-slice(%r, %k, %zero.3), dynamic_slice_sizes={1,64}
  %update.2 = bf16[28,64]{1,0} dynamic-update-slice(%r, %slice.2, %k, %zero.3)
  ROOT %pair = (bf16[1,64]{1,0}, bf16[28,64]{1,0}) tuple(%slice.2, %update.2)
}

ENTRY %main (stack: bf16[28,64], at: s32[], kernel: bf16[64,64], more: bf16[64]) -> bf16[28,64] {
  %stack = bf16[28,64]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %kernel = bf16[64,64]{1,0} parameter(2)
  %more = bf16[64]{0} parameter(3)
  LINES
}
"""


@pytest.mark.parametrize(
    ("line", "bytes_"),
    [
        (  # the slice and where it is are read, the slice is written
            "%a = ((bf16[28,64]{1,0}, s32[]), bf16[1,64]{1,0}, u32[]) "
            "fusion-start(%stack, %at), kind=kLoop, calls=%sliced",
            2 * 64 + 4 + 2 * 64,
        ),
        (
            "%b = ((bf16[28,64]{1,0}, s32[], bf16[64]{0}), bf16[28,64]{1,0}, u32[]) "
            "fusion-start(%stack, %at, %more), kind=kLoop, calls=%updated",
            2 * 64 + 4 + 2 * 64,
        ),
        (
            "%c = (bf16[1,64]{1,0}, bf16[28,64]{1,0}) fusion(%stack, %at), kind=kLoop, calls=%both",
            2 * 64 + 4 + 2 * 2 * 64,
        ),
        (
            "%d = (bf16[28,64]{1,0}, s8[4194304]{0}) custom-call(%stack, %kernel), "
            'custom_call_target="__cublas$lt$matmul"',
            2 * (28 * 64 + 64 * 64 + 28 * 64),
        ),
        (
            "%e = (bf16[28,64]{1,0}, s8[28]{0}) custom-call(%stack), custom_call_target=\"own\"",
            2 * (28 * 64 + 28 * 64) + 28,
        ),
        ("%f = (bf16[28,64]{1,0}, bf16[112,64]{1,0}) all-gather-start(%stack)", 2 * (28 * 64 + 112 * 64)),
        ("%g = bf16[28,64]{1,0} fusion-done(%stack)", 0),
    ],
)  # fmt: skip
def test_a_program_for_gpus_is_read(line, bytes_):
    assert traffic_of(ON_GPU.replace("LINES", line)).memory == bytes_

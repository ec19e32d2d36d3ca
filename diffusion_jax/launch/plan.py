"""What a config asks of machines that need not be here, before anyone pays for them.

XLA compiles for a slice of a TPU pod without one, and says what memory each chip needs. From the program that it made
follow three times, each of which one side of the chip needs if it does nothing else, at its peak and without a pause:

    arithmetic   operations of the function as it is written, shared by the chips, by the peak in bfloat16;      (1)
    memory       bytes that the program reads and writes, by the bandwidth of the memory;                        (2)
    network      bytes that a chip receives, by the bandwidth of all its links together.                         (3)

A step takes at least the longest of them (Williams et al. 2009, "Roofline"). So many images a second are a bound from
above, and no forecast: in a real step the sides wait for each other, and none reaches its peak.
"""

from typing import Any, NamedTuple

from diffusion_jax.launch.work import Found, Work
from diffusion_jax.training.chips import GIB, Chip, chip_of

TRIES = 3  # batches that are compiled on the way to the largest


class Plan(NamedTuple):
    """What was found of one kind of work."""

    name: str
    where: str
    chip: Chip | None
    found: Found
    largest: Found | None  # the largest batch that fits, where it was looked for

    @property
    def times(self) -> dict[str, float]:
        """Return the seconds that each side needs at least, Eqs. (1) to (3), where the chip is known."""
        traffic, chip = self.found.traffic, self.chip
        if chip is None or traffic is None:
            return {}
        return {
            "arithmetic": self.found.flops / chip.flops,
            "memory": traffic.memory / chip.bandwidth,
            "network": traffic.network / chip.network,
        }

    @property
    def rate(self) -> float | None:
        """Return the examples a second that nothing can exceed, where the chip is known."""
        return self.found.batch / max(self.times.values()) if self.times else None


def make_plan(work: Work, *, largest: bool = True) -> Plan:
    """Compile the work; with `largest`, look for the largest batch that fits as well."""
    found = work.build(work.batch)
    most = largest_batch(work, found) if largest else None
    first = work.devices[0]
    return Plan(work.name, f"{len(work.devices)} x {first.device_kind}", chip_of(first), found, most)


def largest_batch(work: Work, found: Found) -> Found | None:
    """Look for the largest batch that fits, along the line through two that were compiled; None if there is none."""
    if found.there is None:
        return None
    other = work.build(2 * found.batch if found.fits else max(found.batch // 2 // work.unit, 1) * work.unit)
    known = {one.batch: one for one in (found, other)}
    for _ in range(TRIES):
        batch = _next(list(known.values()), work.unit)
        if batch in known or batch < work.unit:
            break
        known[batch] = work.build(batch)
    return max((one for one in known.values() if one.fits), key=lambda one: one.batch, default=None)


def told(plan: Plan) -> str:
    """Say in lines what was found."""
    found = plan.found
    lines = [f"{plan.name}: batch {found.batch} on {plan.where}"]
    there = "" if found.there is None else f"of {_gib(found.there)} "
    held = f"; {_gib(found.held)} of it from call to call" if found.traffic else ""
    lines.append(_line("HBM a chip", f"{_gib(found.needed)} {there}needed{held}"))
    lines += _sides(plan)
    if plan.largest is not None:
        lines.append(_line("largest batch", f"{plan.largest.batch}, found by compiling"))
    lines.append(_line("compiled in", f"{found.seconds:.0f} s"))
    return "\n".join([*lines, f"  {_verdict(plan)}"])


def row(plan: Plan) -> dict[str, Any]:
    """Return what was found as plain data."""
    found, traffic = plan.found, plan.found.traffic
    return {
        "work": plan.name,
        "devices": plan.where,
        "batch": found.batch,
        "fits": found.fits,
        "needed_bytes": found.needed,
        "there_bytes": found.there,
        "held_bytes": found.held,
        "flops": found.flops,
        "memory_bytes": None if traffic is None else traffic.memory,
        "collectives": [] if traffic is None else [one._asdict() for one in traffic.collectives],
        "seconds_at_least": plan.times,
        "per_second_at_most": plan.rate,
        "largest_batch": None if plan.largest is None else plan.largest.batch,
        "compile_seconds": found.seconds,
    }


def _next(known, unit):
    """Return the batch at which a line reaches the limit, which lies between its ends if there are such."""
    known = sorted(known, key=lambda one: one.batch)
    fitting, others = ([one for one in known if one.fits is fits] for fits in (True, False))
    low, high = (fitting[-1], others[0]) if fitting and others else known[-2:] if fitting else known[:2]
    slope = (high.needed - low.needed) / (high.batch - low.batch)
    there = min(one.there for one in known)
    batch = int((low.batch + (there - low.needed) / slope) // unit) * unit if slope > 0 else 0
    return min(batch, others[0].batch - unit) if others else batch


def _sides(plan):
    """Say what each side has to do, and how long that takes at least."""
    found, traffic = plan.found, plan.found.traffic
    if traffic is None:
        return []
    among = ", ".join(f"{one.times} {one.kind} among {one.devices}" for one in traffic.collectives) or "no collectives"
    work = {
        "arithmetic": f"{found.flops / 1e12:.3g} TFLOP",
        "memory": f"{traffic.memory / 1e9:.3g} GB",
        "network": f"{traffic.network / 1e9:.3g} GB ({among})",
    }
    times = plan.times
    return [_line(name, text + (f", {1e3 * times[name]:.3g} ms" if times else "")) for name, text in work.items()]


def _verdict(plan):
    """Say plainly whether it fits, what binds it, and what it reaches at most."""
    found = plan.found
    if not found.fits:
        remedies = {
            "training": "more mesh.fsdp, network.remat, more training.parts, a smaller batch or more chips",
            "sampling": "a smaller sampling.batch_size",
        }
        return f"DOES NOT FIT: {_gib(found.needed)} of {_gib(found.there)}. Try {remedies[plan.name]}."
    if not plan.times:
        return "fits as far as is known: what these devices can do is not in the table of chips."
    binds, longest = max(plan.times.items(), key=lambda item: item[1])
    share = plan.times["arithmetic"] / longest
    return (
        f"FITS, bound by {binds}: at most {four_digits(plan.rate)} images a second and {share:.0%} of the peak. "
        "An upper bound, not a forecast."
    )


def _line(name, text):
    return f"  {name:<14} {text}"


def _gib(number):
    return f"{number / GIB:.2f} GiB"


def four_digits(number: float) -> str:
    """Write a large number down, rounded to four digits."""
    return f"{float(f'{number:.4g}'):,.0f}"

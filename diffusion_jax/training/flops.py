"""How many floating-point operations a function asks for.

Matrix products and convolutions are counted, in the function as it is written: a loop counts as often as it runs and a
recomputed block twice, on whatever device, and nothing is compiled. The rest is a few percent of any network.
"""

import math
from typing import Any


def flops_of(jaxpr: Any) -> float:
    """Count the operations of a function as jax.make_jaxpr shows it."""
    return float(sum(_equation(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns))


def _equation(equation):
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        left = equation.invars[0].aval.shape
        (contracted, _), _ = parameters["dimension_numbers"]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval.shape, parameters["dimension_numbers"]
        each = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
        # In a gradient the input is spread out with zeros, which nobody needs to multiply.
        return 2 * math.prod(equation.outvars[0].aval.shape) * each / math.prod(parameters["lhs_dilation"])
    inner = [flops_of(sub) for value in parameters.values() for sub in _jaxprs(value)]
    if name == "cond":
        return max(inner, default=0)
    return sum(inner) * (parameters["length"] if name == "scan" else 1)


def _jaxprs(value):
    if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
        return [value]
    return [sub for item in value for sub in _jaxprs(item)] if isinstance(value, tuple | list) else []

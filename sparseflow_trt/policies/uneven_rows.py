"""What the plugin takes longer at an M that is no multiple of 8: cuSPARSELt takes multiples alone."""

from __future__ import annotations

from collections.abc import Callable

from sparseflow_trt.model.packing import ROWS
from sparseflow_trt.policies.expected import Expected

# Upper bounds of what such an M took longer than the next multiple, of TinyLlama's products on an H200
# (M = 1, 100, 300 and 1003 in results/plugin_linear_tinyllama.json): copying few rows 4.0 to 4.8 µs, copying
# more 1.2 to 2.4 times what 8 rows take, which is mostly reading the weights (the most with an algorithm that
# is fast at M=512), and the second product of more than 512 rows 0.9 times that.
FEW = 128
FEW_US = 5.0
COPIED = 512
COPIED_READINGS = 2.4
READINGS = 1.2


def more_us(m: int, expect: Callable[[int], Expected | None]) -> float:
    """The microseconds that an M adds to what the plugin takes: 0 for a multiple.

    Args:
        m: Rows.
        expect: Gives the times of multiples, None where there are none.
    """
    if m % ROWS == 0:
        return 0.0
    if m <= FEW:
        return FEW_US
    times = expect(ROWS)
    readings = COPIED_READINGS if m <= COPIED else READINGS
    return readings * times.sparse_us if times else 0.0

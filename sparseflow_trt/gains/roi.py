"""What a speedup saves: whole GPUs and their cost per month, dense against sparse."""

from __future__ import annotations

import math
from dataclasses import dataclass

HOURS_A_MONTH = 730.0  # 8760 a year
MILLION = 1e6
BUSY = 0.7
REALISED = 0.5


@dataclass(frozen=True)
class Fleet:
    """The GPUs that a load takes.

    Attributes:
        gpus: Whole ones.
        utilisation: The share of their time that they are busy.
        cost_per_month: Of all of them, in the unit of the cost of a GPU-hour.
        cost_per_million_requests: `cost_per_month` over the millions of requests that a month has; None where
            these are not known.
    """

    gpus: int
    utilisation: float
    cost_per_month: float
    cost_per_million_requests: float | None = None


@dataclass(frozen=True)
class Roi:
    """Dense against sparse for one load.

    Attributes:
        speedup: Of the whole service, that sparse is counted with.
        requests_per_month: That either serves; None where the load was not given in requests.
        saved_per_month: Below 0 where sparse costs more.
        break_even_months: Until the one-off cost is saved; None where it never is.
    """

    speedup: float
    dense: Fleet
    sparse: Fleet
    saved_per_month: float
    one_off: float
    break_even_months: float | None
    requests_per_month: float | None = None


def return_on_sparsity(
    load: float,
    speedup: float,
    cost_per_gpu_hour: float,
    busy: float = BUSY,
    one_off: float = 0.0,
    requests_per_month: float | None = None,
) -> Roi:
    """What sparse saves for a load.

    Args:
        load: The GPUs that dense would keep busy all of the time, such as 6.3.
        speedup: Dense time over sparse time of a request, end to end; below 1 where sparse is slower.
        cost_per_gpu_hour: GPUs are paid for every hour, busy or not.
        busy: The largest share of its time that a GPU is planned to be busy.
        one_off: What pruning costs once: the work, the training that brings quality back, the tests.
        requests_per_month: All that come, where that is known. GPUs are counted for the busiest hour, and
            what they cost is shared by all requests.
    """
    dense = _fleet(load, busy, cost_per_gpu_hour, requests_per_month)
    sparse = _fleet(load / speedup, busy, cost_per_gpu_hour, requests_per_month)
    saved = dense.cost_per_month - sparse.cost_per_month
    even = one_off / saved if saved > 0 else None
    return Roi(speedup, dense, sparse, saved, one_off, even, requests_per_month)


def realised_speedup(ceiling: float, realised: float = REALISED) -> float:
    """The speedup where a share of the time that a ceiling says could be saved is saved.

    Args:
        ceiling: The speedup that no build can exceed.
        realised: Of the time that it saves.
    """
    return 1 / (1 - realised * (1 - 1 / ceiling))


def _fleet(load: float, busy: float, cost_per_gpu_hour: float, requests: float | None) -> Fleet:
    gpus = max(1, math.ceil(load / busy * (1 - 1e-12)))  # 7 GPUs' work over 0.7 is ten GPUs, not eleven
    cost = gpus * cost_per_gpu_hour * HOURS_A_MONTH
    return Fleet(gpus, load / gpus, cost, None if requests is None else cost / (requests / MILLION))

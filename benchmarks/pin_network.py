"""For `polygraphy convert --trt-network-postprocess-script`: pins types as `sparseflow-trt build` does.

Polygraphy's own --layer-precisions sets what a layer computes in, not what it writes. The environment
variable TYPED_MODEL names the ONNX file; FP16 and the obeying of constraints are the command line's to ask.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import tensorrt

from sparseflow_trt.engines.tensorrt.pin_types import pin_types


def postprocess(network: Any) -> None:
    """Pins every layer of the network."""
    pin_types(tensorrt, tensorrt.__version__, network, _NoConfig(), Path(os.environ["TYPED_MODEL"]))


class _NoConfig:
    """Stands for the builder's configuration, which Polygraphy makes."""

    def set_flag(self, flag: Any) -> None:
        """Does nothing."""

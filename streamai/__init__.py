"""streamai: every event scored, in a millisecond, by a small language model."""

from typing import TYPE_CHECKING

from streamai.events import BUY, CANCEL, CART, CLICK, CLICKS, MARKET, QUOTE, TRADE, VIEW, Schema
from streamai.feature import (
    FeatureView,
    compile_views,
    count,
    deviation_bp,
    difference,
    distinct,
    ewm,
    ewm_std,
    ewm_var,
    first,
    last,
    log_ratio,
    maximum,
    mean,
    minimum,
    rate,
    ratio,
    since_last,
    std,
    sum,
    total,
    var,
)
from streamai.microstructure import (
    depth,
    log_return,
    microprice,
    mid,
    ofi,
    order_flow,
    queue_imbalance,
    realised_vol,
    signed_size,
    spread_bp,
    trade_imbalance,
    vwap,
)

if TYPE_CHECKING:
    from streamai.flow import Flow

__version__ = "0.1.0"
__all__ = [
    "BUY",
    "CANCEL",
    "CART",
    "CLICK",
    "CLICKS",
    "MARKET",
    "QUOTE",
    "TRADE",
    "VIEW",
    "FeatureView",
    "Flow",
    "Schema",
    "compile_views",
    "count",
    "depth",
    "deviation_bp",
    "difference",
    "distinct",
    "ewm",
    "ewm_std",
    "ewm_var",
    "first",
    "last",
    "log_ratio",
    "log_return",
    "maximum",
    "mean",
    "microprice",
    "mid",
    "minimum",
    "ofi",
    "order_flow",
    "queue_imbalance",
    "rate",
    "ratio",
    "realised_vol",
    "signed_size",
    "since_last",
    "spread_bp",
    "std",
    "sum",
    "total",
    "trade_imbalance",
    "var",
    "vwap",
]


def __getattr__(name: str):
    """Flow is fetched when asked for: it brings the kernels' compiler with it."""
    if name in ("Flow", "Online"):
        from streamai import flow

        return getattr(flow, name)
    raise AttributeError(f"module 'streamai' has no attribute {name!r}")

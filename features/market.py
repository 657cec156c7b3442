"""What a market model reads of an instrument. Every value is free of the price's and the lot's scale."""

from streamai import (
    TRADE,
    FeatureView,
    depth,
    deviation_bp,
    ewm,
    microprice,
    mid,
    ofi,
    queue_imbalance,
    rate,
    ratio,
    realised_vol,
    since_last,
    spread_bp,
    trade_imbalance,
    vwap,
)


class Book(FeatureView):
    """Prices of the book, order flow and trades of one instrument; bp, shares of one, 1/s and ms."""

    source = "market"
    key = "instrument"

    spread = spread_bp()
    spread_vs_10s = ratio(spread_bp(), ewm(spread_bp(), half_life="10s"))
    imbalance = queue_imbalance()
    imbalance_1s = ewm(queue_imbalance(), half_life="1s")
    imbalance_10s = ewm(queue_imbalance(), half_life="10s")
    microprice_bp = deviation_bp(microprice(), mid())

    _depth = ewm(depth(), half_life="1m")  # order flow is stated in depths of the last minute
    ofi_10 = ratio(ofi(last=10), _depth)
    ofi_100 = ratio(ofi(last=100), _depth)
    ofi_1s = ratio(ofi("1s", hops=8), _depth)
    ofi_decayed_5s = ratio(ofi(half_life="5s"), _depth)

    trades_1s = trade_imbalance(half_life="1s")
    trades_10s = trade_imbalance(half_life="10s")

    mid_vs_1s_bp = deviation_bp(mid(), ewm(mid(), half_life="1s", adjust=False))
    mid_vs_10s_bp = deviation_bp(mid(), ewm(mid(), half_life="10s", adjust=False))
    mid_vs_1m_bp = deviation_bp(mid(), ewm(mid(), half_life="1m", adjust=False))
    mid_vs_vwap_bp = deviation_bp(mid(), vwap(half_life="1m"))

    vol_10s = realised_vol(half_life="10s")
    vol_1m = realised_vol("1m", hops=8)
    vol_ratio = ratio(vol_10s, vol_1m)

    events_per_s = rate("1s", hops=8)
    trades_per_s = rate("10s", kind=TRADE, hops=8)
    idle_ms = since_last()
    since_trade_ms = since_last(kind=TRADE)

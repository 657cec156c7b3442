"""What a user did lately, and what happens to an item; both from the topic of clicks."""

from streamai import (
    BUY,
    CART,
    CLICK,
    VIEW,
    FeatureView,
    count,
    distinct,
    ewm,
    mean,
    rate,
    ratio,
    since_last,
)


class UserClicks(FeatureView):
    """Pace, appetite and attention of a user."""

    source = "clicks"
    key = "user_id"

    events_5m = count("5m")
    events_1h = count("1h")
    views_5m = count("5m", kind=VIEW)
    clicks_1h = count("1h", kind=CLICK)
    carts_24h = count("24h", kind=CART)
    buys_7d = count(half_life="7d", kind=BUY)
    in_session = count(session="30m")
    items_1h = distinct("1h", bits=64, hops=8)
    dwell_1h = mean("dwell_ms", "1h", hops=8)
    price_taste = ewm("price", half_life="7d")
    price_bought = ewm("price", half_life="30d", kind=BUY)
    taste_ratio = ratio(price_bought, price_taste)
    burst = ratio(events_5m, events_1h)
    idle_ms = since_last()
    since_buy_ms = since_last(kind=BUY)


class ItemClicks(FeatureView):
    """Demand for an item: how fast it is seen, and what becomes of that. Kept per partition."""

    source = "clicks"
    key = "item_id"

    views_per_s_1h = rate("1h", kind=VIEW, hops=8)
    events_1h = count(half_life="1h")
    events_24h = count(half_life="24h")
    views_7d = count(half_life="7d", kind=VIEW)
    clicks_7d = count(half_life="7d", kind=CLICK)
    buys_7d = count(half_life="7d", kind=BUY)
    dwell_7d = mean("dwell_ms", half_life="7d")
    click_share = ratio(clicks_7d, views_7d)
    buy_share = ratio(buys_7d, views_7d)
    trend = ratio(events_1h, events_24h)
    idle_ms = since_last()

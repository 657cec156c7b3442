"""Made-up shop and market: click events, market events and a catalogue, from a seed.

    python replay_data/generate.py --clicks 100000 --market 100000 --seed 7 --out /tmp/made

The same seed and the same counts give the same files. What is in it is *planted* so that models have
something to find (README.md beside this file says what); nothing learnt here says anything about a real
shop or a real market.

Needs numpy; polars only to write parquet.
"""

from __future__ import annotations

import argparse
import csv
import math
import pathlib

import numpy as np

SEED = 20260302
CLICKS_START_NS = 1_772_409_600_000_000_000  # 2026-03-02 00:00 UTC, a Monday
MARKET_START_NS = 1_772_461_800_000_000_000  # 2026-03-02 14:30 UTC
DISORDER_NS = 800_000_000  # arrival delays differ by less than this between users

STYLES = 4  # item 0..23 of a category: style * 6 + rung of the price ladder; 24..35: accessories
RUNGS = 6
MAINS = STYLES * RUNGS
PER_CATEGORY = 36

_CATEGORIES = {  # noun of each main style, nouns of accessories, lowest and highest main price
    "Cameras": ("Mirrorless Camera,Compact Camera,Instant Camera,Action Camera",
        "Lens Cap,Strap,Memory Card", 89, 1900),
    "Coffee": ("Espresso Machine,Pour-over Set,Moka Pot,Cold Brew Maker",
        "Grinder Brush,Paper Filters,Milk Jug", 19, 690),
    "Cycling": ("City Bike,Gravel Bike,Folding Bike,Road Bike",
        "Bell,Bottle Cage,Rear Light", 240, 2600),
    "Camping": ("Dome Tent,Tarp,Hammock,Tunnel Tent",
        "Peg Set,Groundsheet,Guy Rope", 29, 540),
    "Kitchen": ("Chef Knife,Bread Knife,Paring Knife,Cleaver",
        "Sharpener,Knife Block,Blade Guard", 14, 260),
    "Audio": ("Headphones,Earbuds,Bookshelf Speakers,Record Player",
        "Cable,Ear Pads,Travel Case", 25, 820),
    "Garden": ("Hand Trowel,Pruning Shears,Watering Can,Garden Fork",
        "Gloves,Twine,Seed Tray", 8, 95),
    "Office": ("Desk Lamp,Standing Desk,Task Chair,Monitor Arm",
        "Desk Mat,Cable Tray,Foot Rest", 35, 780),
    "Running": ("Trail Shoe,Road Shoe,Racing Flat,Daily Trainer",
        "Socks,Laces,Insoles", 55, 240),
    "Toys": ("Building Set,Train Set,Board Game,Puzzle",
        "Storage Box,Spare Parts,Battery Pack", 9, 160),
    "Music": ("Acoustic Guitar,Electric Guitar,Ukulele,Bass Guitar",
        "String Set,Capo,Tuner", 45, 1300),
    "Skincare": ("Face Cream,Serum,Sun Lotion,Night Balm",
        "Cotton Pads,Travel Pouch,Mirror", 7, 120),
    "Books": ("Cookbook,Travel Guide,Crime Novel,Photo Book",
        "Bookmark,Reading Light,Book Stand", 6, 85),
    "Pets": ("Dog Bed,Cat Tree,Bird House,Aquarium",
        "Brush,Food Bowl,Chew Toy", 12, 310),
}
_RUNG_WORDS = ("Plain", "Handy", "Solid", "Classic", "Fine", "Grand")
_ACCESSORY_WORDS = ("Pocket", "Everyday", "Sturdy", "Slim")
CATEGORIES = tuple(_CATEGORIES)
N_ITEMS = len(CATEGORIES) * PER_CATEGORY


def items() -> dict[str, list]:
    """The catalogue: columns id, title, price, category, available, text. The same for every seed."""
    out = {name: [] for name in ("id", "title", "price", "category", "available", "text")}
    for category, (mains, extras, low, high) in _CATEGORIES.items():
        mains, extras = mains.split(","), extras.split(",")
        for j in range(PER_CATEGORY):
            if j < MAINS:
                style, rung = divmod(j, RUNGS)
                title = f"{_RUNG_WORDS[rung]} {mains[style]}"
                price = low * (high / low) ** (rung / (RUNGS - 1)) * (1 + 0.07 * style)
                text = f"{title}, number {rung + 1} of {RUNGS} by price among our {mains[style].lower()}s."
            else:
                group, style = divmod(j - MAINS, STYLES)
                title = f"{_ACCESSORY_WORDS[style]} {extras[group]}"
                price = max(2.0, low * (0.12 + 0.05 * group + 0.03 * style))
                text = f"{title}, goes with {mains[style].lower()}s."
            out["id"].append(f"{category.lower()}-{j + 1:02d}")
            out["title"].append(title)
            out["price"].append(round(price) - 0.01 if price >= 5 else round(price, 2))
            out["category"].append(category)
            out["available"].append(0 if j % 18 == 17 and len(category) % 2 else 1)
            out["text"].append(text)
    return out


def _zipf(n: int, rng: np.random.Generator) -> np.ndarray:
    """Shares of n things, summing to 1: rank ** -1 with the first ranks flattened, in random order."""
    share = 1.0 / (np.arange(n) + 2.0)
    return rng.permutation(share / share.sum())


class _Shop:
    """Popularity of categories and items, and the walk that makes the next item of many sessions at once.

    All methods take and return arrays with one entry a session. item = category * PER_CATEGORY + j.
    """

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.category_cdf = np.cumsum(_zipf(len(CATEGORIES), rng))
        self.main_cdf = np.cumsum([_zipf(MAINS, rng) for _ in CATEGORIES], axis=1)
        self.rung_cdf = np.cumsum([[_zipf(RUNGS, rng) for _ in range(STYLES)] for _ in CATEGORIES], axis=2)

    def category(self, n: int) -> np.ndarray:
        return np.minimum(np.searchsorted(self.category_cdf, self.rng.random(n)), len(CATEGORIES) - 1)

    def popular_main(self, category: np.ndarray) -> np.ndarray:
        below = self.main_cdf[category] < self.rng.random(len(category))[:, None]
        return category * PER_CATEGORY + np.minimum(below.sum(axis=1), MAINS - 1)

    def entry(self, category: np.ndarray, style: np.ndarray) -> np.ndarray:
        """First item of a category for a user who likes `style`."""
        below = self.rung_cdf[category, style] < self.rng.random(len(category))[:, None]
        liked = category * PER_CATEGORY + style * RUNGS + np.minimum(below.sum(axis=1), RUNGS - 1)
        return np.where(self.rng.random(len(category)) < 0.75, liked, self.popular_main(category))

    def step(self, item, direction, style, other_category, bought):
        """Next item and direction on the price ladder.

        From a main item: the next rung in the session's direction (turning at the ends), an accessory that
        fits (far more likely after cart or buy), the same rung of the style the user likes, a category the
        user likes, or something popular in this one or anywhere. From an accessory: back to the ladder, its
        sibling, or away.
        """
        n = len(item)
        category, j = np.divmod(item, PER_CATEGORY)
        u = self.rng.random(n)
        main = j < MAINS
        own_style = np.where(main, j // RUNGS, (j - MAINS) % STYLES)
        group = np.where(main, (j % RUNGS) // 2, (j - MAINS) // STYLES)
        rung = np.where(main, j % RUNGS, group * 2)
        turned = np.where((rung + direction < 0) | (rung + direction >= RUNGS), -direction, direction)
        ladder = own_style * RUNGS + rung + turned
        accessory = MAINS + group * STYLES + own_style
        sibling = MAINS + (group + 1) % 3 * STYLES + own_style
        alike = style * RUNGS + rung
        fits = np.where(bought, 0.55, 0.10)
        up_to = [fits, fits + 0.4 * (1.0 - fits), fits + 0.5 * (1.0 - fits)]
        near = np.select(
            [~main & (u < 0.25), ~main & (u < 0.6), ~main, *(u < p for p in up_to)],
            [sibling, ladder, -1, accessory, ladder, alike],
            -1,
        )
        away = self.rng.random(n)
        far = np.select(
            [away < 0.5, away < 0.7],
            [self.entry(other_category, style), self.popular_main(category)],
            self.popular_main(self.category(n)),
        )
        on_ladder = near == ladder
        return (
            np.where(near >= 0, category * PER_CATEGORY + near, far),
            np.where(on_ladder, turned, direction),
        )


def _walk(users: int, rng: np.random.Generator):
    """All sessions, round by round: arrays user, item, kind (1..4), event_ts_ns, dwell_ms, quantity."""
    shop = _Shop(rng)
    sessions = np.minimum(1 + rng.pareto(1.3, users) * 3, 60).astype(np.int64)
    likes = np.stack([shop.category(users), shop.category(users)])
    style = rng.integers(0, STYLES, users)
    ladder = np.where(rng.random(users) < 0.5, 1, -1)
    last_item = np.full(users, -1)
    now_ns = CLICKS_START_NS + (rng.random(users) * 5 * 86_400 * 1e9).astype(np.int64)
    parts = []
    for r in range(int(sessions.max())):
        who = np.nonzero(sessions > r)[0]
        drift = rng.random(len(who)) < 0.12
        likes[0, who] = np.where(drift, likes[1, who], likes[0, who])
        likes[1, who] = np.where(drift, shop.category(len(who)), likes[1, who])
        style[who] = np.where(rng.random(len(who)) < 0.05, rng.integers(0, STYLES, len(who)), style[who])
        pick = rng.random(len(who))
        whim = np.where(pick < 0.9, likes[1, who], shop.category(len(who)))
        category = np.where(pick < 0.65, likes[0, who], whim)
        item = shop.entry(category, style[who])
        resume = (rng.random(len(who)) < 0.3) & (last_item[who] >= 0)
        item = np.where(resume, last_item[who], item)
        direction = np.where(rng.random(len(who)) < 0.85, ladder[who], -ladder[who])
        length = np.minimum(1 + rng.geometric(1 / 7.5, len(who)), 30)
        for s in range(int(length.max())):
            live = length > s
            who, item, direction, length = who[live], item[live], direction[live], length[live]
            bought = _visit(who, item, now_ns, style, rng, parts)
            last_item[who] = item
            item, direction = shop.step(item, direction, style[who], likes[rng.integers(0, 2), who], bought)
        gap_s = 1800 + rng.exponential(60_000, users)
        now_ns += (gap_s * 1e9).astype(np.int64)
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _visit(who, item, now_ns, style, rng, parts) -> np.ndarray:
    """One item page: a view or click, perhaps cart, perhaps buy. Moves now_ns; returns who took the cart."""
    n = len(who)
    accessory = item % PER_CATEGORY >= MAINS
    match = (item % PER_CATEGORY) // RUNGS == style[who]
    dwell_ms = np.round(np.exp(rng.normal(8.6, 0.7, n) + 0.5 * match), 0)
    kind = np.where(rng.random(n) < 0.6, 1, 2)
    nothing = np.full(n, np.nan)
    parts.append((who, item, kind, now_ns[who], dwell_ms, nothing))
    now_ns[who] += ((dwell_ms + rng.exponential(6000, n)) * 1e6).astype(np.int64)
    cart = rng.random(n) < np.where(accessory, 0.16, np.where(match, 0.10, 0.05))
    buy = cart & (rng.random(n) < 0.45)
    quantity = np.where(accessory, rng.geometric(0.7, n), 1).astype(np.float64)
    for chosen, code, wait_s in ((cart, 3, 4.0), (buy, 4, 40.0)):
        w = who[chosen]
        parts.append(
            (w, item[chosen], np.full(len(w), code), now_ns[w], nothing[chosen], quantity[chosen])
        )
        now_ns[w] += ((1 + rng.exponential(wait_s, len(w))) * 1e9).astype(np.int64)
    return cart


def stream_clicks(n: int, seed: int = SEED) -> dict[str, np.ndarray]:
    """n clicks in arrival order, as columns named like the schema `clicks` of streamai.events.

    user_id, item_id, kind: str. event_ts_ns i8: rises for each user; between users it is out of order by
    less than a second, as events from many front ends are. price f8; quantity f8 (cart and buy) and
    dwell_ms f8 (view and click), NaN elsewhere.
    """
    users = n // 45 + 25
    while True:
        rng = np.random.default_rng([seed, 1])
        user, item, kind, ts_ns, dwell_ms, quantity = _walk(users, rng)
        if len(user) >= n:
            break
        users = users * 3 // 2
    delay_ns = rng.integers(0, DISORDER_NS, users)
    order = np.lexsort((np.arange(len(user)), ts_ns + delay_ns[user]))[:n]
    user, item, kind = user[order], item[order], kind[order]
    catalogue = items()
    return {
        "user_id": np.char.add("u", np.char.zfill((user + 1).astype(str), 5)) if n else np.zeros(0, "U6"),
        "item_id": np.array(catalogue["id"])[item],
        "kind": np.array(["", "view", "click", "cart", "buy"])[kind],
        "event_ts_ns": ts_ns[order],
        "price": np.array(catalogue["price"])[item],
        "quantity": quantity[order],
        "dwell_ms": dwell_ms[order],
    }


INSTRUMENTS = (("ALFA", 4_820, 0.0), ("BRVO", 12_150, 0.003), ("CHRL", 31_040, 0.040))
"""Name, first bid in ticks of 0.01, and how many seconds its feed is behind."""
SIGNAL_HALF_LIFE_S = 1.2
MAX_QUEUE = 60
_NOW, _BID, _ASK, _BID_SIZE, _ASK_SIZE, _KIND, _SIDE, _PRICE, _SIZE = range(9)


def _book(n: int, first_bid: int, rng: np.random.Generator) -> np.ndarray:
    """n events of one instrument: f8[n, 9] = time in s, bid, ask, their sizes, kind, side, price, size.

    Times: Hawkes process with one exponential kernel. Queues: a best bid and ask that are filled, cancelled
    and hit; one that runs empty moves the price by a tick. A hidden Ornstein-Uhlenbeck state of half-life
    SIGNAL_HALF_LIFE_S tilts the side of trades, adds and cancels: the planted signal.
    """
    base, jump, decay = 18.0, 9.0, 15.0  # per s; branching ratio 0.6, so 45 events/s in the mean
    theta = math.log(2) / SIGNAL_HALF_LIFE_S
    out = np.empty((n, 9))
    now, excite, tilt = 0.0, 0.0, 0.0
    best, queue = [first_bid, first_bid + 1], [20, 20]  # bid and ask, in ticks and lots
    for i in range(n):
        wait_draw, accept, u_kind, u_side, u_size = rng.random(5).tolist()
        wait = 0.0
        while True:  # Ogata's thinning: the rate only falls between events
            rate = base + excite
            step = -math.log1p(-wait_draw) / rate
            wait += step
            excite *= math.exp(-decay * step)
            if accept * rate <= base + excite:
                break
            wait_draw, accept = rng.random(2).tolist()
        now += wait
        excite += jump
        keep = math.exp(-theta * wait)
        tilt = tilt * keep + math.sqrt(1.0 - keep * keep) * float(rng.standard_normal())
        up = u_side < 1.0 / (1.0 + math.exp(-0.6 * tilt))  # does this event push the price up?
        kind, side, price, size = _push(best, queue, up, u_kind, 1 + int(-4.0 * math.log1p(-u_size)))
        hit, own, tick = (1, 0, 1) if up else (0, 1, -1)
        if queue[hit] == 0:
            best[hit] += tick
            queue[hit] = 10 + int(16 * u_side)
            if u_kind < 0.4:  # the other side follows at once, or leaves a gap that is filled later
                best[own] += tick
                queue[own] = 6 + int(10 * u_size)
        out[i] = (now, *best, *queue, kind, side, price, size)
    return out


def _push(best: list, queue: list, up: bool, u_kind: float, size: int) -> tuple[int, int, int, int]:
    """One order, trade or cancel that pushes the price `up` or down; returns kind, side, price, size."""
    hit, own, side = (1, 0, 1) if up else (0, 1, -1)
    if best[1] - best[0] > 1 and u_kind < 0.7:  # a better price inside a wide spread
        best[own] += side
        queue[own] = size + 2
        return 1, side, best[own], size + 2
    if u_kind < 0.55:  # a trade takes from the queue it hits; a cancelled sell order pushes up as well
        size = min(size, queue[hit])
        queue[hit] -= size
        return (2, side, best[hit], size) if u_kind < 0.22 else (3, -side, best[hit], size)
    size = 1 if queue[own] > MAX_QUEUE else size
    queue[own] += size
    return 1, side, best[own], size


def stream_market(n: int, seed: int = SEED) -> dict[str, np.ndarray]:
    """n market events in arrival order, as columns named like the schema `market` of streamai.events.

    instrument, kind: str. bid, ask, bid_size, ask_size f8: the best prices after the event. price, size,
    side f8: of the order or trade itself; side 1 = buy order or buyer-initiated trade, -1 = the other.
    """
    each = n * 4 // 10 + 200
    while True:
        books = [
            _book(each, first, np.random.default_rng([seed, 2, k]))
            for k, (_, first, _) in enumerate(INSTRUMENTS)
        ]
        seen = [book[:, _NOW] + late for book, (_, _, late) in zip(books, INSTRUMENTS, strict=True)]
        arrival = np.concatenate(seen)
        order = np.argsort(arrival, kind="stable")
        order = order[arrival[order] <= min(times[-1] for times in seen)][:n]
        if len(order) == n:
            break
        each *= 2
    rows = np.concatenate(books)[order]
    price = np.round(rows[:, (_BID, _ASK, _PRICE)] / 100, 2)
    return {
        "instrument": np.repeat([name for name, _, _ in INSTRUMENTS], each)[order],
        "kind": np.array(["", "quote", "trade", "cancel"])[rows[:, _KIND].astype(np.int64)],
        "event_ts_ns": MARKET_START_NS + (rows[:, _NOW] * 1e6).astype(np.int64) * 1000,
        "bid": price[:, 0],
        "ask": price[:, 1],
        "bid_size": rows[:, _BID_SIZE] * 100,
        "ask_size": rows[:, _ASK_SIZE] * 100,
        "price": price[:, 2],
        "size": rows[:, _SIZE] * 100,
        "side": rows[:, _SIDE],
    }


def generate(clicks: int = 4000, market: int = 4000, seed: int = SEED, out: str | pathlib.Path = ".") -> dict:
    """Write items.csv, clicks.parquet and market.parquet into `out`; return their paths by name."""
    import polars as pl

    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"items": folder / "items.csv"}
    with paths["items"].open("w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f, lineterminator="\n")
        catalogue = items()
        rows.writerow(catalogue)
        rows.writerows(zip(*catalogue.values(), strict=True))
    for name, n, make in (("clicks", clicks, stream_clicks), ("market", market, stream_market)):
        paths[name] = folder / f"{name}.parquet"
        frame = pl.DataFrame(make(n, seed)).with_columns(pl.selectors.float().fill_nan(None))
        frame.write_parquet(paths[name], compression="zstd", compression_level=9)
    return paths


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="make click and market events from a seed")
    parser.add_argument("--clicks", type=int, default=4000, help="number of click events (4000)")
    parser.add_argument("--market", type=int, default=4000, help="number of market events (4000)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", default=str(pathlib.Path(__file__).parent), help="folder to write into")
    args = parser.parse_args(argv)
    for name, path in generate(args.clicks, args.market, args.seed, args.out).items():
        print(f"{name:8s} {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

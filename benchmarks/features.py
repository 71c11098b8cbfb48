"""Time and memory of building all features on a large simulated history: python benchmarks/features.py --races 85000"""

import argparse
import resource
import time

from racing_core.features.matrix import History, compute, names
from racing_core.simulate import simulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--races",
        type=int,
        default=85_000,
        help="races of the simulated history, about 12 starters each",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    rows = []

    def timed(step: str, call):
        began = time.perf_counter()
        result = call()
        rows.append((step, time.perf_counter() - began, peak()))
        return result

    starts = timed("simulate", lambda: simulate(races=args.races, seed=args.seed).starts())
    history = timed("learn history", lambda: History.learn(starts))
    frame = timed(f"compute {len(names())} features", lambda: compute(starts, history))
    card = starts.filter(starts["race_id"] == starts["race_id"][-1])
    latest = timed("keep the latest rows", lambda: history.since(starts["date"].max()))
    compute(card, latest)  # the first one makes the index of the history
    cards = [timed("features of one card", lambda: compute(card, latest)) for _ in range(50)]
    times = sorted(row[1] for row in rows[-len(cards) :])
    rows[-len(cards) :] = [
        (f"one card, {what} of {len(cards)}", 1000 * times[i], peak())
        for what, i in (("median", 25), ("slowest", -1))
    ]
    print(
        f"{len(starts):,} starters, {frame.width - 3}"
        f" features\n{'step':28}{'time':>12}{'peak MB':>9}"
    )
    for step, took, mb in rows:
        print(f"{step:28}{took:9.2f}{' ms' if 'one card' in step else ' s '}{mb:9.0f}")


if __name__ == "__main__":
    main()

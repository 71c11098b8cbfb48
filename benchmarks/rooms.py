"""Time and memory of the simulator and the rooms up to the bets: python benchmarks/rooms.py --races 6400"""

import argparse
import resource
import time

from racing_core import starts as st
from racing_core.betting import exotics
from racing_core.features.matrix import build, matrix
from racing_core.metrics import summary
from racing_core.models.base import Outcomes, relative
from racing_core.models.preprocess import FeatureSelector, MulticollinearityReducer
from racing_core.models.zoo import zoo
from racing_core.simulate import simulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--races",
        type=int,
        default=6_400,
        help="races of the simulated history, about 12 starters each",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--models", action="store_true", help="also fit every model of the zoo once, on all races"
    )
    args = parser.parse_args()

    def timed(step: str, call):
        began = time.perf_counter()
        result = call()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{step:44}{time.perf_counter() - began:9.2f} s{peak:9.0f} MB", flush=True)
        return result

    world = timed(f"simulate {args.races:,} races", lambda: simulate(args.races, args.seed))
    starts = world.starts()
    X, y, race = matrix(build(starts)), Outcomes.of(starts), st.race_codes(starts)
    p, position = starts["true_p"].to_numpy(), st.positions(starts)
    days = starts["date"].to_numpy()
    timed("every figure of one board", lambda: summary(p, y.win, position, race, days))
    print(f"{args.races:,} races, {len(X):,} starters, {len(X.columns)} features")
    Z = timed("values relative to the race", lambda: relative(X))
    Z = Z[:, Z.std(axis=0) > 0]
    won = y.win > 0
    timed(f"collinear columns of {Z.shape[1]}", lambda: MulticollinearityReducer().fit(Z, won))
    timed("select 30 columns", lambda: FeatureSelector().fit(Z[:, :60], won))
    powers = timed("stage powers of four places", lambda: exotics.fit(p, position, race))
    for n in (2, 3):
        timed(f"place chances, {n} places", lambda n=n: exotics.place(p, race, n))
    for name, model in (
        ("Harville", exotics.harville),
        ("stage powers", exotics.stage_powers(powers)),
    ):
        for pool in ("exacta", "trifecta"):
            timed(
                f"joint loss, {pool}, {name}",
                lambda pool=pool, model=model: exotics.joint_loss(p, position, race, pool, model),
            )
    for name, model in zoo().items() if args.models else ():
        timed(f"fit {name}", lambda model=model: model.fit(X, y))


if __name__ == "__main__":
    main()

"""How much of what a wrong market gives up is recovered: python benchmarks/simulator.py --races 20000

Gains are expectations under the true probabilities, so that luck of the test races is not counted.
`learnable` is the gain of the public's own belief without its habits; the rest of the oracle's gain
is hidden from everybody by accidents. `--inefficiency` is what the market gives up, .03 by default.
"""

import argparse
import warnings
from datetime import timedelta

import numpy as np

from racing_core import starts as st
from racing_core.betting import backtest as betting
from racing_core.betting.staking import cap, fractional_kelly, minimum_edge
from racing_core.lab.backtest import backtest
from racing_core.market import likelihood_weights
from racing_core.metrics import delta_r2
from racing_core.odds import softmax
from racing_core.simulate import simulate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--races", type=int, default=20_000)
    parser.add_argument("--inefficiency", type=float, default=0.03)
    parser.add_argument("--takeout", type=float, default=0.175)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    world = simulate(args.races, args.seed, inefficiency=args.inefficiency, takeout=args.takeout)
    starts = world.starts()
    found = backtest(starts, starts["date"].max() - timedelta(365))
    p = found.predictions.join(
        world.truth.select("race_id", "runner_no", "learnable_p"),
        on=["race_id", "runner_no"],
        how="left",
        maintain_order="left",
    )
    race, truth = st.race_codes(p), p["true_p"].to_numpy()
    win, day, odds, market, combined, learnable = (
        p[c].to_numpy() for c in ("win", "date", "odds", "market", "combined", "learnable_p")
    )
    learnable = softmax(
        np.log(learnable) * likelihood_weights(np.log(learnable)[:, None], truth, race), race
    )

    def gain(q: np.ndarray) -> float:
        "Expected R² over the recalibrated market."
        return float(truth @ np.log(q / market) / (truth @ np.log(np.bincount(race)[race])))

    print(
        f"{race[-1] + 1:,} test races of {args.races:,}, inefficiency {args.inefficiency:.0%},"
        f" takeout {args.takeout:.1%}"
    )
    for name, q in (("oracle", truth), ("learnable", learnable), ("combined", combined)):
        print(f"  expected gain of {name:<10}{gain(q):+.5f}")
    if args.inefficiency:
        print(
            f"  combined reaches          {gain(combined) / gain(learnable):.0%} of the learnable,"
            f" {gain(combined) / gain(truth):.0%} of the oracle's"
        )
    seen = delta_r2(combined, market, win, race, day)
    print(f"  seen                      {seen.value:+.5f} [{seen.low:+.5f}, {seen.high:+.5f}]")
    for edge in (0.0, 0.02, 0.05):
        for name, q in (("combined", combined), ("oracle", truth)):
            f = betting.figures(
                betting.run(
                    q, odds, win, race, day, fractional_kelly(0.25), (minimum_edge(edge), cap(0.02))
                )
            )
            said = (
                f"  return {f['roi']:+.3f} [{f['roi_ci'][0]:+.3f}, {f['roi_ci'][1]:+.3f}]"
                if f["bets"]
                else "  none"
            )
            print(f"  bets of {name:<9} on edges above {edge:.0%}{f['bets']:>8,}{said}")


if __name__ == "__main__":
    main()

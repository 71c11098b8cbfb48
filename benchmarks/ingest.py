"""Time and memory of ingesting the results of a source: python benchmarks/ingest.py hkjc FOLDER"""

import argparse
import resource
import tempfile
from pathlib import Path

from racing_core.config import Home
from racing_core.data.ingest import SOURCES, ingest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", choices=sorted(SOURCES))
    parser.add_argument("folder", help="where the results are")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        account = ingest(args.source, args.folder, Home(Path(folder), ""))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{account.rows_read:,} rows read, {account.starters:,} starters kept")
    print(f"{account.seconds:.1f} s, {peak:.0f} MB")


if __name__ == "__main__":
    main()

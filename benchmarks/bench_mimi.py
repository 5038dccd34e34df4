"""Mimi beside its peers: offline (one clip) or live (80 ms frames), with random full-size weights.

    python benchmarks/bench_mimi.py [--live] [--compile] [--seconds 10] [--rounds 7] [--threads 2]

What `phonograph bench` does (phonograph.benchmarks), ended with one JSON line. Peers that are not installed are left out.
"""

import argparse
import json

from phonograph.benchmarks import Options, run
from phonograph.cli.bench import print_report


def main() -> None:
    """Measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--compile", action="store_true", dest="compiled")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    report = run(Options(**vars(parser.parse_args())))
    print_report(report)
    print(json.dumps(report.to_dict()))


if __name__ == "__main__":
    main()

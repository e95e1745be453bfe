"""Thousands of wrong calls of each public function: a promise kept, or the package's error with nothing changed.

    python tests/faults/sweep_wrong_input.py [--examples 2000] [--seed 0] [--only NAME]

Some ten minutes of one core. Ends with status 1 where a call did anything else.
"""

import argparse
import logging
import sys
import time
import traceback

import wrong_input
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from mmengine.logging import MMLogger


def run(name, examples, number):
    """The first wrong call of a check, made as small as possible, or None; and how many were made."""
    calls = [0]

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        print_blob=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data):
        calls[0] += 1
        wrong_input.CHECKS[name](data)

    try:
        check()
    except BaseException:
        return traceback.format_exc(), calls[0]
    return None, calls[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--examples', type=int, default=2000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', choices=wrong_input.CHECKS)
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    wrong = total = 0
    for name in [args.only] if args.only else wrong_input.CHECKS:
        start = time.time()
        found, calls = run(name, args.examples, args.seed)
        total, wrong = total + calls, wrong + (found is not None)
        print(f'{name}: {calls} calls, {"WRONG" if found else "as promised"}, {time.time() - start:.0f} s', flush=True)
        if found:
            print(found[-3500:], flush=True)
    print(f'{total} calls, {wrong} of {1 if args.only else len(wrong_input.CHECKS)} functions wrong')
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())

"""Plant faults one at a time into the modules where results are made, and count those that the tests let pass."""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from data_selection.commands.shared import make_parser
from data_selection.common.errors import UserError
from data_selection.judging.report import markdown_table
from tests.support.mutant_tables import TESTS
from tests.support.mutants import ROOT, Copy, draw, failed_in, tests_of


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--count", type=int, default=80, help="faults, spread evenly over the modules")
    parser.add_argument("--seed", type=int, default=0, help="which faults")
    parser.add_argument("--jobs", type=int, default=1, help="copies of the repository that are tested at once")
    parser.add_argument("--only", default="", metavar="PATH", help="modules whose path from the root begins like this")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for the tests of one fault")
    args = parser.parse_args(argv)
    faults = draw(args.count, args.seed, args.only)
    if not faults:
        raise UserError(f"--only {args.only!r} is none of {', '.join(TESTS)}")
    copies, rows = SimpleQueue(), []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as threads:
        for number in range(args.jobs):
            copies.put(Copy(Path(folder) / str(number), args.limit))

        def judged(fault):
            copy, began = copies.get(), time.monotonic()
            word, how = copy.judge(fault)
            copies.put(copy)
            source = (ROOT / fault.path).read_bytes()
            if word == "survived" and (why := fault.harmless(source)):
                word, how = "changes nothing", why
            row = [f"{fault.kind}: {fault.told(source)}", f"{fault.path}:{fault.line}", word, how]
            print(f"{word:9} {time.monotonic() - began:5.1f} s {row[1]} {row[0]} [{how}]", flush=True)
            return row

        try:
            check_sound(copies, faults)
            rows = list(threads.map(judged, faults))
        finally:
            while not copies.empty():
                copies.get().close()
    lived = [row for row in rows if row[2] == "survived"]
    print(markdown_table(["fault", "place", "", "by"], [[cell.replace("|", "/") for cell in row] for row in rows]))
    counted = [row for row in rows if row[2] in ("killed", "survived")]
    share = f"{100 * len(lived) / max(1, len(counted)):.1f} %"
    others = len(rows) - len(counted)
    print(f"{len(lived)} of {len(counted)} faults survive ({share}); {others} change nothing or took too long")


def check_sound(copies, faults):
    """Raise UserError where the tests fail without a fault, which would count every fault as found."""
    copy = copies.get()
    tests = sorted({test for fault in faults for test in tests_of(fault.path)})
    status, said = copy.run(tests, copy.limit * len(tests))
    copies.put(copy)
    if status != "0":
        raise UserError(f"the tests fail without any fault ({status}): {failed_in(said)}")

"""What an experiment's missing cells may take, by what finished ones took."""

import json
import math
import statistics
from collections import Counter


def forecast(cells, records, jobs):
    """Lines that list the cells and estimate the time of the missing ones over `jobs` processes.

    A list's time is the median of the same method and budget in the same pool, or else of the same method and pool in
    proportion to the budget; an evaluation's that of the same one in the same pool, by the nearest budget, and in
    proportion to it for trainings. What was never measured is said, and not counted.
    """
    done = [cell for cell in cells if cell.digest in records]
    todo = list({cell.digest: cell for cell in cells if cell.digest not in records}.values())
    lines = [f"{what(cell)}  {'done' if cell.digest in records else 'to do'}" for cell in cells]
    choosing, judging = {}, {}
    for cell in done:
        record = records[cell.digest]
        choosing.setdefault((cell.pool, cell.chosen["method"]), []).append(record["seconds_choosing"] / cell.budget)
        judging.setdefault(evaluation(cell), {}).setdefault(cell.budget, []).append(record["seconds"])
    listed = {cell.list_digest for cell in done}
    seconds, unknown = 0.0, Counter()
    for cell in todo:
        if cell.list_digest not in listed:
            listed.add(cell.list_digest)
            rates = choosing.get((cell.pool, cell.chosen["method"]))
            if rates:
                seconds += statistics.median(rates) * cell.budget
            else:
                unknown[f"choosing by {cell.method} in {cell.pool}"] += 1
        if times := judging.get(evaluation(cell)):
            near = min(times, key=lambda budget: (abs(math.log(budget / cell.budget)), budget))
            seconds += statistics.median(times[near]) * (cell.budget / near if cell.judged["kind"] == "trainer" else 1)
        else:
            unknown[f"{cell.evaluation} in {cell.pool}"] += 1
    time = f"{told(seconds / jobs)} by what finished ones took" if seconds or not todo else "nothing measured yet"
    lines.append(f"{len(cells)} cells, {len(todo)} to do: {time}")
    lines += [f"  and {count} times {name}, of which none is finished yet" for name, count in unknown.items()]
    return "\n".join(lines)


def evaluation(cell):
    """What takes about the same time for lists of one size: a pool, and how it is judged."""
    return cell.pool, json.dumps(cell.judged, sort_keys=True, default=str)


def what(cell):
    return f"{cell.pool}, {cell.evaluation}, {cell.method}, {cell.asked} ({cell.budget}), seed {cell.seed}"


def told(seconds):
    """Seconds as the largest unit that gives a number from 1."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"

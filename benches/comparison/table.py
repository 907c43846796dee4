"""What is printed: medians, ratios, CPU, what is written per byte, and what of the goals holds."""

import statistics

from .rows import AFTERIMAGE, LARGER_IS_BETTER, RAW, UNITS


def median(runs, figure):
    values = [run[figure] for run in runs if run[figure] is not None]
    return statistics.median(values) if values else None


def best(medians, peers, figure):
    there = [medians[peer] for peer in peers if peer in medians]
    return (max if LARGER_IS_BETTER[figure] else min)(there) if there else None


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def cell(runs, figure):
    values = [run[figure] for run in runs]
    return f"{number(statistics.median(values))} ({number(min(values))}..{number(max(values))})"


def goal_text(row, goal, medians, ours, per_byte):
    peer = best(medians, goal.peers, row.figure)
    if peer is None:
        return None, f"{goal.text()}: not run"
    if goal.peers == (RAW,):
        peer /= per_byte
    ratio = ours / peer
    holds = goal.holds(ratio)
    of = f"{RAW} ÷ {per_byte:.2f} written per byte" if goal.peers == (RAW,) else " or ".join(goal.peers)
    return holds, f"{ratio:.2f} × {of} ({goal.text()}): {'holds' if holds else 'MISSED'}"


def print_table(rows, results):
    """Prints a Markdown table; whether every goal holds that was looked at."""
    all_hold = True
    print("| row | afterimage | peers | goals | CPU µs an I/O | written per byte |\n|---|---|---|---|---|---|")
    for name, row in rows.items():
        runs = {server: results.of(name, server) for server in row.servers}
        runs = {server: found for server, found in runs.items() if found}
        if AFTERIMAGE not in runs:
            continue
        medians = {server: median(found, row.figure) for server, found in runs.items()}
        per_byte = median(runs[AFTERIMAGE], "written_per_byte")
        texts = []
        for goal in row.goals:
            holds, text = goal_text(row, goal, medians, medians[AFTERIMAGE], per_byte or 1.0)
            all_hold &= holds is not False
            texts.append(text)
        peers = "; ".join(f"{server} {cell(found, row.figure)}" for server, found in runs.items() if server != AFTERIMAGE)
        cpu = "; ".join(f"{server} {median(found, 'cpu_us_an_io'):.1f}" for server, found in runs.items() if server != RAW)
        written = "" if per_byte is None else f"{per_byte:.2f}"
        print(f"| {row.what}, {UNITS[row.figure]} | {cell(runs[AFTERIMAGE], row.figure)} | {peers} | "
              f"{'; '.join(texts)} | {cpu} | {written} |")
    return all_hold

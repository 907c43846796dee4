"""One run of one row against one server, and where the runs are kept."""

import json
import os
import subprocess
import sys

from .rows import MIB, RAW
from .servers import SERVERS

JOBS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "fio")


class Results:
    """Every run so far, one line of JSON each, so that a comparison that was cut off goes on."""

    def __init__(self, path, settings):
        self.path = path
        self.runs = []
        if os.path.exists(path):
            with open(path) as file:
                lines = [json.loads(line) for line in file]
            if lines and lines[0] != settings:
                sys.exit(f"{path} holds runs with other settings: {lines[0]}; name another file with --results")
            self.runs = lines[1:]
        else:
            self._append(settings)

    def _append(self, line):
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def add(self, run):
        self._append(run)
        self.runs.append(run)

    def of(self, row, server):
        return [run for run in self.runs if (run["row"], run["server"]) == (row, server)]

    def has(self, row, server, number):
        return any(run["number"] == number for run in self.of(row, server))


def fio(job, environment):
    done = subprocess.run(["fio", "--output-format=json", f"{job}.fio"], cwd=JOBS, capture_output=True, text=True,
                          env=os.environ | {key: str(value) for key, value in environment.items()})
    if done.returncode:
        sys.exit(f"fio {job}: {done.stderr or done.stdout}")
    return json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]


def percentile(times, which):
    return times.get("percentile", {}).get(which, 0) / 1e3


def figures(job):
    sides = [job[side] for side in ("read", "write") if job[side]["total_ios"]]
    flush = job["sync"].get("lat_ns", {})
    median = max(percentile(side["clat_ns"], "50.000000") for side in sides)
    return {
        "iops": sum(side["iops"] for side in sides),
        "mb_s": sum(side["bw_bytes"] for side in sides) / 1e6,
        "median_us": median,
        "flushed_us": median + percentile(flush, "50.000000"),
        "p99_us": max(percentile(side["clat_ns"], "99.000000") for side in sides),
        "bytes": sum(side["io_bytes"] for side in sides),
        "written": job["write"]["io_bytes"],
        "ios": sum(side["total_ios"] for side in sides),
    }


def run(name, row, server_name, number, directory, options):
    """Runs a row once against a server that is started anew; what came of it."""
    server = SERVERS[server_name](directory, options.region, row, options)
    environment = {"SIZE": options.region, "RUNTIME": options.sustained_seconds if row.sustained else options.seconds,
                   "COMPRESSIBLE": options.compressible}
    if server_name == RAW:
        job = fio("raw-write", environment | {"FILE": server.file})
        cpu = written = 0.0
    else:
        environment["URI"] = server.uri
        if row.filled:
            fio("fill", environment | {"FILL": options.region})
        if row.sustained:
            # Twice the journal, and the whole region at least, so that no server still allocates.
            fio("fill", environment | {"FILL": max(options.region, 2048 * MIB)})
        elif not row.filled and server.aged_by:
            # As any server is after its first day: nothing is allocated, or zero-filled, any more.
            fio("fill", environment | {"FILL": max(options.region, server.aged_by)})
            server.settle()
        if row.settled:
            server.settle()
            drop_caches()
        before = server.usage()
        job = fio(row.job, environment)
        cpu, written = (after - then for after, then in zip(server.usage(), before))
    found = figures(job)
    server.stop()
    result = {"row": name, "server": server_name, "number": number, "cpu_us_an_io": cpu * 1e6 / max(found["ios"], 1),
              "written_per_byte": written / found["written"] if found["written"] else None} | found
    return result


def drop_caches():
    """What was written through the page cache is read from the disk, as it is of those who bypass it."""
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("1\n")
    except OSError as error:
        sys.exit(f"rows that read from the image need an empty page cache: {error}; run this as root")

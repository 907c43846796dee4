"""The rows of the comparison: what is run, what is looked at, and what is to be reached.

A row names one of the fixed jobs in `benches/fio`, how the disk is made ready before it, and goals. *Burst*: a journal of
12 GiB that has turned over before absorbs everything; every server has written its whole region before. *Sustained*: a journal of 1 GiB has turned over twice before the clock starts, so that images are
written at the rate of the writes.
"""

from dataclasses import dataclass, field

MIB = 1 << 20
GIB = 1 << 30

AFTERIMAGE, QEMU, FILE, NULL, RAW = "afterimage", "qemu-nbd", "nbdkit file", "nbdkit null", "raw"


@dataclass(frozen=True)
class Goal:
    """`figure` of ours, compared with `factor` times the best of `peers`."""

    relation: str
    factor: float
    peers: tuple

    def text(self):
        relation = {">=": "at least", "<=": "at most"}[self.relation]
        return f"{relation} {self.factor:g} × {' or '.join(self.peers)}"

    def holds(self, ratio):
        return ratio >= self.factor if self.relation == ">=" else ratio <= self.factor


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    job: str
    what: str
    figure: str
    goals: tuple
    sustained: bool = False
    # Written before the clock starts: the whole region, so that reads find data.
    filled: bool = False
    # Whether reads wait until images hold all that was written.
    settled: bool = False
    # How often recovery points are made; none unless said, so that there is a journal and an image, and nothing in a vault.
    interval: str | None = None
    peers: tuple = (QEMU,)
    # Ours is compared with the raw disk's rate divided by what is written per byte.
    against_raw: bool = False
    servers: tuple = field(init=False)

    def __post_init__(self):
        servers = (AFTERIMAGE, *self.peers, *((RAW,) if self.against_raw else ()))
        object.__setattr__(self, "servers", servers)


def at_least(factor, *peers):
    return Goal(">=", factor, peers)


def at_most(factor, *peers):
    return Goal("<=", factor, peers)


ALL = (QEMU, FILE, NULL)
BEST = (FILE, QEMU)

ROWS = {
    "4k-qd32": Row("write-4k-qd32", "4 KiB random write, depth 32, burst", "iops",
                   (at_least(2.0, QEMU), at_least(0.75, NULL)), peers=ALL),
    "4k-qd32-sustained": Row("write-4k-qd32", "4 KiB random write, depth 32, sustained", "iops",
                             (at_least(1.2, QEMU),), sustained=True, peers=(QEMU, FILE)),
    "4k-qd32-4conn": Row("write-4k-qd32-4conn", "4 KiB random write, depth 32, 4 connections, burst", "iops",
                         (at_least(2.0, QEMU),), peers=ALL),
    "4k-qd1": Row("write-4k-qd1", "4 KiB random write, depth 1, median", "median_us", (at_most(0.8, QEMU),), peers=ALL),
    "4k-qd1-flush": Row("write-4k-qd1-flush", "4 KiB random write, depth 1, a flush after each, median of both together",
                        "flushed_us", (at_most(0.8, *BEST),), peers=(QEMU, FILE)),
    "64k-qd16": Row("write-64k-qd16", "64 KiB write, depth 16, burst", "mb_s", (at_least(1.3, QEMU),), peers=ALL),
    "1m-qd8": Row("write-1m-qd8", "1 MiB write, depth 8, burst", "mb_s", (at_least(1.0, FILE),), peers=ALL),
    "64k-qd16-sustained": Row("write-64k-qd16", "64 KiB write, depth 16, sustained", "mb_s", (at_least(0.85, RAW),),
                              sustained=True, peers=(QEMU, FILE), against_raw=True),
    "1m-qd8-sustained": Row("write-1m-qd8", "1 MiB write, depth 8, sustained", "mb_s", (at_least(0.85, RAW),),
                            sustained=True, peers=(QEMU, FILE), against_raw=True),
    "4k-read-image": Row("read-4k-qd32", "4 KiB random read, depth 32, from the image", "iops", (at_least(1.3, *BEST),),
                         filled=True, settled=True, peers=(QEMU, FILE)),
    "4k-read-journal": Row("read-4k-qd32", "4 KiB random read, depth 32, just written", "iops", (at_least(1.3, *BEST),),
                           filled=True, peers=(QEMU, FILE)),
    "8k-mixed": Row("mixed-8k-qd32", "70/30 mixed 8 KiB, depth 32, p99", "p99_us", (at_most(0.7, QEMU),), filled=True,
                    settled=True, peers=(QEMU, FILE)),
    "zipf-sustained": Row("write-zipf-4k-qd32", "zipf(1.1) 4 KiB overwrites, depth 32, sustained", "iops",
                          (at_least(2.0, QEMU),), sustained=True, peers=(QEMU, FILE)),
    "4k-qd32-vault": Row("write-4k-qd32", "4 KiB random write, depth 32, sustained, with a recovery point each second",
                         "iops", (at_least(0.9, QEMU),), sustained=True, interval="1s", peers=(QEMU,)),
}

# What a run takes of each figure: the larger the better, or the smaller.
LARGER_IS_BETTER = {"iops": True, "mb_s": True, "median_us": False, "flushed_us": False, "p99_us": False}
UNITS = {"iops": "IOPS", "mb_s": "MB/s", "median_us": "µs", "flushed_us": "µs", "p99_us": "µs"}

"""The servers that are compared: each a process that serves one disk of the same size on a unix socket."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

from .rows import AFTERIMAGE, FILE, GIB, NULL, QEMU, RAW

START_S = 20
STOP_S = 120
SETTLE_S = 300
BURST_JOURNAL_GIB = 12


class Server:
    """A process that serves one export."""

    # Bytes to write before a burst, so that what is made once, at a first write, is there.
    aged_by = 1

    def __init__(self, directory, name, size):
        self.name = name
        self.size = size
        self.directory = os.path.join(directory, name.replace(" ", "-"))
        os.makedirs(self.directory)
        self.socket = os.path.join(self.directory, "s")
        self.uri = f"nbd+unix:///?socket={self.socket}"
        self.process = None

    def start(self, command, ready):
        self.log = open(os.path.join(self.directory, "log"), "w+")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + START_S
        while not os.path.exists(ready):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                sys.exit(f"{self.name} did not start: {' '.join(command)}\n{self.log.read()}")
            time.sleep(0.02)

    def image(self):
        """A sparse raw file, as the gateway's own images are."""
        path = os.path.join(self.directory, "d.raw")
        with open(path, "wb") as file:
            file.truncate(self.size)
        return path

    def settle(self):
        """Returns once what was written is where it stays."""
        os.sync()

    def usage(self):
        """Seconds of CPU and bytes handed to the disk since the start."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        with open(f"/proc/{self.process.pid}/io") as file:
            written = next(int(line.split()[1]) for line in file if line.startswith("write_bytes"))
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), written

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        shutil.rmtree(self.directory)


class Afterimage(Server):
    """This gateway: sealing and checksums on."""

    def __init__(self, directory, size, row, options):
        super().__init__(directory, AFTERIMAGE, size)
        self.binary = options.binary
        data = os.path.join(self.directory, "data")
        os.makedirs(data)
        config = os.path.join(self.directory, "c.toml")
        journal = (1 if row.sustained else BURST_JOURNAL_GIB) * GIB
        # Segments are zero-filled once, and serve again from then on.
        self.aged_by = journal
        with open(config, "w") as file:
            file.write(f'[site]\nname = "bench"\ndata_dir = "{data}"\n[log]\nlevel = "warn"\n'
                       f'[journal]\nsize = "{journal}"\n')
        self.api = os.path.join(data, "api.sock")
        self.start([self.binary, "serve", "--config", config], self.api)
        self.makes_points = row.interval is not None
        self.run("group", "create", "b", *(() if self.makes_points else ("--no-points",)))
        self.run("disk", "create", "b/d", "--size", str(size))
        if self.makes_points:
            self.run("policy", "set", "b", "--interval", row.interval)
        self.uri = f"nbd+unix:///b/d?socket={data}/nbd.sock"

    def run(self, *verb):
        done = subprocess.run([self.binary, "--socket", self.api, *verb], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"afterimage {' '.join(verb)}: {done.stderr}")
        return done.stdout

    def settle(self):
        if self.makes_points:
            # What a point holds, the journal need not.
            self.run("point", "create", "b")
        deadline = time.monotonic() + SETTLE_S
        while True:
            ladder = json.loads(self.run("status", "--json"))["groups"][0]["lsn"]
            if ladder["destaged"] >= ladder["visible"]:
                break
            if time.monotonic() > deadline:
                sys.exit(f"the journal was not destaged within {SETTLE_S} s: {ladder}")
            time.sleep(0.1)
        super().settle()


class QemuNbd(Server):
    def __init__(self, directory, size, _row, _options):
        super().__init__(directory, QEMU, size)
        self.start(["qemu-nbd", "--persistent", "--format=raw", "--cache=none", "--aio=io_uring", "--shared=8",
                    f"--socket={self.socket}", self.image()], self.socket)


class NbdkitFile(Server):
    def __init__(self, directory, size, _row, _options):
        super().__init__(directory, FILE, size)
        self.start(["nbdkit", "--foreground", f"--unix={self.socket}", "file", self.image()], self.socket)


class NbdkitNull(Server):
    aged_by = 0

    def __init__(self, directory, size, _row, _options):
        super().__init__(directory, NULL, size)
        self.start(["nbdkit", "--foreground", f"--unix={self.socket}", "null", f"size={size}"], self.socket)


class Raw:
    """No server: a file on the same disk, written once before."""

    def __init__(self, directory, size, _row, _options):
        self.name = RAW
        self.directory = os.path.join(directory, "raw")
        os.makedirs(self.directory)
        self.file = os.path.join(self.directory, "d.raw")
        with open(self.file, "wb") as file:
            for _ in range(size >> 26):
                file.write(b"\xa5" * (1 << 26))
            os.fsync(file.fileno())

    def settle(self):
        os.sync()

    def usage(self):
        return 0.0, 0

    def stop(self):
        shutil.rmtree(self.directory)


SERVERS = {AFTERIMAGE: Afterimage, QEMU: QemuNbd, FILE: NbdkitFile, NULL: NbdkitNull, RAW: Raw}


def version(command):
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout or done.stderr).splitlines()[0]

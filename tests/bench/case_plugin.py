"""Random writes through an NBD server that records them, and through one that does not."""
import json
import math
import os
import subprocess
import sys
import time

from contest import BUILD, K, Command, call, contest, size_text, tool

PLUGIN = os.path.join(BUILD, "lib", "nbdkit", "plugins", "nbdkit-tidemark-plugin.so")


class Server:
    """nbdkit with a plugin, started anew before each run."""

    def __init__(self, top, name, words):
        self.socket, self.pid = (os.path.join(top, f"{name}.{end}") for end in ("sock", "pid"))
        self.words, self.process = words, None

    def start(self):
        self.stop()
        self.process = subprocess.Popen(["nbdkit", "-f", "-U", self.socket, "-P", self.pid, *self.words],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not os.path.exists(self.pid):
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"nbdkit {' '.join(self.words)} does not start")
            time.sleep(0.01)

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process = None
        for path in (self.socket, self.pid):
            if os.path.exists(path):
                os.unlink(path)


def plugin(top, size, writes, runs):
    """4 KiB at random places; the granules are clean before each run, so that most writes are the first to theirs, or
    all dirty.  fio's own start is in the times, and so is a sync of the image."""
    ours, theirs = (os.path.join(top, name) for name in ("ours.img", "theirs.img"))
    for image in (ours, theirs):
        call(["fallocate", "-l", size, image])
    call([tool("bitmap-add"), "-f", "raw", ours, "b"])
    recording = Server(top, "ours", [PLUGIN, f"file={ours}"])
    plain = Server(top, "theirs", ["file", theirs])

    def fio(server):
        return ["fio", "--name=x", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={server.socket}", "--rw=randwrite", "--bs=4k",
                "--iodepth=16", f"--size={size}", f"--number_ios={writes}", "--norandommap", "--randrepeat=1"]

    for dirty in (True, False):
        def before():
            recording.stop()
            call([tool("bitmap-clear"), ours, "b"])
            if dirty:
                call([tool("bitmap-mark"), ours, "b", 0, size])
            recording.start()
            plain.start()

        def verify(c):
            recording.stop()
            plain.stop()
            count = json.loads(call([tool("bitmap-list"), "--output=json", ours]))["return"][0]["count"]
            granules = size // (64 * K)
            if c.writes == ours and count < 0.95 * size * (1 - math.exp(-writes / granules)):  # what so many random places hit
                sys.exit(f"{c.name}: only {count} bytes are dirty")

        try:
            contest(f"{writes} random writes of 4 KiB to {size_text(size)} over NBD, granules "
                    f"{'dirty already' if dirty else 'clean before'}", [
                        Command("nbdkit tidemark", fio(recording), ours, before),
                        Command("nbdkit file (records nothing)", fio(plain), theirs, before),
                    ], runs, verify)
        finally:
            recording.stop()
            plain.stop()
    for image in (ours, theirs, ours + ".bitmaps"):
        os.unlink(image)

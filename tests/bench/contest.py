"""The contenders, and the contest: who runs when, what is measured, what is printed."""
import os
import statistics
import subprocess
import sys
import time

K, M, G, T = 1 << 10, 1 << 20, 1 << 30, 1 << 40
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("BUILD", os.path.join(ROOT, "build")))


def tool(name):
    return os.path.join(BUILD, "bin", name)


def call(argv):
    p = subprocess.run([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT)
    if p.returncode:
        sys.exit(f"{' '.join(map(str, argv))} ended with {p.returncode}: {p.stdout.decode(errors='replace')}")
    return p.stdout


def sync_file(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def size_text(n):
    for unit, name in ((T, "TiB"), (G, "GiB"), (M, "MiB"), (K, "KiB")):
        if n >= unit and n % unit == 0:
            return f"{n // unit} {name}"
    return f"{n} bytes"


class Command:
    """A program started anew for each run; the file it writes is then synced inside the measured time.
    made: that file if it is to be removed after the run."""

    def __init__(self, name, argv, writes, before=None, made=None):
        self.name, self.argv, self.writes, self.before, self.made = name, [str(a) for a in argv], writes, before, made

    def measure(self):
        """(seconds, CPU seconds)"""
        begin = time.monotonic()
        p = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        if p.returncode == 0:
            sync_file(self.writes)
        seconds = time.monotonic() - begin
        if p.returncode:
            call(self.argv)  # to show what it says
            sys.exit(f"{' '.join(self.argv)} ended with {p.returncode}, then succeeded")
        return seconds, usage.ru_utime + usage.ru_stime

    def peak(self):
        """Peak memory in KiB, by a run of its own.  A process inherits the peak of the one that starts
        it, so a shell starts it in the background and leaves it to us; it begins when the shell is gone."""
        script = 'exec 3<&0; (read -r _ <&3; exec "$@" > /dev/null 2>&1 3<&-) & echo $!'
        p = subprocess.Popen(["sh", "-c", script, "sh"] + self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        pid = int(p.stdout.readline())
        p.stdout.close()
        p.wait()
        p.stdin.close()
        _, status, usage = os.wait4(pid, 0)
        if status:
            sys.exit(f"{' '.join(self.argv)} failed")
        return usage.ru_maxrss


INCREMENTAL = {"sync": "incremental", "bitmap": "b"}


class QemuJob:
    """drive-backup in a QEMU that keeps running; the time ends with its target synced."""

    def __init__(self, name, qemu, target, before, arguments):
        self.name, self.qemu, self.made, self.before, self.arguments = name, qemu, target, before, arguments

    def measure(self):
        self.qemu.take_events()
        cpu = self.qemu.cpu_seconds()
        begin = time.monotonic()
        self.qemu.must("drive-backup", device="disk", format="qcow2", target=self.made, **self.arguments)
        self.qemu.wait_job_gone("disk")
        sync_file(self.made)
        seconds = time.monotonic() - begin
        ended = [e for e in self.qemu.take_events() if e["event"] == "BLOCK_JOB_COMPLETED"]
        if len(ended) != 1 or "error" in ended[0]["data"]:
            sys.exit(f"QEMU's job failed: {ended}")
        return seconds, self.qemu.cpu_seconds() - cpu

    def peak(self):
        self.qemu.peak_reset()
        self.measure()
        return self.qemu.peak_kib()


def contest(title, contenders, runs, verify):
    """Alternates the contenders, turning the order each round, and prints medians and ratios."""
    print(f"\n{title}")
    times = {c.name: [] for c in contenders}
    for n in range(runs + 1):  # the last round is for peak memory and for verifying
        turn = n % len(contenders)
        for c in contenders[turn:] + contenders[:turn]:
            if c.before:
                c.before()
            os.sync()
            if n < runs:
                times[c.name].append(c.measure())
            else:
                times[c.name].append(c.peak())
                verify(c)
            if c.made:
                os.unlink(c.made)
    own = statistics.median(t[0] for t in times[contenders[0].name][:-1])
    print(f"  {'contender':<34} {'median s':>9} {'from':>8} {'to':>8} {'CPU s':>7} {'peak MiB':>9} {'ratio':>6}")
    for c in contenders:
        seconds = [t[0] for t in times[c.name][:-1]]
        cpu = statistics.median(t[1] for t in times[c.name][:-1])
        middle, peak = statistics.median(seconds), times[c.name][-1] / 1024
        print(f"  {c.name:<34} {middle:>9.4f} {min(seconds):>8.4f} {max(seconds):>8.4f} {cpu:>7.3f} {peak:>9.1f} "
              f"{middle / own:>6.2f}")
    sys.stdout.flush()

"""Shared parts of the interop tests: TAP, temporary directories, running commands, and a plain model of a
disk with bitmaps that the commands are compared with."""
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import qmp

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.path.join(os.path.abspath(os.environ.get("BUILD", os.path.join(ROOT, "build"))), "bin")
K, M, G = 1 << 10, 1 << 20, 1 << 30


class Failed(Exception):
    """A command that the test relies on did not do what it must."""


# ---- TAP ----------------------------------------------------------------------------------------

class Tap:
    def __init__(self):
        self.n = self.failed = 0

    def ok(self, good, what, detail=None):
        self.n += 1
        self.failed += not good
        print(f"{'ok' if good else 'not ok'} {self.n} - {what}")
        if not good and detail is not None:
            for line in str(detail).splitlines():
                print("#   " + line[:2000])
        sys.stdout.flush()
        return good

    def same(self, got, expected, what):
        return self.ok(got == expected, what, f"expected: {expected}\nfound:    {got}")

    def skip(self, what, why):
        self.n += 1
        print(f"ok {self.n} - {what} # SKIP {why}")

    def done(self):
        print(f"1..{self.n}")
        sys.exit(1 if self.failed else 0)


class Checks:
    """Many comparisons that make up one TAP line; the first that fails is told."""

    def __init__(self):
        self.problems = []
        self.where = ""

    def at(self, where):
        self.where = where

    def ok(self, good, what, detail=""):
        if not good:
            self.problems.append(f"{self.where}: {what} {detail}")
        return good

    def same(self, got, expected, what):
        return self.ok(got == expected, what, f"\n  expected: {expected}\n  found:    {got}")


def case(tap, what, body, *args):
    """Runs body(checks, *args) as one TAP line."""
    checks = Checks()
    try:
        body(checks, *args)
    except (Failed, qmp.QmpError, subprocess.TimeoutExpired, KeyError, ValueError, OSError) as e:
        checks.problems.append(f"{checks.where}: {type(e).__name__}: {e}")
    return tap.ok(not checks.problems, what, "\n".join(checks.problems[:8]))


def start(*tools):
    """A fresh directory that is gone at the end, whatever the end.  Skips all when a tool is missing."""
    missing = qmp.missing_tools(*tools)
    if missing:
        print(f"1..0 # SKIP {' '.join(missing)} not installed")
        sys.exit(0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.umask(0o022)
    return tempfile.TemporaryDirectory(prefix="tidemark-interop.")


def load(name):
    """A test program beside this file, as a module."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    loader = importlib.machinery.SourceFileLoader(name, path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


# ---- commands -----------------------------------------------------------------------------------

def run(argv, cwd=None, data=None, env=None):
    return subprocess.run(argv, cwd=cwd, input=data if data is not None else b"", stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, env=env, timeout=300)


def must(argv, cwd=None, data=None):
    p = run(argv, cwd, data)
    if p.returncode:
        raise Failed(f"{' '.join(map(str, argv))} ended with {p.returncode}: {p.stderr.decode(errors='replace')}")
    return p.stdout


def without_extensions(reply):
    """A reply without what a backup adds to QEMU's: what it is."""
    if isinstance(reply.get("return"), dict):
        reply["return"] = {k: v for k, v in reply["return"].items() if not k.startswith("x-")}
    return reply


class Answer:
    """What one Tidemark command said: status, reply, events, stderr."""

    def __init__(self, argv, p):
        self.what = " ".join(str(a)[:80] for a in argv)
        self.status = p.returncode
        self.stderr = p.stderr.decode(errors="replace")
        self.raw = p.stdout
        self.reply, self.events = None, []
        if re.search(r"ERROR: \w*Sanitizer|runtime error:", self.stderr):
            raise Failed(f"{self.what}: {self.stderr}")
        if p.returncode < 0:
            raise Failed(f"{self.what}: ended by signal {-p.returncode}: {self.stderr}")
        for line in p.stdout.decode(errors="surrogateescape").splitlines():
            try:
                message = json.loads(line)
            except ValueError:
                raise Failed(f"{self.what}: not a line of JSON: {line[:200]}") from None
            if "event" in message:
                self.events.append(message)
            elif self.reply is None:
                self.reply = without_extensions(message)
            else:
                raise Failed(f"{self.what}: a second reply: {line[:200]}")

    @property
    def desc(self):
        return (self.reply or {}).get("error", {}).get("desc")

    def __str__(self):
        return f"{self.what}: status {self.status}, stdout {self.raw[:500]}, stderr {self.stderr[:500]}"


def tide(argv, cwd=None, data=None):
    argv = [str(a) for a in argv]
    return Answer(argv, run([os.path.join(BIN, argv[0])] + argv[1:], cwd, data))


def tide_must(argv, cwd=None, data=None):
    answer = tide(argv, cwd, data)
    if answer.status or not answer.reply or "return" not in answer.reply:
        raise Failed(str(answer))
    return answer


def create(path, fmt, size=None, backing=None, opts="", cwd=None):
    argv = ["qemu-img", "create", "-q", "-f", fmt]
    if backing:
        argv += ["-b", backing[0], "-F", backing[1]]
    if opts:
        argv += ["-o", opts]
    must(argv + [path] + ([str(size)] if size is not None else []), cwd)


def qemu_io(path, fmt, commands, cwd=None):
    argv = ["qemu-io", "-f", fmt]
    for c in commands:
        argv += ["-c", c]
    p = run(argv + [path], cwd)
    text = (p.stdout + p.stderr).decode(errors="replace")
    if p.returncode or "failed" in text or "rror" in text:
        raise Failed(f"qemu-io {path} {commands}: {text}")


def content(path, fmt, cwd=None, snapshot=None):
    """All bytes of the disk, as QEMU reads them."""
    with tempfile.NamedTemporaryFile(dir=cwd or os.path.dirname(path)) as out:
        argv = ["qemu-img", "convert", "-U", "-f", fmt, "-O", "raw"]
        must(argv + (["-l", f"snapshot.name={snapshot}"] if snapshot else []) + [path, out.name], cwd)
        return bytearray(open(out.name, "rb").read())


def compare(checks, a, b, what, cwd=None):
    """a, b: (path, format).  The same disk?"""
    p = run(["qemu-img", "compare", "-U", "-f", a[1], "-F", b[1], a[0], b[0]], cwd)
    checks.ok(p.returncode == 0, what, (p.stdout + p.stderr).decode(errors="replace"))


def check_clean(checks, path, cwd=None):
    p = run(["qemu-img", "check", "-U", "-f", "qcow2", path], cwd)
    checks.ok(p.returncode == 0 and b"No errors were found" in p.stdout, f"qemu-img check {path}",
              (p.stdout + p.stderr).decode(errors="replace"))


def extents(path, fmt, cwd=None):
    """What the top image holds itself: [(start, end, "data" | "zero")], adjacent ones joined."""
    out = []
    for e in json.loads(must(["qemu-img", "map", "-U", "--output=json", "-f", fmt, path], cwd)):
        if e["depth"] or not e["present"]:
            continue
        kind = "data" if e["data"] else "zero"
        if out and out[-1][1] == e["start"] and out[-1][2] == kind:
            out[-1] = (out[-1][0], e["start"] + e["length"], kind)
        else:
            out.append((e["start"], e["start"] + e["length"], kind))
    return out


def spans(found, kinds=("data", "zero")):
    """The ranges of extents of these kinds, adjacent ones joined."""
    out = []
    for a, b, kind in found:
        if kind not in kinds:
            continue
        if out and out[-1][1] == a:
            out[-1] = (out[-1][0], b)
        else:
            out.append((a, b))
    return out


def more_data(ours, theirs):
    """Where our target has data and theirs has none; [] where data was moved without a look at it, zeroes too (tests/ways)."""
    if os.environ.get("TIDE_COPY") in ("reflink", "kernel"):
        return []
    return outside(spans(ours, ("data",)), spans(theirs, ("data",)))


def outside(inner, outer):
    """Those of the ranges `inner` that no one of `outer` (joined ones) contains."""
    return [r for r in inner if not any(a <= r[0] and r[1] <= b for a, b in outer)]


def first_difference(a, b):
    if len(a) != len(b):
        return f"lengths {len(a)} and {len(b)}"
    if a == b:
        return None
    lo, hi = 0, len(a)
    while hi - lo > 1:
        mid = (lo + hi) // 2
        lo, hi = (mid, hi) if a[lo:mid] == b[lo:mid] else (lo, mid)
    return f"first difference at {lo:#x}: {bytes(a[lo:lo + 8]).hex()} and {bytes(b[lo:lo + 8]).hex()}"


def same_bytes(checks, got, expected, what):
    difference = first_difference(got, expected)
    return checks.ok(difference is None, what, difference)


def clone(src, dst):
    """A copy that keeps holes."""
    must(["cp", "--sparse=always", src, dst])


# ---- the model ----------------------------------------------------------------------------------

class Bitmap:
    """One dirty bitmap as a set of granule numbers."""

    def __init__(self, size, granularity, enabled=True):
        self.size, self.granularity, self.enabled, self.bits = size, granularity, enabled, set()

    def mark(self, off, length):
        if length:
            self.bits.update(range(off // self.granularity, (off + length - 1) // self.granularity + 1))

    def merge(self, other):
        for bit in other.bits:
            off = bit * other.granularity
            self.mark(off, min(other.granularity, self.size - off))

    @property
    def count(self):
        return len(self.bits) * self.granularity

    def ranges(self):
        """Dirty ranges, clipped to the disk: [(start, end)]."""
        out = []
        for bit in sorted(self.bits):
            a, b = bit * self.granularity, min((bit + 1) * self.granularity, self.size)
            if out and out[-1][1] == a:
                out[-1] = (out[-1][0], b)
            else:
                out.append((a, b))
        return out

    def dump(self):
        """As bitmap-dump --output=json covers the disk."""
        out, pos = [], 0
        for a, b in self.ranges():
            if a > pos:
                out.append({"start": pos, "length": a - pos, "dirty": False})
            out.append({"start": a, "length": b - a, "dirty": True})
            pos = b
        if pos < self.size:
            out.append({"start": pos, "length": self.size - pos, "dirty": False})
        return out

    def sha256(self):
        words = max(1, -(-(-(-self.size // self.granularity)) // 64))
        buf = bytearray(words * 8)
        for bit in self.bits:
            buf[bit // 8] |= 1 << bit % 8
        return hashlib.sha256(buf).hexdigest()

    def units(self, unit):
        """How many copy units of this size a bit touches."""
        return len({u for a, b in self.ranges() for u in range(a // unit, (b - 1) // unit + 1)})


class Disk:
    """An image's bytes and bitmaps, newest first."""

    def __init__(self, data):
        self.data = bytearray(data)
        self.bitmaps = {}
        self.order = []
        self.discarded = []  # ranges that may read as before or as zero until settle_discards has looked

    @property
    def size(self):
        return len(self.data)

    def add(self, name, granularity, enabled=True):
        self.bitmaps[name] = Bitmap(self.size, granularity, enabled)
        self.order.insert(0, name)

    def touch(self, off, length):
        for b in self.bitmaps.values():
            if b.enabled:
                b.mark(off, length)

    def write(self, off, data):
        end = off + len(data)
        self.data[off:end] = data
        self.discarded = [r for a, b in self.discarded for r in ((a, min(b, off)), (max(a, end), b)) if r[0] < r[1]]
        self.touch(off, len(data))

    def discard(self, off, length):
        self.discarded.append((off, off + length))
        self.touch(off, length)


def check_bitmaps(checks, image, disk, what):
    """bitmap-list, and each bitmap's dump and hash, against the model."""
    listed = tide_must(["bitmap-list", "--output=json", image]).reply["return"]
    keys = ("name", "count", "granularity", "recording", "busy")
    expected = [dict(zip(keys, (n, disk.bitmaps[n].count, disk.bitmaps[n].granularity, disk.bitmaps[n].enabled, False)))
                for n in disk.order]
    checks.same([{k: b.get(k) for k in keys} for b in listed], expected, f"{what}: bitmap-list")
    checks.same([b["name"] for b in listed if b.get("inconsistent")], [], f"{what}: inconsistent bitmaps")
    for name, bitmap in disk.bitmaps.items():
        dump = tide_must(["bitmap-dump", "--output=json", image, name]).reply["return"]
        checks.same(dump, bitmap.dump(), f"{what}: bitmap-dump {name}")
        checks.same(sha256(image, name), bitmap.sha256(), f"{what}: sha256 of {name}")


def sha256(image, name, cwd=None):
    return tide_must(["bitmap-dump", "--output=sha256", "--", image, name], cwd).reply["return"]["sha256"]


def random_range(rng, size, longest=256 * K):
    """Mostly short, sometimes on round borders, sometimes up to the end."""
    off = rng.randrange(size)
    if rng.random() < 0.4:
        off -= off % rng.choice((512, 4096, 65536))
    length = 1 + int(rng.random() ** 4 * longest)
    if rng.random() < 0.3:
        length = max(512, length - length % rng.choice((512, 4096)))
    if rng.random() < 0.05:
        length = size
    return off, min(length, size - off)


def image_write(rng, image, disk, args=()):
    """One random image-write, on the image and in the model.  Returns what was done, for messages."""
    off, length = random_range(rng, disk.size)
    kind = rng.choice(("data", "data", "pattern", "zero", "discard"))
    head = ["image-write"] + list(args)
    if kind == "data":
        data = rng.randbytes(length)
        tide_must(head + ([image, off, length] if rng.random() < 0.5 else [image, off]), data=data)
        disk.write(off, data)
    elif kind == "pattern":
        byte = rng.randrange(256)
        tide_must(head + ["--pattern", hex(byte), image, off, length])
        disk.write(off, bytes([byte]) * length)
    elif kind == "zero":
        tide_must(head + ["--zero", image, off, length])
        disk.write(off, bytes(length))
    else:
        tide_must(head + ["--discard", image, off, length])
        disk.discard(off, length)
    return f"{kind} at {off} length {length}"


def settle_discards(checks, disk, now, what):
    """Takes over which discarded bytes became zero; a byte that became anything else is an error."""
    for a, b in disk.discarded:
        if now[a:b] == disk.data[a:b]:
            continue
        for i in range(a, min(b, len(now))):
            if now[i] and now[i] != disk.data[i]:
                checks.ok(False, f"{what}: byte {i:#x} after a discard", f"{disk.data[i]:#x} became {now[i]:#x}")
                return
            disk.data[i] = now[i]
    disk.discarded = []


def seeds(default_count):
    """SEED=N replays one program, COUNT=N runs that many."""
    if os.environ.get("SEED"):
        return [int(os.environ["SEED"], 0)]
    first = int(os.environ.get("FIRST_SEED", "1"), 0)
    return list(range(first, first + int(os.environ.get("COUNT", default_count))))


def rng_for(*what):
    return random.Random("/".join(map(str, what)))


def fresh(top, name):
    path = os.path.join(top, name)
    shutil.rmtree(path, ignore_errors=True)
    os.mkdir(path)
    return path

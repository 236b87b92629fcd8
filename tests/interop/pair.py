"""The same QMP commands and the same writes to a real QEMU and to txn-apply, all results compared.

Each step of Tidemark's is a txn-apply of its own, mostly of one command: the next one knows only the state on
disk.  Not compared, because it differs on purpose: timestamps, `persistent` (QEMU's bitmaps live in memory here),
and the target that a refused or failed job leaves in QEMU.
"""
import json
import os

import qmp
from lab import BIN, Failed, K, check_clean, clone, compare, extents, fresh, more_data, must, run, spans, tide, \
    without_extensions

KEYS = ("name", "count", "granularity", "recording", "busy", "inconsistent")
STATUS = "JOB_STATUS_CHANGE"
FAILED_JOB = "BLOCK_JOB_ERROR"
PIECE = {"max-workers": 1, "max-chunk": 64 * K}


def plain(events):
    return [{"event": e["event"], "data": dict(e["data"])} for e in events if e["event"] != STATUS]


def statuses(events):
    """All events, without the paused/running pairs that QEMU's draining causes."""
    out = []
    for e in events:
        e = {"event": e["event"], "data": dict(e["data"])}
        if e["event"] == STATUS and e["data"]["status"] == "paused":
            continue
        if e in out and e["event"] == STATUS and e["data"]["status"] == "running":
            continue
        out.append(e)
    return out


def job_of(event):
    return event["data"].get("device") or event["data"].get("id")


def backups(command, arguments):
    """The data of each backup in a command."""
    if command in ("drive-backup", "blockdev-backup"):
        return [arguments]
    actions = arguments.get("actions", []) if command == "transaction" else []
    return [a["data"] for a in actions if a["type"] in ("drive-backup", "blockdev-backup")]


def is_grouped(arguments):
    return arguments.get("properties", {}).get("completion-mode") == "grouped"


def action(kind, /, **data):
    return {"type": kind, "data": {k.replace("_", "-"): v for k, v in data.items()}}


def bitmap(verb, node, name, /, **more):
    return action("block-dirty-bitmap-" + verb, node=node, name=name, **more)


def transaction(*actions, grouped=False):
    out = {"actions": list(actions)}
    if grouped:
        out["properties"] = {"completion-mode": "grouped"}
    return out


class Pair:
    """drives: [(id, file name, format)]; the files stand in top.  by_node: the ids are QEMU's node names, and its
    devices are called otherwise; else they are its device names."""

    def __init__(self, checks, top, drives, by_node=False):
        self.checks, self.drives, self.by_node = checks, drives, by_node
        self.dirs = [fresh(top, "qemu"), fresh(top, "tidemark")]
        for d in self.dirs:
            for name in os.listdir(top):
                if os.path.isfile(os.path.join(top, name)):
                    clone(os.path.join(top, name), os.path.join(d, name))
        self.devices = {i: "device-of-" + i if by_node else i for i, _, _ in drives}
        self.qemu = qmp.Qemu(self.dirs[0], [(self.devices[i], path, fmt + (",node-name=" + i if by_node else ""))
                                            for i, path, fmt in drives])
        self.queue = []
        # QEMU does not know which backup a bitmap counts from.
        self.options = ["--allow-base=other"] + [o for i, path, fmt in drives for o in ("--drive", f"{i}={path},format={fmt}")]

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.qemu.close()

    def path(self, side, ident):
        return os.path.join(self.dirs[side], next(path for i, path, _ in self.drives if i == ident))

    # ---- writes ----

    def write(self, ident, batch, fails=False):
        """batch: [(byte or None for zeroes, offset, length)]."""
        commands = [f"write -z {off} {n}" if p is None else f"write -P {p:#x} {off} {n}" for p, off, n in batch]
        said = self.qemu.io(self.devices[ident], *commands)
        image = os.path.basename(self.path(1, ident))
        bad = []
        for p, off, n in batch:
            kind = ["--zero"] if p is None else ["--pattern", hex(p)]
            answer = tide(["image-write", *kind, image, off, n], self.dirs[1])
            bad += [answer] if answer.status else []
        if ("failed" in said, bool(bad)) != (fails, fails):
            raise Failed(f"writes {batch}: QEMU: {said}; Tidemark: {[str(a) for a in bad]}")

    # ---- commands ----

    def _qemu(self, command, arguments):
        self.qemu.take_events()
        reply = self.qemu.cmd(command, **arguments)
        if "return" in reply:
            for job in backups(command, arguments):
                self.qemu.wait_job_gone(job.get("job-id", job["device"]))
        return reply, self.qemu.take_events()

    def theirs(self):
        """QEMU's bitmaps: {id: [(info, hash)]}."""
        found = {}
        for n in self.qemu.must("query-named-block-nodes" if self.by_node else "query-block"):
            ident = n.get("node-name") if self.by_node else n["device"]
            if ident in self.devices:
                found[ident] = (n if self.by_node else n["inserted"]).get("dirty-bitmaps", [])
        out = {}
        for ident, infos in found.items():
            out[ident] = [({k: b[k] for k in KEYS if k in b},
                           self.qemu.must("x-debug-block-dirty-bitmap-sha256", node=ident, name=b["name"])["sha256"])
                          for b in infos]
        return out

    def _tide(self, commands, job_events=False):
        """One txn-apply for all commands: a reply each, the events behind or before it, exit status and stderr."""
        data = "".join(json.dumps({"execute": c, "arguments": a, "id": n}) + "\n" for n, (c, a) in enumerate(commands))
        options = self.options + (["--job-events"] if job_events else [])
        p = run([os.path.join(BIN, "txn-apply"), *options], self.dirs[1], data.encode())
        stderr = p.stderr.decode(errors="replace")
        if p.returncode < 0 or "runtime error:" in stderr or "Sanitizer" in stderr:
            raise Failed(f"txn-apply ended with {p.returncode}: {stderr}\n{data}")
        replies, events = [], []
        for line in p.stdout.decode().splitlines():
            message = json.loads(line)
            if "event" in message:
                events.append(message)
            elif message.pop("id", None) != len(replies):
                raise Failed(f"not the reply to command {len(replies)}: {line}\n{data}")
            else:
                replies.append(without_extensions(message))
        if len(replies) != len(commands):
            raise Failed(f"{len(replies)} replies, {stderr}\n{data}")
        return replies, events, p.returncode, stderr

    def put(self, command, arguments):
        """A command that QEMU runs now, and Tidemark when `flush` comes.  Returns QEMU's reply and events."""
        reply, events = self._qemu(command, arguments)
        self.queue.append((command, arguments, reply, events))
        return reply, plain(events)

    def flush(self, what, loose=False, job_events=False):
        """Puts what is queued to one txn-apply.  loose: how far a failed or cancelled job came is its own affair."""
        queue, self.queue = self.queue, []
        if not queue:
            return
        self.checks.at(f"{what}: " + "; ".join(f"{c} {json.dumps(a)}" for c, a, _, _ in queue))
        theirs = self.theirs()
        asked = [("query-named-block-nodes", {})]
        asked += [("x-debug-block-dirty-bitmap-sha256", {"node": ident, "name": b["name"]})
                  for ident, listed in theirs.items() for b, _ in listed]
        replies, own, status, stderr = self._tide([(c, a) for c, a, _, _ in queue] + asked, job_events)
        self.checks.same(replies[:len(queue)], [reply for _, _, reply, _ in queue], "reply")
        in_order = len(queue) == 1 and (queue[0][0] != "transaction" or is_grouped(queue[0][1]))
        self._events([e for q in queue for e in q[3]], own, in_order, loose, job_events)
        self._bitmaps(theirs, replies[len(queue):])
        self._status(queue, status, stderr)

    def ask(self, what, command, arguments, before=(), loose=False, job_events=False):
        """Puts one command to both, and others before it that prepare it.  Returns QEMU's reply and events."""
        for c, a in before:
            self.put(c, a)
        result = self.put(command, arguments)
        self.flush(what, loose, job_events)
        return result

    def _bitmaps(self, theirs, replies):
        nodes = {n["node-name"]: n for n in replies[0].get("return", [])}
        hashes = iter(replies[1:])
        for ident, listed in theirs.items():
            ours = [{k: b[k] for k in KEYS if k in b} for b in nodes.get(ident, {}).get("dirty-bitmaps", [])]
            self.checks.same(ours, [b for b, _ in listed], f"bitmaps of {ident}")
            for b, digest in listed:
                self.checks.same(next(hashes), {"return": {"sha256": digest}}, f"hash of {ident}'s {b['name']}")

    def _status(self, queue, status, stderr):
        """The first command that did not do all it was to do decides."""
        expected = 0
        for _, _, reply, events in queue:
            ends = [e for e in events if e["event"] in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")]
            bad = [e for e in ends if "error" in e["data"] or e["event"] == "BLOCK_JOB_CANCELLED"]
            expected = expected or (1 if "error" in reply or (bad and len(bad) == len(ends)) else 3 if bad else 0)
        self.checks.same(status, expected, f"exit status ({stderr.strip()})")

    def _events(self, theirs, ours, in_order, loose, job_events):
        a, b = (statuses(e) if job_events else plain(e) for e in (theirs, ours))
        if loose:
            for e in a + b:
                if "error" in e["data"] or e["event"] == "BLOCK_JOB_CANCELLED":
                    done = e["data"].pop("offset")
                    self.checks.ok(0 <= done <= e["data"]["len"] and done % (64 * K) == 0, "offset", e)
        if in_order:
            self.checks.same(b, a, "events")
            return
        for job in sorted({job_of(e) for e in a + b}):
            self.checks.same([e for e in b if job_of(e) == job], [e for e in a if job_of(e) == job], f"events of {job}")

    def alone(self, command, arguments):
        """Puts a command to Tidemark only: its reply, events and exit status."""
        replies, events, status, _ = self._tide([(command, arguments)])
        return replies[0], plain(events), status

    # ---- images ----

    def create(self, name, *argv, size=None):
        for d in self.dirs:
            must(["qemu-img", "create", "-q", *argv, name, *([str(size)] if size is not None else [])], d)

    def forget(self, name):
        """A target that only QEMU leaves behind."""
        self.checks.ok(not os.path.exists(os.path.join(self.dirs[1], name)), f"target {name} is left")
        if os.path.exists(os.path.join(self.dirs[0], name)):
            os.unlink(os.path.join(self.dirs[0], name))

    def target(self, name, fmt="qcow2", exact=False, thorough=True):
        """The same content; exact: the same clusters present, so that both hide the same of any backing image."""
        a, b = (os.path.join(d, name) for d in self.dirs)
        compare(self.checks, (a, fmt), (b, fmt), f"content of {name}")
        if fmt != "qcow2" or not thorough:
            return
        check_clean(self.checks, b)
        theirs, ours = extents(a, fmt), extents(b, fmt)
        if exact:
            self.checks.same(spans(ours), spans(theirs), f"clusters present in {name}")
        self.checks.same(more_data(ours, theirs), [], f"more data in {name}")

    def like_disk(self, name, ident, expected=True):
        """Does the backup read as the disk does now?  On both sides."""
        fmt = next(f for i, _, f in self.drives if i == ident)
        self.qemu.io(self.devices[ident], "flush")
        for side, d in enumerate(self.dirs):
            p = run(["qemu-img", "compare", "-U", "-f", "qcow2", "-F", fmt, os.path.join(d, name),
                     self.path(side, ident)])
            self.checks.same(p.returncode == 0, expected, f"{('QEMU', 'Tidemark')[side]}'s {name} equals {ident}")

    def rebase(self, name, backing):
        for d in self.dirs:
            must(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", backing, "-F", "qcow2", name], d)

    def disks(self):
        for ident, _, fmt in self.drives:
            self.qemu.io(self.devices[ident], "flush")
            compare(self.checks, (self.path(0, ident), fmt), (self.path(1, ident), fmt), f"content of {ident}")


# ---- a place that cannot be read ------------------------------------------------------------------

def compressed_at(path, off, cluster=64 * K):
    """Where the compressed cluster's bytes are in the qcow2 file, as its tables say."""
    with open(path, "rb") as f:
        def entry(at):
            f.seek(at)
            return int.from_bytes(f.read(8), "big")
        per_table = cluster // 8
        n = off // cluster
        l2 = entry(entry(40) + 8 * (n // per_table)) & 0x00fffffffffffe00
        e = entry(l2 + 8 * (n % per_table))
    if not e >> 62 & 1:
        raise Failed(f"{path}: the cluster at {off} is not compressed")
    return e & ((1 << 54) - 1)


class Damage:
    """Makes a compressed cluster unreadable on both sides, and readable again; the files' times stay, as with a bad
    sector."""

    def __init__(self, pair, ident, off):
        self.pair, self.ident, self.off = pair, ident, off
        self.at = compressed_at(pair.path(1, ident), off)
        self.good = None

    def _put(self, data):
        for side in (0, 1):
            path = self.pair.path(side, self.ident)
            before = os.stat(path)
            with open(path, "r+b", buffering=0) as f:
                self.was = os.pread(f.fileno(), 8, self.at)
                os.pwrite(f.fileno(), data, self.at)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def do(self):
        self._put(b"\xff" * 8)
        self.good = self.was

    def undo(self):
        if self.good:
            self._put(self.good)
        self.good = None

"""Scenarios of `sweep` beside those of `death`: the less frequent commands, the ways to write an existing target,
reflinks, and the server that records writes.

`death` leaves them out: they would make the default suite slow, and a server does not die with its clients.
"""
import contextlib
import json
import os
import shutil
import signal
import subprocess


def define(death):
    """The list-making function; `death` is that program, loaded as a module."""
    Wrong, must, there, bitmaps = death.Wrong, death.must, death.there, death.bitmaps
    plugin = os.path.join(os.path.dirname(death.BIN), "lib/nbdkit/plugins/nbdkit-tidemark-plugin.so")

    class Switch(death.Scenario):
        """bitmap-enable, bitmap-disable: the bitmap records or does not, and what it holds stays."""
        def __init__(self, name, wanted):
            super().__init__(name, ["d0.img"])
            self.wanted = wanted

        def copy(self, w):
            super().copy(w)
            if self.wanted:
                must(w, "bitmap-disable", "-q", "d0.img", "b")

        def first(self, w):
            return ["bitmap-enable" if self.wanted else "bitmap-disable", "-q", "d0.img", "b"]

        def check(self, w, rng):
            b, = json.loads(must(w, "bitmap-list", "-q", "--output=json", "d0.img"))["return"]
            if bitmaps(w, "d0.img", None) != self.before["d0.img"]:
                raise Wrong(f"bitmaps {bitmaps(w, 'd0.img', None)}, there were {self.before}")
            self.others_unchanged(w)
            return [self] if b["recording"] == self.wanted else []

        def again(self, w, done):
            must(w, *self.first(w))
            must(w, "image-write", "-q", "--pattern", 9, "d0.img", 12 * death.UNIT, 5)
            wanted = self.before["d0.img"]["b"] | ({12} if self.wanted else set())
            if bitmaps(w, "d0.img", self.wanted) != {"b": wanted}:
                raise Wrong(f"after a write: {bitmaps(w, 'd0.img', self.wanted)}, not {wanted}")

    class Existing(death.Backup):
        """A target that is there already is written where it stands: whole as soon as the bitmap is settled.  What a
        try before that has allocated, and no entry leads to, stays allocated."""
        may_leak = True

        def command(self, w, jobs, actions=()):
            argv = super().command(w, jobs, actions)
            return argv[:1] + (["--mode", "existing"] if there(w, jobs[0].target) else []) + argv[1:]

        def check(self, w, rng):
            (job,), found = self.jobs, self.look(w, rng)
            settled = self.settled(job, found)
            if settled is None:
                raise Wrong(f"bitmaps {found} are neither {self.before} nor settled")
            if settled:
                death.whole(w, job.target, job.disk, self.may_leak)
            else:
                self.lacks_nothing(w, job.disk, found[job.disk]["b"])
            self.others_unchanged(w)
            return [job] if settled else []

    class Served(death.Write):
        """One write to nbdkit with the plugin, which goes when its client goes."""
        # Before there is a client the server dies for all to see; later the client tells that it is gone.
        dead = (-signal.SIGKILL, 1)

        def first(self, w):
            # A directory for the socket that nbdkit makes itself, in /tmp, stays there when it is killed.
            socket = os.path.join(w, ".socket")
            shutil.rmtree(socket, ignore_errors=True)
            os.mkdir(socket)
            return ["nbdkit", "-U", socket + "/s", plugin, f"file={w}/d0.img", "durability=power", "--run",
                    f'qemu-io -f raw -c "write -P 0x5a {self.OFF} {self.LEN}" -c flush "$uri"']

    def new(name, argv, target):
        scenario = death.New(name, argv, "d0.img")
        scenario.target = target
        return scenario

    def scenarios(bases, reflinks):
        """`reflinks`: a directory of a file system that can share, or None."""
        top = os.path.dirname(bases["one"])
        two, existing = os.path.join(top, "two"), os.path.join(top, "existing")
        shutil.copytree(bases["chain"], two)
        must(two, "bitmap-add", "-q", "d0.img", "n")
        shutil.copytree(bases["one"], existing)
        must(existing, "image-create", "-q", "-f", "qcow2", "-b", "full0.qcow2", "-F", "qcow2", "inc0.qcow2")
        other = bitmaps(two, "d1.img")["b"]
        inc = death.Job("d0.img", "inc0.qcow2", "full0.qcow2", "b", "incremental", None)
        full = death.Job("d0.img", "t0.qcow2", None, None, "full", None)
        table = [
            ("one", Switch("bitmap-disable", False)),
            ("one", Switch("bitmap-enable", True)),
            ("two", death.Bitmap("bitmap-merge", "d0.img", ["bitmap-merge", "-q", "d0.img", "n", "b"],
                                 lambda b: {**b, "n": b["n"] | b["b"]})),
            ("two", death.Bitmap("bitmap-merge from another node", "d0.img",
                                 ["bitmap-merge", "-q", "d0.img", "n", "d1.img#b"], lambda b: {**b, "n": b["n"] | other})),
            ("two", death.Bitmap("bitmap-import", "d0.img", ["bitmap-import", "-q", "d0.img", "m", "--from", "d1.img#b"],
                                 lambda b: {**b, "m": other})),
            ("two", death.Bitmap("bitmap-export", "d0.img", ["bitmap-export", "-q", "d1.img", "b", "--to", "d0.img#m"],
                                 lambda b: {**b, "m": other})),
            ("two", death.Bitmap("bitmap-export to the same node", "d0.img",
                                 ["bitmap-export", "-q", "d0.img", "b", "--to", "#n"], lambda b: {**b, "n": b["b"]})),
            ("one", new("backup-run full to raw", ["backup-run", "-q", "-F", "raw", "d0.img", "t.img"], "t.img")),
            ("existing", Existing("backup-run incremental to an existing target", [inc._replace(backing=None)], "backup-run")),
            ("inside", death.Bitmap("bitmap-import into the image", "d0.qcow2",
                                    ["bitmap-import", "-q", "--store", "image", "d0.qcow2", "m", "--from", "d1.qcow2#b"],
                                    lambda b: {**b, "m": bitmaps(bases["inside"], "d1.qcow2")["b"]})),
        ]
        if os.path.exists(plugin) and shutil.which("nbdkit") and shutil.which("qemu-io"):
            table += [("one", Served("nbdkit, one write", ["d0.img"]))]
        if reflinks:
            # What was taken for a way that is then not gone has to be given up.
            full_shared = death.Backup("backup-run full, shared by reflink", [full], "backup-run")
            full_shared.every = ("alloc",)
            shared = [("one", death.copied("reflink", s)) for s in (
                full_shared,
                death.Backup("backup-run incremental, shared by reflink", [inc], "backup-run"),
                death.InPlace("chain-restore --in-place, shared by reflink", ["d0.img"]),
                new("backup-run full to raw, shared by reflink", ["backup-run", "-q", "-F", "raw", "d0.img", "t.img"], "t.img"))]
            for _, s in shared:
                s.place = reflinks
            table += shared
        table = death.chosen(table)
        for base, s in table:
            s.prepare(os.path.join(top, base))
        return [s for _, s in table]

    return scenarios


@contextlib.contextmanager
def can_share(top):
    """A directory where reflinks work, made for the purpose; None when it cannot be had."""
    image, where = os.path.join(top, "fs"), os.path.join(top, "shared")
    os.mkdir(where)
    with open(image, "wb") as f:
        f.truncate(400 << 20)

    def good(*argv):
        return shutil.which(argv[0]) and subprocess.run(argv, capture_output=True, check=False).returncode == 0

    mounted = good("mkfs.xfs", "-q", image) and good("mount", "-o", "loop", image, where)
    try:
        yield where if mounted else None
    finally:
        if mounted and not good("umount", where):
            good("umount", "-l", where)

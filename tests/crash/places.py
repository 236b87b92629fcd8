"""Scenarios of `death` and `sweep`: what recovers a group meets places that are not as they were when it was decided.

A command that changes something is refused then, and nothing is completed, nothing lost, and the record stays; once the
place is back, all of the group is done.  Looking works throughout.
"""
import os
import shutil


def define(death):
    """The list-making function; `death` is that program, loaded as a module."""
    Wrong, there, sh, must = death.Wrong, death.there, death.sh, death.must

    def staged(w):
        """The files that wait in the directory of the targets, without names."""
        return sorted(n for n in os.listdir(os.path.join(w, "far")) if n.startswith("."))

    def move(w, source, to):
        os.rename(os.path.join(w, source), os.path.join(w, to))

    class Place:
        """What becomes of the directory `far`: leave, and back."""
        says = "is missing"

        def leave(self, w):
            move(w, "far", ".away")

        def back(self, w):
            move(w, ".away", "far")

    class Unmounted(Place):
        """A mount point without its file system is an empty directory."""
        def leave(self, w):
            super().leave(w)
            os.mkdir(os.path.join(w, "far"))

        def back(self, w):
            os.rmdir(os.path.join(w, "far"))
            super().back(w)

    class Copied(Place):
        """The files are others, of the same names and content: such as those of a backup of the directory."""
        def leave(self, w):
            super().leave(w)
            shutil.copytree(os.path.join(w, ".away"), os.path.join(w, "far"))

        def back(self, w):
            shutil.rmtree(os.path.join(w, "far"))
            super().back(w)

    class Removed(Place):
        """One of the staged files is not where it was."""
        def leave(self, w):
            move(w, "far/" + staged(w)[-1], ".kept")

        def back(self, w):
            move(w, ".kept", "far/" + next(self.lost(w)))

        def lost(self, w):
            """Its name, from the record."""
            for n in os.listdir(w):
                if death.RECORD in n and b"\nrename " in death.slurp(w, n):
                    for line in death.slurp(w, n).decode().splitlines():
                        name = line.split(" ")[9] if line.startswith("rename") else ""
                        if name.startswith(".t") and name not in staged(w):
                            yield name

    class Taken(Place):
        """A stranger's file has the name of a target."""
        says = "another program has created"

        def leave(self, w):
            with open(os.path.join(w, "far", "t1.qcow2"), "w", encoding="ascii") as f:
                f.write("precious")

        def back(self, w):
            if death.slurp(w, "far/t1.qcow2") != b"precious":
                raise Wrong("the stranger's file is lost")
            os.unlink(os.path.join(w, "far", "t1.qcow2"))

    class Away(death.Recovery):
        """The group's targets are in a directory of their own, which is another when the recovery comes."""
        expects = 1
        found = None

        def __init__(self, name, place, **kwargs):
            jobs = [death.Job(f"d{i}.img", f"far/t{i}.qcow2", None, "b", "full", "on-success") for i in (0, 1)]
            super().__init__("bitmap-enable after a death behind the decision, " + name, jobs, ["bitmap-enable", "-q", "d1.img", "b"],
                             **kwargs)
            self.where = place
            self.ready = False

        def prepare(self, base):
            """All of them die at the same call."""
            if Away.found:
                death.Scenario.prepare(self, base)
                self.point = Away.found
            else:
                super().prepare(base)
                Away.found = self.point
            self.ready = True

        def copy(self, w, dead=True):
            os.mkdir(os.path.join(w, "far"))
            super().copy(w, dead)
            if self.ready:
                self.where.leave(w)

        def check(self, w, rng):
            if not death.is_decided(w):
                raise Wrong("the record is gone, and the group is not complete")
            names = sorted(os.listdir(w))
            for d in rng.sample(self.disks, len(self.disks)):
                death.bitmaps(w, d)
                status, out = sh(w, "bitmap-clear", "-q", d, "b")
                if status != 1 or self.where.says not in out:
                    raise Wrong(f"{d} can be changed: status {status}: {out}")
            visible = [n for n in names if not n.startswith(".")]
            if [n for n in sorted(os.listdir(w)) if not n.startswith(".")] != visible:
                raise Wrong(f"a refused command changes {visible} to {sorted(os.listdir(w))}")
            self.where.back(w)
            done = super().check(w, rng)
            if staged(w):
                raise Wrong(f"{staged(w)} stay in the directory of the targets")
            return done

        def again(self, w, done):
            for i, d in enumerate(self.disks):
                must(w, "backup-run", "-q", "--sync", "incremental", "--bitmap", "b", "-F", "qcow2", "--backing",
                     f"far/t{i}.qcow2", d, f"next-t{i}.qcow2")
                death.restored(w, f"next-t{i}.qcow2", d)
            shutil.rmtree(os.path.join(w, "far"))
            for i in (0, 1):
                os.unlink(os.path.join(w, f"next-t{i}.qcow2"))
            self.others_unchanged(w)

    def scenarios(bases):
        table = [("chain", Away(name, place)) for name, place in (
            ("its targets' directory moved", Place()), ("its targets unmounted", Unmounted()),
            ("its targets' directory a copy", Copied()), ("a target removed", Removed()), ("a target's name taken", Taken()))]
        # Where a look fails, nobody may believe that there is nothing.
        table[1][1].every = ("alloc", "fcntl")
        table = death.chosen(table)
        for base, s in table:
            s.prepare(bases[base])
        return [s for _, s in table]

    return scenarios

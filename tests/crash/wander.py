"""Steps of `soak` between its commands: directories move, are copied, unmounted and restored from copies.

Each disk has a directory of its own, and the targets have one.  While one of them is away no command is right that
takes its absence for success: the model of `soak` finds that once it is back.
"""
import copy
import os
import shutil
import subprocess

PLACES = "a", "b", "t"


def clone(source, to):
    shutil.copytree(source, to, symlinks=True)


def mounted(*argv):
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


class Wander:
    """Part of a program, which has dir, nodes, rng, path, command, wrong, seen, unchanged, covered."""

    def settle_down(self):
        """Makes the places; if it is possible, the targets are on a mount that can go."""
        for name in PLACES:
            os.mkdir(self.path(name))
        self.mount, self.kept, self.overwrote = None, None, False
        if os.geteuid() == 0 and self.rng.random() < 0.5:
            store = self.path("store")
            os.mkdir(store)
            self.mount = store if mounted("mount", "--bind", store, self.path("t")) else None

    def leave_for_good(self):
        if self.mount:
            mounted("umount", "-l", self.path("t"))
        if self.kept:
            shutil.rmtree(self.kept[0], ignore_errors=True)

    # ---- a place that is away ----

    def depart(self, name, how):
        place, away = self.path(name), self.path(name + ".away")
        if how == "unmount":
            mounted("umount", place)
            return
        os.rename(place, away)
        if how == "empty":
            os.mkdir(place)
        elif how == "copy":
            clone(away, place)

    def come_back(self, name, how):
        place = self.path(name)
        if how == "unmount":
            if not mounted("mount", "--bind", self.mount, place):
                self.wrong(f"{place} cannot be mounted again")
            return
        shutil.rmtree(place, ignore_errors=True)
        os.rename(self.path(name + ".away"), place)

    def lives_in(self, node, name):
        return os.path.dirname(node.image) == self.path(name)

    def is_decided(self):
        return any(".commit" in n for place in "ab" for n in os.listdir(self.path(place)))

    def waits(self):
        """Is there a record of files that have no names yet in the directory of the targets?"""
        names = os.listdir(self.path("t"))
        for path in [os.path.join(self.path(p), n) for p in "ab" for n in os.listdir(self.path(p)) if ".commit" in n]:
            with open(path, encoding="ascii") as f:
                fields = [line.split(" ") for line in f]
            if any(f[0] == "rename" and f[9] in names for f in fields):
                return True
        return False

    def wander(self):
        """After a command that may have died: the next ones come while a place is away."""
        name = self.rng.choice(PLACES + ("t",))
        is_mount = name == "t" and self.mount
        how = "unmount" if is_mount else self.rng.choice(("move", "empty", "copy"))
        said, waits = self.said, name == "t" and self.waits()
        self.depart(name, how)
        for node in self.rng.sample(self.nodes, 2):
            image, gone = node.image, self.lives_in(node, name)
            if gone and how != "copy":
                image = os.path.join(self.path(name + ".away"), os.path.basename(image))
            self.status(["bitmap-list", "-q", image], (0,))
            self.status(["bitmap-clear", "-q", image, "no such bitmap"], (1,))
            self.status(["bitmap-list", "-q", image], (0,))
        self.come_back(name, how)
        self.said = f"{said}; then {how} {name}"
        if waits and not self.waits():
            self.wrong(f"{self.said}: the record is gone, and its targets have no names")

    def status(self, argv, allowed):
        status, _ = self.command(argv, allowed=allowed)
        return status

    # ---- steps ----

    def move(self):
        """All of it, to a place where it works as before, and back."""
        if self.mount:
            return self.backup()
        there = self.dir + ".moved"
        os.rename(self.dir, there)
        os.mkdir(self.dir)
        for node in self.nodes:
            image = there + node.image[len(self.dir):]
            self.status(["bitmap-list", "-q", image], (0,))
            self.status(["bitmap-add", "-q", image, "moved"], (0,))
            self.status(["bitmap-remove", "-q", image, "moved"], (0,))
        os.rmdir(self.dir)
        os.rename(there, self.dir)
        return self.unchanged([0, 1])

    def copies(self):
        """A copy is a disk of its own, and the original does not notice what becomes of it."""
        there = self.dir + ".copy"
        for i, node in enumerate(self.nodes):
            clone(os.path.dirname(node.image), there)
            image = os.path.join(there, os.path.basename(node.image))
            for name, b in self.trusted(image, node).items():
                self.status([f"bitmap-{self.rng.choice(('clear', 'enable', 'disable', 'remove'))}", "-q", image, name], (0,) if b else (0, 1))
            self.status(["image-write", "-q", "--pattern", "0x77", image, "0", "4096"], (0,))
            shutil.rmtree(there)
            self.unchanged([i])

    def trusted(self, image, node):
        """{name: is it believed}; no bit of a bitmap that is believed is missing."""
        found = {}
        for b in self.listed(image):
            if b["name"] not in node.bitmaps or b["busy"]:
                self.wrong(f"{self.said}: then {image} has {b}")
            found[b["name"]] = not b.get("inconsistent")
            if found[b["name"]] and not self.dirty(image, b) >= node.bitmaps[b["name"]].bits:
                self.wrong(f"{self.said}: then {image} lacks bits of {b}")
        return found

    def keep(self):
        """A copy of everything, which `restores` may bring back."""
        if self.mount:
            return self.write()
        if self.kept:
            shutil.rmtree(self.kept[0])
        self.kept = (self.dir + ".kept", copy.deepcopy(self.nodes))
        self.overwrote = False
        return clone(self.dir, self.kept[0])

    def restores(self):
        """The storage goes back to what was kept: all of it, or one disk with its bitmaps."""
        if not self.kept:
            return self.keep()
        there, nodes = self.kept
        places = PLACES if self.overwrote or self.rng.random() < 0.5 else (self.rng.choice("ab"),)
        for name in places:
            shutil.rmtree(self.path(name))
            clone(os.path.join(there, name), self.path(name))
        for i, node in enumerate(nodes):
            if "ab"[i] in places:
                self.nodes[i] = copy.deepcopy(node)
                self.believe(i)
        return None

    def believe(self, i):
        """Bitmaps that are not believed any more are removed."""
        node = self.nodes[i]
        for name, good in self.trusted(node.image, node).items():
            if not good:
                self.status(["bitmap-remove", "-q", node.image, name], (0,))
                node.follows = None if node.follows == name else node.follows
        now = self.seen(node)
        if now.data != node.data:
            self.wrong(f"{node.id} was restored with other bytes")
        self.nodes[i] = now
        self.covered(now)

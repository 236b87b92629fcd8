"""Scenarios of `death` and `sweep`: transactions that change the bitmaps of several nodes, or of both stores, at once.
In every case all of the actions have been done, or none."""
import json
import os


def define(death):
    """The list-making function; `death` is that program, loaded as a module."""
    Wrong, must, there, bitmaps = death.Wrong, death.must, death.there, death.bitmaps

    class Together(death.Scenario):
        """Bitmap actions [(verb, disk, bitmap)] without jobs; `after`: what they make of a disk's bitmaps."""
        def __init__(self, name, disks, actions, after, mode="individual"):
            super().__init__(name, disks)
            self.actions, self.after, self.mode = actions, after, mode

        def command(self, w, jobs, actions):
            drives = [x for d in self.disks for x in ("--drive", f"{d[:2]}={d}")]
            list_ = [{"type": "block-dirty-bitmap-" + verb, "data": {"node": d[:2], "name": n}} for verb, d, n in actions]
            list_ += [{"type": "drive-backup", "data": {"device": j.disk[:2], "target": j.target, "format": "qcow2",
                                                        "sync": "full"}} for j in jobs]
            with open(os.path.join(w, "commands"), "w") as f:
                json.dump({"actions": list_, "properties": {"completion-mode": self.mode}}, f)
            return ["txn-apply", "-q", *drives, "commands"]

        def first(self, w):
            return self.command(w, [], self.actions)

        def acted(self, found):
            """True or False, for all disks alike."""
            if found == self.before:
                return False
            if found == {d: self.after(b) for d, b in self.before.items()}:
                return True
            raise Wrong(f"half done: bitmaps {found}, there were {self.before}")

        def check(self, w, rng):
            acted = self.acted(self.look(w, rng))
            self.others_unchanged(w)
            return [self] if acted else []

        def again(self, w, done):
            if not done:
                must(w, *self.first(w))
            if not self.acted({d: bitmaps(w, d) for d in self.disks}):
                raise Wrong("the second try has done nothing")

    class WithJobs(Together):
        """The same, and a full backup of each disk, each for itself."""
        def __init__(self, name, disks, actions, after):
            super().__init__(name, disks, actions, after)
            self.jobs = [death.Job(d, f"t{d[1]}.qcow2", None, None, "full", None) for d in disks]

        def first(self, w):
            return self.command(w, self.jobs, self.actions)

        def check(self, w, rng):
            acted = self.acted(self.look(w, rng))
            done = [j for j in self.jobs if there(w, j.target)]
            for j in done:
                death.whole(w, j.target, j.disk)
            if done and not acted:
                raise Wrong(f"{done} stand, and the bitmap actions are undone")
            self.others_unchanged(w)
            return done

        def again(self, w, done):
            left = [j for j in self.jobs if j not in done]
            must(w, *self.command(w, left, [] if self.acted({d: bitmaps(w, d) for d in self.disks}) else self.actions))
            for j in self.jobs:
                death.whole(w, j.target, j.disk)
            if not self.acted({d: bitmaps(w, d) for d in self.disks}):
                raise Wrong("the second try has not done the bitmap actions")

    def scenarios(bases):
        both = ["d0.img", "d1.img"]
        clear_add = [(verb, d, n) for d in both for verb, n in (("clear", "b"), ("add", "n"))]

        def cleared(b):
            return {**b, "b": set()}

        def cleared_and_added(b):
            return {"b": set(), "n": set()}

        table = [
            ("chain", Together("two nodes, no jobs", both, [("clear", d, "b") for d in both], cleared)),
            ("chain", Together("two nodes, no jobs, grouped", both, clear_add, cleared_and_added, "grouped")),
            ("plain", Together("two nodes, no jobs, the first bitmaps", both, [("add", d, "n") for d in both],
                               lambda b: {"n": set()})),
            ("inside", Together("both stores of one image, no jobs", ["d0.qcow2"],
                                [("clear", "d0.qcow2", "b"), ("clear", "d0.qcow2", "s")],
                                lambda b: {"b": set(), "s": set()})),
            ("inside", Together("two nodes, bitmaps in the images, no jobs", ["d0.qcow2", "d1.qcow2"],
                                [("clear", f"d{i}.qcow2", "b") for i in (0, 1)], cleared)),
            ("chain", WithJobs("two nodes, individual jobs and bitmap actions", both, clear_add, cleared_and_added)),
        ]
        for base, s in death.chosen(table):
            s.prepare(bases[base])
        return [s for _, s in death.chosen(table)]

    return scenarios

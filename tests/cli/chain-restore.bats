#!/usr/bin/env bats
# chain-restore: a chain of backups becomes one image again.

load helper

# A disk and a chain of three backups of it; disk.0, disk.1 and disk.2 are what it was at each.
chain() {
	raw disk.img "$1"
	ok bitmap-add disk.img b
	done_ backup-run -F qcow2 disk.img 0.qcow2
	cp disk.img disk.0
	local i
	for i in 1 2; do
		noise 100000 "$i" > data
		ok image-write disk.img $((i * 300000)) < data
		ok image-write --zero disk.img $((i * 5000)) 3000
		done_ backup-run --sync incremental --bitmap b -F qcow2 --backing $((i - 1)).qcow2 disk.img $i.qcow2
		cp disk.img disk.$i
	done
	clean 0.qcow2 1.qcow2 2.qcow2
}

# Replies and events are JSON, one of them says that it is done.
restored() {
	attempt "$@"
	assert_equal "$status" 0
	assert_equal "$(plain_replies)" 1
}

@test "each link of a chain, to raw" {
	chain 4M
	local i
	for i in 0 1 2; do
		restored chain-restore $i.qcow2 restored.$i
		cmp disk.$i restored.$i
	done
}

@test "disks of odd sizes" {
	chain 1000001
	restored chain-restore 2.qcow2 restored.img
	same raw disk.img raw restored.img
	cmp -n 1000001 disk.img restored.img
}

@test "to qcow2, one without backing image" {
	chain 4M
	restored chain-restore -F qcow2 2.qcow2 restored.qcow2
	clean restored.qcow2
	same raw disk.img qcow2 restored.qcow2
	run -0 qemu-img info --output=json restored.qcow2
	jq -e 'has("backing-filename") | not' <<< "$output"
}

@test "from another directory, to another one" {
	mkdir a a/b
	cd a
	chain 1M
	cd "$here"
	restored chain-restore a/2.qcow2 a/b/restored.img
	cmp a/disk.img a/b/restored.img
	cd a/b
	restored chain-restore ../1.qcow2 again.img
	cmp ../disk.1 again.img
}

@test "a chain that QEMU made, ending in a raw image" {
	raw base.img 3M
	qemu-img create -q -f qcow2 -o cluster_size=4K -b base.img -F raw 1.qcow2 4M
	qemu-io -f qcow2 -c 'write -q -P 1 1500K 100K' -c 'write -q -z 0 4K' -c 'write -q -P 2 3900K 3K' 1.qcow2
	qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=2M -b "$PWD/1.qcow2" -F qcow2 2.qcow2
	qemu-io -f qcow2 -c 'write -q -P 3 77 1' 2.qcow2
	restored chain-restore 2.qcow2 restored.img
	same qcow2 2.qcow2 raw restored.img
}

@test "an image of its own, raw and qcow2" {
	raw disk.img 1M
	restored chain-restore -f raw disk.img restored.img
	cmp disk.img restored.img
	qcow2 disk.qcow2 1M
	restored chain-restore disk.qcow2 restored2.img
	same qcow2 disk.qcow2 raw restored2.img
}

@test "holes stay holes" {
	truncate -s 64G disk.img
	noise 100000 | put disk.img $((40 << 30))
	done_ timeout 60 backup-run -F qcow2 disk.img full.qcow2
	restored timeout 60 chain-restore full.qcow2 restored.img
	[ "$(allocated restored.img)" -le 1024 ]
	assert_equal "$(stat -c %s restored.img)" $((64 << 30))
	cmp -i $((40 << 30)) -n 100000 disk.img restored.img
}

@test "a target that stands there is replaced only when told" {
	chain 1M
	echo precious > restored.img
	unchanged rejected chain-restore 2.qcow2 restored.img
	[[ $stderr == *restored.img* ]]
	restored chain-restore --overwrite 2.qcow2 restored.img
	cmp disk.img restored.img
}

@test "the chain's own images are no target" {
	chain 1M
	unchanged rejected chain-restore --overwrite 2.qcow2 2.qcow2
	unchanged rejected chain-restore --overwrite 2.qcow2 0.qcow2
}

@test "a link that is missing or damaged" {
	chain 1M
	mv 1.qcow2 aside
	unchanged refused_like '1\.qcow2.*No such file or directory' chain-restore 2.qcow2 restored.img
	cp aside 1.qcow2
	flip 1.qcow2 0
	unchanged refused_like '1\.qcow2' chain-restore 2.qcow2 restored.img
	cp aside 1.qcow2
	mv 0.qcow2 aside
	qemu-img convert -c -O qcow2 disk.0 0.qcow2
	break_cluster 0.qcow2 983040
	attempt chain-restore 2.qcow2 restored.img
	assert_equal "$status" 1
	[ -n "$stderr" ]
	[ ! -e restored.img ]
	mv aside 0.qcow2
	restored chain-restore 2.qcow2 restored.img
	cmp disk.img restored.img
}

@test "no space, no directory" {
	noise 3M > disk.img
	done_ backup-run -F qcow2 disk.img full.qcow2
	unchanged refused_like 'nosuchdir/restored.img.*No such file or directory' chain-restore full.qcow2 nosuchdir/restored.img
	tiny_fs tiny 1m
	attempt chain-restore full.qcow2 tiny/restored.img
	assert_equal "$status" 1
	[[ $stderr == *'No space left on device'* ]]
	[[ $stderr == *"tiny/restored.img': Could not write"*'No space left on device'* ]]
	assert_equal "$(ls tiny)" ''
}

# ---- in place ----

# written_to FILE: bytes, by what strace -y saw.
written_to() {
	awk -v f="$1" '$0 ~ "pwrite64\\(" && index($0, "<" f ">") { n += $NF } END { print n + 0 }' trace
}

@test "--in-place writes what differs, and nothing else" {
	chain 4M
	cp disk.1 restored.img
	# What is counted is what is written.  A leak check cannot work under a tracer.
	TIDE_COPY=rw ASAN_OPTIONS="detect_leaks=0:$ASAN_OPTIONS" restored strace -f -qq -y -o trace -e trace=pwrite64 chain-restore --in-place 2.qcow2 restored.img
	cmp disk.2 restored.img
	[[ $stderr == *'bytes ('*') differed, in whole units, and were written' ]]
	[ "$(written_to "$PWD/restored.img")" -le 400000 ]
	[ "$(written_to "$PWD/restored.img")" -gt 0 ]
	local before
	before=$(stat -c %y restored.img)
	restored chain-restore --in-place 2.qcow2 restored.img
	[[ $stderr == *'nothing differed' ]]
	assert_equal "$(stat -c %y restored.img)" "$before"
	# Back and forth, over anything.
	noise 4M 77 > restored.img
	local i
	for i in 0 2 1; do
		restored chain-restore -q --in-place $i.qcow2 restored.img
		assert_equal "$stderr" ''
		cmp disk.$i restored.img
	done
	[ "$(allocated restored.img)" -le 1024 ]
}

@test "--in-place into qcow2 images, overlays too" {
	chain 4M
	noise 4M 5 > other.img
	qemu-img convert -O qcow2 other.img own.qcow2
	restored chain-restore --in-place -F qcow2 2.qcow2 own.qcow2
	clean own.qcow2
	same raw disk.img qcow2 own.qcow2
	# An overlay of the backup itself gets what it needs and no more; so does one of another image.
	qemu-img create -q -f qcow2 -b 2.qcow2 -F qcow2 over.qcow2
	qemu-io -f qcow2 -c 'write -q -P 9 1M 1M' over.qcow2
	restored chain-restore --in-place -F qcow2 2.qcow2 over.qcow2
	[[ $stderr == *'1048576 bytes (1 MiB) differed'* ]]
	same raw disk.img qcow2 over.qcow2
	qemu-img create -q -f qcow2 -o cluster_size=512 -b other.img -F raw third.qcow2
	restored chain-restore --in-place -F qcow2 2.qcow2 third.qcow2
	same raw disk.img qcow2 third.qcow2
	clean over.qcow2 third.qcow2
	cmp -n 65536 <(noise 4M 5) other.img
}

@test "--in-place: zeroes take no space" {
	truncate -s 64M disk.img
	noise 64K | put disk.img 32M
	noise 64M > restored.img
	restored chain-restore --in-place -f raw disk.img restored.img
	cmp disk.img restored.img
	[ "$(allocated restored.img)" -le 256 ]
}

@test "--in-place wants a target of the disk's size" {
	chain 1000001
	truncate -s 1000002 large.img
	truncate -s 1000000 small.img
	unchanged refused "'large.img' has a size of 1000002 bytes, the disk to restore has 1000001" \
		chain-restore --in-place 2.qcow2 large.img
	unchanged refused "'small.img' has a size of 1000000 bytes, the disk to restore has 1000001" \
		chain-restore --in-place 2.qcow2 small.img
	noise 1000001 4 > right.img
	restored chain-restore --in-place 2.qcow2 right.img
	cmp disk.img right.img
	# A qcow2's size is one of whole sectors.
	noise 1000448 4 > filled
	qemu-img convert -O qcow2 filled right.qcow2
	restored chain-restore --in-place -F qcow2 2.qcow2 right.qcow2
	clean right.qcow2
	qemu-img convert -O raw right.qcow2 out
	truncate -s 1000448 disk.img
	cmp disk.img out
	unchanged refused "Could not open 'new.img': No such file or directory" chain-restore --in-place 2.qcow2 new.img
	unchanged usage chain-restore --in-place --overwrite 2.qcow2 right.img
}

@test "--in-place: a format that was not given is raw, unless the target looks like another one" {
	chain 1M
	qemu-img create -q -f qcow2 guest.qcow2 64M
	cp guest.qcow2 target.img
	truncate -s 1M target.img
	unchanged refused "'target.img' looks like an image of format 'qcow2', and its format was not given" \
		chain-restore --in-place 2.qcow2 target.img
	restored chain-restore --in-place -F raw 2.qcow2 target.img
	cmp disk.img target.img
	# Where a sidecar pins it, that is it.
	cp guest.qcow2 target.img
	truncate -s 1M target.img
	ok bitmap-add -f raw target.img t
	unchanged refused "The format of 'target.img' is pinned as 'raw', not 'qcow2'" \
		chain-restore --in-place -F qcow2 2.qcow2 target.img
	restored chain-restore --in-place 2.qcow2 target.img
	cmp disk.img target.img
}

@test "--in-place: the chain's own images are no target, by any name" {
	chain 1M
	ln 0.qcow2 hard.qcow2
	ln -s 2.qcow2 soft.qcow2
	local t
	for t in 2.qcow2 0.qcow2 hard.qcow2 soft.qcow2; do
		unchanged refused "'$t' is an image of the chain itself" chain-restore --in-place -F qcow2 2.qcow2 $t
		unchanged refused "'$t' is an image of the chain itself" chain-restore --overwrite 2.qcow2 $t
	done
}

@test "--in-place: an image that is in use, or has bitmaps inside that record" {
	chain 1M
	truncate -s 1M restored.img
	serve raw restored.img
	unchanged refused_like 'Failed to get (shared )?"write" lock' chain-restore --in-place 2.qcow2 restored.img
	served_no_more
	qcow2 own.qcow2 1M
	qemu-img bitmap --add own.qcow2 inside
	unchanged refused_like "itmap 'inside'" chain-restore --in-place -F qcow2 2.qcow2 own.qcow2
}

@test "--in-place: the target's own bitmaps are inconsistent after it, and a rescan makes them good" {
	chain 1M
	cp disk.0 restored.img
	ok bitmap-add restored.img t
	done_ backup-run -F qcow2 --bitmap t --bitmap-mode on-success restored.img before.qcow2
	restored chain-restore --in-place 0.qcow2 restored.img
	bitmap restored.img t 'has("inconsistent") | not'
	unchanged ok chain-restore --in-place --dry-run 2.qcow2 restored.img
	touch -r restored.img before
	restored chain-restore --in-place 2.qcow2 restored.img
	[[ $stderr == *'its bitmaps do not record a restore and are inconsistent now'* ]]
	bitmap restored.img t .inconsistent
	# It is not the file's time that tells, which may be lost with the power.
	touch -r before restored.img
	bitmap restored.img t .inconsistent
	ok bitmap-rescan --against before.qcow2 restored.img t
	bitmap restored.img t '(has("inconsistent") | not) and .count > 0'
	done_ backup-run --sync incremental --bitmap t -F qcow2 --backing before.qcow2 restored.img after.qcow2
	same raw restored.img qcow2 after.qcow2
}

@test "--in-place that fails or is cancelled says that the target is partly written" {
	chain 2M
	mkdir room
	tiny_fs room 1500k
	truncate -s 2M room/restored.img
	noise 2M 3 > full.img
	attempt chain-restore --in-place -f raw full.img room/restored.img
	error_reply
	[[ $desc == *"/room/restored.img' is partly written now: "*'No space left on device' ]]
	noise 6M > top.img
	truncate -s 6M restored.img
	export ASAN_OPTIONS="detect_leaks=0:$ASAN_OPTIONS" TIDE_COPY=rw
	ended 15 'grep -q "pwrite64(" trace' strace -D -f -qq -o trace -e trace=pwrite64 \
		-e inject=pwrite64:delay_enter=300000 chain-restore --in-place -f raw top.img restored.img
	assert_equal "$ended" 'signal 15'
	jq -e '.error.desc | test("is partly written now: Cancelled")' <<< "$output"
	restored chain-restore --in-place -f raw top.img restored.img
	cmp top.img restored.img
}

@test "--in-place: a chain that cannot be read is noticed before anything is written" {
	yes | head -c 1M > plain
	qemu-img convert -c -O qcow2 plain top.qcow2
	break_cluster top.qcow2 983040
	noise 1M 8 > restored.img
	unchanged refused_like 'top\.qcow2' chain-restore --in-place top.qcow2 restored.img
}

# ---- block devices ----

@test "to a block device: in place, or all of it" {
	chain 4M
	noise 4M 9 > dev.img
	loop dev.img
	unchanged refused_like "Could not create '$loop': File exists" chain-restore 2.qcow2 "$loop"
	[[ $stderr == *--in-place* ]]
	restored chain-restore --in-place 2.qcow2 "$loop"
	cmp disk.img "$loop"
	noise 4M 10 > "$loop"
	restored chain-restore --overwrite 1.qcow2 "$loop"
	cmp disk.1 "$loop"
	unchanged refused "Could not create '$loop': a new image on a block device must be raw" \
		chain-restore --overwrite -F qcow2 1.qcow2 "$loop"
}

@test "to a larger block device: the rest is left alone, and said so; to a smaller one: refused" {
	chain 1000001
	noise 2M 9 > dev.img
	cp dev.img before
	loop dev.img
	local how
	for how in --in-place --overwrite; do
		restored chain-restore $how 2.qcow2 "$loop"
		[[ $stderr == *"the device has 2097152 bytes: those beyond the disk's 1000001 stay unchanged"* ]]
		sync "$loop"
		cmp -n 1000001 disk.img "$loop"
		cmp -i 1000001 before "$loop"
		cat before > "$loop"
	done
	truncate -s 999936 small.img
	loop small.img
	unchanged refused "'$loop' has a size of 999936 bytes, the disk to restore has 1000001" \
		chain-restore --in-place 2.qcow2 "$loop"
	[[ $stderr == *'as large as the disk'* ]]
}

@test "a block device that is in use, or behind which the chain stands" {
	chain 4M
	truncate -s 16M dev.img
	mkfs.ext4 -q dev.img 2> /dev/null || skip 'no mkfs.ext4'
	loop dev.img
	mkdir mnt
	mount "$loop" mnt 2> /dev/null || skip 'cannot mount'
	mounts+=("$PWD/mnt")
	refused_like 'Device or resource busy' chain-restore --in-place 2.qcow2 "$loop"
	refused_like 'Device or resource busy' chain-restore --overwrite 2.qcow2 "$loop"
	umount mnt
	mounts=()
	loop 0.qcow2
	unchanged refused "'$loop' is an image of the chain itself" chain-restore --overwrite 2.qcow2 "$loop"
}

@test "a block device with bitmaps that record: refused" {
	chain 1M
	truncate -s 1M dev.img
	loop dev.img
	name_loop
	ok named bitmap-add "$loop" t
	[ -e var/tidemark/some-disk.bitmaps ]
	refused "Bitmap 't' of '$loop' would not record this write" named chain-restore --in-place 2.qcow2 "$loop"
	[[ $stderr == *bitmap-disable*bitmap-rescan* ]]
	refused_like 'would not record' named chain-restore --overwrite 2.qcow2 "$loop"
	ok named bitmap-disable "$loop" t
	restored named chain-restore --in-place 2.qcow2 "$loop"
	cmp disk.img "$loop"
	ok named bitmap-rescan --against 2.qcow2 "$loop" t
	[[ $stderr == *'nothing differs'* ]]
}

@test "a block device without a default sidecar: a warning about its bitmaps elsewhere" {
	chain 1M
	truncate -s 1M dev.img
	loop dev.img
	ok bitmap-add --sidecar s "$loop" b
	restored chain-restore --in-place 2.qcow2 "$loop"
	[[ $stderr == *'that --sidecar keeps do not record a restore'* ]] || fail "$stderr"
	restored chain-restore --in-place 2.qcow2 "$loop"
	[[ $stderr != *'do not record'* ]] || fail "$stderr"
}

# ---- the bitmaps of the target ----

# recorded TARGET SIDECAR: the bitmap b counts from full.qcow2, and an increment from it restores to the target.
recorded() {
	rm -f inc.qcow2 now.img
	bitmap "$1" b '(.inconsistent | not) and .recording'
	done_ backup-run -q --sidecar "$2" --sync bitmap --bitmap-mode never --bitmap b -F qcow2 --backing full.qcow2 "$1" inc.qcow2
	restored chain-restore inc.qcow2 now.img
	cmp now.img "$1"
}

# kept TARGET: it has the bitmaps b, which counts from full.qcow2, and d, which is disabled, in the sidecar s.
kept() {
	list_with --sidecar s
	done_ backup-run -q --sidecar s --sync auto --bitmap b -F qcow2 "$1" full.qcow2
	ok bitmap-add --sidecar s --disabled "$1" d
}

@test "--sidecar of a device: what a restore in place writes is recorded" {
	chain 4M
	cp disk.img dev.img
	loop dev.img
	kept "$loop"
	restored chain-restore --in-place --sidecar s 0.qcow2 "$loop"
	[[ $stderr != *'do not record'* ]] || fail "$stderr"
	cmp disk.0 "$loop"
	[ ! -e s.log ]
	bitmap "$loop" b '.count > 0 and .count < 4194304'
	bitmap "$loop" d '.count == 0 and (.inconsistent | not)'
	recorded "$loop" s
	restored chain-restore --in-place --sidecar s 0.qcow2 "$loop"
	[[ $stderr == *'nothing differed'* ]]
	restored chain-restore --overwrite --sidecar s 2.qcow2 "$loop"
	cmp disk.img "$loop"
	bitmap "$loop" b '.count == 4194304'
	recorded "$loop" s
}

@test "--sidecar of a file: one elsewhere, or the usual one; the others are inconsistent" {
	chain 4M
	cp disk.img t.img
	kept t.img
	ok bitmap-add t.img own
	restored chain-restore --in-place --sidecar s -F raw 0.qcow2 t.img
	cmp disk.0 t.img
	recorded t.img s
	list_with
	bitmap t.img own .inconsistent
	done_ bitmap-rescan -q --against 0.qcow2 t.img own
	ok bitmap-clear t.img own
	restored chain-restore --in-place --sidecar t.img.bitmaps 2.qcow2 t.img
	cmp disk.img t.img
	bitmap t.img own '(.inconsistent | not) and .count > 0'
	list_with --sidecar s
	bitmap t.img b .inconsistent
}

@test "--sidecar of a target: bitmaps inside a qcow2 record, too" {
	chain 4M
	qemu-img convert -O qcow2 disk.img t.qcow2
	list_with --sidecar s
	ok bitmap-add -f qcow2 --sidecar s t.qcow2 b
	ok bitmap-add --sidecar s --store image t.qcow2 m
	restored chain-restore --in-place --sidecar s 0.qcow2 t.qcow2
	qemu-img compare -q -f raw -F qcow2 disk.0 t.qcow2
	bitmap t.qcow2 b '(.inconsistent | not) and .count > 0'
	bitmap t.qcow2 m '(.inconsistent | not) and .count > 0'
	qemu-img check -q t.qcow2
}

@test "--sidecar of a target: refused, or nothing to record" {
	chain 4M
	cp disk.img t.img
	unchanged refused "'t.img' has no bitmaps in 'nosuch'" chain-restore --in-place --sidecar nosuch 0.qcow2 t.img
	[[ $stderr == *'omit --sidecar'* ]]
	kept t.img
	unchanged refused "The format of 't.img' is pinned as 'raw', not 'qcow2'" \
		chain-restore --in-place -F qcow2 --sidecar s 0.qcow2 t.img
	unchanged restored chain-restore --dry-run --in-place --sidecar s 0.qcow2 t.img
	# Otherwise it is that of TOP.
	restored chain-restore --sidecar s t.img new.img
	cmp t.img new.img
	# Writes that were not recorded before stay so.
	echo x | put t.img 0
	restored chain-restore --in-place --sidecar s 0.qcow2 t.img
	[[ $stderr == *'was changed without being tracked; its bitmaps stay inconsistent'* ]] || fail "$stderr"
	bitmap t.img b .inconsistent
}

@test "--sidecar of a target: a failure or death leaves the written ranges dirty" {
	strace -f -o trace true 2> strace.err || skip 'no strace'
	export TIDE_COPY=rw ASAN_OPTIONS="detect_leaks=0:$ASAN_OPTIONS"
	chain 4M
	cp disk.0 dev.img
	loop dev.img
	kept "$loop"
	local call
	attempt strace -f -qq -o trace -P "$loop" -e trace=pwrite64 -e inject=pwrite64:error=EIO \
		chain-restore --in-place --sidecar s 2.qcow2 "$loop"
	assert_equal "$status" 1
	[[ $stderr == *'is partly written now'* ]] || fail "$stderr"
	recorded "$loop" s
	for call in pwrite64 fsync,fdatasync; do
		restored chain-restore --in-place --sidecar s 0.qcow2 "$loop"
		ok bitmap-clear --sidecar s "$loop" b
		run strace -f -qq -o trace -P "$loop" -e trace=$call -e inject=$call:signal=KILL:when=1 \
			"$BUILD/bin/chain-restore" --in-place --sidecar s 2.qcow2 "$loop"
		[ "$status" -eq 137 ]
		[ -e s.log ]
		recorded "$loop" s
	done
}

# ---- a rescue ----

# entry FILE INDEX VALUE: sets an entry of the first L2 table; VALUE is an expression of the old one, e.
entry() {
	python3 - "$@" <<- 'PY'
		import struct, sys
		name, index, value = sys.argv[1:]
		with open(name, "r+b") as f:
		    def get(at):
		        f.seek(at)
		        return struct.unpack(">Q", f.read(8))[0]
		    at = (get(get(40)) & 0xfffffffffffe00) + 8 * int(index)
		    new = eval(value, {"e": get(at)})
		    f.seek(at)
		    f.write(struct.pack(">Q", new))
	PY
}

# A base with damage of several kinds, and an overlay that hides a part of it.
damaged_chain() {
	qcow2_made base.qcow2 8M
	qemu-io -f qcow2 -c 'write -q -P 1 0 4M' base.qcow2
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
	qemu-io -f qcow2 -c 'write -q -P 2 1M 1M' top.qcow2
	entry base.qcow2 3 'e | 0x400'                # not on a cluster
	entry base.qcow2 5 '1 << 63 | 1 << 50'        # beyond the end
	entry base.qcow2 7 'e | 2'                    # a reserved bit: QEMU reads the cluster
	entry base.qcow2 17 '1 << 63 | 1 << 50'       # not visible
	truncate -s -100000 base.qcow2                # within the last cluster but one
}

qcow2_made() {
	qemu-img create -q -f qcow2 "$1" "$2"
}

# rescued RANGES CMD...: exit status 3, and the reply and the messages list exactly these ranges, START+LENGTH.
rescued() {
	local want=$1 r
	shift
	attempt "$@"
	assert_equal "$status" 3
	assert_equal "$(jq -r '.return."x-unreadable" | map("\(.start)+\(.length)") | join(" ")' <<< "$output")" "$want"
	for r in $want; do
		[[ $stderr == *"${r#*+} bytes at ${r%+*} of the disk cannot be read"* ]] || fail "$stderr"
	done
	[[ $stderr == *'bytes of the disk could not be read, and are zeroes in'* ]] || fail "$stderr"
}

# ---- reference counts that are lost ----

# word FILE OFFSET BYTES VALUE: VALUE is an expression of the place of the refcount table, t, and of its first block, b.
word() {
	python3 - "$@" <<- 'PY'
		import struct, sys
		name, at, n, value = sys.argv[1:]
		with open(name, "r+b") as f:
		    def get(off):
		        f.seek(off)
		        return struct.unpack(">Q", f.read(8))[0]
		    names = {"t": get(48), "b": get(get(48)), "l": get(40)}
		    f.seek(eval(at, names))
		    f.write(eval(value, names).to_bytes(int(n), "big"))
	PY
}

# readable IMAGE RAW: all that only reads it works, as in QEMU, and what would change it is refused.
readable() {
	qemu-img convert -f qcow2 -O raw "$1" want.img
	cmp want.img "$2"
	ok chain-restore --overwrite "$1" out.img
	cmp "$2" out.img
	unchanged done_ image-info "$1"
	unchanged done_ bitmap-list "$1"
	ok bitmap-add --ignore-stamp "$1" new
	rm -f backup.qcow2
	done_ backup-run --sync full "$1" backup.qcow2
	same raw "$2" qcow2 backup.qcow2
	cp "$1" before
	for target in "image-write --pattern 1 $1 0 512" "bitmap-add --store image $1 inside" \
		"backup-run --mode existing -F qcow2 -f raw --sync full $2 $1"; do
		attempt $target
		assert_equal "$status" 1
		[[ $stderr == *'the image can still be read; to repair it: qemu-img check -r all IMAGE'* ]] || fail "$stderr"
		cmp before "$1"
	done
	attempt chain-verify "$1"
	assert_equal "$status" 3
}

@test "an image whose reference counts are lost can be read, not written" {
	local damage
	noise 200K > disk.img
	truncate -s 4M disk.img
	noise 100K 2 | put disk.img 3M
	qemu-img convert -f raw -O qcow2 disk.img sound.qcow2
	for damage in '48 8 0' '48 8 1<<40' '48 8 l' '48 8 100*65536' '56 4 2' '56 4 128' 't 8 0' 't 8 b+512' 't 8 1<<40' \
		't 65536 0x5a*((1<<524288)-1)//255' 'b 65536 0'; do
		cp sound.qcow2 lost.qcow2
		# shellcheck disable=SC2086 # three words
		word lost.qcow2 $damage
		echo "# $damage"
		readable lost.qcow2 disk.img
		rm -f lost.qcow2*
	done
	qemu-img create -q -f qcow2 -o cluster_size=4096,extended_l2=off -b sound.qcow2 -F qcow2 top.qcow2
	word sound.qcow2 48 8 '1<<40'
	ok chain-restore --overwrite top.qcow2 out.img
	cmp disk.img out.img
}

@test "--salvage: what is sound, zeroes for the rest, as qemu-img reads it" {
	damaged_chain
	local lost='196608+65536 327680+65536 4093952+100352' way
	unchanged refused_like 'L2 entry for the cluster at' chain-restore top.qcow2 out.img
	[ ! -e out.img ]
	rescued "$lost" chain-restore --salvage top.qcow2 out.img
	[[ $stderr == *"the first error: '$here/base.qcow2': L2 entry for the cluster at "* ]] || fail "$stderr"
	qemu-img convert -q --salvage -O raw top.qcow2 want.img 2> /dev/null
	cmp want.img out.img
	rescued "$lost" chain-restore --salvage -F qcow2 -c top.qcow2 out.qcow2
	same qcow2 out.qcow2 raw want.img
	clean out.qcow2
	for way in reflink kernel rw direct; do
		rescued "$lost" env TIDE_COPY=$way chain-restore --salvage --overwrite top.qcow2 out.img
		cmp want.img out.img
	done
}

@test "--salvage: compressed clusters, and an L2 table that is lost" {
	noise 1M > disk.img
	truncate -s 1G disk.img
	noise 1M 2 | put disk.img $((768 << 20))
	qemu-img convert -c -f raw -O qcow2 disk.img c.qcow2
	printf 'compressible %.0s' {1..60000} | put disk.img 0
	qemu-img convert -c -f raw -O qcow2 disk.img c.qcow2
	break_cluster c.qcow2 131072
	rescued '131072+65536' chain-restore --salvage c.qcow2 out.img
	cp disk.img want.img
	head -c 65536 /dev/zero | put want.img 131072
	cmp want.img out.img
	python3 - <<- 'PY'
		import struct
		with open("c.qcow2", "r+b") as f:
		    f.seek(40)
		    l1 = struct.unpack(">Q", f.read(8))[0]
		    f.seek(l1 + 8)
		    f.write(struct.pack(">Q", 1 << 63 | 1 << 50))
	PY
	rescued "131072+65536 $((512 << 20))+$((512 << 20))" chain-restore --salvage --overwrite c.qcow2 out.img
	truncate -s 512M want.img
	truncate -s 1G want.img
	cmp want.img out.img
}

@test "--salvage: sectors of a bad disk" {
	command -v dmsetup > /dev/null && dmsetup targets 2> /dev/null | grep -q '^error' || skip 'no device mapper'
	noise 1M > disk.img
	cp disk.img want.img
	head -c 1024 /dev/zero | put want.img $((100 * 512))
	loop disk.img
	dmsetup create "tidemark-test-$$" <<- END || skip 'no device mapper'
		0 100 linear $loop 0
		100 2 error
		102 1946 linear $loop 102
	END
	attempt chain-restore -f raw --salvage "/dev/mapper/tidemark-test-$$" out.img
	dmsetup remove "tidemark-test-$$"
	assert_equal "$status" 3
	cmp want.img out.img
	assert_equal "$output" '{"return": {"x-unreadable": [{"start": 51200, "length": 1024}]}}'
}

@test "--salvage: a disk that cannot be read, and an error that is not the disk's" {
	noise 128K > disk.img
	truncate -s 1M disk.img
	noise 64K 2 | put disk.img $((768 << 10))
	rescued '0+131072 786432+65536' env TIDE_COPY=rw strace -f -qq -o /dev/null -P "$here/disk.img" -e trace=pread64 \
		-e inject=pread64:error=EIO "$BUILD/bin/chain-restore" -f raw --salvage disk.img out.img
	cmp -n 1048576 /dev/zero out.img
	rm out.img
	TIDE_COPY=rw attempt strace -f -qq -o /dev/null -P "$here/disk.img" -e trace=pread64 \
		-e inject=pread64:error=ENOMEM "$BUILD/bin/chain-restore" -f raw --salvage disk.img out.img
	assert_equal "$status" 1
	[ ! -e out.img ]
}

@test "--salvage of a sound chain is a restore" {
	chain 1M
	attempt chain-restore --salvage 2.qcow2 restored.img
	assert_equal "$status" 0
	assert_equal "$output" '{"return": {"x-unreadable": []}}'
	cmp disk.img restored.img
}

# three: top.qcow2 with data at 1M, middle.qcow2 at 2M, base.qcow2 or base.raw from 0 to 4M of 8M; and want.img.
three() {
	noise 4M > base.raw
	truncate -s 8M base.raw
	if [ "$1" = raw ]; then
		image-create -q -f qcow2 -b base.raw -F raw middle.qcow2
	else
		qemu-img convert -f raw -O qcow2 base.raw base.qcow2
		image-create -q -f qcow2 -b base.qcow2 -F qcow2 middle.qcow2
	fi
	image-create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2
	qemu-io -f qcow2 -c 'write -q -P 2 2M 1M' middle.qcow2
	qemu-io -f qcow2 -c 'write -q -P 1 1M 512k' -c 'write -q -z 3M 64k' top.qcow2
	qemu-img convert -f qcow2 -O raw top.qcow2 want.img
}

# lost OFFSET LENGTH: zeroes in what is wanted.
lost() {
	head -c "$2" /dev/zero | put want.img "$1"
}

# without_base: what top.qcow2 and middle.qcow2 of `three` hold is restored, the rest is listed.
without_base() {
	lost 0 1M && lost 1572864 524288 && lost 3211264 5177344
	rescued '0+1048576 1572864+524288 3211264+5177344' chain-restore --salvage --overwrite top.qcow2 out.img
	cmp want.img out.img
}

@test "--salvage: an image of the chain is missing, or its header is damaged" {
	local damage
	three qcow2
	cp want.img whole.img
	for damage in 'mv middle.qcow2 aside' 'put middle.qcow2 0' 'truncate -s 50 middle.qcow2'; do
		cp middle.qcow2 keep
		head -c 4096 /dev/zero | $damage
		# What the present images hold is restored; what the others may have held is listed.
		refused_like 'middle\.qcow2' chain-restore top.qcow2 out.img
		lost 0 1M && lost 1572864 1572864 && lost 3211264 5177344
		rescued '0+1048576 1572864+1572864 3211264+5177344' chain-restore --salvage --overwrite top.qcow2 out.img
		cmp want.img out.img
		[[ $stderr == *"middle.qcow2'"*'; data that only it, or images below it, can hold is lost'* ]] || fail "$stderr"
		rm -f middle.qcow2
		mv keep middle.qcow2
	done
	mv base.qcow2 aside
	cp whole.img want.img
	without_base
	# An image that defines all of the disk lacks nothing.
	qemu-img create -q -f qcow2 -b aside -F qcow2 all.qcow2
	qemu-io -f qcow2 -c 'write -q -P 9 0 8M' all.qcow2
	qemu-img rebase -u -f qcow2 -b nosuch.qcow2 -F qcow2 all.qcow2
	attempt chain-restore --salvage --overwrite all.qcow2 out.img
	assert_equal "$status" 0
	assert_equal "$output" '{"return": {"x-unreadable": []}}'
	run -0 qemu-io -f raw -c 'read -P 9 0 8M' out.img
}

@test "--salvage: a raw backing image is missing, or was cut" {
	three raw
	cp want.img whole.img
	cp base.raw keep
	truncate -s 3500000 base.raw
	refused_like 'was cut' chain-restore top.qcow2 out.img
	lost 3500000 4888608
	rescued '3499520+4889088' chain-restore --salvage top.qcow2 out.img
	cmp want.img out.img
	[[ $stderr == *"The backing file '$here/base.raw' was cut"* ]] || fail "$stderr"
	# An overlay that is larger: what follows the end of the backing image was never in it.
	cp keep base.raw
	qemu-img resize -q top.qcow2 12M
	mv base.raw aside
	cp whole.img want.img
	truncate -s 12M want.img
	without_base
}

@test "--salvage: an external data file is missing, or was cut" {
	local settings lost_data
	for settings in '' ,data_file_raw=on ,extended_l2=on; do
		rm -f d.* top.qcow2 want.img out.img
		qemu-img create -q -f qcow2 -o "data_file=d.data$settings" d.qcow2 4M
		qemu-io -f qcow2 -c 'write -q -P 3 0 1M' -c 'write -q -P 4 3M 1M' d.qcow2
		qemu-img create -q -f qcow2 -b d.qcow2 -F qcow2 top.qcow2
		qemu-io -f qcow2 -c 'write -q -P 5 512k 64k' top.qcow2
		qemu-img convert -f qcow2 -O raw top.qcow2 want.img
		cp d.data keep
		truncate -s 3700000 d.data
		refused_like 'was cut' chain-restore top.qcow2 out.img
		lost 3700000 494304
		rescued '3699712+494592' chain-restore --salvage top.qcow2 out.img
		cmp want.img out.img
		rm d.data out.img
		refused_like 'd\.data' chain-restore top.qcow2 out.img
		# A raw data file holds the whole disk.
		[ "$settings" = ,data_file_raw=on ] && lost_data='0+524288 589824+3604480' || lost_data='0+524288 589824+458752 3145728+1048576'
		lost 0 524288 && lost 589824 3604480
		rescued "$lost_data" chain-restore --salvage top.qcow2 out.img
		cmp want.img out.img
		[[ $stderr == *"d.data'"*'; data in the external data file is lost'* ]] || fail "$stderr"
	done
}

@test "--salvage: a header whose damage is not the disk's" {
	three qcow2
	word middle.qcow2 48 8 t+512  # the refcount table is not on a cluster
	word base.qcow2 64 8 512      # nor is the snapshot table
	refused_like 'offset invalid' chain-restore top.qcow2 out.img
	attempt chain-restore --salvage top.qcow2 out.img
	# All of it is restored; but the files below are not what they were.
	assert_equal "$status" 3
	assert_equal "$output" '{"return": {"x-unreadable": []}}'
	cmp want.img out.img
}

@test "--salvage: a missing image is not made by the rescue, and a name that may not be followed stays an error" {
	three qcow2
	mv middle.qcow2 aside
	unchanged refused "'middle.qcow2' is a file of the chain, which is missing or damaged" \
		chain-restore --salvage top.qcow2 middle.qcow2
	unchanged refused "'../here/middle.qcow2' is a file of the chain, which is missing or damaged" \
		chain-restore --salvage top.qcow2 ../here/middle.qcow2
	qemu-img rebase -u -f qcow2 -b ../elsewhere/middle.qcow2 -F qcow2 top.qcow2
	unchanged refused_like 'lies outside the directory' chain-restore --salvage top.qcow2 out.img
}

@test "--salvage does not write in place, and a lack of the top or the target is no damage" {
	chain 1M
	cp disk.img restored.img
	unchanged usage chain-restore --salvage --in-place 2.qcow2 restored.img
	[[ $stderr == *'in place it would overwrite data with zeroes'* ]] || fail "$stderr"
	mv 2.qcow2 aside
	unchanged refused_like '2\.qcow2.*No such file or directory' chain-restore --salvage 2.qcow2 out.img
	mv aside 2.qcow2
	tiny_fs tiny 200k
	attempt chain-restore --salvage 2.qcow2 tiny/out.img
	assert_equal "$status" 1
	assert_equal "$(ls tiny)" ''
}

@test "--dry-run restores nothing" {
	chain 1M
	unchanged ok chain-restore --dry-run 2.qcow2 restored.img
	[ ! -e restored.img ]
}

@test "usage" {
	usage chain-restore
	usage chain-restore top.qcow2
	usage chain-restore top.qcow2 target.img more
	refused_like 'nosuch.qcow2.*No such file or directory' chain-restore nosuch.qcow2 restored.img
	[ ! -e restored.img ]
}

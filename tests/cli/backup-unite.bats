#!/usr/bin/env bats
# A bitmap of the same name in an image and its backing images, as libvirt's checkpoints make them: a backup of the top
# contains what all of them recorded.

load helper

# base FORMAT STORE: base, backed up as full.qcow2, with a bitmap b that has recorded a write since.
base() {
	if [ "$1" = qcow2 ]; then qcow2 base 4M; else raw base 4M; fi
	ok bitmap-add --store "$2" base b
	done_ backup-run --bitmap b --bitmap-mode on-success -F qcow2 base full.qcow2
	ok image-write --pattern 2 base 1M 1000
}

# overlay NAME BACKING FORMAT STORE [ADD-OPTION...]: with a bitmap b that has recorded a write, at 3M.
overlay() {
	ok image-create -f qcow2 -b "$2" -F "$3" "$1"
	ok bitmap-add --store "$4" "${@:5}" "$1" b
	ok image-write --pattern 3 "$1" 3M 1000
}

# increment TARGET BACKING [OPTION...]: a backup of top.qcow2, which has all that top.qcow2 has; $copied bytes, $warning.
increment() {
	done_ backup-run --sync incremental --bitmap b -F qcow2 --backing "$2" "${@:3}" top.qcow2 "$1"
	warning=$stderr
	copied=$(jq -s 'map(select(.event))[0].data.len' <<< "$output")
	rm -f back.img
	ok chain-restore "$1" back.img
	same qcow2 top.qcow2 raw back.img
}

@test "in both stores, of qcow2 and raw images" {
	local format below above
	for format in qcow2 raw; do
		for below in image sidecar; do
			[ "$format$below" != rawimage ] || continue
			for above in image sidecar; do
				rm -f ./*
				base $format $below
				overlay top.qcow2 base $format $above
				increment inc.qcow2 full.qcow2
				[[ $warning == *"the backing image '$here/base' has a bitmap 'b' too"* ]] || fail "no warning: $warning"
				bitmap top.qcow2 b '.count == 0'
				bitmap base b '.count == 65536'
				ok image-write --pattern 4 top.qcow2 2M 1000
				increment inc2.qcow2 inc.qcow2
				assert_equal "$copied" 131072
			done
		done
	done
}

@test "the commands of the warning unite them for good" {
	base qcow2 image
	overlay top.qcow2 base qcow2 image
	local words said
	done_ backup-run --dry-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2 top.qcow2 inc.qcow2
	said=$stderr
	for words in bitmap-merge bitmap-remove; do
		[[ $said =~ ($words [^,]*) ]] || fail "no $words in: $said"
		done_ bash -c "${BASH_REMATCH[1]%%$'\n'*}"
	done
	assert_equal "$(names base)" ''
	increment inc.qcow2 full.qcow2
	assert_equal "$warning" ''
	ok image-write --pattern 4 top.qcow2 2M 1000
	increment inc2.qcow2 inc.qcow2
	assert_equal "$copied" 65536
}

@test "several backing images, other granularities, a longer overlay" {
	base qcow2 image
	overlay middle.qcow2 base qcow2 sidecar -g 4K
	ok image-create -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2 6M
	ok bitmap-add -g 1M top.qcow2 b
	ok image-write --pattern 5 top.qcow2 5M 1000
	# The old backup is of a shorter disk.
	increment inc.qcow2 full.qcow2
	[[ $warning == *"'$here/middle.qcow2' has a bitmap"*"'$here/base' has a bitmap"* ]]
}

@test "sync mode bitmap; other modes do not ask for them" {
	base qcow2 image
	overlay top.qcow2 base qcow2 sidecar
	done_ backup-run --sync bitmap --bitmap-mode never --bitmap b -F qcow2 --backing full.qcow2 top.qcow2 inc.qcow2
	same qcow2 top.qcow2 qcow2 inc.qcow2
	bitmap top.qcow2 b '.count == 65536'
	done_ backup-run --bitmap b --bitmap-mode on-success -F qcow2 top.qcow2 whole.qcow2
	assert_equal "$stderr" ''
}

@test "one that is clean, or has another name" {
	base qcow2 image
	ok bitmap-clear base b
	ok bitmap-add base other
	ok bitmap-mark base other 0 4M
	overlay top.qcow2 base qcow2 image
	done_ backup-run --sync incremental --bitmap b -F qcow2 top.qcow2 inc.qcow2
	assert_equal "$stderr" ''
	assert_equal "$(jq -s 'map(select(.event))[0].data.len' <<< "$output")" 65536
}

@test "one that is inconsistent: refused, and auto makes a full backup" {
	base raw sidecar
	overlay top.qcow2 base raw sidecar
	touch -d 2001-01-01 base
	unchanged refused_like "Bitmap 'b' of the backing image '.*/base' belongs to this backup: .*inconsistent" \
		backup-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2 top.qcow2 inc.qcow2
	[[ $stderr =~ (bitmap-remove \'.*) ]] || fail "$stderr"
	local remove=${BASH_REMATCH[1]}
	done_ backup-run --sync auto --bitmap b -F qcow2 top.qcow2 auto.qcow2
	[[ $output == *'"sync": "full", "reason": "a bitmap of the same name in a backing image could not be used"'* ]] ||
		fail "$output"
	same qcow2 top.qcow2 qcow2 auto.qcow2
	ok bash -c "$remove"
	ok image-write --pattern 6 top.qcow2 2M 1000
	done_ backup-run --sync auto --bitmap b -F qcow2 --backing auto.qcow2 top.qcow2 next.qcow2
	[[ $output == *'"sync": "incremental"'* ]]
	same qcow2 top.qcow2 qcow2 next.qcow2
}

@test "one that QEMU made, and left in use" {
	qemu-img create -q -f qcow2 base 4M
	qemu-img bitmap --add base b
	overlay top.qcow2 base qcow2 image
	python3 - <<- 'PY'
		import struct
		with open("base", "r+b") as f:
		    head = f.read(1024)
		    at = head.index(struct.pack(">II", 0x23852875, 24)) + 8
		    directory, = struct.unpack_from(">Q", head, at + 16)
		    f.seek(directory + 12)
		    f.write(struct.pack(">I", 3))
	PY
	refused_like 'belongs to this backup: .*inconsistent' backup-run --sync incremental --bitmap b -F qcow2 top.qcow2 inc.qcow2
}

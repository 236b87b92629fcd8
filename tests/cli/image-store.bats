#!/usr/bin/env bats
# Bitmaps inside a qcow2, QEMU's own: every command finds them by name, changes them atomically, and QEMU's tools agree.

bats_require_minimum_version 1.5.0
load helper

# stored IMAGE: what qemu-img says of the bitmaps inside: NAME:GRANULARITY:FLAGS, sorted.
stored() {
	qemu-img info -U --output=json "$1" > info.json
	jq -r '[."format-specific".data.bitmaps // [] | sort_by(.name)[] | "\(.name):\(.granularity):\(.flags | join(","))"] | join(" ")' \
		info.json
}

@test "add: QEMU finds it, with its granularity and whether it records" {
	qcow2 disk.qcow2 4M
	ok bitmap-add --store image disk.qcow2 a
	ok bitmap-add --store image -g 4K --disabled disk.qcow2 b
	assert_equal "$(stored disk.qcow2)" "a:65536:auto b:4096:"
	bitmap disk.qcow2 a '.store == "image" and .recording and .persistent and .count == 0 and (.busy | not)'
	bitmap disk.qcow2 b '.store == "image" and (.recording | not) and .granularity == 4096'
	assert_equal "$(names disk.qcow2)" "b a"
	clean disk.qcow2
	[ ! -e disk.qcow2.bitmaps ]
}

@test "a name is used once in both stores" {
	qcow2 disk.qcow2 1M
	ok bitmap-add disk.qcow2 a
	ok bitmap-add --store image disk.qcow2 b
	unchanged refused "Bitmap already exists: a" bitmap-add --store image disk.qcow2 a
	unchanged refused "Bitmap already exists: b" bitmap-add disk.qcow2 b
}

@test "where an image cannot hold bitmaps it says so as QEMU does" {
	raw disk.img 1M
	unchanged refused "Can't store persistent bitmaps to disk: Operation not supported" \
		bitmap-add --store image disk.img b
	qemu-img create -q -f qcow2 -o compat=0.10 old.qcow2 1M
	unchanged refused "Can't make bitmap 'b' persistent in 'old': Cannot store dirty bitmaps in qcow2 v2 files" \
		bitmap-add --store image old.qcow2 b
	[ ! -e disk.img.bitmaps ] && [ ! -e old.qcow2.bitmaps ]
}

@test "mark, clear, enable, disable, merge, remove" {
	qcow2 disk.qcow2 4M
	ok bitmap-add --store image disk.qcow2 a
	ok bitmap-add --store image -g 32K disk.qcow2 b
	ok bitmap-add disk.qcow2 s
	ok bitmap-mark disk.qcow2 a 1M 100K
	ok bitmap-mark disk.qcow2 b 32K 1
	assert_equal "$(dirty disk.qcow2 a)" 1048576+131072
	ok bitmap-merge disk.qcow2 b a
	assert_equal "$(dirty disk.qcow2 b)" "32768+32768 1048576+131072"
	ok bitmap-merge disk.qcow2 s b
	assert_equal "$(dirty disk.qcow2 s)" "0+65536 1048576+131072"
	ok bitmap-disable disk.qcow2 a
	assert_equal "$(stored disk.qcow2)" "a:65536: b:32768:auto"
	ok bitmap-enable disk.qcow2 a
	assert_equal "$(stored disk.qcow2)" "a:65536:auto b:32768:auto"
	ok bitmap-clear disk.qcow2 b
	assert_equal "$(dirty disk.qcow2 b)" ""
	assert_equal "$(dirty disk.qcow2 a)" 1048576+131072
	ok bitmap-remove disk.qcow2 a
	assert_equal "$(stored disk.qcow2)" "b:32768:auto"
	ok bitmap-remove disk.qcow2 b
	assert_equal "$(stored disk.qcow2)" ""
	clean disk.qcow2
	# The sidecar's bitmap has been trusted all the time.
	bitmap disk.qcow2 s '(has("inconsistent") | not) and .recording'
}

@test "QEMU's tools read what was stored" {
	qcow2 disk.qcow2 4M
	ok bitmap-add --store image disk.qcow2 a
	ok bitmap-mark disk.qcow2 a 64K 64K
	ok bitmap-mark disk.qcow2 a 2M 1M
	qemu-nbd --fork --pid-file=nbd.pid -r -B a -f qcow2 -k "$PWD/nbd.sock" disk.qcow2 3>&-
	nbdinfo --map=qemu:dirty-bitmap:a --json "nbd+unix:///?socket=$PWD/nbd.sock" > map.json
	served_no_more
	assert_equal "$(jq -r '[.[] | select(.type == 1) | "\(.offset)+\(.length)"] | join(" ")' map.json)" "$(dirty disk.qcow2 a)"
}

@test "writes are recorded in both stores" {
	qcow2 disk.qcow2 4M
	ok bitmap-add --store image disk.qcow2 a
	ok bitmap-add --store image --disabled disk.qcow2 off
	ok bitmap-add disk.qcow2 s
	ok image-write --pattern 7 disk.qcow2 1M 64K
	noise 100K > data
	ok image-write disk.qcow2 3M < data
	cat data | ok image-write disk.qcow2 2M
	assert_equal "$(dirty disk.qcow2 a)" "1048576+65536 2097152+131072 3145728+131072"
	assert_equal "$(dirty disk.qcow2 s)" "$(dirty disk.qcow2 a)"
	assert_equal "$(dirty disk.qcow2 off)" ""
	bitmap disk.qcow2 s '(has("inconsistent") | not)'
	clean disk.qcow2
	qemu-io -r -f qcow2 -c 'read -P 7 1M 64K' disk.qcow2 > io.out
	! grep -q 'verification failed' io.out
}

@test "what QEMU records is backed up, and QEMU goes on recording" {
	qcow2 disk.qcow2 8M
	qemu-img bitmap --add disk.qcow2 b
	device=disk backed_up 8388608 backup-run -F qcow2 disk.qcow2 full.qcow2
	for i in 1 2 3; do
		qemu-io -f qcow2 -c "write -q -P $i ${i}M 100K" disk.qcow2
		backing=$([ $i = 1 ] && echo full.qcow2 || echo inc$((i - 1)).qcow2)
		backed_up 131072 backup-run --sync incremental --bitmap b -F qcow2 --backing "$backing" disk.qcow2 inc$i.qcow2
		assert_equal "$(dirty disk.qcow2 b)" ""
		bitmap disk.qcow2 b '.recording and .store == "image" and (.busy | not)'
		clean disk.qcow2 inc$i.qcow2
		done_ chain-restore inc$i.qcow2 restored.$i
		same qcow2 disk.qcow2 raw restored.$i
	done
	# The sidecar knows the base, and has no bitmap.
	run -0 bitmap-list --output=json disk.qcow2
	jq -e '.return | length == 1 and .[0].store == "image"' <<< "$output"
}

@test "bitmap modes" {
	qcow2 disk.qcow2 4M
	ok bitmap-add --store image disk.qcow2 b
	ok bitmap-mark disk.qcow2 b 1M 64K
	backed_up 65536 backup-run --sync bitmap --bitmap b --bitmap-mode never -F qcow2 disk.qcow2 n.qcow2
	assert_equal "$(dirty disk.qcow2 b)" 1048576+65536
	backed_up 65536 backup-run --sync bitmap --bitmap b --bitmap-mode always -F qcow2 disk.qcow2 a.qcow2
	assert_equal "$(dirty disk.qcow2 b)" ""
}

@test "busy while a job runs, and as before when it is killed or cancelled" {
	qcow2 disk.qcow2 8M
	ok bitmap-add --store image disk.qcow2 b
	ok bitmap-add --store image disk.qcow2 other
	ok bitmap-mark disk.qcow2 b 0 8M
	local job=(backup-run --sync incremental --bitmap b --speed 1M -F qcow2 disk.qcow2 inc.qcow2)
	start "${job[@]}"
	eventually is_busy disk.qcow2 b
	kill -STOP "$bg"
	refused "Bitmap 'b' is currently in use by another operation and cannot be used" bitmap-clear disk.qcow2 b
	bitmap disk.qcow2 other '.busy | not'
	kill -KILL "$bg"
	finish
	bitmap disk.qcow2 b '(.busy | not) and .count == 8388608'
	start "${job[@]}"
	eventually is_busy disk.qcow2 b
	kill -TERM "$bg"
	finish
	assert_equal "$(event_names)" BLOCK_JOB_CANCELLED
	bitmap disk.qcow2 b '(.busy | not) and .count == 8388608'
	[ ! -e inc.qcow2 ]
	clean disk.qcow2
}

@test "a failed backup leaves the bitmap as it was" {
	qemu-img create -q -f qcow2 plain.qcow2 4M
	qemu-io -f qcow2 -c 'write -q -P 5 0 4M' plain.qcow2
	qemu-img convert -c -O qcow2 plain.qcow2 disk.qcow2
	ok bitmap-add --store image disk.qcow2 b
	ok bitmap-mark disk.qcow2 b 0 4M
	break_cluster disk.qcow2 1048576
	backup_failed read 'Input/output error' 4194304 backup-run --sync incremental --bitmap b -F qcow2 disk.qcow2 inc.qcow2
	bitmap disk.qcow2 b '(.busy | not) and .count == 4194304 and .recording'
}

@test "a refused transaction changes no byte" {
	qcow2 disk.qcow2 1M
	ok bitmap-add --store image disk.qcow2 b
	ok bitmap-mark disk.qcow2 b 0 1M
	cat > t.json <<- 'END'
		{"actions": [{"type": "block-dirty-bitmap-clear", "data": {"node": "disk", "name": "b"}},
			{"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": "c", "x-store": "image"}},
			{"type": "block-dirty-bitmap-clear", "data": {"node": "disk", "name": "nosuch"}}]}
	END
	unchanged refused "Dirty bitmap 'nosuch' not found" txn-apply --drive disk=disk.qcow2 t.json
	unchanged ok bitmap-clear --dry-run disk.qcow2 b
	sed -i 's/nosuch/b/' t.json
	ok txn-apply --drive disk=disk.qcow2 t.json
	assert_equal "$(dirty disk.qcow2 b)" ""
	assert_equal "$(names disk.qcow2)" "c b"
	clean disk.qcow2
}

# both_grouped [WORDS]: backups of two disks whose bitmaps are in the image and in the sidecar, and a new bitmap in each.
both_grouped() {
	cat > t.json <<- END
		{"actions": [
			{"type": "block-dirty-bitmap-add", "data": {"node": "d0", "name": "new", "x-store": "image"}},
			{"type": "block-dirty-bitmap-clear", "data": {"node": "d1", "name": "in"}},
			{"type": "drive-backup", "data": {"device": "d0", "target": "$PWD/t0", "format": "qcow2", "sync": "incremental",
				"bitmap": "in"}},
			{"type": "drive-backup", "data": {"device": "d1", "target": "$PWD/t1", "format": "qcow2", "sync": "incremental",
				"bitmap": "out"}}],
		 "properties": {"completion-mode": "grouped"}}
	END
	attempt txn-apply --drive d0=d0.qcow2 --drive d1=d1.qcow2 t.json
}

two_disks() {
	local d
	for d in d0 d1; do
		qcow2 $d.qcow2 4M
		ok bitmap-add --store image $d.qcow2 in
		ok bitmap-add $d.qcow2 out
		ok bitmap-mark $d.qcow2 in 1M 64K
		ok bitmap-mark $d.qcow2 out 2M 64K
	done
}

@test "grouped: both stores change together" {
	two_disks
	both_grouped
	assert_equal "$status" 0
	assert_equal "$(event_names)" "BLOCK_JOB_COMPLETED BLOCK_JOB_COMPLETED"
	assert_equal "$(dirty d0.qcow2 in)$(dirty d1.qcow2 in)$(dirty d1.qcow2 out)" ""
	assert_equal "$(dirty d0.qcow2 out)" 2097152+65536
	bitmap d0.qcow2 new '.store == "image" and .recording'
	clean d0.qcow2 d1.qcow2 t0 t1
	bitmap d0.qcow2 out '(has("inconsistent") | not) and (.busy | not)'
	bitmap d1.qcow2 out '(has("inconsistent") | not) and (.busy | not)'
	[ -z "$(find . -name '*group*')" ]
}

@test "grouped: one failure, and both stores are as before" {
	two_disks
	cp d1.qcow2 whole.qcow2
	qemu-img create -q -f qcow2 plain.qcow2 4M
	qemu-io -f qcow2 -c 'write -q -P 5 0 4M' plain.qcow2
	rm d1.qcow2 d1.qcow2.bitmaps
	qemu-img convert -c -O qcow2 plain.qcow2 d1.qcow2
	ok bitmap-add --store image d1.qcow2 in
	ok bitmap-add d1.qcow2 out
	ok bitmap-mark d1.qcow2 in 1M 64K
	break_cluster d1.qcow2 2097152
	ok bitmap-mark --ignore-stamp d1.qcow2 out 2M 64K
	both_grouped
	assert_equal "$status" 1
	local d
	for d in d0 d1; do
		assert_equal "$(dirty $d.qcow2 in)" 1048576+65536
		bitmap $d.qcow2 out '(.busy | not) and .count == 65536'
	done
	assert_equal "$(names d0.qcow2)" "out in"
	[ ! -e t0 ] && [ ! -e t1 ]
	clean d0.qcow2
	[ -z "$(find . -name '*group*')" ]
}

@test "one that QEMU left open is inconsistent, and nothing but removing and rescanning takes it" {
	qcow2 disk.qcow2 1M
	qemu-img bitmap --add disk.qcow2 b
	qemu-nbd --fork --pid-file=nbd.pid -f qcow2 -k "$PWD/nbd.sock" disk.qcow2 3>&-
	kill -KILL "$(cat nbd.pid)"
	eventually bitmap disk.qcow2 b '.inconsistent and (.recording | not) and .store == "image"'
	local text="Bitmap 'b' is inconsistent and cannot be used"
	unchanged refused "$text" bitmap-clear disk.qcow2 b
	unchanged refused "$text" bitmap-mark disk.qcow2 b 0 1
	unchanged refused "$text" backup-run --sync incremental --bitmap b -F qcow2 disk.qcow2 x.qcow2
	[[ $stderr == *bitmap-rescan* ]]
	ok bitmap-remove disk.qcow2 b
	assert_equal "$(stored disk.qcow2)" ""
	clean disk.qcow2
}

@test "an image that cannot be written to" {
	qcow2 disk.qcow2 1M
	qemu-img bitmap --add disk.qcow2 b
	chmod 444 disk.qcow2
	unchanged refused "Bitmap 'b' is readonly and cannot be modified" mortal bitmap-clear disk.qcow2 b
	unchanged rejected mortal bitmap-add --store image disk.qcow2 c
	assert_equal "$(dirty disk.qcow2 b)" ""
}

@test "one program at a time changes the bitmaps inside an image" {
	qcow2 disk.qcow2 4M
	ok bitmap-add --store image disk.qcow2 b
	ok bitmap-add --store image disk.qcow2 c
	ok bitmap-mark disk.qcow2 b 0 4M
	ok bitmap-mark disk.qcow2 c 0 64K
	ok bitmap-add disk.qcow2 s
	start backup-run --sync incremental --bitmap b --speed 1M -F qcow2 disk.qcow2 b.qcow2
	eventually is_busy disk.qcow2 b
	kill -STOP "$bg"
	refused_like 'bitmaps inside .*disk.qcow2' backup-run --sync incremental --bitmap c -F qcow2 disk.qcow2 c.qcow2
	[ ! -e c.qcow2 ]
	refused_like 'bitmaps inside .*disk.qcow2' bitmap-clear disk.qcow2 c
	# What only reads the image, or changes its sidecar, goes on beside.
	backed_up 65536 backup-run --sync bitmap --bitmap-mode never --bitmap c -F qcow2 disk.qcow2 never.qcow2
	ok bitmap-mark disk.qcow2 s 0 1
	kill -CONT "$bg"
	finish
	assert_equal "$status" 0
	assert_equal "$(dirty disk.qcow2 b)" ""
	assert_equal "$(dirty disk.qcow2 c)" 0+65536
	bitmap disk.qcow2 s '(has("inconsistent") | not) and .count == 65536'
	clean disk.qcow2
}

@test "bitmaps that a program without support for them has made worthless: a warning says so" {
	qemu-img create -q -f qcow2 disk.qcow2 1M
	qemu-img bitmap --add disk.qcow2 b
	done_ bitmap-list disk.qcow2
	[[ $stderr != *'lacking bitmap support'* ]]
	# Autoclear feature bit 0, in the header's last byte of that field.
	printf '\0' | dd of=disk.qcow2 bs=1 seek=95 conv=notrunc status=none
	done_ bitmap-list --output=json disk.qcow2
	assert_equal "$output" '{"return": []}'
	assert_equal "$(grep -c 'a program lacking bitmap support modified this file' <<< "$stderr")" 1
	done_ image-info disk.qcow2
	[[ $stderr == *'a program lacking bitmap support modified this file'* ]]
}

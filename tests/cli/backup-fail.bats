#!/usr/bin/env bats
# backup-run, when its job fails: the bitmap is as it was, the events say so, no target is left,
# and the same command works once the cause is gone.

load helper

# A raw disk with one dirty bitmap, all of it dirty.
dirty_disk() {
	noise "$1" > disk.img
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 0 "$1"
}

still_dirty() {
	bitmap disk.img b ".count == $1 and .recording and (.busy | not) and (has(\"inconsistent\") | not)"
}

@test "no space for a new qcow2" {
	dirty_disk 4194304
	tiny_fs tiny 1m
	backup_failed write 'No space left on device' 4194304 \
		backup-run --sync incremental --bitmap b -F qcow2 disk.img tiny/inc.qcow2
	still_dirty 4194304
	assert_equal "$(ls tiny)" ''
	mount -o remount,size=16m tiny
	backed_up 4194304 backup-run --sync incremental --bitmap b -F qcow2 disk.img tiny/inc.qcow2
	clean tiny/inc.qcow2
	same raw disk.img qcow2 tiny/inc.qcow2
	bitmap disk.img b '.count == 0'
	assert_equal "$(ls tiny)" inc.qcow2
}

@test "no space for a new raw image" {
	dirty_disk 4194304
	tiny_fs tiny 1m
	backup_failed write 'No space left on device' 4194304 backup-run --sync incremental --bitmap b disk.img tiny/inc.img
	backup_failed write 'No space left on device' 4194304 backup-run disk.img tiny/full.img
	[[ $stderr == *"The backup job 'disk' failed: '"*"tiny/full.img': Could not write"*'No space left on device'* ]]
	still_dirty 4194304
	assert_equal "$(ls tiny)" ''
}

@test "no space: what stood under the name stays" {
	dirty_disk 4194304
	tiny_fs tiny 2m
	noise 500000 > tiny/old
	backup_failed write 'No space left on device' 4194304 backup-run --overwrite -F qcow2 disk.img tiny/old
	assert_equal "$(ls tiny)" old
	noise 500000 > again
	cmp again tiny/old
}

@test "no space for an overlay that exists" {
	dirty_disk 4194304
	tiny_fs tiny 2m
	qemu-img create -q -f qcow2 tiny/full.qcow2 4M
	qemu-img create -q -f qcow2 -b full.qcow2 -F qcow2 tiny/inc.qcow2
	backup_failed write 'No space left on device' 4194304 \
		backup-run --sync incremental --bitmap b --mode existing -F qcow2 disk.img tiny/inc.qcow2
	still_dirty 4194304
	run qemu-img check -f qcow2 tiny/inc.qcow2
	assert_equal "$status" 0
	mount -o remount,size=16m tiny
	backed_up 4194304 backup-run --sync incremental --bitmap b --mode existing -F qcow2 disk.img tiny/inc.qcow2
	clean tiny/inc.qcow2
	same raw disk.img qcow2 tiny/inc.qcow2
}

@test "a file that may not grow" {
	dirty_disk 4194304
	local limited=(bash -c 'trap "" XFSZ; ulimit -f 1024; exec "$@"' -)
	backup_failed write 'File too large' 4194304 "${limited[@]}" \
		backup-run --sync incremental --bitmap b -F qcow2 disk.img x
	still_dirty 4194304
	[ ! -e x ]
	refused_like 'File too large' "${limited[@]}" backup-run --sync incremental --bitmap b -F raw disk.img x
	still_dirty 4194304
	[ ! -e x ]
	backed_up 4194304 backup-run --sync incremental --bitmap b -F qcow2 disk.img x
	clean x
	same raw disk.img qcow2 x
	assert_equal "$(echo x*)" x
}

# An overlay over a compressed image that cannot be unpacked at 2 MiB; base.good is the one that can.
broken_disk() {
	noise 2M > plain.img
	head -c 2M /dev/zero | tr '\0' 'z' >> plain.img
	qemu-img convert -c -O qcow2 -o "$1" plain.img base.qcow2
	cp base.qcow2 base.good
	break_cluster base.qcow2 $((2 << 20))
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2
	run qemu-io -r -f qcow2 -c 'read 2M 64K' disk.qcow2
	[[ $output == *'Input/output error'* ]]
}

@test "a read error: full" {
	local type
	for type in zlib zstd; do
		broken_disk compression_type=$type
		backup_failed read 'Input/output error' 4194304 backup-run disk.qcow2 full.qcow2
		[ ! -e full.qcow2 ]
		backup_failed read 'Input/output error' 4194304 backup-run -F raw disk.qcow2 full.img
		[ ! -e full.img ]
		cp base.good base.qcow2
		backed_up 4194304 backup-run disk.qcow2 full.qcow2
		clean full.qcow2
		same qcow2 disk.qcow2 qcow2 full.qcow2
		rm full.qcow2
	done
}

@test "a read error: incremental, new and existing target" {
	broken_disk cluster_size=64K
	ok bitmap-add disk.qcow2 b
	ok bitmap-mark disk.qcow2 b 1M 64K
	ok bitmap-mark disk.qcow2 b 2M 64K
	ok bitmap-mark disk.qcow2 b 3M 64K
	local hash
	hash=$(hash_of disk.qcow2 b)
	backup_failed read 'Input/output error' 196608 backup-run --sync incremental --bitmap b disk.qcow2 inc.qcow2
	[ ! -e inc.qcow2 ]
	qemu-img create -q -f qcow2 ready.qcow2 4M
	backup_failed read 'Input/output error' 196608 \
		backup-run --sync incremental --bitmap b --mode existing -F qcow2 disk.qcow2 ready.qcow2
	clean ready.qcow2
	assert_equal "$(hash_of disk.qcow2 b)" "$hash"
	bitmap disk.qcow2 b '.count == 196608 and (.busy | not)'
	# More is written before the next try, which takes both.
	ok image-write --pattern 5 disk.qcow2 0 1
	cp base.good base.qcow2
	backed_up 262144 backup-run --sync incremental --bitmap b disk.qcow2 inc.qcow2
	bitmap disk.qcow2 b '.count == 0'
	clean inc.qcow2
}

@test "several read errors in a row: the first that is not ignored any more ends the job" {
	local at
	head -c 1M /dev/zero | tr '\0' 'z' > plain.img
	qemu-img convert -c -O qcow2 plain.img base.qcow2
	for at in 0 131072 262144 393216; do break_cluster base.qcow2 $at; done
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2
	ok bitmap-add disk.qcow2 b
	for at in 0 131072 262144 393216; do ok bitmap-mark disk.qcow2 b $at 64K; done
	attempt backup-run --sync incremental --bitmap b --on-source-error ignore disk.qcow2 inc.qcow2
	assert_equal "$status" 1
	errors ignore ignore ignore ignore report
	bitmap disk.qcow2 b '.count == 262144'
}

@test "a read error with bitmap-mode never and on-success: the bitmap has what it had" {
	broken_disk cluster_size=64K
	ok bitmap-add disk.qcow2 b
	ok bitmap-mark disk.qcow2 b 1M 64K
	ok bitmap-mark disk.qcow2 b 2M 128K
	local hash options
	hash=$(hash_of disk.qcow2 b)
	for options in '--sync bitmap --bitmap-mode never' '--sync bitmap --bitmap-mode on-success' '--sync full --bitmap-mode on-success'; do
		# shellcheck disable=SC2086 # options are words
		attempt backup-run $options --bitmap b disk.qcow2 inc.qcow2
		assert_equal "$status" 1
		assert_equal "$(event_names)" 'BLOCK_JOB_ERROR BLOCK_JOB_COMPLETED'
		assert_equal "$(hash_of disk.qcow2 b)" "$hash"
		[ ! -e inc.qcow2 ]
	done
}

@test "a read error with bitmap-mode always: the target is kept, and the next backup is chained on it" {
	broken_disk cluster_size=64K
	qemu-img convert -O qcow2 base.good full.qcow2
	ok bitmap-add disk.qcow2 b
	ok bitmap-mark disk.qcow2 b 0 64K
	ok bitmap-mark disk.qcow2 b 2M 64K
	ok bitmap-mark disk.qcow2 b 3M 64K
	# What was copied is not what the backup below holds.
	cp base.good base.qcow2
	ok image-write --pattern 1 disk.qcow2 0 64K
	ok image-write --pattern 2 disk.qcow2 3M 64K
	break_cluster base.qcow2 $((2 << 20))
	backup_failed read 'Input/output error' 196608 \
		backup-run --sync bitmap --bitmap b --bitmap-mode always --backing full.qcow2 disk.qcow2 part.qcow2
	if [ -e part.qcow2 ]; then
		[[ $stderr == *chain* ]]
		clean part.qcow2
	else
		# Nothing had been copied yet.
		cp full.qcow2 part.qcow2
		bitmap disk.qcow2 b '.count == 196608'
	fi
	dirty disk.qcow2 b > dirty.txt
	grep -q 2097152+65536 dirty.txt
	cp base.good base.qcow2
	done_ backup-run --sync bitmap --bitmap b --bitmap-mode always --backing part.qcow2 disk.qcow2 rest.qcow2
	bitmap disk.qcow2 b '.count == 0'
	clean rest.qcow2
	same qcow2 disk.qcow2 qcow2 rest.qcow2
}

@test "a read error where nothing is dirty does not matter" {
	broken_disk cluster_size=64K
	ok bitmap-add disk.qcow2 b
	ok bitmap-mark disk.qcow2 b 0 64K
	backed_up 65536 backup-run --sync incremental --bitmap b disk.qcow2 inc.qcow2
	clean inc.qcow2
}

@test "a source whose tables point nowhere" {
	qcow2 disk.qcow2 4M
	ok bitmap-add --ignore-stamp disk.qcow2 b
	local l1
	l1=$((16#$(od -An -tx1 -j 40 -N 8 disk.qcow2 | tr -d ' \n')))
	printf '\x80\x00\x7f\xff\xff\xff\x00\x00' | put disk.qcow2 $l1
	attempt backup-run disk.qcow2 full.qcow2
	assert_equal "$status" 1
	[ -n "$stderr" ]
	[ ! -e full.qcow2 ]
	assert_equal "$(echo *qcow2*)" 'disk.qcow2 disk.qcow2.bitmaps'
}

@test "a sidecar that cannot be replaced when the job has ended" {
	noise 4M > data.img
	tiny_fs tiny 1m
	truncate -s 4M tiny/disk.img
	ok bitmap-add -g 512 tiny/disk.img b
	awk 'BEGIN { srand(1); for (i = 0; i < 3000; i++) print int(rand() * 8192) * 512, 512 }' > ranges
	ok bitmap-mark --from ranges tiny/disk.img b
	local before
	before=$(hash_of tiny/disk.img b)
	dd if=/dev/zero of=tiny/ballast bs=4K status=none 2> /dev/null || true
	attempt backup-run --sync incremental --bitmap b -F qcow2 tiny/disk.img inc.qcow2
	rm tiny/ballast
	# With no room for a second sidecar there is no job, or it is undone.
	if [ "$status" -eq 0 ]; then
		bitmap tiny/disk.img b '.count == 0'
	else
		assert_equal "$status" 1
		assert_equal "$(hash_of tiny/disk.img b)" "$before"
		bitmap tiny/disk.img b '.busy == false'
		[ ! -e inc.qcow2 ]
	fi
}

# ---- policies ----

# errors ACTION...: the actions of the BLOCK_JOB_ERROR events in $output begin with these.
errors() {
	local actions
	actions=$(jq -r -s '[.[] | select(.event == "BLOCK_JOB_ERROR") | .data.action] | join(" ")' <<< "$output")
	[[ "$actions " == "$* "* ]] || fail "actions: $actions"
}

said() {
	grep -q "$1" bg.out
}

@test "ignore: tries again, and reports what does not go away" {
	broken_disk cluster_size=64K
	ok bitmap-add disk.qcow2 b
	ok bitmap-mark disk.qcow2 b 2M 64K
	attempt timeout 60 backup-run --on-source-error ignore --sync incremental --bitmap b disk.qcow2 inc.qcow2
	assert_equal "$status" 1
	errors ignore ignore
	event BLOCK_JOB_COMPLETED \
		'{"device": "disk", "len": 65536, "offset": 0, "speed": 0, "type": "backup", "error": "Input/output error"}'
	[ ! -e inc.qcow2 ]
	bitmap disk.qcow2 b '.count == 65536 and (.busy | not)'
}

@test "stop, enospc and auto: a full disk stops the job until there is room" {
	dirty_disk 4194304
	tiny_fs tiny 1m
	local policy
	for policy in stop enospc auto; do
		mount -o remount,size=1m tiny
		start backup-run --on-target-error $policy --sync incremental --bitmap b --backing none -F qcow2 disk.img tiny/inc.qcow2
		eventually said '"action": "stop"'
		assert_equal "$(cat tiny/inc.qcow2 2>&1)" 'cat: tiny/inc.qcow2: No such file or directory'
		bitmap disk.img b '.busy and .recording and .count == 4194304'
		mount -o remount,size=16m tiny
		kill -CONT "$bg"
		finish
		assert_equal "$status" 0
		jq -s -e 'map(select(.event == "BLOCK_JOB_ERROR")) | all(.data == {device: "disk", operation: "write", action: "stop"})' \
			<<< "$output"
		event BLOCK_JOB_COMPLETED '{"device": "disk", "len": 4194304, "offset": 4194304, "speed": 0, "type": "backup"}'
		clean tiny/inc.qcow2
		same raw disk.img qcow2 tiny/inc.qcow2
		rm tiny/inc.qcow2
		ok bitmap-mark disk.img b 0 4M
	done
}

@test "stop: --retry-after tries by itself" {
	dirty_disk 4194304
	tiny_fs tiny 1m
	start backup-run --on-target-error stop --retry-after 1 --sync incremental --bitmap b -F qcow2 disk.img tiny/inc.qcow2
	eventually said '"action": "stop"'
	mount -o remount,size=16m tiny
	eventually has_ended "$bg"
	finish
	assert_equal "$status" 0
	clean tiny/inc.qcow2
	same raw disk.img qcow2 tiny/inc.qcow2
}

@test "stop: a stopped job can be cancelled" {
	dirty_disk 4194304
	tiny_fs tiny 1m
	start backup-run --on-target-error stop --sync incremental --bitmap b -F qcow2 disk.img tiny/inc.qcow2
	eventually said '"action": "stop"'
	kill -INT "$bg"
	eventually has_ended "$bg"
	finish
	assert_equal "$status" 130
	[[ $(event_names) == *BLOCK_JOB_CANCELLED ]]
	still_dirty 4194304
	assert_equal "$(ls tiny)" ''
}

@test "enospc and auto: another error ends the job" {
	broken_disk cluster_size=64K
	local policy
	for policy in enospc auto; do
		backup_failed read 'Input/output error' 4194304 backup-run --on-source-error $policy disk.qcow2 full.qcow2
		[ ! -e full.qcow2 ]
	done
}

# within KIB CMD...: runs CMD, none of whose files may grow beyond this size.
within() {
	local size=$1
	shift
	attempt bash -c 'ulimit -f "$0" && exec "$@"' "$size" "$@"
}

# too_large CMD...: fails in half a MiB, with the reason, and leaves no other file.
too_large() {
	local before
	before=$(ls)
	within 512 "$@"
	assert_equal "$status" 1
	[[ $stderr == *'File too large'* ]] || fail "no reason: $stderr"
	assert_equal "$(ls)" "$before"
}

@test "a file size limit: an error, no death by signal" {
	noise 2M > disk.img
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 0 2M
	too_large backup-run disk.img copy.img
	too_large backup-run -F qcow2 disk.img copy.qcow2
	too_large backup-run --compress -F qcow2 disk.img copy.qcow2
	too_large backup-run --sync incremental --bitmap b -F qcow2 disk.img copy.qcow2
	too_large backup-run --sync auto --bitmap b -F qcow2 disk.img copy.qcow2
	too_large image-create new.img 2M
	done_ backup-run -F qcow2 disk.img full.qcow2
	too_large chain-restore full.qcow2 back.img
	too_large chain-restore -F qcow2 full.qcow2 back.qcow2
	bitmap disk.img b '.count == 2097152 and (.busy | not)'
	# What may have been written in part is marked.
	ok bitmap-clear disk.img b
	within 512 image-write --pattern 1 disk.img 1M 4K
	assert_equal "$status" 1
	[[ $stderr == *'File too large'* ]]
	bitmap disk.img b '.count == 65536'
	# Nothing at all can be written: the sidecar stays as it is.
	unchanged within 0 bitmap-add disk.img c
	assert_equal "$status" 1
}

#!/usr/bin/env bats
# Locks: a running QEMU and these commands refuse each other's images.

load helper

# A backup that takes long.
slow_backup() {
	start backup-run --speed "${speed:-128K}" --sync incremental --bitmap b -F qcow2 disk.img inc.qcow2
	eventually is_busy disk.img b
}

slow_disk() {
	noise 4M > disk.img
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 0 2M
}

locked='Failed to get (shared )?"(write|resize)" lock'

@test "QEMU writes: every command that would touch the image is refused" {
	local format
	for format in raw qcow2; do
		"$format" "disk.$format" 1M
		ok bitmap-add "disk.$format" b
		raw plain.img 1M
		serve "$format" "disk.$format"
		unchanged refused_like "$locked" image-write --pattern 1 "disk.$format" 0 1
		unchanged refused_like "$locked" backup-run "disk.$format" copy.img
		unchanged refused_like "$locked" backup-run --sync incremental --bitmap b "disk.$format" copy.img
		unchanged refused_like "$locked" backup-run --mode existing -F "$format" plain.img "disk.$format"
		unchanged refused_like "$locked" backup-run --overwrite -F "$format" plain.img "disk.$format"
		unchanged refused_like "$locked" bitmap-add "disk.$format" c
		unchanged refused_like "$locked" bitmap-clear "disk.$format" b
		unchanged refused_like "$locked" bitmap-mark "disk.$format" b 0 1
		unchanged refused_like "$locked" bitmap-list --output=json "disk.$format"
		unchanged refused_like "$locked" bitmap-dump --output=json "disk.$format" b
		unchanged refused_like "$locked" image-info --output=json "disk.$format"
		unchanged refused_like "$locked" chain-restore "disk.$format" restored.img
		unchanged done_ bitmap-list -U "disk.$format"
		unchanged done_ bitmap-dump -U "disk.$format" b
		unchanged done_ image-info -U "disk.$format"
		[ ! -e copy.img ] && [ ! -e restored.img ]
		served_no_more
		if [ "$format" = raw ]; then
			ok image-write --pattern 1 "disk.$format" 0 1
			bitmap "disk.$format" b '.count == 65536'
		fi
	done
}

@test "QEMU reads: one may read beside it, but not write" {
	qcow2 disk.qcow2 1M
	ok bitmap-add disk.qcow2 b
	qemu-nbd --fork --pid-file=nbd.pid -r -t -f qcow2 -k "$PWD/nbd.sock" disk.qcow2 3>&-
	unchanged refused_like "$locked" image-write --pattern 1 disk.qcow2 0 1
	done_ backup-run disk.qcow2 full.qcow2
	ok bitmap-mark disk.qcow2 b 0 1
	done_ bitmap-list disk.qcow2
	served_no_more
	ok image-write --pattern 1 disk.qcow2 0 1
}

@test "QEMU writes a backing image: what reads the chain is refused" {
	qcow2 base.qcow2 1M
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2
	serve qcow2 base.qcow2
	unchanged refused_like "$locked" backup-run disk.qcow2 full.qcow2
	unchanged refused_like "$locked" chain-restore disk.qcow2 restored.img
}

@test "a backup runs: QEMU may read its source, but not write" {
	slow_disk
	qcow2 disk.qcow2 4M
	ok bitmap-add disk.qcow2 b
	ok bitmap-mark disk.qcow2 b 0 4M
	qemu-io -f qcow2 -c 'write -q -P 9 0 4M' disk.qcow2
	local f
	for f in raw:disk.img qcow2:disk.qcow2; do
		start backup-run --speed 128K --ignore-stamp --sync incremental --bitmap b -F qcow2 "${f#*:}" inc.qcow2
		eventually test_busy "${f#*:}"
		run qemu-io -f "${f%:*}" -c 'write 0 512' "${f#*:}"
		assert_equal "$status" 1
		[[ $output == *'Failed to get "write" lock'* ]]
		run -0 qemu-io -r -f "${f%:*}" -c 'read 0 512' "${f#*:}"
		unchanged refused_like "$locked" image-write --pattern 1 "${f#*:}" 0 1
		[ ! -e inc.qcow2 ]
		kill -INT "$bg"
		finish
		run -0 qemu-io -f "${f%:*}" -c 'read 0 512' "${f#*:}"
	done
}

test_busy() {
	bitmap-list --ignore-stamp --output=json "$1" > busy.json && grep -q '"busy": true' busy.json
}

@test "a backup runs: its bitmap is busy" {
	slow_disk
	slow_backup
	bitmap disk.img b '.busy and .recording and .count == 2097152'
	local busy="Bitmap 'b' is currently in use by another operation and cannot be used"
	unchanged refused "$busy" bitmap-clear disk.img b
	unchanged refused "$busy" bitmap-remove disk.img b
	unchanged refused "$busy" bitmap-enable disk.img b
	unchanged refused "$busy" bitmap-disable disk.img b
	unchanged refused "$busy" bitmap-merge disk.img b b
	unchanged refused "$busy" bitmap-mark disk.img b 3M 1
	unchanged refused "$busy" backup-run --sync incremental --bitmap b -F qcow2 disk.img other.qcow2
	unchanged refused 'Bitmap already exists: b' bitmap-add disk.img b
	unchanged done_ bitmap-dump --output=sha256 disk.img b
	done_ bitmap-list disk.img
	[[ $output == *busy* ]]
	kill -INT "$bg"
	finish
	assert_equal "$status" 130
	bitmap disk.img b '(.busy | not) and .count == 2097152'
	ok bitmap-clear disk.img b
}

@test "a backup runs: other bitmaps can be used, and both changes are there in the end" {
	slow_disk
	ok bitmap-add disk.img other
	ok bitmap-mark disk.img other 0 1
	speed=768K slow_backup
	sleep 0.2
	kill -STOP "$bg" # however slow the others are
	ok bitmap-add disk.img third
	ok bitmap-clear disk.img other
	ok bitmap-mark disk.img third 1M 64K
	unchanged refused "Bitmap 'b' is currently in use by another operation and cannot be used" bitmap-merge disk.img third b
	is_busy disk.img b
	kill -CONT "$bg"
	finish
	assert_equal "$status" 0
	bitmap disk.img b '.count == 0 and (.busy | not)'
	bitmap disk.img other '.count == 0'
	assert_equal "$(dirty disk.img third)" 1048576+65536
	clean inc.qcow2
}

@test "a backup runs into an existing image: QEMU cannot use that" {
	slow_disk
	qemu-img create -q -f qcow2 ready.qcow2 4M
	start backup-run --speed 128K --sync incremental --bitmap b --mode existing -F qcow2 disk.img ready.qcow2
	eventually is_busy disk.img b
	run qemu-io -f qcow2 -c 'write 0 512' ready.qcow2
	assert_equal "$status" 1
	[[ $output =~ $locked ]]
	run qemu-io -r -f qcow2 -c 'read 0 512' ready.qcow2
	assert_equal "$status" 1
	[[ $output =~ $locked ]]
	refused_like "$locked" backup-run --mode existing -F qcow2 disk.img ready.qcow2
	kill -INT "$bg"
	finish
}

@test "a write runs: nobody else may write, nor read" {
	raw disk.img 16M
	ok bitmap-add disk.img b
	mkfifo in
	image-write disk.img 1M < in > bg.out 2> bg.err 3>&- &
	bg=$!
	bg_pids+=("$bg")
	exec 9> in
	noise 12M > data
	head -c 10M data >&9
	eventually cmp -s -n 65536 -i 1048576:0 disk.img data
	run qemu-io -f raw -c 'write 0 512' disk.img
	assert_equal "$status" 1
	[[ $output == *'Failed to get "write" lock'* ]]
	refused_like "$locked" image-write --pattern 1 disk.img 0 1
	refused_like "$locked" backup-run disk.img copy.img
	tail -c 2M data >&9
	exec 9>&-
	finish
	assert_equal "$status" 0
	assert_equal "$output" '{"return": {}}'
	cmp -n 12582912 -i 1048576:0 disk.img data
	assert_equal "$(dirty disk.img b)" 1048576+12582912
}

@test "many at once: every change is there" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	local i p=()
	for i in 0 1 2 3 4 5 6 7 8 9 10 11; do
		bitmap-mark disk.img b $((i * 65536)) 1 > out.$i 2> err.$i 3>&- &
		p+=($!)
	done
	for i in "${p[@]}"; do wait "$i"; done
	bitmap disk.img b '.count == 12 * 65536'
}

@test "the error names who holds the lock" {
	raw disk.img 1M
	serve raw disk.img
	attempt image-write --pattern 1 disk.img 0 1
	assert_equal "$status" 1
	[[ $stderr == *disk.img* ]]
}

@test "two nodes of one block device are one image" {
	[ "$(id -u)" -eq 0 ] || skip 'makes device nodes'
	truncate -s 8M dev.img
	loop dev.img
	mknod node2 b $((0x$(stat -c %t "$loop"))) $((0x$(stat -c %T "$loop"))) || skip 'cannot make device nodes'
	blockdev --getsize64 node2 > size 2> size.err || skip 'cannot open device nodes here'
	ok bitmap-add --sidecar s "$loop" b
	hold_write --sidecar s "$loop" 0 5M
	eventually test -e s.log
	refused_like 'Failed to get.*lock' image-write --sidecar s --pattern 7 ./node2 6M 64K
	refused_like 'Failed to get.*lock' backup-run -F raw ./node2 copy.img
	done_ bitmap-list --sidecar s node2
	[[ $stderr != *interrupted* ]] || fail "$stderr"
	noise 1M >&7
	exec 7>&-
	finish
	assert_equal "$status" 0
	ok image-write --sidecar s --pattern 7 ./node2 6M 64K
	list_with --sidecar s
	bitmap "$loop" b '.count == 5 * 1048576 + 65536'
}

@test "a block device that is mounted is not written" {
	[ "$(id -u)" -eq 0 ] || skip 'mounts'
	truncate -s 16M dev.img
	PATH=$PATH:/sbin:/usr/sbin mkfs.ext4 -q dev.img 2> mkfs.err || skip 'no mkfs.ext4'
	loop dev.img
	mkdir mnt
	mount "$loop" mnt 2> mount.err || skip 'cannot mount'
	mounts+=("$PWD/mnt")
	ok bitmap-add --sidecar s "$loop" b
	refused_like 'Device or resource busy' image-write --sidecar s --pattern 1 "$loop" 0 1
	[[ $stderr == *'is mounted'* ]] || fail "$stderr"
	truncate -s 16M source.img
	refused_like 'Device or resource busy' backup-run --mode existing -F raw source.img "$loop"
}

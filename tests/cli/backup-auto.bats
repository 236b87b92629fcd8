#!/usr/bin/env bats
# backup-run --sync auto: incremental where the bitmap permits it, otherwise full with a bitmap that starts from scratch.

# shellcheck disable=SC2030,SC2031,SC2154

load helper

# night SYNC REASON N OPTION...: the backup of the night, onto last.qcow2, says that it is SYNC because of REASON, and
# what it makes, with all that lies below, holds what the disk does.  N.qcow2 is the last one then.
image=disk.img format=raw last=none.qcow2
night() {
	local sync=$1 reason=$2 n=$3
	shift 3
	attempt backup-run --sync auto --bitmap b "$@" -F qcow2 --backing "$last" "$image" "$n.qcow2"
	assert_equal "$status" 0
	assert_equal "$(grep -F '{"return"' <<< "$output" | jq -r '.return | .sync + ": " + .reason')" "$sync: $reason"
	assert_equal "$(event_names)" BLOCK_JOB_COMPLETED
	if [ "$sync" = full ]; then
		[[ $stderr == *"the backup is a full one, so '$last' does not become its backing image"* ]]
		qemu-img info --output=json "$n.qcow2" | jq -e 'has("backing-filename") | not'
	else
		assert_equal "$stderr" ''
		assert_equal "$(qemu-img info --output=json "$n.qcow2" | jq -r '."backing-filename"')" "$last"
	fi
	bitmap "$image" b '.count == 0 and .recording and (.busy | not) and (has("inconsistent") | not)'
	restored "$n"
	last=$n.qcow2
}

# restored N
restored() {
	chain-restore --overwrite "$1.qcow2" restored.img > restore.json
	same raw restored.img "$format" "$image"
	assert_equal "$(virtual_size raw restored.img)" "$(virtual_size "$format" "$image")"
	clean "$1.qcow2"
}

gone='there was no such bitmap'
sound='the bitmap has recorded what was written'
around='the bitmap was inconsistent: the image was changed without being tracked'
died='the bitmap was inconsistent: a program died while it used it'
off='the bitmap was disabled, and did not record what was written'

@test "night after night, with the bitmap in the sidecar" {
	for format in raw qcow2; do
		image=disk.$format last=none.qcow2
		"$format" "$image" 3M
		night full "$gone" 1
		bitmap "$image" b '.store == "sidecar" and .granularity == 65536'
		ok image-write --pattern 0x51 "$image" 1M 70000
		night incremental "$sound" 2
		night incremental "$sound" 3
		ok image-write --pattern 0x52 "$image" 2M 5
		"put_$format" "$image" 100000
		night full "$around" 4
		ok image-write --pattern 0x53 "$image" 0 512
		night incremental "$sound" 5
		ok bitmap-disable "$image" b
		ok image-write --pattern 0x54 "$image" 1M 512
		night full "$off" 6
		ok image-write --pattern 0x55 "$image" 2M 512
		night incremental "$sound" 7
		ok bitmap-remove "$image" b
		night full "$gone" 8
		rm ./*.qcow2
	done
}

put_raw() {
	noise 100000 7 | put "$1" "$2"
}

put_qcow2() {
	qemu-io -f qcow2 -c "write -q -P 0x77 $2 100000" "$1"
}

# A program that dies with the bitmaps inside the image open.
crash() {
	qemu-system-x86_64 -machine none -nodefaults -display none -S -pidfile qemu.pid -daemonize \
		-blockdev driver=file,node-name=file,filename="$1" -blockdev driver=qcow2,node-name=q,file=file 3>&-
	kill -KILL "$(cat qemu.pid)"
	eventually has_ended "$(cat qemu.pid)"
	rm -f qemu.pid
}

@test "night after night, with the bitmap in the image" {
	command -v qemu-system-x86_64 > /dev/null || skip 'no QEMU'
	image=disk.qcow2 format=qcow2
	qcow2 "$image" 3M
	night full "$gone" 1 --store image
	bitmap "$image" b '.store == "image"'
	ok image-write --pattern 0x51 "$image" 1M 70000
	night incremental "$sound" 2 --store image
	put_qcow2 "$image" 2000000 # QEMU records
	night incremental "$sound" 3
	crash "$image"
	bitmap "$image" b '.inconsistent'
	put_qcow2 "$image" 1000000
	bitmap "$image" b '.inconsistent'
	night full "$died" 4
	bitmap "$image" b '.store == "image"'
	put_qcow2 "$image" 2500000
	night incremental "$sound" 5
	ok bitmap-disable "$image" b
	ok image-write --pattern 0x54 "$image" 1M 512
	night full "$off" 6
	ok image-write --pattern 0x55 "$image" 2M 512
	night incremental "$sound" 7
}

# fails: with no room for it, without a directory for it, interrupted and killed: all stays as it is.
fails() {
	local auto=(backup-run --sync auto --bitmap b -F qcow2) before
	before=$(state; bitmap-list --output=json "$image" 2>&1)
	unchanged refused "Could not create 'none/x.qcow2': No such file or directory" "${auto[@]}" "$image" none/x.qcow2
	assert_equal "$(state; bitmap-list --output=json "$image" 2>&1)" "$before"
	attempt "${auto[@]}" "$image" tiny/x.qcow2
	assert_equal "$status" 1
	assert_equal "$(jq -r -s '.[0].return.sync' <<< "$output")" full
	assert_equal "$(event_names)" 'BLOCK_JOB_ERROR BLOCK_JOB_COMPLETED'
	assert_equal "$(ls tiny)" ''
	assert_equal "$(bitmaps)" "$1"
	ended 2 "$2" "${auto[@]}" --speed 128K "$image" x.qcow2
	assert_equal "$ended" 'signal 2'
	[ ! -e x.qcow2 ]
	assert_equal "$(bitmaps)" "$1"
	ended 9 "$2" "${auto[@]}" --speed 128K "$image" x.qcow2
	assert_equal "$ended" 'signal 9'
	[ ! -e x.qcow2 ]
	assert_equal "$(bitmaps)" "$1"
}

bitmaps() {
	bitmap-list --output=json "$image" 2> list.err
}

started='grep -q return bg.out'

@test "a failure leaves no bitmap where there was none" {
	noise 4M > disk.img
	tiny_fs tiny 1m
	fails '{"return": []}' "$started"
	[ ! -e disk.img.bitmaps ]
	night full "$gone" 1
	ok image-write --pattern 0x51 disk.img 1M 70000
	night incremental "$sound" 2
}

@test "a failure leaves an inconsistent bitmap as it was, in the sidecar" {
	noise 4M > disk.img
	ok bitmap-add disk.img b
	ok bitmap-add disk.img other
	ok image-write --pattern 0x51 disk.img 1M 70000
	ok bitmap-disable disk.img b
	put_raw disk.img 100000
	tiny_fs tiny 1m
	fails "$(bitmaps)" "$started"
	night full "$around" 1
	bitmap disk.img other '.inconsistent and .count > 0'
	put_raw disk.img 3000000
	bitmap disk.img b '.inconsistent'
	night full "$around" 2
}

@test "a failure leaves an inconsistent bitmap as it was, in the image" {
	command -v qemu-system-x86_64 > /dev/null || skip 'no QEMU'
	image=disk.qcow2 format=qcow2
	qcow2 "$image" 4M
	qemu-io -f qcow2 -c 'write -q -P 0x11 0 4M' "$image"
	ok bitmap-add --store image "$image" b
	ok bitmap-add --store image "$image" other
	crash "$image"
	tiny_fs tiny 1m
	fails "$(bitmaps)" "$started"
	night full "$died" 1
	bitmap "$image" other '.inconsistent'
	clean "$image"
}

@test "a failed incremental is tried again the next night" {
	noise 4M > disk.img
	night full "$gone" 1
	ok bitmap-mark disk.img b 0 4M
	tiny_fs tiny 1m
	attempt backup-run --sync auto --bitmap b -F qcow2 --backing ../1.qcow2 disk.img tiny/x.qcow2
	assert_equal "$status" 1
	assert_equal "$(jq -r -s '.[0].return.sync' <<< "$output")" incremental
	bitmap disk.img b '.count == 4194304 and .recording'
	night incremental "$sound" 2
}

@test "a bitmap that somebody vouches for, or made good again, is sound" {
	raw disk.img 3M
	night full "$gone" 1
	touch disk.img
	night incremental "$sound" 2 --ignore-stamp
	put_raw disk.img 100000
	ok bitmap-mark disk.img b 100000 100000
	night incremental "$sound" 3
	put_raw disk.img 2000000
	attempt bitmap-rescan --against 3.qcow2 disk.img b
	assert_equal "$status" 0
	night incremental "$sound" 4
}

@test "a bitmap in use is refused, as always" {
	noise 4M > disk.img
	night full "$gone" 1
	ok bitmap-mark disk.img b 0 4M
	start backup-run --sync incremental --bitmap b --speed 64K disk.img slow.img
	eventually is_busy disk.img b
	attempt backup-run --sync auto --bitmap b -F qcow2 --backing 1.qcow2 disk.img 2.qcow2
	error_reply
	assert_equal "$desc" "Bitmap 'b' is currently in use by another operation and cannot be used"
	kill -KILL "$bg"
	eventually has_ended "$bg"
	attempt backup-run --sync auto --bitmap b -F qcow2 --backing 1.qcow2 disk.img 2.qcow2
	assert_equal "$status" 0
	assert_equal "$(jq -r -s '.[0].return.sync' <<< "$output")" incremental
	restored 2
}

@test "into an image that is there" {
	raw disk.img 3M
	truncate -s 3M target.img
	for n in 1 2; do
		attempt backup-run --sync auto --bitmap b --mode existing -F raw disk.img target.img
		assert_equal "$status" 0
		answer=$output
		cmp disk.img target.img
		ok image-write --pattern 0x5$n disk.img 1M 70000
	done
	assert_equal "$(jq -r -s '.[0].return.sync' <<< "$answer")" incremental
}

@test "with --dry-run it says what it would do" {
	raw disk.img 3M
	attempt backup-run --dry-run --sync auto --bitmap b -F qcow2 disk.img x.qcow2
	assert_equal "$status" 0
	assert_equal "$(jq -r '.return | .sync + ": " + .reason' <<< "$output")" "full: $gone"
	assert_equal "$(find . -name 'x.qcow2' -o -name 'disk.img.bitmaps')" ''
	night full "$gone" 1
	attempt backup-run --dry-run --sync auto --bitmap b -F qcow2 disk.img x.qcow2
	assert_equal "$(jq -r '.return | .sync + ": " + .reason' <<< "$output")" "incremental: $sound"
	# An increment of a raw disk could not be restored.
	attempt backup-run --dry-run --sync auto --bitmap b disk.img x.img
	assert_equal "$(jq -r '.return.sync' <<< "$output")" full
}

@test "what makes no sense is refused" {
	raw disk.img 3M
	unchanged refused "must provide a valid bitmap name for 'auto' sync mode" backup-run --sync auto disk.img x.img
	for mode in never always; do
		unchanged refused "Bitmap sync mode must be 'on-success' when using sync mode 'auto'" \
			backup-run --sync auto --bitmap b --bitmap-mode $mode disk.img x.img
	done
	unchanged refused 'Bitmap name cannot be empty' backup-run --sync auto --bitmap '' disk.img x.img
	unchanged refused "Can't store persistent bitmaps to disk: Operation not supported" \
		backup-run --sync auto --bitmap b --store image disk.img x.img
	unchanged usage backup-run --store image --bitmap b --bitmap-mode on-success disk.img x.img
	attempt txn-apply --drive disk=disk.img <<< '{"execute": "drive-backup", "arguments": {"device": "disk",
		"sync": "auto", "bitmap": "b", "target": "x.img"}}'
	assert_equal "$status" 1
	[ ! -e x.img ]
}

@test "a damaged sidecar: a full backup without the bitmaps, and the format is not guessed" {
	raw disk.img 2M
	done_ backup-run -q --sync auto --bitmap b -F qcow2 disk.img 1.qcow2
	cp disk.img.bitmaps good
	printf damaged | dd of=disk.img.bitmaps bs=1 seek=70 conv=notrunc status=none
	cp disk.img.bitmaps damaged
	for n in 2 3; do
		printf %s "$n" | dd of=disk.img bs=1 seek=70000 conv=notrunc status=none
		done_ backup-run --sync auto --bitmap b -F qcow2 disk.img "$n.qcow2"
		[[ $output == *'"x-sync": "full"'*"cannot be used"* ]]
		[[ $stderr == *"the bitmaps are not used until the sidecar is replaced"* ]]
		same raw disk.img qcow2 "$n.qcow2"
	done
	cmp disk.img.bitmaps damaged
	refused_like "cannot be used" backup-run --sync incremental --bitmap b -F qcow2 disk.img 4.qcow2
	# The guest of a raw disk can write this, and the sidecar that pinned the format cannot be read.
	qemu-img create -q -f qcow2 guest.qcow2 1M
	dd if=guest.qcow2 of=disk.img conv=notrunc status=none
	refused_like "cannot be used" backup-run --sync auto --bitmap b -F qcow2 disk.img 4.qcow2
	done_ backup-run -q -f raw --sync auto --bitmap b -F qcow2 disk.img 4.qcow2
	same raw disk.img qcow2 4.qcow2
	mv good disk.img.bitmaps
	done_ backup-run -q --sync auto --bitmap b -F qcow2 disk.img 5.qcow2
}

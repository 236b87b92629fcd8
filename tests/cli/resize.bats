#!/usr/bin/env bats
# A disk that is resized between two backups: its bitmaps grow with it, the new part dirty, or are clamped, and what the
# chain restores is the disk, as large as it is.
# shellcheck disable=SC2030,SC2031,SC2154

load helper

# inc N OPTION...: an increment from bitmap b, onto the one before, which restores to the image.
inc() {
	local n=$1
	shift
	attempt backup-run --sync incremental --bitmap b -F qcow2 --backing $((n - 1)).qcow2 "$@" "$image" "$n.qcow2"
	assert_equal "$status" 0
	chain-restore --overwrite "$n.qcow2" restored.img > restore.json
	assert_equal "$(virtual_size raw restored.img)" "$(virtual_size "$format" "$image")"
	same raw restored.img "$format" "$image"
	bitmap "$image" b '.count == 0 and .recording'
}

# to SIZE: neither size is one of whole granules.
to() {
	if [ "$format" = raw ]; then
		truncate -s "$1" "$image"
	else
		qemu-img resize -q --shrink -f qcow2 "$image" "$1"
	fi
}

begin() {
	format=$1 image=disk.$1
	"$1" "$image" 3072512
	ok bitmap-add --store "$2" "$image" b
	attempt backup-run --bitmap b --bitmap-mode on-success -F qcow2 "$image" 0.qcow2
	assert_equal "$status" 0
}

@test "with the bitmap in the sidecar: inconsistent by the stamp, and good with --ignore-stamp" {
	for format in raw qcow2; do
		begin "$format" sidecar
		to 4000256
		bitmap "$image" b '.inconsistent'
		refused "Bitmap 'b' is inconsistent and cannot be used" \
			backup-run --sync incremental --bitmap b "$image" x.img
		assert_equal "$(dirty "$image" b)" 3014656+985600
		ok image-write --ignore-stamp --pattern 0x61 "$image" 3900000 500
		inc 1 --ignore-stamp
		ok image-write --pattern 0x62 "$image" 3500000 500
		to 2000384
		assert_equal "$(dirty "$image" b)" ''
		inc 2 --ignore-stamp
		ok image-write --pattern 0x63 "$image" 1M 500
		to 5M
		inc 3 --ignore-stamp
		clean 1.qcow2 2.qcow2 3.qcow2
		rm ./*.qcow2
	done
}

@test "with the bitmap in the image, which QEMU resizes" {
	begin qcow2 image
	to 4000256
	bitmap "$image" b 'has("inconsistent") | not'
	ok image-write --pattern 0x61 "$image" 3900000 500
	inc 1
	ok image-write --pattern 0x62 "$image" 3500000 500
	to 2000384
	ok image-write --pattern 0x63 "$image" 1M 500
	inc 2
	to 5M
	inc 3
	clean "$image" 1.qcow2 2.qcow2 3.qcow2
}

@test "with --sync auto a full backup is made" {
	format=raw image=disk.raw
	raw "$image" 3M
	for size in 3M 4000256 2000384; do
		to "$size"
		attempt backup-run --sync auto --bitmap b -F qcow2 "$image" 0.qcow2
		assert_equal "$status" 0
		assert_equal "$(jq -r -s '.[0].return.sync' <<< "$output")" full
		same raw "$image" qcow2 0.qcow2
		ok image-write --pattern 0x61 "$image" 1M 500
		inc 1
	done
}

@test "while a job that died had the bitmap" {
	format=raw image=disk.img
	noise 3072512 > disk.img
	ok bitmap-add disk.img b
	attempt backup-run --bitmap b --bitmap-mode on-success -F qcow2 disk.img 0.qcow2
	ok bitmap-mark disk.img b 0 3000000
	ended 9 "$when_busy" backup-run --speed 64K --sync incremental --bitmap b disk.img x.img
	assert_equal "$ended" 'signal 9'
	to 4000256
	inc 1 --ignore-stamp
}

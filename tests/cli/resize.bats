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
		rm -f 1.qcow2
		attempt backup-run --overwrite --sync auto --bitmap b -F qcow2 "$image" 0.qcow2
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

# ---- sizes within one sector, which qcow2 rounds up ----

# night N OPTION...: a backup of disk.img that the chain restores byte for byte, with its length.
night() {
	local n=$1
	shift
	done_ backup-run "$@" disk.img "$n.qcow2"
	clean "$n.qcow2"
	done_ chain-restore --overwrite "$n.qcow2" restored.img
	cmp disk.img restored.img
	done_ chain-verify --against disk.img -F raw "$n.qcow2"
	[[ $output != *'restores to a disk of'* ]]
}

# guest PATTERN: what a guest writes to the last sector, past the exact end.
guest() {
	qemu-io -f "${2-raw}" -c "write -q -P $1 999936 512" "${3-disk.img}"
}

@test "a disk that grows and shrinks within its last sector" {
	local size n=0 next
	noise 1000000 > disk.img
	done_ bitmap-add disk.img b
	night 0 --bitmap b --bitmap-mode on-success -F qcow2
	guest 7
	assert_equal "$(virtual_size raw disk.img)" 1000448
	for size in 1000448 1000000 1000001 1000100 1000448; do
		next=$((n + 1))
		truncate -s "$size" disk.img
		night $next --ignore-stamp --sync incremental --bitmap b -F qcow2 --backing $n.qcow2
		n=$next
		noise 500 $next | put disk.img 999948
		truncate -s "$size" disk.img
		done_ bitmap-rescan --against $n.qcow2 disk.img b
		next=$((n + 1))
		night $next --sync incremental --bitmap b -F qcow2 --backing $n.qcow2
		n=$next
	done
}

@test "the exact size of an image does not hide what a guest wrote after it" {
	local disk
	noise 1000000 > disk.img
	night 0 -F qcow2
	qemu-img create -q -f qcow2 -b 0.qcow2 -F qcow2 overlay.qcow2
	done_ chain-restore -F qcow2 0.qcow2 copy.qcow2
	for disk in overlay.qcow2 copy.qcow2; do
		guest 9 qcow2 $disk
		qemu-img convert -O raw $disk want.img
		done_ backup-run -F raw $disk got.img
		cmp want.img got.img
		done_ chain-restore --overwrite $disk got.img
		cmp want.img got.img
		done_ backup-run -F qcow2 $disk again.qcow2
		done_ chain-restore --overwrite again.qcow2 got.img
		cmp want.img got.img
		rm got.img again.qcow2
	done
}

@test "an existing target gets the exact size of the source" {
	local o size backing
	for size in 1000000 1000447 1000448; do
		noise $size > disk.img
		for o in cluster_size=64K cluster_size=512 compat=0.10 compat=0.10,cluster_size=512; do
			rm -f 0.qcow2
			qemu-img create -q -f qcow2 -o "$o" 0.qcow2 1000448
			night 0 --mode existing -F qcow2
			# A second one finds the size of the first.
			truncate -s 1000200 disk.img
			night 0 --mode existing -F qcow2
			truncate -s $size disk.img
		done
		for backing in base.qcow2 a$(printf '%0200d' 0).qcow2; do
			rm -f "$backing" 1.qcow2
			qemu-img convert -O qcow2 disk.img "$backing"
			qemu-img create -q -f qcow2 -b "$backing" -F qcow2 1.qcow2
			night 1 --mode existing -F qcow2
			assert_equal "$(qemu-img info --output=json 1.qcow2 | jq -r '."backing-filename", ."backing-filename-format"')" \
				"$backing"$'\nqcow2'
		done
	done
	noise 1000100 > disk.img
	for size in 999937 1000000 1000100 1000448; do
		noise $size 2 > target.img
		done_ backup-run --mode existing -F raw disk.img target.img
		cmp disk.img target.img
	done
	# An increment replaces what the disk does not have any more.
	noise 1000448 3 > disk.img
	done_ bitmap-add disk.img b
	done_ backup-run --overwrite --bitmap b --bitmap-mode on-success disk.img target.img
	truncate -s 1000100 disk.img
	done_ backup-run --ignore-stamp --sync incremental --bitmap b --mode existing -F raw disk.img target.img
	cmp disk.img target.img
}

@test "a restore in place sets the exact size of a qcow2 image" {
	noise 1000000 > disk.img
	night 0 -F qcow2
	noise 1000448 2 > other.img
	qemu-img convert -O qcow2 other.img target.qcow2
	done_ chain-restore --in-place -F qcow2 0.qcow2 target.qcow2
	clean target.qcow2
	done_ backup-run -F raw target.qcow2 got.img
	cmp disk.img got.img
	# Nothing but the size differs.
	truncate -s 1000448 disk.img
	night 1 -F qcow2
	done_ chain-restore --in-place -F qcow2 1.qcow2 target.qcow2
	done_ backup-run --overwrite -F raw target.qcow2 got.img
	cmp disk.img got.img
}

@test "a header without room for the exact size" {
	local name
	name=a$(printf '%0200d' 0)
	noise 1000000 > disk.img
	truncate -s 1000448 "$name"
	qemu-img create -q -f qcow2 -o cluster_size=512 -b "././/$name" -F raw target.qcow2
	attempt backup-run --mode existing -F qcow2 disk.img target.qcow2
	assert_equal "$status" 1
	[[ $stderr == *"The image's header has no room for the exact size of the disk"* ]]
	clean target.qcow2
	truncate -s 1000448 disk.img
	done_ backup-run --mode existing -F qcow2 disk.img target.qcow2
}

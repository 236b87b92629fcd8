#!/usr/bin/env bats
# Block devices: what their sidecar knows of them, and what it proves: writes of others, another disk, or nothing.
# shellcheck disable=SC2154 # set by helper.bash

load helper

setup_file() {
	[ "$(id -u)" -eq 0 ] || skip 'needs loop devices'
}

# kept: a device in $loop with a full backup and a bitmap in the sidecar s.
kept() {
	noise 8M 3 > dev.img
	loop dev.img
	list_with --sidecar s
	auto full 'there was no such bitmap' f.qcow2
}

# Words before the backups that auto makes.
via=()

# auto SYNC REASON TARGET [OPTION...]: a backup of this kind is made, for this reason, and restores to the disk.
auto() {
	local sync=$1 reason=$2 target=$3
	shift 3
	done_ "${via[@]}" backup-run -q --sidecar s --sync auto --bitmap n -F qcow2 "$@" "$loop" "$target"
	jq -es --arg s "$sync" --arg r "$reason" 'map(.return // empty)[0] | .sync == $s and (.reason | test($r))' \
		<<< "$output" > /dev/null ||
		fail "not $sync because of '$reason': $output"
	rm -f r.img
	restored chain-restore "$target" r.img
	cmp r.img "$loop"
}

restored() {
	done_ "$@"
}

write() {
	ok image-write -q --sidecar s "$@"
}

inconsistent() {
	bitmap "$loop" n '.inconsistent and (.recording | not)'
	refused "Bitmap 'n' is inconsistent and cannot be used" \
		backup-run --sidecar s --sync incremental --bitmap n -F qcow2 --backing f.qcow2 "$loop" x.qcow2
	[[ $stderr == *"$1"* ]] || fail "the hint does not say '$1': $stderr"
	[ ! -e x.qcow2 ]
}

# booted CMD...: as after a reboot.
booted() {
	echo 01234567-89ab-cdef-0123-456789abcdef > boot
	unshare -m sh -c 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"' "$PWD/boot" "$@"
}

can_boot() {
	booted true 2> boot.err || skip 'no namespaces'
}

# attributes NAME=TEXT...: for `shown`, the device has these attributes, and its own.
attributes() {
	local rdev dir=$PWD/sys x
	rdev=$((0x$(stat -c %t "$loop"))):$((0x$(stat -c %T "$loop")))
	rm -rf sys
	mkdir -p "sys/$rdev"
	for x in /sys/dev/block/"$rdev"/*; do
		ln -s "$(realpath "$x")" "$dir/$rdev/${x##*/}"
	done
	for x; do
		echo "${x#*=}" > "sys/$rdev/${x%%=*}"
	done
}

shown() {
	unshare -m sh -c 'mount --bind "$0" /sys/dev/block && exec "$@"' "$PWD/sys" "$@"
}

@test "tracked writes are absorbed: data, zeroes, discards" {
	kept
	write --pattern 7 "$loop" 1M 64K
	write --zero "$loop" 2M 64K
	write --discard "$loop" 3M 64K
	noise 100000 5 > input
	attempt image-write -q --sidecar s "$loop" 4M < input
	assert_equal "$status" 0
	bitmap "$loop" n '(.inconsistent | not) and .count == 5 * 65536'
	[ ! -e s.log ]
	auto incremental '^the bitmap has recorded what was written$' i.qcow2 --backing f.qcow2
	write --pattern 8 "$loop" 5M 1
	auto incremental '^the bitmap has recorded what was written$' j.qcow2 --backing i.qcow2
}

@test "a server's writes are absorbed" {
	local plugin=$BUILD/lib/nbdkit/plugins/nbdkit-tidemark-plugin.so
	{ [ -e "$plugin" ] && nbdkit --version > /dev/null 2>&1; } || skip 'no nbdkit'
	nbdkit --dump-plugin "$plugin" > dump.out 2> dump.err || skip 'nbdkit cannot load a sanitized plugin'
	kept
	nbdkit -U - --run 'qemu-io -f raw -c "write -P 9 1M 128K" -c flush -c "write -P 9 2M 64K" "$uri" > io.out' \
		"$plugin" file="$loop" sidecar="$PWD/s"
	bitmap "$loop" n '(.inconsistent | not) and .count == 3 * 65536'
	auto incremental '^the bitmap has recorded what was written$' i.qcow2 --backing f.qcow2
}

@test "another program's write between a server's start and its first flush" {
	local plugin=$BUILD/lib/nbdkit/plugins/nbdkit-tidemark-plugin.so
	{ [ -e "$plugin" ] && nbdkit --version > /dev/null 2>&1; } || skip 'no nbdkit'
	nbdkit --dump-plugin "$plugin" > dump.out 2> dump.err || skip 'nbdkit cannot load a sanitized plugin'
	kept
	nbdkit -U - --run 'dd if=dev.img of="'"$loop"'" bs=64K count=1 seek=100 conv=notrunc,fsync status=none' \
		"$plugin" file="$loop" sidecar="$PWD/s"
	inconsistent 'was changed without being tracked'
}

@test "writes of others are noticed, whichever way they take" {
	kept
	local how n=0
	for how in '' oflag=direct conv=notrunc,fsync; do
		# shellcheck disable=SC2086 # several words
		dd if=dev.img of="$loop" bs=64K count=1 seek=9 status=none $how
		inconsistent 'was changed without being tracked'
		auto full 'the bitmap was inconsistent: the image was changed without being tracked' g$((n++)).qcow2
	done
	blkdiscard -o 1M -l 64K "$loop" 2> discard.err || return 0
	inconsistent 'was changed without being tracked'
}

@test "a write that has not left the page cache is noticed" {
	kept
	exec 8<> "$loop" # without another user of the device the last close would write it out
	printf x >&8
	inconsistent 'was changed without being tracked'
	exec 8>&-
}

# is_starved PID FD: it has read all that came through this pipe, and waits for more.
is_starved() {
	python3 -c 'import fcntl, struct, sys, termios
sys.exit(struct.unpack("i", fcntl.ioctl(int(sys.argv[1]), termios.FIONREAD, bytes(4)))[0] != 0)' "$2" && grep -q poll "/proc/$1/wchan"
}

@test "another program's write while a command holds the device" {
	kept
	hold_write --sidecar s "$loop" 0 5M
	# Not during one of its own writes: it has made the first, and waits for the data of the second.
	eventually is_starved "$bg" 7
	dd if=dev.img of="$loop" bs=4K count=1 seek=1800 oflag=direct conv=notrunc status=none
	noise 1M >&7
	exec 7>&-
	finish
	assert_equal "$status" 0
	[[ $stderr == *'another program wrote to the image meanwhile'* ]] || fail "$stderr"
	inconsistent 'was changed without being tracked'
}

@test "a device that changes while it is backed up is no backup" {
	kept
	strace -f -o trace true 2> strace.err || skip 'no strace'
	export ASAN_OPTIONS="detect_leaks=0:$ASAN_OPTIONS" # the tracer is in its way
	TIDE_COPY=rw strace -D -f -qq -o trace -e trace=pwrite64 -e inject=pwrite64:delay_enter=500000 \
		backup-run -q -F qcow2 "$loop" x.qcow2 > bg.out 2> bg.err 3>&- &
	bg=$!
	bg_pids+=("$bg")
	eventually grep -q 'pwrite64(' trace
	dd if=dev.img of="$loop" bs=4K count=1 seek=9 oflag=direct conv=notrunc status=none
	finish
	assert_equal "$status" 1
	[[ $stderr == *'was changed by another program while it was read'* ]] || fail "$stderr"
	[ ! -e x.qcow2 ]
}

@test "the bitmaps are made good again" {
	kept
	dd if=dev.img of="$loop" bs=64K count=1 seek=9 status=none conv=notrunc
	done_ bitmap-rescan -q --sidecar s --against f.qcow2 "$loop" n
	bitmap "$loop" n '(.inconsistent | not) and .count == 65536'
	auto incremental '^the bitmap has recorded' i.qcow2 --backing f.qcow2
	dd if=dev.img of="$loop" bs=64K count=1 seek=19 status=none conv=notrunc
	ok bitmap-mark -q --sidecar s "$loop" n 1216K 64K
	auto incremental '^the bitmap has recorded' j.qcow2 --backing i.qcow2
	dd if="$loop" of="$loop" bs=64K count=1 status=none conv=notrunc
	inconsistent 'was changed without'
	ok bitmap-clear -q --ignore-stamp --sidecar s "$loop" n
	bitmap "$loop" n '.inconsistent | not'
}

@test "another disk under the same name" {
	kept
	losetup -d "$loop"
	loops=()
	noise 8M 4 > other.img
	loop other.img
	inconsistent 'is another disk'
	auto full 'the bitmap was inconsistent: the image is another disk' g.qcow2
	auto incremental 'has recorded' h.qcow2 --backing g.qcow2
}

@test "the doubt is remembered, and not repeated for a disk that is known" {
	kept
	losetup -d "$loop"
	loops=()
	loop dev.img
	ok bitmap-add --sidecar s "$loop" m # the sidecar describes the new attachment now
	inconsistent 'or was attached again'
	bitmap "$loop" m '.inconsistent | not'
	done_ bitmap-rescan -q --sidecar s --against f.qcow2 "$loop" n
	bitmap "$loop" n '.count == 0 and (.inconsistent | not)'
	dd if=dev.img of="$loop" bs=64K count=1 seek=9 status=none conv=notrunc
	inconsistent 'was changed without being tracked'
}

@test "an image file in the place of a device, and a device in the place of a file" {
	kept
	loop=dev.img
	inconsistent 'is another disk'
	noise 8M 3 > file.img
	ok bitmap-add file.img n
	loop file.img
	list_with --sidecar file.img.bitmaps
	bitmap "$loop" n .inconsistent
}

@test "after a reboot the device is unchecked, and said to be so" {
	can_boot
	kept
	write --pattern 7 "$loop" 1M 64K
	done_ booted backup-run --sidecar s --sync auto --bitmap n -F qcow2 --backing f.qcow2 "$loop" i.qcow2
	jq -es 'map(.return // empty)[0] | .sync == "incremental" and (.reason | test("the device is unchecked: the machine was started again"))' \
		<<< "$output" > /dev/null || fail "$output"
	[[ $stderr == *'warning: the device is unchecked: the machine was started again'* ]] || fail "$stderr"
	rm -f r.img
	restored chain-restore i.qcow2 r.img
	cmp r.img "$loop"
	ok bitmap-enable --sidecar s "$loop" n # the sidecar is of this boot again
	dd if=dev.img of="$loop" bs=64K count=1 seek=9 status=none conv=notrunc
	inconsistent 'was changed without being tracked'
}

@test "it stays unchecked, whatever is done first, until the bitmap begins again" {
	can_boot
	kept
	local how last=f.qcow2 sync reason
	for how in 'image-write -q --pattern 7 LOOP 1M 64K' 'bitmap-add LOOP other' 'bitmap-disable LOOP n'; do
		# shellcheck disable=SC2046 # several words
		ok booted $(sed "s|LOOP|--sidecar s $loop|" <<< "$how")
		# The sidecar is of that boot now, and of another one next time.
		ok bitmap-enable --sidecar s "$loop" n
		done_ backup-run --sidecar s --sync bitmap --bitmap-mode never --bitmap n -F qcow2 --backing "$last" \
			--overwrite "$loop" x.qcow2
		[[ $stderr == *'warning: the device is unchecked'* ]] || fail "$stderr"
		# What is disabled counts from nothing that is known.
		if [[ $how == bitmap-disable* ]]; then
			auto full 'is not known' "1$last"
		else
			auto incremental 'the device is unchecked: the machine was started again' "1$last" --backing "$last"
		fi
		sync=incremental reason='^the bitmap has recorded what was written$'
		case $how in
		image-write*) done_ bitmap-rescan -q --sidecar s --against "1$last" "$loop" n ;;
		bitmap-add*)
			ok bitmap-clear --sidecar s "$loop" n
			sync=full reason='is not known'
			;;
		*) done_ backup-run -q --sidecar s --sync full --bitmap n --bitmap-mode on-success -F qcow2 "$loop" full.qcow2 ;;
		esac
		auto $sync "$reason" "2$last"
		last=2$last
	done
}

@test "a bitmap that gets the bits of an unchecked one is unchecked" {
	can_boot
	kept
	ok booted bitmap-add --sidecar s "$loop" other
	ok bitmap-merge --sidecar s "$loop" other n
	ok bitmap-remove --sidecar s "$loop" n
	done_ backup-run --sidecar s --sync incremental --bitmap other -F qcow2 --backing f.qcow2 "$loop" i.qcow2
	[[ $stderr == *'the device is unchecked'* ]] || fail "$stderr"
	done_ backup-run --ignore-stamp --sidecar s --sync bitmap --bitmap-mode never --bitmap other --allow-base=other -F qcow2 --backing f.qcow2 "$loop" j.qcow2
	[[ $stderr != *unchecked* ]] || fail "$stderr"

	# The same when it is imported; an image file has no place for that.
	ok bitmap-import --sidecar s "$loop" third --from "$loop#other"
	done_ backup-run --sidecar s --sync bitmap --bitmap-mode never --bitmap third --allow-base=other -F qcow2 --backing f.qcow2 "$loop" k.qcow2
	[[ $stderr == *'the device is unchecked'* ]] || fail "$stderr"
	truncate -s 8M file.img
	echo '{"execute": "x-block-dirty-bitmap-import", "arguments":
		{"node": "f", "name": "b", "source": {"node": "d", "name": "other"}}}' > import.json
	ok txn-apply --drive f=file.img --drive "d=$loop,sidecar=s" import.json
	[[ $stderr == *'is unchecked'*'which bitmap '* ]] || fail "$stderr"
}

@test "a device of another size is another disk, also after a reboot" {
	can_boot
	kept
	losetup -d "$loop"
	loops=()
	truncate -s 9M dev.img
	loop dev.img
	booted bitmap-list --output=json --sidecar s "$loop" > list.json
	jq -e '.return[0].inconsistent' list.json > /dev/null || fail "$(cat list.json)"
}

@test "a disk that has grown is still itself" {
	kept
	truncate -s 9M dev.img
	losetup -c "$loop"
	bitmap "$loop" n '(.inconsistent | not) and .count == 1048576'
	auto incremental 'has recorded' i.qcow2 --backing f.qcow2
}

@test "serial numbers: another one is another disk, the same one was attached again" {
	can_boot
	noise 8M 3 > dev.img
	loop dev.img
	list_with --sidecar s
	attributes wwid=naa.500a serial=A
	shown true 2> shown.err || skip 'no namespaces'
	done_ shown backup-run -q --sidecar s --sync auto --bitmap n -F qcow2 "$loop" f.qcow2
	done_ shown backup-run -q --sidecar s --sync auto --bitmap n -F qcow2 --backing f.qcow2 "$loop" 1.qcow2
	jq -es 'map(.return // empty)[0].reason == "the bitmap has recorded what was written"' <<< "$output" > /dev/null || fail "$output"
	attributes wwid=naa.500b serial=A
	attempt shown backup-run --sidecar s --sync incremental --bitmap n -F qcow2 --backing 1.qcow2 "$loop" 2.qcow2
	assert_equal "$status" 1
	[[ $stderr == *'is another disk than the one'* ]] || fail "$stderr"
	attempt booted "$(command -v sh)" -c 'mount --bind sys /sys/dev/block && exec "$@"' sh \
		backup-run --sidecar s --sync incremental --bitmap n -F qcow2 --backing 1.qcow2 "$loop" 2.qcow2
	assert_equal "$status" 1
	[[ $stderr == *'is another disk than the one'* ]] || fail "$stderr"
	losetup -d "$loop"
	loops=()
	loop dev.img
	attributes wwid=naa.500a serial=A
	attempt shown backup-run --sidecar s --sync incremental --bitmap n -F qcow2 --backing 1.qcow2 "$loop" 2.qcow2
	assert_equal "$status" 1
	[[ $stderr == *'was detached and attached again'* ]] || fail "$stderr"
}

@test "a device whose writes the kernel does not count is unchecked" {
	noise 8M 3 > dev.img
	loop dev.img
	attributes
	local rdev
	rm sys/*/queue
	for rdev in sys/*; do
		mkdir "$rdev/queue"
		echo 0 > "$rdev/queue/iostats"
	done
	shown true 2> shown.err || skip 'no namespaces'
	via=(shown)
	auto full 'there was no such bitmap' f.qcow2
	auto incremental 'the device is unchecked: the kernel does not count its writes' i.qcow2 --backing f.qcow2
	via=()
	auto incremental 'the device is unchecked: the kernel does not count its writes' j.qcow2 --backing i.qcow2
}

# qcow2_in_device: in $loop, with a bitmap in the sidecar s.
qcow2_in_device() {
	truncate -s 16M dev.img
	loop dev.img
	qemu-img create -q -f qcow2 "$loop" 8M
	list_with --sidecar s
	ok bitmap-add -f qcow2 --sidecar s "$loop" n
}

@test "a qcow2 in a device, and the data file of a qcow2" {
	qcow2_in_device
	write --pattern 7 "$loop" 1M 64K
	write --pattern 7 "$loop" 2M 64K
	bitmap "$loop" n '(.inconsistent | not) and .count == 131072'
	qemu-io -f qcow2 -c 'write 3M 64K' "$loop" > io.out
	bitmap "$loop" n .inconsistent

	truncate -s 8M data.img
	loop data.img
	qemu-img create -q -f qcow2 -o data_file="$loop",data_file_raw=on top.qcow2 8M
	list_with --allow-backing=outside
	ok bitmap-add -f qcow2 --allow-backing=outside top.qcow2 n
	ok image-write -q --allow-backing=outside --pattern 7 top.qcow2 1M 64K
	bitmap top.qcow2 n '(.inconsistent | not) and .count == 65536'
	dd if=dev.img of="$loop" bs=4K count=1 seek=900 status=none conv=notrunc
	bitmap top.qcow2 n .inconsistent
}

@test "bitmaps inside a qcow2 in a device, beside those in its sidecar" {
	qcow2_in_device
	ok bitmap-add --sidecar s --store image "$loop" m
	write --pattern 7 "$loop" 1M 64K
	ok bitmap-clear --sidecar s "$loop" m
	bitmap "$loop" n '(.inconsistent | not) and .count == 65536'
	bitmap "$loop" m '(.inconsistent | not) and .count == 0'
}

@test "a partition: writes to it are noticed, and after writes to the rest of the disk it is unchecked" {
	local disk rdev
	truncate -s 32M dev.img
	loop dev.img
	disk=$loop
	addpart "$disk" 1 2048 16384 2> part.err || skip 'no partitions'
	addpart "$disk" 2 32768 16384
	loop=${disk}p1
	rdev=$(cat "/sys/block/${disk##*/}/${disk##*/}p1/dev") || skip 'no partitions'
	[ -b "$loop" ] || { mknod part b "${rdev%:*}" "${rdev#*:}" && loop=$PWD/part; }
	noise 8M 5 > "$loop"
	list_with --sidecar s
	auto full 'there was no such bitmap' f.qcow2
	auto incremental '^the bitmap has recorded what was written$' i.qcow2 --backing f.qcow2
	dd if=/dev/zero of="$disk" bs=64K seek=300 count=1 oflag=direct status=none conv=notrunc
	auto incremental 'the device is unchecked: the disk that it is a part of was written' j.qcow2 --backing i.qcow2
	dd if=/dev/zero of="$loop" bs=64K seek=3 count=1 status=none conv=notrunc
	inconsistent 'was changed without being tracked'
	delpart "$disk" 1
	delpart "$disk" 2
}

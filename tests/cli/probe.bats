#!/usr/bin/env bats
# A format that was only derived from bytes that a guest can have written counts for nothing.
# shellcheck disable=SC2030,SC2031,SC2154

load helper

# evil FILE OPTION...: what a guest writes to its raw disk of 1 MiB: the bytes of a qcow2 that names other files.
evil() {
	local file=$1
	shift
	mkdir -p made
	(cd made && cp ../*.img . 2> /dev/null; qemu-img create -q -f qcow2 "$@" evil.qcow2 1M)
	truncate -s 1M made/evil.qcow2
	mv made/evil.qcow2 "$file"
	rm -r made
}

# cannot ARG...: refused, because the format is not known.
cannot() {
	unchanged refused_like 'cannot be derived from its content|begins like one of format' "$@"
	[[ $stderr == *raw* ]]
}

setup_disk() {
	noise 1M > secret.img
	noise 1M 7 > disk.img
	ok bitmap-add disk.img b
	evil guest.bytes -b secret.img -F raw
}

@test "a raw target is given its format" {
	setup_disk
	truncate -s 1M backup.img
	cannot backup-run --mode existing disk.img backup.img
	done_ backup-run --mode existing -F raw disk.img backup.img
	cmp disk.img backup.img
	# Its guest writes a header before the next night, which finds the file that the last one wrote, pinned as raw.
	ok image-write disk.img 0 < guest.bytes
	done_ backup-run --mode existing disk.img backup.img
	cmp disk.img backup.img
	rm backup.img.bitmaps
	cannot backup-run --mode existing disk.img backup.img
}

@test "a raw backup is not taken for the image that its guest has put into it" {
	setup_disk
	ok image-write disk.img 0 < guest.bytes
	done_ backup-run -F raw --bitmap b --bitmap-mode on-success disk.img full.raw
	cmp disk.img full.raw
	cp full.raw copy.img # without its mark: the name decides
	cp --preserve=all full.raw marked.img
	mv copy.img copy.raw
	ok image-write --pattern 7 disk.img 900K 4K
	# The sidecar of the backup pins it as raw.
	done_ chain-verify full.raw
	done_ chain-restore full.raw out.img
	cmp full.raw out.img
	rm out.img
	mv full.raw.bitmaps pin
	local f
	for f in full.raw copy.raw marked.img; do
		cannot chain-restore $f out.img
		cannot bitmap-rescan --against $f disk.img b
		cannot chain-verify --output=json --against $f disk.img -f raw
		cannot backup-run --sync incremental --bitmap b -F qcow2 --backing $f disk.img inc.qcow2
		attempt chain-verify $f
		[ "$status" -ne 0 ]
		attempt image-info $f
		[[ $output != *secret.img* ]]
	done
	mv pin full.raw.bitmaps
	done_ backup-run --sync incremental --bitmap b -F qcow2 --backing full.raw disk.img inc.qcow2
	done_ chain-restore inc.qcow2 out.img
	cmp disk.img out.img
	done_ chain-restore --overwrite -f raw full.raw out.img
	cmp full.raw out.img
	done_ chain-verify -f raw full.raw
}

@test "a probed raw image is not whole, nor is an image that lost its header" {
	noise 1M > disk.img
	done_ backup-run -F raw disk.img full.img
	rm full.img.bitmaps
	attempt chain-verify --output=json full.img
	assert_equal "$status" 1
	jq -e '.return.verdict == "unknown" and (.return.images[0].findings | map(.kind) == ["unknown"])' <<< "$output"
	cannot chain-restore full.img out.img
	done_ backup-run -F qcow2 disk.img full.qcow2
	dd if=/dev/zero of=full.qcow2 bs=512 count=1 conv=notrunc status=none
	attempt chain-verify full.qcow2
	assert_equal "$status" 1
	[[ $output != *whole* ]]
	cannot chain-restore full.qcow2 out.img
	attempt chain-verify -f qcow2 full.qcow2
	assert_equal "$status" 3
	rejected chain-restore -f qcow2 full.qcow2 out.img
}

@test "compressed files, archives and streams are named" {
	local name
	noise 200K > disk.img
	done_ backup-run -F qcow2 disk.img full.qcow2
	gzip -k full.qcow2
	xz -k full.qcow2
	zstd -q -k full.qcow2
	bzip2 -k full.qcow2
	tar cf full.qcow2.tar full.qcow2
	printf 'VMA\0rest' > full.qcow2.vma
	printf 'rbd diff v1\nrest' > full.qcow2.rbd-diff
	printf 'btrfs-stream\0rest' > full.qcow2.btrfs-stream
	for name in gzip:gz xz:xz zstd:zst bzip2:bz2 tar:tar vma:vma rbd-diff:rbd-diff btrfs-stream:btrfs-stream; do
		truncate -s %512 "full.qcow2.${name#*:}"
		unchanged refused_like "looks like one of format '${name%:*}'" chain-restore "full.qcow2.${name#*:}" out.img
		attempt chain-verify "full.qcow2.${name#*:}"
		[ "$status" -ne 0 ]
		unchanged refused_like "looks like one of format '${name%:*}'" backup-run "full.qcow2.${name#*:}" out.img
	done

	# Programs that may not be here, and forms that need more than a magic number.
	named() { # FORMAT, the file's first bytes for printf
		# shellcheck disable=SC2059 # they are a format
		printf "$2" > some.img
		truncate -s 64K some.img
		unchanged refused_like "looks like one of format '$1'" backup-run some.img out.img
	}
	named cpio '070701'
	named cpio '070702'
	named cpio '070707'
	named cpio '\xc7\x71'"$(printf '\\0%.0s' {1..18})"'\x05\0\0\0\0\0name\0'
	named cpio '\x71\xc7'"$(printf '\\0%.0s' {1..18})"'\0\x05\0\0\0\0name\0'
	named lzma '\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0rest'
	named lzma '\x5d\0\0\0\x04\0\0\x10\0\0\0\0\0\0rest'
	named lz4 '\x02\x21\x4c\x18'
	named lz4 '\x04\x22\x4d\x18'
	named zstd '\x50\x2a\x4d\x18\x04\0\0\0'
	named zstd '\x5f\x2a\x4d\x18\x04\0\0\0'
	named android-sparse '\x3a\xff\x26\xed\x01\0'
	named ewf 'EVF\x09\r\n\xff\0'
	named ewf 'EVF2\r\n\x81\0'
	for name in '# Disk DescriptorFile' '#Disk DescriptorFile' '  #  disk\tDescriptorFile' '\r\n# Disk DescriptorFile\r\n' \
		'# made by hand\n\nversion=1\n' 'version=3\n'; do
		named vmdk "$name"
	done
	for name in '#!/bin/sh\necho' '# Disk Descriptor' 'version=4\n' 'version 1\n' '\x5d\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\0' \
		'\xc7\x71\0\0'; do
		# shellcheck disable=SC2059
		printf "$name" > some.img
		truncate -s 64K some.img
		done_ backup-run -F raw --overwrite some.img out.img
	done
}

@test "a write does not turn a probed raw image into another one" {
	noise 1M > victim.img
	truncate -s 1M disk.img
	evil guest.bytes -o data_file=victim.img
	unchanged refused_like "would look like an image of format 'qcow2'" image-write disk.img 0 < guest.bytes
	head -c 4 guest.bytes > magic
	ok image-write disk.img 4 < <(head -c 12 guest.bytes | tail -c 8)
	unchanged refused_like "would look like an image of format 'qcow2'" image-write disk.img 0 < magic
	ok image-write disk.img 512 < <(head -c 64K guest.bytes)
	ok image-write -f raw disk.img 0 < guest.bytes

	# The last sector counts, too, as do zeroes.
	local size
	for size in 1M 1000 512 999937; do
		rm -f disk.img
		truncate -s $size disk.img
		size=$(stat -c %s disk.img)
		printf 'koly\0\0\0\4\0\0\2\0' > magic
		unchanged refused_like "would look like an image of format 'dmg'" image-write disk.img $((size - 512)) < magic
		printf 'koly\1\1\1\4\0\0\2\0' > magic
		ok image-write disk.img $((size - 512)) < magic
		unchanged refused_like "would look like an image of format 'dmg'" image-write --zero disk.img $((size - 508)) 3
		ok image-write --zero disk.img $((size - 508)) 4
		printf 'VMA\1' > magic
		ok image-write disk.img 0 < magic
		unchanged refused_like "would look like an image of format 'vma'" image-write --zero disk.img 3 1
		done_ backup-run --overwrite -F raw disk.img out.raw
	done
}

@test "the NBD server keeps the first and last sector of a probed raw image" {
	noise 1M > victim.img
	cp victim.img kept.img
	truncate -s 1M disk.img
	evil guest.bytes -o data_file=victim.img
	nbd() { nbdkit -U "$PWD/socket" -P "$PWD/nbd.pid" "$BUILD/lib/nbdkit/plugins/nbdkit-tidemark-plugin.so" "$@"; }
	gone() { ! kill -0 "$(cat nbd.pid)" 2> /dev/null; }
	nbd file=disk.img
	run qemu-io -f raw -c "write -s guest.bytes 0 512" "nbd+unix:///?socket=$PWD/socket"
	[[ $output == *'not permitted'* ]]
	printf 'koly\0\0\0\4\0\0\2' > trailer
	truncate -s 512 trailer
	run qemu-io -f raw -c "write -s trailer 1048064 512" "nbd+unix:///?socket=$PWD/socket"
	[[ $output == *'not permitted'* ]]
	run -0 qemu-io -f raw -c 'write -P 3 0 1M' "nbd+unix:///?socket=$PWD/socket"
	kill "$(cat nbd.pid)"
	eventually gone
	rm -f socket nbd.pid
	# Another program wrote it: then nothing is led to the other file, and with the format it is a disk.
	put disk.img 0 < guest.bytes
	run nbd file=disk.img
	[ "$status" -ne 0 ]
	cmp victim.img kept.img
	nbd file=disk.img format=raw
	run -0 qemu-io -f raw -c 'write -s guest.bytes 0 1M' "nbd+unix:///?socket=$PWD/socket"
	kill "$(cat nbd.pid)"
	eventually gone
	rm -f socket nbd.pid
	cmp disk.img guest.bytes
}

@test "a data file that was not made here is written with a word of consent" {
	noise 1M > victim.img
	qemu-img create -q -f qcow2 -o data_file=data.img other.qcow2 1M
	unchanged refused_like 'leads writes to the data file' image-write --pattern 1 other.qcow2 0 64K
	ok image-write -f qcow2 --pattern 1 other.qcow2 0 64K
	ok image-create -f qcow2 -o data_file=own.img own.qcow2 1M
	ok image-write --pattern 1 own.qcow2 0 64K
	done_ backup-run own.qcow2 copy.qcow2
	done_ backup-run other.qcow2 copy2.qcow2
}

@test "a pin that a probe made is no consent to write to a data file" {
	local name plugin=$BUILD/lib/nbdkit/plugins/nbdkit-tidemark-plugin.so
	noise 1M > victim.img
	noise 1M 7 > disk.img
	cp victim.img kept.img
	for name in vm.img df.q; do
		evil $name -o data_file=victim.img
		mv victim.img moved.img # the made one has its own
		cp kept.img victim.img
		ok bitmap-add $name n
		unchanged refused_like 'leads writes to the data file' image-write --pattern 1 $name 0 64K
		unchanged refused_like 'leads writes to the data file' backup-run -f raw --mode existing disk.img $name
		unchanged refused_like 'leads writes to the data file' chain-restore -f raw --in-place --sidecar $name.bitmaps disk.img $name
		unchanged refused_like 'leads writes to the data file' chain-restore -f raw --in-place disk.img $name
		if [ -e "$plugin" ] && nbdkit --dump-plugin "$plugin" > dump.out 2> dump.err; then
			run nbdkit -f -U - --run true "$plugin" file=$name
			[ "$status" -ne 0 ]
			[[ $output == *'leads writes to the data file'* ]] || fail "$output"
		fi
		cmp victim.img kept.img
		# The format that a person gave is stored.
		ok bitmap-add -f qcow2 $name m
		ok image-write --pattern 1 $name 0 64K
		run -1 cmp -s victim.img kept.img
		cp kept.img victim.img
	done
	qemu-img create -q -f qcow2 -o data_file=victim.img,data_file_raw=on given.qcow2 1M
	ok bitmap-add -f qcow2 given.qcow2 n
	ok image-write --pattern 1 given.qcow2 0 64K
	bitmap given.qcow2 n '.count == 65536'
}

@test "a probed image on a device names no files" {
	noise 1M > secret.img
	noise 1M 7 > base.raw
	evil guest.bytes -b "$PWD/secret.img" -F raw
	cp guest.bytes dev.img
	loop dev.img
	local opts=(--allow-backing=outside)
	cannot backup-run "${opts[@]}" -F raw "$loop" out.raw
	cannot backup-run "${opts[@]}" --sync top -F raw "$loop" out.raw
	cannot chain-restore "${opts[@]}" "$loop" out.raw
	cannot bitmap-add --sidecar s "$loop" n
	cannot image-write --sidecar s "${opts[@]}" --pattern 1 "$loop" 0 64K
	[ ! -e out.raw ]
	[ ! -e s ]
	# No byte of the file is read, and its absence is not noticed.
	rm secret.img
	cannot backup-run "${opts[@]}" -F raw "$loop" out.raw
	cannot backup-run -F raw "$loop" out.raw
	attempt chain-info "${opts[@]}" "$loop"
	[[ $output$stderr != *secret.img*'No such file'* ]]
	done_ backup-run -f raw -F raw "$loop" out.raw
	cmp out.raw guest.bytes

	# Without a name in its header either.
	qemu-img create -q -f qcow2 "$loop" 512K
	cannot backup-run -F raw "$loop" x.raw
	done_ backup-run -f qcow2 -F raw "$loop" x.raw
}

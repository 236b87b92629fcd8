#!/usr/bin/env bats
# bitmap-mark: marks ranges that were written without recording.

load helper

@test "marks every granule that the range touches" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 65535 2
	assert_equal "$(dirty disk.img b)" 0+131072
	ok bitmap-mark disk.img b 512K 0x10000
	ok bitmap-mark disk.img b 1048575 1
	assert_equal "$(dirty disk.img b)" '0+131072 524288+65536 983040+65536'
}

@test "marks one bitmap only, a disabled one too" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img other
	ok bitmap-add --disabled disk.img b
	ok bitmap-mark disk.img b 0 1
	bitmap disk.img b '.count == 65536 and (.recording | not)'
	bitmap disk.img other '.count == 0'
}

@test "--unset clears the granules that lie in the range" {
	truncate -s 1000448 disk.img
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 0 1000448
	ok bitmap-mark --unset disk.img b 32K 96K
	assert_equal "$(dirty disk.img b | cut -d ' ' -f 1)" 0+65536
	bitmap disk.img b '.count == 15 * 65536'
	# The granule at the end of the disk is a short one.
	ok bitmap-mark --unset disk.img b 917504 82944
	bitmap disk.img b '.count == 13 * 65536'
}

@test "refuses ranges outside the disk" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	local r
	for r in '1M 1' '0 1048577' '1048575 2' '2M 0x1000' '0xffffffffffffffff 1' '1 0xffffffffffffffff' \
		'0xfffffffffffff000 0x2000' '-1 1' '0 -1' '4x 1' '0 4x' '1e3 1' '0 99999999999999999999' '"" 1'; do
		eval "set -- $r"
		unchanged rejected bitmap-mark disk.img b "$1" "$2"
	done
}

@test "--from a file of lines" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	printf '%s\n' '0 1' '131072 65536' '900000 10' > ranges
	ok bitmap-mark --from ranges disk.img b
	assert_equal "$(dirty disk.img b)" '0+65536 131072+65536 851968+65536'
	printf '327680 1' > ranges
	ok bitmap-mark --from ranges disk.img b
	ok bitmap-mark --unset --from - disk.img b <<< '0 65536'
	assert_equal "$(dirty disk.img b)" '131072+65536 327680+65536 851968+65536'
	: > ranges
	unchanged rejected bitmap-mark --from ranges disk.img b
	unchanged rejected bitmap-mark --from - disk.img b < /dev/null
}

@test "--from: one line that makes no sense, and nothing is marked" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	local bad
	for bad in nonsense 5 '5 x' '-1 5' '5 -5' '18446744073709551615 2' '1 2 3' '{"a": 1}' '[1, 2' '0x 1'; do
		printf '0 65536\n%s\n131072 1\n' "$bad" > ranges
		unchanged rejected bitmap-mark --from ranges disk.img b
		unchanged rejected bitmap-mark --from - disk.img b < ranges
	done
	noise 4000 > ranges
	unchanged rejected bitmap-mark --from ranges disk.img b
	unchanged rejected bitmap-mark --from nosuch disk.img b
	[[ $stderr == *'No such file or directory'* ]]
	mkdir dir
	unchanged rejected bitmap-mark --from dir disk.img b
}

@test "--from what nbdinfo prints of QEMU's bitmap" {
	qcow2 disk.qcow2 4M
	qemu-img bitmap --add -g 4K disk.qcow2 q
	qemu-io -f qcow2 -c 'write -q 100K 1' -c 'write -q 1M 1M' -c 'write -q 4095K 1K' disk.qcow2
	qemu-nbd --fork --pid-file=nbd.pid -r -t -f qcow2 -B q -k "$PWD/nbd.sock" disk.qcow2 3>&-
	nbdinfo --json --map=qemu:dirty-bitmap:q "nbd+unix:///?socket=$PWD/nbd.sock" > map
	served_no_more
	ok bitmap-add -g 4K disk.qcow2 b
	ok bitmap-mark --from map disk.qcow2 b
	assert_equal "$(dirty disk.qcow2 b)" '102400+4096 1048576+1048576 4190208+4096'
	assert_equal "$(hash_of disk.qcow2 b)" "$(hash_of disk.qcow2 q)"
}

@test "--from what rbd diff prints" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	echo '[{"offset":0,"length":4096,"exists":"true"},{"offset":524288,"length":65536,"exists":"false"}]' > ranges.json
	ok bitmap-mark --from ranges.json disk.img b
	assert_equal "$(dirty disk.img b)" '0+65536 524288+65536'
}

@test "--from: what lies beyond the disk is cut, with a warning" {
	truncate -s 1000448 disk.img
	ok bitmap-add disk.img b
	ok bitmap-mark --from - disk.img b <<< $'983040 65536\n0 1\n1048576 1'
	[[ $stderr == *'warning: 2 of 3 ranges extend beyond the end of the disk at 1000448 and were cut there'* ]]
	assert_equal "$(dirty disk.img b)" '0+65536 983040+17408'
	ok bitmap-mark --unset --from - disk.img b <<< '0 2M'
	bitmap disk.img b '.count == 0'
	unchanged rejected bitmap-mark disk.img b 983040 65536
}

@test "--from: a list that ends before the disk does, with a warning" {
	local samples=$BATS_TEST_DIRNAME/../images/ranges list
	truncate -s 16M disk.img
	ok bitmap-add disk.img b
	ends() { # END FILE [OPTION...]
		ok bitmap-mark --from "$2" "${@:3}" disk.img b
		[[ $stderr == *"warning: the list covers only $1 of the disk's 16777216 bytes; nothing was marked beyond that point"* ]] ||
			fail "$2: $stderr"
		assert_equal "$(grep -c warning: <<< "$stderr")" 1
	}
	for list in base_allocation qemu_allocation-depth qemu_dirty-bitmap_b0; do
		ends 8388608 "$samples/nbdinfo-$list.txt"
		ends 8388608 "$samples/nbdinfo-$list.json"
	done
	ends 1048576 "$samples/qemu-img-map.json"
	ends 8388608 "$samples/qemu-img-map-x-dirty-bitmap.json" --input-format qemu-img-map-dirty
	printf 'rbd diff v1\ns\0\0\x20\0\0\0\0\0e' > list
	ends 2097152 list
	printf '%s' '<bmap version="2.0"><ImageSize>3145728</ImageSize><BlockSize>4096</BlockSize><BlocksCount>768</BlocksCount>' \
		'<BlockMap><Range>1</Range></BlockMap></bmap>' > list
	ends 3145728 list
	# None where it reaches the end, or does not tell where that is.
	for list in '[{"offset": 0, "length": 16777216, "type": 0, "description": "clean"}]' '0 4096'; do
		ok bitmap-mark --from - disk.img b <<< "$list"
		assert_equal "$stderr" ''
	done
}

@test "--from what other trackers printed" {
	local samples=$BATS_TEST_DIRNAME/../images/ranges b='65536+196608 1048576+65536'
	local t='327680+196608 1179648+131072 1966080+262144'
	truncate -s 8M disk.img
	reads() {
		ok bitmap-add disk.img b
		ok bitmap-mark "${@:2}" disk.img b
		assert_equal "$(dirty disk.img b)" "$1"
		ok bitmap-remove disk.img b
	}
	reads "$b" --from "$samples/nbdinfo-base_allocation.txt"
	reads "$b 2097152+65536" --from "$samples/nbdinfo-qemu_dirty-bitmap_b0.txt"
	reads "$b" --from - --input-format nbdinfo < "$samples/nbdinfo-qemu_allocation-depth.txt"
	reads "$b 2097152+65536" --from "$samples/nbdkit-log-filter.txt"
	reads "$b 2097152+65536" --from "$samples/qemu-img-map-x-dirty-bitmap.json" --input-format qemu-img-map-dirty
	reads "$t" --from "$samples/thin_delta.out"
	reads "$t" --from "$samples/thin_delta-verbose.out" --input-format thin-delta
	reads '65536+65536 196608+131072' --from "$samples/era_invalidate.out" --block-size 64K
	reads '65536+65536 196608+131072' --from "$samples/era_invalidate.out" --era-dump "$samples/era_dump-logical.out"
	reads '65536+65536 327680+65536' --from - --block-size 64K <<< $'1\n5'
}

@test "--from: x-dirty-bitmap is not taken for an image's map" {
	truncate -s 8M disk.img
	ok bitmap-add disk.img b
	unchanged rejected bitmap-mark --from "$BATS_TEST_DIRNAME/../images/ranges/qemu-img-map-x-dirty-bitmap.json" disk.img b
	[[ $stderr == *'--input-format qemu-img-map-dirty'* ]]
}

@test "--from: a list that breaks off changes nothing" {
	local f n samples=$BATS_TEST_DIRNAME/../images/ranges
	truncate -s 8M disk.img
	ok bitmap-add disk.img b
	for f in nbdinfo-qemu_dirty-bitmap_b0.txt nbdinfo-qemu_dirty-bitmap_b0.json qemu-img-map.json nbdkit-log-filter.txt \
		thin_delta.out thin_delta-verbose.out era_invalidate.out; do
		n=$(stat -c %s "$samples/$f")
		for n in $((n - 3)) $((n * 3 / 5)); do
			head -c "$n" "$samples/$f" > part
			unchanged rejected bitmap-mark --from part --block-size 64K disk.img b
		done
	done
}

@test "--input-format, --block-size and --era-dump go with --from" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	unchanged rejected bitmap-mark --block-size 4K disk.img b 0 1
	unchanged rejected bitmap-mark --input-format ranges disk.img b 0 1
	unchanged rejected bitmap-mark --from - --block-size 0 disk.img b <<< 1
	unchanged rejected bitmap-mark --from - --era-dump - disk.img b <<< 1
	unchanged rejected bitmap-mark --from - --block-size 1 --era-dump x disk.img b <<< 1
	unchanged rejected bitmap-mark --from - --input-format nonsense disk.img b <<< '0 1'
	unchanged rejected bitmap-mark --from "$BATS_TEST_DIRNAME/../images/ranges/era_invalidate.out" disk.img b
	[[ $stderr == *'--era-dump FILE'* ]]
}

@test "completion knows the formats" {
	run bitmap-mark --complete-words --input-format ''
	assert_line --partial era-invalidate
	assert_line --partial rbd-export-diff
}

@test "many ranges" {
	truncate -s 64M disk.img
	ok bitmap-add -g 512 disk.img b
	awk 'BEGIN { for (i = 0; i < 65536; i++) print i * 1024, 512 }' > ranges
	ok bitmap-mark --from ranges disk.img b
	bitmap disk.img b '.count == 65536 * 512'
	assert_equal "$(dirty disk.img b | wc -w)" 65536
}

@test "the image is not changed, and its bitmaps stay trusted" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	local before
	before=$(sha256sum disk.img; stat -c %y disk.img)
	ok bitmap-mark disk.img b 0 1M
	assert_equal "$(sha256sum disk.img; stat -c %y disk.img)" "$before"
	bitmap disk.img b 'has("inconsistent") | not'
}

@test "refuses what is not there; --dry-run; usage" {
	truncate -s 1M disk.img
	unchanged refused "Dirty bitmap 'b' not found" bitmap-mark disk.img b 0 1
	ok bitmap-add disk.img b
	unchanged refused "Dirty bitmap 'c' not found" bitmap-mark disk.img c 0 1
	unchanged ok bitmap-mark --dry-run disk.img b 0 1
	usage bitmap-mark disk.img b
	usage bitmap-mark disk.img b 0
	usage bitmap-mark disk.img b 0 1 2
	: > ranges
	usage bitmap-mark --from ranges disk.img b 0 1
}

#!/usr/bin/env bats
# image-write: tracked writes.

load helper

@test "standard input, at an offset" {
	raw disk.img 1M
	cp disk.img want.img
	noise 70000 7 > data
	put want.img 123456 < data
	ok bitmap-add disk.img b
	ok image-write disk.img 123456 < data
	cmp disk.img want.img
	assert_equal "$(dirty disk.img b)" 65536+131072
	bitmap disk.img b 'has("inconsistent") | not'
}

@test "standard input, no more than LENGTH of it" {
	truncate -s 1M disk.img
	noise 70000 7 > data
	ok image-write disk.img 4K 5000 < data
	cmp -n 5000 -i 4096:0 disk.img data
	assert_equal "$(byte disk.img 9096)" 00
	head -c 1000 data > short
	attempt image-write disk.img 64K 5000 < short
	assert_equal "$status" 1
	[ -n "$stderr" ]
}

@test "a pattern, zeroes, a discard" {
	raw disk.img 1M
	cp disk.img want.img
	ok bitmap-add -g 4K disk.img b
	ok image-write --pattern 0xab disk.img 100000 70000
	head -c 70000 /dev/zero | tr '\0' '\253' | put want.img 100000
	ok image-write --pattern 10 disk.img 8K 4K
	head -c 4096 /dev/zero | tr '\0' '\n' | put want.img 8192
	ok image-write --zero disk.img 500K 30K
	head -c 30K /dev/zero | put want.img $((500 << 10))
	cmp disk.img want.img
	assert_equal "$(dirty disk.img b)" '8192+4096 98304+73728 512000+32768'
	ok bitmap-clear disk.img b
	ok image-write --discard disk.img 640K 64K
	assert_equal "$(dirty disk.img b)" 655360+65536
	assert_equal "$(stat -c %s disk.img)" 1048576
}

@test "a discarded range reads as zeroes, also at the ends of clusters" {
	local range name
	qemu-img create -q -f qcow2 base.qcow2 1000448
	qemu-io -f qcow2 -c 'write -q -P 1 0 1000448' base.qcow2
	for range in '263012 300000' '0 512' '70000 100' '65535 65538' '1000000 448' '900000 100448'; do
		# shellcheck disable=SC2086 # two words
		set -- $range
		cp base.qcow2 flat.qcow2
		qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2
		qemu-img create -q -f qcow2 -o compat=0.10 -b base.qcow2 -F qcow2 old.qcow2
		qemu-img convert -f qcow2 -O raw base.qcow2 disk.img
		qemu-img convert -f qcow2 -O raw base.qcow2 want.img
		head -c "$2" /dev/zero | put want.img "$1"
		for name in flat.qcow2 over.qcow2 old.qcow2 disk.img; do
			ok image-write --discard $name "$1" "$2"
			run -0 qemu-img compare -F raw $name want.img
		done
		clean flat.qcow2 over.qcow2 old.qcow2
	done
}

@test "zeroes in a raw image are a hole where they can be" {
	noise 1M > disk.img
	ok image-write --zero disk.img 64K 896K
	[ "$(allocated disk.img)" -le 256 ]
	ok image-write --discard disk.img 0 1M
	[ "$(allocated disk.img)" -le 128 ]
}

@test "rewriting the same data, and writing no data" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	head -c 4096 disk.img > data
	ok image-write disk.img 0 < data
	assert_equal "$(dirty disk.img b)" 0+65536
	ok bitmap-clear disk.img b
	ok image-write disk.img 64K < /dev/null
	bitmap disk.img b '.count == 0'
}

@test "without bitmaps, no sidecar comes of it" {
	truncate -s 1M disk.img
	ok image-write --pattern 1 disk.img 0 1M
	assert_equal "$(ls)" disk.img
}

@test "every enabled bitmap records, each at its granularity" {
	truncate -s 1000001 disk.img
	local g
	for g in 512 4K 64K 2M; do ok bitmap-add -g $g disk.img b$g; done
	ok bitmap-add --disabled disk.img off
	ok image-write --pattern 5 disk.img 1000000 1
	assert_equal "$(dirty disk.img b512 | cut -d + -f 1)" 999936
	assert_equal "$(dirty disk.img b4K | cut -d + -f 1)" 999424
	assert_equal "$(dirty disk.img b64K | cut -d + -f 1)" 983040
	assert_equal "$(dirty disk.img b2M | cut -d + -f 1)" 0
	bitmap disk.img off '.count == 0'
	assert_equal "$(byte disk.img 1000000)" 05
	assert_equal "$(stat -c %s disk.img)" 1000001
}

@test "refuses what lies outside the disk" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	noise 100000 > data
	local r
	for r in '1M 1' '0 1048577' '1048575 2' '0xffffffffffffffff 1' '1 0xffffffffffffffff' '8E 8E' '2M 0' '-1 1' '0 -1' '4x 1'; do
		eval "set -- $r"
		unchanged rejected image-write --pattern 1 disk.img "$1" "$2"
		unchanged rejected image-write --zero disk.img "$1" "$2"
		unchanged rejected image-write --discard disk.img "$1" "$2"
		unchanged rejected image-write disk.img "$1" "$2" < data
	done
	unchanged rejected image-write disk.img 2M < data
	for r in 256 -1 0x100 x ''; do
		unchanged rejected image-write --pattern "$r" disk.img 0 1
	done
}

@test "input that is too long: whatever was written is recorded" {
	raw disk.img 1M
	cp disk.img before.img
	ok bitmap-add disk.img b
	noise 3M > data
	attempt image-write disk.img 512K < data
	assert_equal "$status" 1
	[ -n "$stderr" ]
	bitmap disk.img b 'has("inconsistent") | not'
	if ! cmp -s disk.img before.img; then
		assert_equal "$(dirty disk.img b)" 524288+524288
	fi
	assert_equal "$(stat -c %s disk.img)" 1048576
	cmp -n 524288 disk.img before.img
}

@test "input that cannot be read" {
	raw disk.img 1M
	cp disk.img before.img
	ok bitmap-add disk.img b
	unchanged rejected image-write disk.img 0 < .
	# A closed one is never taken for another file that is open.
	run timeout 10 bash -c 'image-write disk.img 0 <&-'
	[ "$status" -le 1 ]
	cmp disk.img before.img
}

@test "qcow2: the same disk as QEMU makes of the same writes" {
	local o i off len seed
	for o in cluster_size=512 cluster_size=4K compat=0.10 cluster_size=64K cluster_size=2M refcount_bits=1 refcount_bits=64 \
		lazy_refcounts=on; do
		qcow2 ours.qcow2 5M -o "$o"
		cp ours.qcow2 theirs.qcow2
		for i in 1 2 3 4 5 6; do
			seed=$((i * 7919))
			off=$((seed * 104729 % (5 << 20))) len=$((seed * 31 % 300000 + 1))
			[ $((off + len)) -le $((5 << 20)) ] || len=$(((5 << 20) - off))
			case $i in
			1 | 4)
				noise $len $i > data
				ok image-write ours.qcow2 $off < data
				qemu-io -f qcow2 -c "write -q -s data $off $len" theirs.qcow2
				;;
			2 | 5)
				ok image-write --pattern $i ours.qcow2 $off $len
				qemu-io -f qcow2 -c "write -q -P $i $off $len" theirs.qcow2
				;;
			*)
				ok image-write --zero ours.qcow2 $off $len
				qemu-io -f qcow2 -c "write -q -z $off $len" theirs.qcow2
				;;
			esac
		done
		ok image-write --discard ours.qcow2 1M 1M
		clean ours.qcow2
		ok image-write --pattern 9 ours.qcow2 1M 1M
		qemu-io -f qcow2 -c 'write -q -P 9 1M 1M' theirs.qcow2
		clean ours.qcow2
		same qcow2 ours.qcow2 qcow2 theirs.qcow2
		rm ours.qcow2 theirs.qcow2
	done
}

@test "qcow2: over a backing image, compressed clusters, and clusters that a snapshot shares" {
	qcow2 base.qcow2 5M
	cp base.qcow2 base.orig
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2
	qemu-img convert -c -O qcow2 base.qcow2 packed.qcow2
	qemu-img convert -c -O qcow2 -o compression_type=zstd base.qcow2 zpacked.qcow2
	cp base.qcow2 snap.qcow2
	qemu-img snapshot -c s snap.qcow2
	cp base.qcow2 theirs.qcow2
	qemu-io -f qcow2 -c 'write -q -P 1 100 1000' -c 'write -q -P 2 2600K 100K' -c 'write -q -z 0 1K' \
		-c 'write -q -P 3 5242879 1' theirs.qcow2
	local f
	for f in over packed zpacked snap; do
		ok bitmap-add $f.qcow2 b
		ok image-write --pattern 1 $f.qcow2 100 1000
		ok image-write --pattern 2 $f.qcow2 2600K 100K
		ok image-write --zero $f.qcow2 0 1K
		ok image-write --pattern 3 $f.qcow2 5242879 1
		clean $f.qcow2
		same qcow2 theirs.qcow2 qcow2 $f.qcow2
		assert_equal "$(dirty $f.qcow2 b)" '0+65536 2621440+196608 5177344+65536'
	done
	cmp base.qcow2 base.orig
	qemu-img snapshot -a s snap.qcow2
	same qcow2 base.qcow2 qcow2 snap.qcow2
	clean snap.qcow2
}

@test "qcow2: QEMU's own bitmaps never miss a write silently" {
	qcow2 disk.qcow2 4M
	qemu-img bitmap --add disk.qcow2 q
	local result
	attempt image-write --pattern 1 disk.qcow2 1M 64K
	result=$status
	clean disk.qcow2
	if [ "$result" -eq 0 ]; then
		qemu-nbd --fork --pid-file=nbd.pid -r -t -f qcow2 -B q -k "$PWD/nbd.sock" disk.qcow2 3>&- || return 0
		nbdinfo --json --map=qemu:dirty-bitmap:q "nbd+unix:///?socket=$PWD/nbd.sock" > map.json
		jq -e 'any(.type == 1 and .offset <= 1048576 and .offset + .length >= 1114112)' map.json
	else
		[[ $stderr == *bitmap* ]]
	fi
}

@test "--dry-run writes nothing" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	unchanged ok image-write --dry-run --pattern 1 disk.img 0 64K
	unchanged rejected image-write --dry-run --pattern 1 disk.img 1M 64K
}

@test "an image that must not be written" {
	raw disk.img 1M
	chmod 444 disk.img
	unchanged refused_like 'disk.img.*Permission denied' mortal image-write --pattern 1 disk.img 0 1
	refused_like 'nosuch.img.*No such file or directory' image-write --pattern 1 nosuch.img 0 1
	[ ! -e nosuch.img ]
}

@test "a damaged sidecar stops the write" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	flip disk.img.bitmaps 20
	unchanged refused_like 'disk.img.bitmaps' image-write --pattern 1 disk.img 0 1
}

@test "usage" {
	truncate -s 1M disk.img
	usage image-write
	usage image-write disk.img
	usage image-write disk.img 0 1 2
	usage image-write --pattern 1 disk.img 0
	usage image-write --zero disk.img 0
	usage image-write --discard disk.img 0
	usage image-write --zero --discard disk.img 0 1
	usage image-write --zero --pattern 1 disk.img 0 1
}

same_start() {
	cmp -s -n 4194304 disk.img <(noise 4M)
}

@test "another program writes while the input is waited for" {
	local f
	for f in raw qcow2; do
		"$f" disk.img 16M
		ok bitmap-add disk.img b
		if [ $f = qcow2 ]; then ok bitmap-add --store image -g 32K disk.img in; fi
		hold_write disk.img 0 8M
		if [ $f = raw ]; then eventually same_start; else sleep 0.5; fi
		printf x | dd of=disk.img bs=1 seek=$(($(stat -c %s disk.img) - 1)) conv=notrunc status=none
		noise 4M >&7
		exec 7>&-
		finish
		assert_equal "$status" 0
		[[ $stderr == *'another program wrote to the image meanwhile'* ]] || fail "$stderr"
		bitmap disk.img b .inconsistent
		if [ $f = qcow2 ]; then bitmap disk.img in .inconsistent; fi
		# It stays so, and the next write does not hide it.
		ok image-write --pattern 1 disk.img 0 1
		bitmap disk.img b .inconsistent
		rm -f -- disk.img* input
	done
}

@test "with extended L2 entries a small write takes the space of a subcluster" {
	local i used
	qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=2M e.qcow2 64M
	used=$(du -k e.qcow2 | cut -f 1)
	ok image-write --pattern 1 e.qcow2 0 512
	for i in 8 16 24 32; do
		ok image-write --pattern 1 e.qcow2 ${i}M 512
		ok image-write --zero e.qcow2 $((i * 1024 + 64))K 64K
	done
	# A cluster for the table of entries, and five subclusters.
	[ $(($(du -k e.qcow2 | cut -f 1) - used)) -le $((2048 + 5 * 64 + 64)) ]
	clean e.qcow2
	run -0 qemu-img map --output=json -f qcow2 e.qcow2
	jq -e '[.[] | select(.data) | [.start, .length]] == [0, 8, 16, 24, 32 | [. * 1048576, 65536]]' <<< "$output"
}

# crashed FILE OPTIONS: an image with lazy refcounts and a snapshot, whose writer died; its counts are out of date.
crashed() {
	qemu-img create -q -f qcow2 -o "lazy_refcounts=on$2" "$1" 64M
	qemu-io -f qcow2 -c 'write -q -P 1 0 4M' -c 'write -q -c -P 6 32M 64k' "$1"
	qemu-img snapshot -c s "$1"
	run qemu-io -f qcow2 -c 'write -q -P 2 0 1M' -c 'write -q -P 3 8M 1M' -c 'write -q -z 3M 64k' -c flush -c abort "$1"
	run qemu-img check -q -f qcow2 "$1"
	[ "$status" -ne 0 ] || fail 'the counts are correct'
}

@test "reference counts that a crash of QEMU left out of date are repaired" {
	local options
	for options in '' ,cluster_size=4096 ,extended_l2=on ,refcount_bits=64 ,cluster_size=512; do
		rm -f c.qcow2 want.raw
		crashed c.qcow2 "$options"
		qemu-img convert -f qcow2 -O raw c.qcow2 want.raw
		ok image-write --pattern 5 c.qcow2 20M 192K
		qemu-io -f raw -c 'write -q -P 5 20M 192k' want.raw
		clean c.qcow2
		same qcow2 c.qcow2 raw want.raw
		run -0 qemu-img convert -f qcow2 -l s -O raw c.qcow2 snapshot.raw
		run -0 qemu-io -f raw -c 'read -P 1 0 4M' -c 'read -P 6 32M 64k' snapshot.raw
		run -0 qemu-img info --output=json -f qcow2 c.qcow2
		jq -e '."dirty-flag" == false' <<< "$output"
	done
}

@test "a change of bitmaps repairs the counts too, looking does not" {
	crashed c.qcow2 ''
	unchanged done_ image-info c.qcow2
	unchanged done_ bitmap-list c.qcow2
	unchanged ok bitmap-add --dry-run --store image c.qcow2 b
	ok bitmap-add --store image c.qcow2 b
	clean c.qcow2
}

@test "a crashed image with other damage is not repaired" {
	crashed c.qcow2 ''
	local l1 l2
	l1=$((0x$(od -An -tx1 -j 40 -N 8 c.qcow2 | tr -d ' ')))
	l2=$((0x$(od -An -tx1 -j "$l1" -N 8 c.qcow2 | tr -d ' ') & ~(1 << 63)))
	# The last cluster of the disk is in the L1 table.
	printf '%b' "$(printf '%016x' $((l1 | 1 << 63)) | sed 's/../\\x&/g')" | put c.qcow2 $((l2 + 8 * 1023))
	unchanged refused_like 'The image was not closed properly, and its reference counts cannot be repaired: data .* overlaps with an L1 table' \
		image-write --pattern 5 c.qcow2 20M 64K
	[[ $stderr == *'qemu-img check -r all'* ]]
}

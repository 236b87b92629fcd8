#!/usr/bin/env bats
# bitmap-dump: which ranges are dirty, and QEMU's hash of them.

load helper

# covers FILE SIZE: the ranges follow each other from 0 to SIZE, clean and dirty in turn.
covers() {
	jq -e --argjson size "$2" '.return | reduce .[] as $r ({at: 0, good: true, was: null};
		{at: ($r.start + $r.length), good: (.good and $r.start == .at and $r.length > 0 and $r.dirty != .was), was: $r.dirty})
		| .good and .at == $size' "$1" || fail "$(cat "$1")"
}

@test "json: ranges that cover the disk" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	done_ bitmap-dump --output=json disk.img b
	assert_equal "$output" '{"return": [{"start": 0, "length": 1048576, "dirty": false}]}'
	ok bitmap-mark disk.img b 100K 1
	ok bitmap-mark disk.img b 200K 100K
	unchanged done_ bitmap-dump --output=json disk.img b
	jq -e '.return == [{"start": 0, "length": 65536, "dirty": false}, {"start": 65536, "length": 65536, "dirty": true},
		{"start": 131072, "length": 65536, "dirty": false}, {"start": 196608, "length": 131072, "dirty": true},
		{"start": 327680, "length": 720896, "dirty": false}]' <<< "$output"
	ok bitmap-mark disk.img b 0 1M
	done_ bitmap-dump --output=json disk.img b
	assert_equal "$output" '{"return": [{"start": 0, "length": 1048576, "dirty": true}]}'
}

@test "json: clipped at the end of the disk" {
	local size g
	for size in 512 1000448 1048575 1000001; do
		truncate -s "$size" "d$size.img"
		for g in 512 4K 64K 2M; do
			ok bitmap-add -g $g "d$size.img" b$g
			ok bitmap-mark "d$size.img" b$g $((size - 1)) 1
			dirty "d$size.img" b$g
			done_ image-info --output=json "d$size.img"
			covers dump.json "$(jq '.return."virtual-size"' <<< "$output")"
		done
	done
}

@test "the ranges that QEMU tells over NBD" {
	qcow2 disk.qcow2 64M -o cluster_size=4K
	qemu-img bitmap --add -g 4K disk.qcow2 q
	qemu-io -f qcow2 -c 'write -q 1 1' -c 'write -q 5000K 3M' -c 'write -q 33M 5' -c 'write -q 65535K 1K' disk.qcow2
	qemu-nbd --fork --pid-file=nbd.pid -r -t -f qcow2 -B q -k "$PWD/nbd.sock" disk.qcow2 3>&-
	nbdinfo --json --map=qemu:dirty-bitmap:q "nbd+unix:///?socket=$PWD/nbd.sock" > map.json
	served_no_more
	dirty disk.qcow2 q
	assert_equal "$(jq -c '[.return[] | select(.dirty) | [.start, .length]]' dump.json)" \
		"$(jq -c '[.[] | select(.type == 1) | [.offset, .length]]' map.json)"
	covers dump.json $((64 << 20))
}

@test "sha256: QEMU's hash, at all lengths" {
	local bits set want i
	while read -r bits set want; do
		rm -f d.img d.img.bitmaps
		truncate -s $((bits * 512)) d.img
		ok bitmap-add -g 512 d.img b
		[ "$set" = - ] || for i in ${set//,/ }; do bitmap-mark d.img b $((i * 512)) 512 > out.txt; done
		unchanged done_ bitmap-dump --output=sha256 d.img b
		assert_equal "$output" "{\"return\": {\"sha256\": \"$want\"}}"
	done <<- END
		16 - af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc
		16 0 7c9fa136d4413fa6173637e883b6998d32e1d675f88cddff9dcbcf331820f4b8
		16 1 d86e8112f3c4c4442126f8e9f44f16867da487f29052bf91b810457db34209a4
		16 0,3,4 bf5b0e89f1caed18c8d6ff15d17ecc5c6e0c89510b4bc6d7b4b51d4ed30999cb
		17 16 41b8f24b79ae38bb5f3af44cf187d022c20517a6f576791e466d536517b68fb9
		64 63 e6ad6c9a3a3b7658c35bacf6553fcb8ffe34387534a648fe18f875b8f7a86ddb
		65 64 9d34149fbd1fe777eb238799054c8cbfbce372255f219f8740838def9bfd02db
		66 65 c571327cb01ac1de6972713cbf6cc1fc3c2cab8b581ee0bc3fe6d8b56963fd5b
		160 0,144 b2f3dbcfb925e91206e13903b7cf697a7fc146768f2a067d3bf078f3cf1816bd
		1024 0,1023 fff2dcf70800e6fa77c0a6019d96c37ca6a020529bf02ce3ccd4994ab4188cf5
		1024 0,15,16,512,513,1022,1023 7abe3d7e3c794cfaf9b08bc9ce599192c96a2206f07b42d9997ff78fdd7af744
		1024 0,16,512,1023 3b7b88c192165a0a4640a3c1ef9226de9a5eb4530922c421157fb01ea35cb70a
		2048 1,128,129 f2ff072e23fe73b837297a8a95faa09235d86a22e69c5a7880426a7e8671118d
	END
}

@test "sha256: depends on the bits only, not on name, granularity or size" {
	truncate -s 1M a.img
	truncate -s 64M b.img
	ok bitmap-add a.img one
	ok bitmap-add -g 4M --disabled b.img two
	ok bitmap-mark a.img one 64K 1
	ok bitmap-mark b.img two 4M 1
	assert_equal "$(hash_of a.img one)" d86e8112f3c4c4442126f8e9f44f16867da487f29052bf91b810457db34209a4
	assert_equal "$(hash_of b.img two)" "$(hash_of a.img one)"
}

@test "human and map print something for people" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 64K 64K
	local form
	for form in human map; do
		unchanged done_ bitmap-dump --output=$form disk.img b
		[ -n "$output" ] && [[ $output != *'"return"'* ]]
		local dirty_one=$output
		ok bitmap-clear disk.img b
		done_ bitmap-dump --output=$form disk.img b
		[ "$output" != "$dirty_one" ]
		ok bitmap-mark disk.img b 64K 64K
	done
	done_ bitmap-dump disk.img b
	local default=$output
	done_ bitmap-dump --output=human disk.img b
	assert_equal "$output" "$default"
}

@test "what another program reads: nothing is lost in a pipe, whatever the size" {
	local size form want n=0
	for size in 1M 1000448 12345678 1 0; do
		truncate -s $size disk.img
		rm -f disk.img.bitmaps
		ok bitmap-add -g 512 disk.img b
		if [ $size != 0 ]; then
			seq 0 3000 $((($(stat -c %s disk.img) - 1) / 2)) | sed 's/$/ 1/' > list
			ok bitmap-mark --from list disk.img b
			ok bitmap-mark disk.img b $(($(stat -c %s disk.img) - 1)) 1
		fi
		want=$(hash_of disk.img b)
		for form in ranges nbdinfo extentlist rbd-diff; do
			unchanged done_ bitmap-dump --output=$form disk.img b
			printf '%s\n' "$output" > "dumped.$form"
			# A disk without a byte has no extents to list.
			[ "$size/$form" != 0/extentlist ] || continue
			n=$((n + 1))
			ok bitmap-add -g 512 disk.img "c$n"
			ok bitmap-mark --input-format "$form" --from "dumped.$form" disk.img "c$n"
			assert_equal "$(hash_of disk.img "c$n")" "$want"
			ok bitmap-remove disk.img "c$n"
		done
		# A clean one says that it is.
		ok bitmap-clear disk.img b
		for form in ranges nbdinfo rbd-diff; do
			done_ bitmap-dump --output=$form disk.img b
			printf '%s\n' "$output" > clean
			ok bitmap-mark --from clean disk.img b
		done
		done_ bitmap-list --output=json disk.img
		assert_equal "$(jq '.return[0].count' <<< "$output")" 0
	done
}

@test "the lists are what nbdinfo, rbd and nbdkit's filter make and read" {
	truncate -s 1000448 disk.img
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 64K 128K
	ok bitmap-mark disk.img b 1000447 1
	done_ bitmap-dump --output=nbdinfo disk.img b
	assert_equal "$(jq -c 'map([.offset, .length, .type, .description])' <<< "$output")" \
		'[[0,65536,0,"clean"],[65536,131072,1,"dirty"],[196608,786432,0,"clean"],[983040,17408,1,"dirty"]]'
	done_ bitmap-dump --output=rbd-diff disk.img b
	assert_equal "$output" \
		'[{"offset":65536,"length":131072,"exists":"true"},{"offset":983040,"length":17408,"exists":"true"}]'
	done_ bitmap-dump --output=ranges disk.img b
	assert_equal "$output" $'# OFFSET LENGTH\n65536 131072\n983040 17408'
	bitmap-dump --output=extentlist disk.img b > extents
	command -v nbdkit nbdinfo > /dev/null || skip 'no nbdkit'
	nbdkit -r --filter=extentlist file disk.img extentlist=extents \
		--run 'nbdinfo --map "$uri"' > map
	assert_equal "$(awk '{ print $1, $2, $4 }' map)" \
		$'0 65536 hole,zero\n65536 131072 data\n196608 786432 hole,zero\n983040 17408 data'
}

@test "map: totals, scale and the hottest regions, in any terminal" {
	local columns
	truncate -s 64G disk.img
	ok bitmap-add -g 1M disk.img b
	ok bitmap-mark disk.img b 1G 3G
	ok bitmap-mark disk.img b 32G 1M
	ok bitmap-mark disk.img b 40G 10G
	ok bitmap-mark disk.img b 60G 2M
	for columns in 40 80 200; do
		COLUMNS=$columns done_ bitmap-dump --output=map disk.img b
		[ "$(wc -L <<< "$output")" -le "$columns" ] ||
			fail "wider than $columns: $output"
		assert_regex "$output" '13 GiB of 64 GiB dirty \(20\.3 %\)'
		assert_regex "$output" 'hottest 40 GiB \+10 GiB: 10 GiB \(100 %\)'
		assert_regex "$output" '1 GiB \+3 GiB: 3 GiB \(100 %\)'
		assert_equal "$(grep -c ' +.*: ' <<< "$output")" 3
	done
}

@test "refuses what is not there" {
	truncate -s 1M disk.img
	refused "Dirty bitmap 'nope' not found" bitmap-dump --output=json disk.img nope
	refused "Dirty bitmap 'nope' not found" bitmap-dump --output=sha256 disk.img nope
	attempt bitmap-dump disk.img nope
	assert_equal "$status" 1
	[[ $stderr == *"Dirty bitmap 'nope' not found"* ]]
	usage bitmap-dump disk.img
	usage bitmap-dump --output=bogus disk.img b
}

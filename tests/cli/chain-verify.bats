#!/usr/bin/env bats
# chain-verify: metadata, links, every byte.  tests/interop/verify compares it with qemu-img check.

load helper

# disk.img with a full backup and two increments of it.
chain() {
	raw disk.img "${1:-4M}"
	ok bitmap-add disk.img b
	done_ backup-run --bitmap b --bitmap-mode on-success -F qcow2 disk.img 0.qcow2
	local i
	for i in 1 2; do
		noise 100000 "$i" > data
		ok image-write disk.img $((i * 300000)) < data
		done_ backup-run --sync incremental --bitmap b -F qcow2 --backing $((i - 1)).qcow2 disk.img $i.qcow2
	done
}

# verdict STATUS WORD ARG...: both forms agree.
verdict() {
	local want=$1 word=$2
	shift 2
	attempt chain-verify "$@"
	assert_equal "$status" "$want"
	attempt chain-verify --output=json "$@"
	assert_equal "$status" "$want"
	assert_equal "$(jq -r .return.verdict <<< "$output")" "$word"
	jq .return <<< "$output" > chain.json
}

# leak FILE: a cluster more at its end, counted and not used, as after a crash.
leak() {
	python3 - "$1" <<- 'PY'
		import os, struct, sys
		with open(sys.argv[1], "r+b") as f:
		    head = f.read(104)
		    bits, = struct.unpack_from(">I", head, 20)
		    table, = struct.unpack_from(">Q", head, 48)
		    f.seek(table)
		    block, = struct.unpack(">Q", f.read(8))
		    new = -(-os.fstat(f.fileno()).st_size >> bits)
		    f.truncate((new + 1) << bits)
		    f.seek(block + 2 * new)
		    f.write(struct.pack(">H", 1))
	PY
}

# set_l2 FILE VALUE: the first L2 entry in use.
set_l2() {
	python3 - "$@" <<- 'PY'
		import struct, sys
		with open(sys.argv[1], "r+b") as f:
		    head = f.read(104)
		    l1, = struct.unpack_from(">Q", head, 40)
		    f.seek(l1)
		    l2 = struct.unpack(">Q", f.read(8))[0] & 0x00fffffffffffe00
		    while True:
		        f.seek(l2)
		        if struct.unpack(">Q", f.read(8))[0]:
		            break
		        l2 += 8
		    f.seek(l2)
		    f.write(struct.pack(">Q", int(sys.argv[2], 0)))
	PY
}

@test "a whole chain" {
	chain
	unchanged verdict 0 whole 2.qcow2
	jq -e '.verified and (has("compared") | not) and (.images | length == 3) and all(.images[]; .findings == [])' chain.json
	done_ chain-verify 2.qcow2
	assert_equal "$output" "2.qcow2: qcow2, whole
1.qcow2: qcow2, whole
0.qcow2: qcow2, whole"
}

@test "a raw image alone" {
	raw disk.img 1000001
	verdict 0 whole -f raw disk.img
}

@test "every byte, the same" {
	chain 1000001
	verdict 0 whole --against disk.img -F raw 2.qcow2
	jq -e '.compared | .length == 1000448 and .differing == 0 and .differences == []' chain.json
	done_ chain-verify --against disk.img -F raw 2.qcow2
	[[ $output == *'compared with disk.img: the same'* ]]
}

@test "every byte, and one is another" {
	chain
	printf x | put disk.img 2000000
	verdict 3 damaged --against disk.img -F raw 2.qcow2
	jq -e '.compared | .differing == 4096 and .differences == [{"start": 1998848, "length": 4096}]' chain.json
	jq -e 'all(.images[]; .verdict == "whole")' chain.json
	attempt chain-verify --against disk.img -F raw 2.qcow2
	[[ $output == *'1 range, 4096 bytes (4 KiB), differ, in units of 4096'*1998848+4096* ]]
	[[ $stderr == *"The chain and 'disk.img' differ"* ]]
}

@test "many differences: all in JSON, the first for people" {
	qemu-img create -q -f qcow2 a.qcow2 4M
	truncate -s 4M b.raw
	local i
	for ((i = 0; i < 30; i++)); do printf x | put b.raw $((i * 16384)); done
	verdict 3 damaged --against b.raw -F raw a.qcow2
	jq -e '.compared.differences | length == 30 and .[29] == {"start": 475136, "length": 4096}' chain.json
	attempt chain-verify --against b.raw -F raw a.qcow2
	[[ $output == *'30 ranges, 122880 bytes'*'311296+4096'*'… and 10 more' ]]
}

@test "a longer disk is the same if its end is zeroes" {
	chain
	truncate -s +5000 disk.img
	verdict 0 whole --against disk.img -F raw 2.qcow2
	jq -e '.images[0].findings[0] | .kind == "doubt" and (.text | test("restores to a disk of 4194304 bytes, .* has 4199304"))' \
		chain.json
	printf x | put disk.img 4199000
	verdict 3 damaged --against disk.img -F raw 2.qcow2
	jq -e '.compared.differences[0].start == 4198400' chain.json
}

@test "nothing to be learnt, or not to be told" {
	chain
	refused_like 'chain itself' chain-verify --output=json --against 0.qcow2 2.qcow2
	refused_like 'reads from the image itself' chain-verify --output=json --against 2.qcow2 0.qcow2
	cp disk.img plain.img
	refused_like 'cannot be derived from its content' chain-verify --output=json --against plain.img 2.qcow2
	refused_like 'No such file' chain-verify --output=json --against missing -F raw 2.qcow2
	refused_like 'No such file' chain-verify --output=json missing
	usage chain-verify -F raw 2.qcow2
	usage chain-verify
}

@test "leaks are told, with status 3" {
	chain
	leak 0.qcow2
	run -3 qemu-img check 0.qcow2
	verdict 3 damaged 2.qcow2
	jq -e '.images[2] | .leaks == 1 and .corruptions == 0 and .findings[0].kind == "leak" and
		.findings[0].length == 65536' chain.json
	jq -e '.images[0].verdict == "whole"' chain.json
	qemu-img check -q -r leaks 0.qcow2
	# QEMU wrote to it, and the sample of the disk is as it was.
	verdict 1 unknown 0.qcow2
	verdict 1 unknown 2.qcow2
	verdict 0 whole --against disk.img -F raw 2.qcow2
}

@test "damage of an image below, and the bytes all the same" {
	chain
	set_l2 0.qcow2 0x8000000100000000
	verdict 3 damaged 2.qcow2
	jq -e '.images[2] | [.findings[].kind] | contains(["bounds"])' chain.json
	verdict 3 damaged --against disk.img -F raw 2.qcow2
	jq -e '[.images[].findings[].kind] | contains(["bounds"])' chain.json
}

@test "an overlap with counts that fit" {
	chain
	# The first cluster of the disk stands where the L1 table is; that is counted twice, and not flagged as used once.
	python3 - 0.qcow2 <<- 'PY'
		import struct, sys
		with open(sys.argv[1], "r+b") as f:
		    head = f.read(104)
		    bits, = struct.unpack_from(">I", head, 20)
		    l1, table = struct.unpack_from(">QQ", head, 40)
		    f.seek(l1)
		    l2 = struct.unpack(">Q", f.read(8))[0] & 0x00fffffffffffe00
		    f.seek(l2)
		    old = struct.unpack(">Q", f.read(8))[0] & 0x00fffffffffffe00
		    f.seek(l2)
		    f.write(struct.pack(">Q", l1))
		    f.seek(table)
		    block, = struct.unpack(">Q", f.read(8))
		    for cluster, count in ((l1 >> bits, 2), (old >> bits, 0)):
		        f.seek(block + 2 * cluster)
		        f.write(struct.pack(">H", count))
	PY
	run -0 qemu-img check 0.qcow2
	verdict 3 damaged 0.qcow2
	jq -e '.images[0].findings | length == 1 and .[0].kind == "overlap"' chain.json
}

@test "the header says corrupt, or not closed" {
	chain
	printf '\x02' | put 0.qcow2 79
	verdict 3 damaged 2.qcow2
	jq -e '.images[2].findings[0].kind == "header"' chain.json
	printf '\x01' | put 0.qcow2 79
	verdict 0 whole --against disk.img -F raw 2.qcow2
	jq -e '.images[2].findings[0].kind == "doubt"' chain.json
}

@test "links: missing, another format, no permission, in use" {
	chain
	mv 0.qcow2 away
	verdict 3 damaged 2.qcow2
	jq -e '.images[2].findings[0].kind == "link" and .images[1].verdict == "whole"' chain.json
	jq -e '.images[2].findings[1] | .kind == "part" and (.text | test("its base, backup [0-9a-f]{32} of .* UTC"))' chain.json
	verdict 3 damaged --against disk.img -F raw 2.qcow2
	jq -e '(has("compared") | not) and .images[0].findings[0].text == "not compared: the chain is broken"' chain.json
	cp disk.img 0.qcow2
	verdict 3 damaged 2.qcow2
	jq -e '.images[2].findings[0] | .kind == "link" and (.text | contains("not in qcow2 format"))' chain.json
	mv away 0.qcow2
	serve qcow2 0.qcow2
	verdict 1 unknown 2.qcow2
	jq -e '.images[2].findings[0].kind == "unknown"' chain.json
	# With -U it looks all the same; the server has opened it for writing.
	verdict 1 unknown -U 2.qcow2
	served_no_more
	chmod 0 0.qcow2
	attempt mortal chain-verify 2.qcow2
	assert_equal "$status" 1
	[[ $stderr == *'Not all of the chain could be checked'* ]]
}

@test "a header that cannot be read at all" {
	chain
	printf '\xff\xff' | put 2.qcow2 40
	attempt chain-verify --output=json 2.qcow2
	assert_equal "$status" 3
	jq -e '.error.desc | contains("L1 table")' <<< "$output"
	attempt chain-verify --output=json -f qcow2 disk.img
	assert_equal "$status" 1
}

@test "a copied chain is whole" {
	chain
	mkdir copy
	cp -p 2.qcow2 1.qcow2 0.qcow2 copy/
	verdict 0 whole copy/2.qcow2
	# Other times could be those of a commit; the checksums prove that they are not.
	cp 2.qcow2 1.qcow2 0.qcow2 copy/
	verdict 0 whole copy/2.qcow2
	verdict 0 whole --data copy/2.qcow2
	ok chain-restore --overwrite copy/2.qcow2 restored.img
	cmp restored.img disk.img
	verdict 0 whole --against disk.img -F raw copy/2.qcow2
}

@test "a hostile image costs neither time nor memory" {
	# 262144 L1 entries that lead to one L2 table, all of whose entries lead to one cluster.
	qemu-img create -q -f qcow2 -o cluster_size=2M evil.qcow2 1024G
	qemu-io -f qcow2 -c 'write -q 0 64K' evil.qcow2
	python3 - evil.qcow2 <<- 'PY'
		import struct, sys
		with open(sys.argv[1], "r+b") as f:
		    head = f.read(104)
		    l1, = struct.unpack_from(">Q", head, 40)
		    f.seek(l1)
		    entry = f.read(8)
		    f.seek(36)
		    f.write(struct.pack(">I", 1 << 18))
		    f.seek(l1)
		    f.write(entry * (1 << 18))
		    l2 = struct.unpack(">Q", entry)[0] & 0x00fffffffffffe00
		    f.seek(l2)
		    f.write(struct.pack(">Q", l2 + (1 << 21) | 1 << 63) * (1 << 18))
	PY
	(
		# A sanitizer takes terabytes of addresses for itself.
		ldd "$BUILD/bin/chain-verify" | grep -q 'lib[at]san' || ulimit -v 1000000
		timeout 20 chain-verify --output=json evil.qcow2 > out.json 2> err
	) || code=$?
	assert_equal "$code" 3
	jq -e '.return.images[0].corruptions > 0' out.json
	# A file of more clusters than are counted.
	qemu-img create -q -f qcow2 -o cluster_size=512 big.qcow2 1M
	truncate -s 200G big.qcow2
	verdict 1 unknown big.qcow2
	jq -e '.images[0].findings[0].text | contains("no more than 268435456 are checked")' chain.json
}

# ---- is the backing image what the overlay was made on? ----

other_content='a different content'

# another N: what is below image N of the chain of 2.qcow2 is not what it was made on.
another() {
	verdict 3 damaged 2.qcow2
	jq -e --argjson i "$1" --arg t "$other_content" '[.images[$i].findings[] | select(.kind == "link")] |
		length == 1 and (.[0].text | contains($t))' chain.json
}

@test "a full backup of another day in its place" {
	chain
	mv 0.qcow2 monday
	# What every mount of a file system changes.
	noise 100 9 | put disk.img 1100
	done_ backup-run -F qcow2 disk.img 0.qcow2
	another 1
	mv monday 0.qcow2
	verdict 0 whole 2.qcow2
}

@test "a backing image that was used since" {
	chain
	qemu-io -f qcow2 -c 'write -q -P 9 0 512' 1.qcow2
	another 0
	jq -e '(.images[1].findings | map(.kind) == ["link"]) and .images[2].findings == []' chain.json
	jq -e '[.images[0].findings[].kind] | contains(["doubt"])' chain.json
}

@test "a raw backing image that was used since, or grew" {
	raw base.raw 4M
	done_ image-create -f qcow2 -b base.raw -F raw 2.qcow2
	verdict 0 whole 2.qcow2
	cp base.raw kept
	printf x | put base.raw 66000
	another 0
	# The same bytes in the same file, as far as is looked at; then what was put aside, in its place.
	cp kept base.raw
	verdict 1 unknown 2.qcow2
	cp kept base.raw.new
	mv base.raw.new base.raw
	verdict 0 whole 2.qcow2
	truncate -s 5M base.raw
	another 0
}

@test "a backing image was written to, where nobody looks" {
	chain
	local at
	# Not among the bytes that the fingerprint is of: found out here, and then undone.
	for ((at = 3 << 20;; at += 65536)); do
		cp 1.qcow2 kept
		qemu-io -f qcow2 -c "write -q -P 9 $at 512" 1.qcow2
		attempt chain-verify 2.qcow2
		[ "$status" = 3 ] || break
		cp kept 1.qcow2
	done
	verdict 1 unknown 2.qcow2
	jq -e '.images[0].findings | map(.kind) == ["doubt", "unknown"]' chain.json
	jq -e '.images[0].findings[1].text | contains("was written to after this image was created on it")' chain.json
	verdict 3 damaged --against disk.img -F raw 2.qcow2
	# A copy elsewhere is another file; that it was written to is known all the same.
	mkdir copy
	cp [012].qcow2 copy
	verdict 1 unknown copy/2.qcow2
}

@test "what leaves the disk as it was is no damage" {
	chain
	# A QEMU that opens an image for reading.
	qemu-io -r -f qcow2 -c 'read -q 0 512' 0.qcow2
	touch -a 0.qcow2
	chmod 400 0.qcow2
	verdict 0 whole 2.qcow2
	chmod 600 0.qcow2
	# One that opens it for writing, and one that does more to it.
	qemu-io -f qcow2 -c 'read -q 0 512' 1.qcow2
	verdict 1 unknown 2.qcow2
	qemu-img bitmap --add 0.qcow2 b
	qemu-io -f qcow2 -c 'read -q 0 512' 0.qcow2
	qemu-img snapshot -c s 0.qcow2
	qemu-img bitmap --add 1.qcow2 b
	qemu-img snapshot -c s 1.qcow2
	verdict 1 unknown 2.qcow2
	verdict 0 whole --against disk.img -F raw 2.qcow2
	# Another file, and all in another place of it.
	qemu-img convert -O qcow2 -c 0.qcow2 packed
	mv packed 0.qcow2
	verdict 1 unknown 2.qcow2
	jq -e '[.images[].findings | map(.kind)] == [["doubt", "unknown"], ["doubt", "unknown"], []]' chain.json
	attempt chain-restore -F qcow2 1.qcow2 flat
	assert_equal "$status" 3
	mv flat 1.qcow2
	verdict 1 unknown 2.qcow2
	verdict 0 whole --against disk.img -F raw 2.qcow2
}

@test "a rebased image stands on another one, and may" {
	chain
	qemu-img rebase -b 0.qcow2 -F qcow2 2.qcow2
	verdict 1 unknown 2.qcow2
	jq -e '.images | length == 2' chain.json
	verdict 0 whole --against disk.img -F raw 2.qcow2
}

@test "QEMU keeps what is recorded" {
	chain
	local i
	for i in 1.qcow2 2.qcow2; do
		grep -q TIDF "$i"
		qemu-img bitmap --add "$i" b
		qemu-img amend -f qcow2 -o lazy_refcounts=on "$i"
		grep -q TIDF "$i"
	done
	run ! grep -q TIDF 0.qcow2
	noise 100 9 | put disk.img 1100
	rm 0.qcow2
	done_ backup-run -F qcow2 disk.img 0.qcow2
	another 1
}

@test "no room for it is no reason to refuse a chain" {
	raw disk.img 1M
	local long
	long=$(printf 'n%.0s' {1..200}).raw
	cp disk.img "$long"
	done_ image-create -f qcow2 -o cluster_size=512 -b "$long" -F raw 2.qcow2
	clean 2.qcow2
	run ! grep -q TIDF 2.qcow2
	verdict 0 whole 2.qcow2
	mv 2.qcow2 3.qcow2
	done_ image-create -f qcow2 -o cluster_size=512 -b disk.img -F raw 2.qcow2
	grep -q TIDF 2.qcow2
	clean 2.qcow2
	verdict 0 whole 2.qcow2
}

@test "tiny and odd disks have a fingerprint too" {
	local size
	for size in 512 1000 70001 1048576 1200001; do
		rm -f base.raw 2.qcow2
		noise "$size" > base.raw
		done_ image-create -f qcow2 -b base.raw -F raw 2.qcow2
		verdict 0 whole 2.qcow2
		flip base.raw $((size - 1))
		another 0
	done
}

# ---- the ends of files ----

# lost KIND [TOP]: chain-verify finds damage of this kind, and nothing is restored.
lost() {
	verdict 3 damaged -f qcow2 "${2-top.qcow2}"
	jq -e --arg k "$1" '[.images[].findings[].kind] | index($k) != null' chain.json
	rejected chain-restore --overwrite -f qcow2 "${2-top.qcow2}" restored.img
	[ ! -e restored.img ]
}

@test "an image that was cut, at any place" {
	local size n
	noise 300K > disk.img
	qemu-img create -q -f qcow2 -o cluster_size=4K top.qcow2 1M
	qemu-io -f qcow2 -c 'write -q -s disk.img 0 300K' top.qcow2
	qemu-img convert -O raw top.qcow2 whole.img
	size=$(stat -c %s top.qcow2)
	cp top.qcow2 kept.qcow2
	for n in 1 511 512 4000 4095 4096 4097 20000 70000; do
		cp kept.qcow2 top.qcow2
		truncate -s $((size - n)) top.qcow2
		lost bounds
		# A write would extend the file, and the cut would read as zeroes from then on.
		[ $((n % 4096)) -eq 0 ] || unchanged rejected image-write --pattern 1 top.qcow2 900K 4K
	done
	truncate -s 0 top.qcow2
	attempt chain-verify -f qcow2 top.qcow2
	assert_equal "$status" 3
	rejected chain-restore -f qcow2 top.qcow2 restored.img
}

@test "a compressed image that was cut" {
	local type n size
	python3 -c 'import random, sys; r = random.Random(1); sys.stdout.buffer.write(bytes(r.choices(b"abcdefgh", k=200000)))' > disk.img
	for type in zlib zstd; do
		rm -f top.qcow2
		qemu-img convert -c -O qcow2 -o compression_type=$type disk.img top.qcow2
		verdict 0 whole top.qcow2
		done_ chain-restore --overwrite top.qcow2 whole.img
		cmp -n 200000 disk.img whole.img
		size=$(stat -c %s top.qcow2)
		for ((n = 1; n < 1500; n += 83)); do
			cp top.qcow2 cut.qcow2
			truncate -s $((size - n)) cut.qcow2
			attempt chain-verify cut.qcow2
			case $status in
			0) # Only the rest of the last sector is gone.
				[ $n -lt 512 ]
				done_ chain-restore cut.qcow2 restored.img
				cmp whole.img restored.img
				rm restored.img
				;;
			*)
				lost bounds cut.qcow2
				# A write elsewhere must not turn the lost bytes into zeroes that can be decompressed.
				attempt image-write --pattern 1 cut.qcow2 0 64K
				rejected chain-restore cut.qcow2 restored.img
				;;
			esac
		done
	done
}

@test "a compressed image that was cut where zeroes would complete it" {
	# Deflate's stored block of 0xaa: only its length is checked, not its bytes.
	qemu-img create -q -f qcow2 -o cluster_size=4K top.qcow2 1M
	qemu-io -f qcow2 -c 'write -q -c -P 1 64K 4K' top.qcow2
	python3 - <<- 'PY'
		import struct
		image = bytearray(open("top.qcow2", "rb").read())
		l2 = struct.unpack_from(">Q", image, struct.unpack_from(">Q", image, 40)[0])[0] & 0x00fffffffffffe00
		entry = struct.unpack_from(">Q", image, l2 + 8 * 16)[0]
		shift = 62 - (12 - 8)
		at = entry & ((1 << shift) - 1)
		block = b"\1" + struct.pack("<HH", 4096, 4096 ^ 0xffff) + b"\xaa" * 4096
		del image[at:]
		image += block
		sectors = (at + len(block) - 1) // 512 - at // 512
		struct.pack_into(">Q", image, l2 + 8 * 16, 1 << 62 | sectors << shift | at)
		# The clusters that it touches are counted once each.
		reftable = struct.unpack_from(">Q", image, 48)[0]
		refblock = struct.unpack_from(">Q", image, reftable)[0]
		for cluster in range(at >> 12, ((at + len(block) - 1) >> 12) + 1):
		    struct.pack_into(">H", image, refblock + 2 * cluster, 1)
		open("top.qcow2", "wb").write(image)
	PY
	verdict 0 whole top.qcow2
	done_ chain-restore top.qcow2 whole.img
	[ "$(byte whole.img 69631)" = aa ]
	cp top.qcow2 kept.qcow2
	truncate -s -1 top.qcow2
	lost bounds
	unchanged refused_like 'compressed cluster at 65536 cannot be read' image-write --pattern 1 top.qcow2 0 4K
	ok image-write --pattern 1 kept.qcow2 0 4K
	verdict 0 whole kept.qcow2
}

@test "a data file that was cut or emptied" {
	local settings
	noise 1M > disk.img
	for settings in '' ,data_file_raw=on ,extended_l2=on; do
		rm -f top.qcow2 data.raw
		done_ backup-run -F qcow2 -o "data_file=data.raw$settings" disk.img top.qcow2
		verdict 0 whole top.qcow2
		for size in $((1048576 - 1)) 300K 0; do
			truncate -s $size data.raw
			attempt chain-verify top.qcow2
			assert_equal "$status" 3
			rejected chain-restore top.qcow2 restored.img
			rejected image-write --pattern 1 top.qcow2 0 64K
			assert_equal "$(stat -c %s data.raw)" "$(numfmt --from=iec $size)"
		done
	done
}

@test "a raw backup that was cut under an increment" {
	noise 1M > disk.img
	done_ bitmap-add disk.img b
	done_ backup-run -F raw --bitmap b --bitmap-mode on-success disk.img full.raw
	ok image-write --pattern 7 disk.img 0 64K
	done_ backup-run --sync incremental --bitmap b -F qcow2 --backing full.raw,format=raw disk.img top.qcow2
	verdict 0 whole top.qcow2
	truncate -s 700K full.raw
	lost link
}

@test "a raw backup that was cut under an increment whose target QEMU made" {
	local cluster
	for cluster in 4k 64k; do
		rm -f ./*.img* ./*.raw* ./*.qcow2
		noise 1M > disk.img
		done_ bitmap-add disk.img b
		done_ backup-run -F raw --bitmap b --bitmap-mode on-success disk.img full.raw
		ok image-write --pattern 7 disk.img 0 64K
		qemu-img create -q -f qcow2 -o cluster_size=$cluster -b full.raw -F raw top.qcow2
		done_ backup-run --sync incremental --bitmap b --mode existing -F qcow2 disk.img top.qcow2
		clean top.qcow2
		verdict 0 whole top.qcow2
		assert_equal "$(qemu-img info --output json top.qcow2 | jq -r '."backing-filename"')" full.raw
		truncate -s 700K full.raw
		lost link
	done

	# A rebased image has a fingerprint of another image, which is replaced.
	rm -f ./*.img* ./*.raw* ./*.qcow2
	noise 1M > disk.img
	cp disk.img full.raw
	cp disk.img other.raw
	done_ bitmap-add disk.img b
	done_ backup-run --sync incremental --bitmap b -F qcow2 --backing other.raw,format=raw disk.img top.qcow2
	qemu-img rebase -u -b full.raw -F raw top.qcow2
	ok image-write --pattern 7 disk.img 0 64K
	done_ backup-run --sync incremental --bitmap b --mode existing -F qcow2 disk.img top.qcow2
	clean top.qcow2
	verdict 0 whole top.qcow2
	truncate -s 700K full.raw
	lost link

	# A header without room stays as it is.
	noise 1M > full.raw
	qemu-img create -q -f qcow2 -o cluster_size=512 -b full.raw -F raw top.qcow2
	done_ backup-run --sync full --mode existing -F qcow2 disk.img top.qcow2
	clean top.qcow2
	done_ chain-restore top.qcow2 out.img
	cmp out.img disk.img
}

@test "a raw backing image that was cut after a restore into its overlay" {
	noise 1M > full.raw
	cp full.raw disk.img
	ok image-write -f raw --pattern 7 disk.img 0 64K
	qemu-img create -q -f qcow2 -b full.raw -F raw top.qcow2
	done_ chain-restore -f raw --in-place -F qcow2 disk.img top.qcow2
	clean top.qcow2
	verdict 0 whole top.qcow2
	truncate -s 700K full.raw
	lost link
}

@test "entries, flags and offsets that qemu-img check refuses" {
	entry() { python3 -c 'import sys; sys.stdout.buffer.write(int(sys.argv[1], 0).to_bytes(8, "big"))' "$1" | put top.qcow2 "$2"; }
	qemu-img create -q -f qcow2 -o data_file=data.raw top.qcow2 1M
	qemu-io -f qcow2 -c 'write -q -P 1 0 256k' top.qcow2
	clean top.qcow2
	entry 0x10000 $((0x40000 + 8))
	verdict 3 damaged top.qcow2
	jq -e '.images[0].findings | map(.kind) == ["copied"]' chain.json
	entry 0x8000000000020000 $((0x40000 + 8))
	verdict 3 damaged top.qcow2
	jq -e '.images[0].findings | map(.kind) == ["entry"]' chain.json
	rm top.qcow2 data.raw
	qemu-img create -q -f qcow2 -o cluster_size=512 top.qcow2 1M
	cp top.qcow2 kept.qcow2
	entry 1 64
	attempt chain-verify top.qcow2
	assert_equal "$status" 3
	[[ $stderr == *'Snapshot table offset invalid'* ]]
	cp kept.qcow2 top.qcow2
	entry 0x100001 24
	attempt chain-verify top.qcow2
	assert_equal "$status" 3
	[[ $stderr == *'L1 table is too small'* ]]
}

@test "a bitmap inside the image that was cut" {
	qemu-img create -q -f qcow2 top.qcow2 64M
	qemu-img bitmap --add -g 512 top.qcow2 b
	qemu-io -f qcow2 -c 'write -q -P 7 0 1M' top.qcow2
	# The bitmap's data comes last.
	truncate -s -100 top.qcow2
	attempt chain-verify top.qcow2
	assert_equal "$status" 3
	rejected bitmap-dump --output=json top.qcow2 b
}

@test "--against an image with bitmaps: the pinned format" {
	raw disk.img 1M
	ok bitmap-add -f raw disk.img b
	done_ backup-run -F qcow2 disk.img full.qcow2
	done_ chain-verify --against disk.img full.qcow2
	# A guest can make its raw disk look like another one.
	qemu-img create -q -f qcow2 fake 1M
	head -c 256K fake | bash -c 'cat > head; image-write disk.img 0 < head'
	done_ backup-run --overwrite -F qcow2 disk.img full.qcow2
	done_ chain-verify --against disk.img full.qcow2
	ok bitmap-add disk.img c
	ok bitmap-rescan --against full.qcow2 disk.img c
	bitmap disk.img c '.count == 0'
	refused_like "The format of 'disk.img' is pinned as 'raw', not 'qcow2'" \
		chain-verify --output=json --against disk.img -F qcow2 full.qcow2
	# The other way: the other image of a rescan is pinned.
	done_ backup-run disk.img copy.img
	ok bitmap-add -f raw copy.img x
	ok bitmap-rescan --against copy.img disk.img c
	bitmap disk.img c '.count == 0'
}

@test "QEMU does not write the padding at the end of a snapshot table" {
	qemu-img create -q -f qcow2 snap.qcow2 4M
	qemu-io -f qcow2 -c 'write -q 0 1M' snap.qcow2
	qemu-img snapshot -c s snap.qcow2
	assert_equal $(($(stat -c %s snap.qcow2) % 8)) 2
	verdict 0 whole snap.qcow2
	# A table that was cut is damage.
	truncate -s -4 snap.qcow2
	verdict 3 damaged snap.qcow2
}

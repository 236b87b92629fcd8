#!/usr/bin/env bats
# image-info: what an image is, compared with what qemu-img says.

load helper

# agrees FILE FORMAT [OPTION...]: what both say of the image, and of those below it, is the same.
agrees() {
	unchanged done_ image-info --output=json "${@:3}" "$1"
	jq -S '.return' <<< "$output" > ours.json
	qemu-img info -f "$2" --output=json "$1" > qemu.json
	jq -e -n --slurpfile a ours.json --slurpfile b qemu.json '
		def common: {format, "virtual-size", "cluster-size", "dirty-flag", "backing-filename", "backing-filename-format",
			corrupt: ."format-specific".data.corrupt, compat: ."format-specific".data.compat,
			refcount: ."format-specific".data."refcount-bits", compression: ."format-specific".data."compression-type",
			lazy: ."format-specific".data."lazy-refcounts", snapshots, extl2: ."format-specific".data."extended-l2"};
		($a[0] | common) == ($b[0] | common)' > agree.json ||
		fail "image-info: $(cat ours.json) qemu-img: $(cat qemu.json)"
}

@test "raw" {
	raw disk.img 1000448
	agrees disk.img raw
	jq -e '.filename == "disk.img" and ."actual-size" > 0' ours.json
}

@test "qcow2, of all kinds" {
	local o
	for o in compat=1.1 compat=0.10 cluster_size=512 cluster_size=2M compression_type=zstd refcount_bits=1 refcount_bits=64 \
		lazy_refcounts=on; do
		qcow2 "$o.qcow2" 3M -o "$o"
		agrees "$o.qcow2" qcow2
	done
}

@test "a chain" {
	qcow2 base.qcow2 3M
	mkdir sub
	qemu-img create -q -f qcow2 -b ../base.qcow2 -F qcow2 sub/mid.qcow2
	qemu-img create -q -f qcow2 -b sub/mid.qcow2 -F qcow2 top.qcow2
	agrees top.qcow2 qcow2 --allow-backing=outside
	qemu-img info -f qcow2 --output=json --backing-chain top.qcow2 > chain.json
	jq -e '."full-backing-filename" == "sub/mid.qcow2"' ours.json
	done_ image-info --allow-backing=outside top.qcow2
	[[ $output == *top.qcow2* && $output == *sub/mid.qcow2* && $output == *base.qcow2* && $output != *'"return"'* ]]
}

@test "bitmaps, in the sidecar and in the image" {
	qcow2 disk.qcow2 3M
	qemu-img bitmap --add -g 32K disk.qcow2 inside
	ok bitmap-add disk.qcow2 beside
	done_ image-info --output=json disk.qcow2
	[[ $output == *'"inside"'* && $output == *'"beside"'* ]]
	agrees disk.qcow2 qcow2
	jq -e '[.. | objects | select(.name? == "inside")][0].granularity == 32768' ours.json
	done_ image-info disk.qcow2
	[[ $output == *inside* && $output == *beside* ]]
}

@test "internal snapshots do not disturb" {
	qcow2 disk.qcow2 3M
	qemu-img snapshot -c s1 disk.qcow2
	qemu-io -f qcow2 -c 'write -q 0 64K' disk.qcow2
	agrees disk.qcow2 qcow2
}

@test "internal snapshots are a list, of the image and of those below it" {
	qcow2 base.qcow2 3M
	qemu-img snapshot -c 'a "name" of more than eight bytes, and one é' base.qcow2
	qemu-img snapshot -c '' base.qcow2
	agrees base.qcow2 qcow2
	jq -e '.snapshots | length == 2 and .[0].id == "1"' ours.json
	done_ image-info base.qcow2
	assert_line --regexp '^ID +TAG +VM SIZE +DATE +VM CLOCK +ICOUNT$'
	assert_line --regexp '^1 +a "name" of more than .* 0 B +20[0-9-]+ [0-9:]+ 00:00:00.000 +0$'
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
	agrees top.qcow2 qcow2
	jq -e '."backing-image".snapshots[1].id == "2"' ours.json
	run --separate-stderr txn-apply --drive d=base.qcow2 - <<< '{"execute": "query-block"}'
	jq -S '.return[0].inserted.image.snapshots' <<< "$output" > block.json
	qemu-img info --output=json base.qcow2 | jq -S .snapshots > qemu.json
	cmp block.json qemu.json
	# Version 2 of the format has shorter entries.
	qcow2 old.qcow2 3M -o compat=0.10
	qemu-img snapshot -c s1 old.qcow2
	agrees old.qcow2 qcow2
	# A table that is cut off.
	truncate -s $((0x$(od -An -tx1 -j 64 -N 8 base.qcow2 | tr -d ' \n') + 60)) base.qcow2
	unchanged rejected image-info --output=json -f qcow2 base.qcow2
}

@test "the format is the pinned one, or the given one" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	qemu-img create -q -f qcow2 other.qcow2 1M
	ok image-write disk.img 0 < other.qcow2
	done_ image-info --output=json disk.img
	assert_equal "$(jq -r .return.format <<< "$output")" raw
	done_ image-info --output=json -f raw other.qcow2
	assert_equal "$(jq -r .return.format <<< "$output")" raw
	refused_like '' image-info --output=json -f qcow2 /dev/null
	truncate -s 1M plain.img
	refused_like 'not in qcow2 format' image-info --output=json -f qcow2 plain.img
}

@test "looks at an image that QEMU writes only when told to" {
	qcow2 disk.qcow2 4M
	serve qcow2 disk.qcow2
	refused_like 'Failed to get (shared )?"write" lock' image-info --output=json disk.qcow2
	done_ image-info -U --output=json disk.qcow2
}

@test "usage" {
	usage image-info
	usage image-info a b
	usage image-info --output=xml disk.img
	refused_like 'nosuch\.img.*No such file or directory' image-info --output=json nosuch.img
}

@test "a disk that a guest encrypted with LUKS2 is a raw disk" {
	raw disk.img 1M
	printf 'LUKS\xba\xbe\0\2' | put disk.img 0
	agrees disk.img raw
	done_ image-info disk.img
	assert_line 'file format: raw'
	done_ backup-run -F raw disk.img copy.img
	cmp disk.img copy.img
}

@test "an image of another format is not taken for a raw one" {
	local f
	for f in qcow qed vmdk vdi vpc vhdx parallels luks; do
		if [ $f = luks ]; then
			# It measures the processor, which can fail on a busy machine.
			eventually qemu-img create -q -f luks --object secret,id=s,data=abc -o key-secret=s,iter-time=10 disk.luks 1M
		else
			qemu-img create -q -f $f disk.$f 4M
		fi
		unchanged refused_like "looks like one of format '$f'" image-info --output=json disk.$f
		unchanged refused_like "looks like one of format '$f'" bitmap-add disk.$f b
		unchanged refused_like "looks like one of format '$f'" backup-run -F raw disk.$f copy
	done
	qcow2 new.qcow2 4M
	unchanged refused_like "looks like one of format 'vdi'" chain-restore --in-place new.qcow2 disk.vdi
	# Apple's disk images end with their header.
	truncate -s 1M disk.dmg
	printf 'koly\0\0\0\4\0\0\2\0' | put disk.dmg $((1048576 - 512))
	unchanged refused_like "looks like one of format 'dmg'" image-info --output=json disk.dmg
	done_ image-info -f raw disk.dmg
	truncate -s 1049088 disk.dmg
	done_ image-info disk.dmg
	# Who knows better says so, once.
	ok bitmap-add -f raw disk.vdi b
	ok image-write --pattern 1 disk.vdi 0 1
	done_ backup-run -F raw disk.vdi copy
	cmp disk.vdi copy
}

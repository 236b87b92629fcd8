#!/usr/bin/env bats
# chain-restore: a chain of backups becomes one image again.

load helper

# A disk and a chain of three backups of it; disk.0, disk.1 and disk.2 are what it was at each.
chain() {
	raw disk.img "$1"
	ok bitmap-add disk.img b
	done_ backup-run -F qcow2 disk.img 0.qcow2
	cp disk.img disk.0
	local i
	for i in 1 2; do
		noise 100000 "$i" > data
		ok image-write disk.img $((i * 300000)) < data
		ok image-write --zero disk.img $((i * 5000)) 3000
		done_ backup-run --sync incremental --bitmap b -F qcow2 --backing $((i - 1)).qcow2 disk.img $i.qcow2
		cp disk.img disk.$i
	done
	clean 0.qcow2 1.qcow2 2.qcow2
}

# Replies and events are JSON, one of them says that it is done.
restored() {
	attempt "$@"
	assert_equal "$status" 0
	jq -s -e 'map(select(.return == {})) | length == 1' <<< "$output"
}

@test "each link of a chain, to raw" {
	chain 4M
	local i
	for i in 0 1 2; do
		restored chain-restore $i.qcow2 restored.$i
		cmp disk.$i restored.$i
	done
}

@test "disks of odd sizes" {
	chain 1000001
	restored chain-restore 2.qcow2 restored.img
	same raw disk.img raw restored.img
	cmp -n 1000001 disk.img restored.img
}

@test "to qcow2, one without backing image" {
	chain 4M
	restored chain-restore -F qcow2 2.qcow2 restored.qcow2
	clean restored.qcow2
	same raw disk.img qcow2 restored.qcow2
	run -0 qemu-img info --output=json restored.qcow2
	jq -e 'has("backing-filename") | not' <<< "$output"
}

@test "from another directory, to another one" {
	mkdir a a/b
	cd a
	chain 1M
	cd "$here"
	restored chain-restore a/2.qcow2 a/b/restored.img
	cmp a/disk.img a/b/restored.img
	cd a/b
	restored chain-restore ../1.qcow2 again.img
	cmp ../disk.1 again.img
}

@test "a chain that QEMU made, ending in a raw image" {
	raw base.img 3M
	qemu-img create -q -f qcow2 -o cluster_size=4K -b base.img -F raw 1.qcow2 4M
	qemu-io -f qcow2 -c 'write -q -P 1 1500K 100K' -c 'write -q -z 0 4K' -c 'write -q -P 2 3900K 3K' 1.qcow2
	qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=2M -b "$PWD/1.qcow2" -F qcow2 2.qcow2
	qemu-io -f qcow2 -c 'write -q -P 3 77 1' 2.qcow2
	restored chain-restore 2.qcow2 restored.img
	same qcow2 2.qcow2 raw restored.img
}

@test "an image of its own, raw and qcow2" {
	raw disk.img 1M
	restored chain-restore disk.img restored.img
	cmp disk.img restored.img
	qcow2 disk.qcow2 1M
	restored chain-restore disk.qcow2 restored2.img
	same qcow2 disk.qcow2 raw restored2.img
}

@test "holes stay holes" {
	truncate -s 64G disk.img
	noise 100000 | put disk.img $((40 << 30))
	done_ timeout 60 backup-run -F qcow2 disk.img full.qcow2
	restored timeout 60 chain-restore full.qcow2 restored.img
	[ "$(allocated restored.img)" -le 1024 ]
	assert_equal "$(stat -c %s restored.img)" $((64 << 30))
	cmp -i $((40 << 30)) -n 100000 disk.img restored.img
}

@test "a target that stands there is replaced only when told" {
	chain 1M
	echo precious > restored.img
	unchanged rejected chain-restore 2.qcow2 restored.img
	[[ $stderr == *restored.img* ]]
	restored chain-restore --overwrite 2.qcow2 restored.img
	cmp disk.img restored.img
}

@test "the chain's own images are no target" {
	chain 1M
	unchanged rejected chain-restore --overwrite 2.qcow2 2.qcow2
	unchanged rejected chain-restore --overwrite 2.qcow2 0.qcow2
}

@test "a link that is missing or damaged" {
	chain 1M
	mv 1.qcow2 aside
	unchanged refused_like '1\.qcow2.*No such file or directory' chain-restore 2.qcow2 restored.img
	cp aside 1.qcow2
	flip 1.qcow2 0
	unchanged refused_like '1\.qcow2' chain-restore 2.qcow2 restored.img
	cp aside 1.qcow2
	mv 0.qcow2 aside
	qemu-img convert -c -O qcow2 disk.0 0.qcow2
	break_cluster 0.qcow2 983040
	attempt chain-restore 2.qcow2 restored.img
	assert_equal "$status" 1
	[ -n "$stderr" ]
	[ ! -e restored.img ]
	mv aside 0.qcow2
	restored chain-restore 2.qcow2 restored.img
	cmp disk.img restored.img
}

@test "no space, no directory" {
	noise 3M > disk.img
	done_ backup-run -F qcow2 disk.img full.qcow2
	unchanged refused_like 'nosuchdir/restored.img.*No such file or directory' chain-restore full.qcow2 nosuchdir/restored.img
	tiny_fs tiny 1m
	attempt chain-restore full.qcow2 tiny/restored.img
	assert_equal "$status" 1
	[[ $stderr == *'No space left on device'* ]]
	assert_equal "$(ls tiny)" ''
}

@test "--dry-run restores nothing" {
	chain 1M
	unchanged ok chain-restore --dry-run 2.qcow2 restored.img
	[ ! -e restored.img ]
}

@test "usage" {
	usage chain-restore
	usage chain-restore top.qcow2
	usage chain-restore top.qcow2 target.img more
	refused_like 'nosuch.qcow2.*No such file or directory' chain-restore nosuch.qcow2 restored.img
	[ ! -e restored.img ]
}

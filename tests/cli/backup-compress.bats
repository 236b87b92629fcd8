#!/usr/bin/env bats
# backup-run --compress, and "compress" of the requests of txn-apply: what QEMU makes of such targets, their size, and
# that the same source gives the same file.

load helper

# soft SIZE [SEED]: bytes that compress, some more than others, some not at all, with stretches of zeroes; the same each time.
soft() {
	python3 -c 'import random, sys
rng = random.Random(int(sys.argv[2]))
size, out = int(sys.argv[1]), bytearray()
words = [rng.randbytes(rng.randrange(3, 12)) for _ in range(400)]
while len(out) < size:
    n = rng.randrange(1, 40000)
    kind = rng.randrange(8)
    if kind == 0:
        out += rng.randbytes(n)
    elif kind == 1:
        out += bytes(3 * n)
    elif kind == 2:
        out += rng.randbytes(1) * n
    else:
        out += b"".join(rng.choices(words, k=n // 7))
sys.stdout.buffer.write(out[:size])' "$(numfmt --from=iec "$1")" "${2:-1}"
}

# plain_and_packed FILE: how many clusters of each kind are in it.
plain_and_packed() {
	qemu-img check -f qcow2 --output=json "$1" > check.json 2> check.err || fail "$1: $(cat check.err)"
	jq -r '(."compressed-clusters" // 0) as $packed | "\((."allocated-clusters" // 0) - $packed) \($packed)"' check.json
}

# no_larger FILE THAN: by more than 2 % and four clusters.
no_larger() {
	local a b cluster
	a=$(stat -c %s "$1") b=$(stat -c %s "$2")
	cluster=$(qemu-img info --output=json "$1" | jq '."cluster-size"')
	((a <= b + b / 50 + 4 * cluster)) || fail "$1 has $a bytes, $2 $b"
}

# ---- what QEMU makes of it ----

@test "both types, all cluster sizes: restored, checked, and no larger than QEMU's" {
	soft 5M > disk.img
	truncate -s 5243392 disk.img # the last cluster is not whole
	noise 300 | put disk.img 5242880
	local type size unit
	for type in zlib zstd; do
		for size in 512 1K 4K 64K 512K 2M; do
			unit=$(numfmt --from=iec $size)
			((unit > 65536)) || unit=65536
			backed_up $(((5243392 + unit - 1) / unit * unit)) backup-run --overwrite --compress -o compression_type=$type \
				-o cluster_size=$size -F qcow2 disk.img full.qcow2
			clean full.qcow2
			same raw disk.img qcow2 full.qcow2
			run -0 qemu-img convert -O raw full.qcow2 converted.img
			cmp disk.img converted.img
			ok chain-restore --overwrite full.qcow2 restored.img
			cmp disk.img restored.img
			run -0 qemu-img info --output=json full.qcow2
			jq -e --arg t $type --arg s "$(numfmt --from=iec $size)" '."format-specific".data."compression-type" == $t and
				(."cluster-size" | tostring) == $s' <<< "$output"
			qemu-img convert -c -f raw -O qcow2 -o compression_type=$type,cluster_size=$size disk.img qemu.qcow2
			no_larger full.qcow2 qemu.qcow2
			[[ $(plain_and_packed full.qcow2) =~ ' '[1-9] ]] || fail "nothing compressed: $size"
		done
	done
}

@test "QEMU's NBD server and qemu-io read it too" {
	soft 3M > disk.img
	backed_up 3145728 backup-run --compress -F qcow2 disk.img full.qcow2
	qemu-nbd --fork --pid-file=nbd.pid -r -t -f qcow2 -k "$PWD/nbd.sock" full.qcow2 3>&-
	run -0 qemu-img compare -f raw disk.img -F raw "nbd+unix:///?socket=$PWD/nbd.sock"
	served_no_more
	# QEMU writes into it, also over what is compressed, and finds all in order.
	run -0 qemu-io -f qcow2 -c 'write -q -P 5 70000 300000' -c 'write -q -z 1M 200K' full.qcow2
	qemu-io -f raw -c 'write -q -P 5 70000 300000' -c 'write -q -z 1M 200K' disk.img
	clean full.qcow2
	same raw disk.img qcow2 full.qcow2
}

@test "what does not compress is plain, zeroes are zeroes" {
	truncate -s 8M disk.img
	noise 1M | put disk.img 0
	head -c 1M /dev/zero | tr '\0' 'x' | put disk.img 2M
	head -c 1M /dev/zero | put disk.img 4M # zero bytes that are data to the file system
	backed_up 8388608 backup-run --compress -F qcow2 disk.img full.qcow2
	clean full.qcow2
	same raw disk.img qcow2 full.qcow2
	assert_equal "$(plain_and_packed full.qcow2)" '16 16'
	# An overlay says so, its backing image being what it is.
	noise 8M 5 > base.img
	backed_up 8388608 backup-run --compress -F qcow2 --backing base.img,format=raw disk.img over.qcow2
	clean over.qcow2
	same raw disk.img qcow2 over.qcow2
	assert_equal "$(plain_and_packed over.qcow2)" '16 16'
}

@test "disks of any size" {
	local size
	for size in 0 1 511 512 65536 65537 1000001; do
		truncate -s $size disk.img
		[ $size -eq 0 ] || yes 'not so random' | head -c $size | put disk.img 0
		backed_up $(((size + 65535) / 65536 * 65536)) backup-run --overwrite --compress -F qcow2 disk.img full.qcow2
		clean full.qcow2
		same raw disk.img qcow2 full.qcow2
		ok chain-restore --overwrite full.qcow2 back.img
		cmp disk.img back.img
	done
}

@test "refcounts of any width, version 2, extended L2 entries" {
	soft 2M > disk.img
	local o
	for o in compat=0.10 refcount_bits=1 refcount_bits=2 refcount_bits=4 refcount_bits=8 refcount_bits=64 \
		extended_l2=on,cluster_size=16K; do
		backed_up 2097152 backup-run --overwrite --compress -F qcow2 -o cluster_size=4K,$o disk.img full.qcow2
		clean full.qcow2
		same raw disk.img qcow2 full.qcow2
	done
}

# ---- chains and targets that exist ----

@test "an incremental backup chained on a compressed one" {
	soft 4M > disk.img
	ok bitmap-add disk.img b
	backed_up 4194304 backup-run --compress -F qcow2 -o compression_type=zstd disk.img full.qcow2
	soft 300K 7 > new
	ok image-write disk.img 1M < new
	ok image-write --zero disk.img 2M 192K
	backed_up 524288 backup-run --compress --sync incremental --bitmap b -F qcow2 --backing full.qcow2 disk.img inc.qcow2
	clean full.qcow2 inc.qcow2
	same raw disk.img qcow2 inc.qcow2
	bitmap disk.img b '.count == 0'
	ok chain-restore inc.qcow2 back.img
	cmp disk.img back.img
}

@test "an existing target: over nothing, plain data, compressed data, and beside a snapshot" {
	soft 2M > disk.img
	qemu-img create -q -f qcow2 -o cluster_size=4K,compression_type=zstd t.qcow2 2M
	backed_up 2097152 backup-run --compress --mode existing disk.img t.qcow2
	clean t.qcow2
	same raw disk.img qcow2 t.qcow2
	soft 2M 3 > disk.img
	backed_up 2097152 backup-run --compress --mode existing disk.img t.qcow2
	clean t.qcow2
	same raw disk.img qcow2 t.qcow2
	qemu-img snapshot -c before t.qcow2
	cp disk.img before.img
	noise 2M | put disk.img 0
	backed_up 2097152 backup-run --mode existing disk.img t.qcow2
	same raw disk.img qcow2 t.qcow2
	soft 2M 4 > disk.img
	backed_up 2097152 backup-run --compress --mode existing disk.img t.qcow2
	clean t.qcow2
	same raw disk.img qcow2 t.qcow2
	run -0 qemu-img convert -l snapshot.name=before -O raw t.qcow2 snapshot.img
	cmp before.img snapshot.img
}

@test "an existing overlay" {
	soft 2M > disk.img
	backed_up 2097152 backup-run -F qcow2 disk.img full.qcow2
	ok bitmap-add disk.img b
	soft 500000 9 > new
	ok image-write disk.img 700000 < new
	ok image-create -f qcow2 -b full.qcow2 -F qcow2 inc.qcow2
	attempt backup-run --compress --sync incremental --bitmap b --mode existing disk.img inc.qcow2
	assert_equal "$status" 0
	clean inc.qcow2
	same raw disk.img qcow2 inc.qcow2
	[[ $(plain_and_packed inc.qcow2) =~ ' '[1-9] ]]
}

# ---- the same file ----

# with_workers N TARGET JSON: backup by request, with so many workers.
with_workers() {
	done_ txn-apply --drive d=disk.img,format=raw - <<- JSON
		{"execute": "drive-backup", "arguments": {"device": "d", "sync": "full", "format": "qcow2", "target": "$2",
		 "compress": true, "x-perf": {"max-workers": $1}, "x-settings": "$3"}}
	JSON
}

@test "the same source gives the same file, whatever the number of workers" {
	soft 12M > disk.img
	local o n
	for o in compression_type=zlib compression_type=zstd cluster_size=4K,compression_type=zstd cluster_size=2M; do
		with_workers 1 a.qcow2 $o
		clean a.qcow2
		same raw disk.img qcow2 a.qcow2
		for n in 2 3 4 16; do
			with_workers $n b.qcow2 $o
			same_but_birth a.qcow2 b.qcow2
		done
		for n in 1 2 3; do
			backed_up 12582912 backup-run --overwrite --compress -o $o -F qcow2 disk.img b.qcow2
			same_but_birth a.qcow2 b.qcow2
		done
	done
}

@test "the same file, whatever the size of the pieces" {
	soft 12M > disk.img
	noise 3M >> disk.img
	cp disk.img one
	for _ in 1 2 3 4 5; do cat one; done >> disk.img
	local n
	for n in 1 4 16; do # of 4, 4 and 1 MiB
		with_workers $n $n.qcow2 compression_type=zstd
		same_but_birth 1.qcow2 $n.qcow2
	done
	clean 1.qcow2
	same raw disk.img qcow2 1.qcow2
}

@test "the same file also over a target that exists" {
	soft 6M > disk.img
	ok image-create -f qcow2 -o cluster_size=8K t.qcow2 6M
	noise 2M | ok image-write t.qcow2 1M
	cp t.qcow2 a.qcow2
	backed_up 6291456 backup-run --compress --mode existing disk.img a.qcow2
	local n
	for n in 1 2 3; do
		cp t.qcow2 b.qcow2
		backed_up 6291456 backup-run --compress --mode existing disk.img b.qcow2
		same_but_birth a.qcow2 b.qcow2
	done
}

# ---- requests ----

@test "drive-backup, blockdev-backup, and a group" {
	soft 3M > disk.img
	soft 1M 2 > two.img
	qemu-img create -q -f qcow2 t.qcow2 3M
	done_ txn-apply --drive d=disk.img,format=raw --drive e=two.img,format=raw --drive t=t.qcow2,format=qcow2 - <<- 'JSON'
		{"execute": "transaction", "arguments": {"properties": {"completion-mode": "grouped"}, "actions": [
		 {"type": "drive-backup", "data": {"device": "e", "sync": "full", "format": "qcow2", "target": "e.qcow2",
		  "compress": true, "x-settings": "compression_type=zstd"}},
		 {"type": "blockdev-backup", "data": {"device": "d", "sync": "full", "target": "t", "compress": true}}]}}
	JSON
	clean e.qcow2 t.qcow2
	same raw two.img qcow2 e.qcow2
	same raw disk.img qcow2 t.qcow2
	[[ $(plain_and_packed e.qcow2) =~ ' '[1-9] ]]
	[[ $(plain_and_packed t.qcow2) =~ ' '[1-9] ]]
}

@test "settings without compression" {
	soft 1M > disk.img
	backed_up 1048576 backup-run -F qcow2 -o cluster_size=4K,compat=0.10 disk.img full.qcow2
	run -0 qemu-img info --output=json full.qcow2
	jq -e '."cluster-size" == 4096 and ."format-specific".data.compat == "0.10"' <<< "$output"
	same raw disk.img qcow2 full.qcow2
}

@test "a chain restored to a compressed image" {
	soft 2M > disk.img
	backed_up 2097152 backup-run -F qcow2 disk.img full.qcow2
	ok chain-restore -c -F qcow2 -o compression_type=zstd,cluster_size=16K full.qcow2 small.qcow2
	clean small.qcow2
	same raw disk.img qcow2 small.qcow2
	[[ $(plain_and_packed small.qcow2) =~ ' '[1-9] ]]
	unchanged refused 'Compression is not supported for this drive ' chain-restore -c full.qcow2 x.img
	unchanged refused_like 'new target' chain-restore -c --in-place -F qcow2 full.qcow2 small.qcow2
}

# ---- refused ----

@test "what is refused" {
	raw disk.img 1M
	unchanged refused 'Compression is not supported for this drive ' backup-run --compress -F raw disk.img x.img
	truncate -s 1M t.img
	unchanged refused 'Compression is not supported for this drive ' \
		backup-run --compress --mode existing -F raw disk.img t.img
	unchanged rejected backup-run --compress -F qcow2 -o compression_type=lzma disk.img x.qcow2
	unchanged rejected backup-run --compress -F qcow2 -o cluster_size=100 disk.img x.qcow2
	unchanged rejected backup-run --compress -F qcow2 -o compression disk.img x.qcow2
	unchanged rejected backup-run -F raw -o cluster_size=4K disk.img x.img
	qemu-img create -q -f qcow2 -o data_file=t.data t.qcow2 1M
	unchanged refused 'Compression is not supported for this drive ' backup-run --compress --mode existing -F qcow2 disk.img t.qcow2
	rm t.qcow2 t.data
	qemu-img create -q -f qcow2 t.qcow2 1M
	unchanged refused_like 'new target' backup-run --mode existing -o cluster_size=4K disk.img t.qcow2
	unchanged rejected txn-apply --drive d=disk.img,format=raw - <<< \
		'{"execute": "blockdev-backup", "arguments": {"device": "d", "sync": "full", "target": "d", "x-settings": "a=b"}}'
}

# ---- ends before the end ----

@test "interrupted: no target" {
	soft 8M > disk.img
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 0 8M
	ended 2 "$when_busy" backup-run --compress --speed 1M --sync bitmap --bitmap b --bitmap-mode on-success -F qcow2 disk.img x.qcow2
	assert_equal "$ended" 'signal 2'
	assert_equal "$(event_names)" BLOCK_JOB_CANCELLED
	[ ! -e x.qcow2 ]
	bitmap disk.img b '.count == 8388608 and .busy == false'
}

@test "a full file system: the job fails, there is no target, the bitmap keeps all" {
	tiny_fs small 1M
	soft 8M > disk.img
	ok bitmap-add disk.img b
	ok image-write --pattern 1 disk.img 0 1
	ok bitmap-mark disk.img b 0 8M
	backup_failed write 'No space left on device' 8388608 backup-run --compress --sync incremental --bitmap b -F qcow2 \
		disk.img small/x.qcow2
	[ ! -e small/x.qcow2 ]
	bitmap disk.img b '.count == 8388608 and .busy == false'
	backed_up 8388608 backup-run --compress --sync incremental --bitmap b -F qcow2 disk.img x.qcow2
	same raw disk.img qcow2 x.qcow2
}

@test "a full file system: a stopped job goes on when there is room" {
	tiny_fs small 1M
	soft 8M > disk.img
	start backup-run --compress --on-target-error stop -F qcow2 disk.img small/x.qcow2
	eventually grep '"action": "stop"' bg.out
	mount -o remount,size=16m small
	kill -CONT "$bg"
	finish
	assert_equal "$status" 0
	event BLOCK_JOB_COMPLETED '{"device": "disk", "len": 8388608, "offset": 8388608, "speed": 0, "type": "backup"}'
	clean small/x.qcow2
	same raw disk.img qcow2 small/x.qcow2
}

@test "a source that cannot be read: what stands before it is stored, the bitmap keeps the rest" {
	soft 6M > plain.img
	qemu-img convert -c -f raw -O qcow2 plain.img disk.qcow2
	break_cluster disk.qcow2 4194304
	ok bitmap-add disk.qcow2 b
	ok bitmap-mark disk.qcow2 b 0 6M
	backup_failed read 'Input/output error' 6291456 backup-run --compress --sync bitmap --bitmap b --bitmap-mode always \
		-F qcow2 disk.qcow2 part.qcow2
	clean part.qcow2
	# All before the piece that failed is there.
	run -0 qemu-img convert -O raw part.qcow2 part.img
	cmp -n 4194304 plain.img part.img
	bitmap disk.qcow2 b '.count <= 2097152 and .count > 0'
}

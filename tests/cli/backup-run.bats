#!/usr/bin/env bats
# backup-run: drive-backup from a shell.  Failures of a running job: backup-fail.bats.

load helper

# The writes of QEMU's test 124: 64 MiB, seven units of 64 KiB.
write_124() {
	ok image-write --pattern 0xab "$1" 0 512
	ok image-write --pattern 0xfe "$1" 16M 256K
	ok image-write --pattern 0x64 "$1" 32736K 64K
}

base_124() {
	qemu-img create -q -f qcow2 disk.qcow2 64M
	qemu-io -f qcow2 -c 'write -q -P 0x41 0 512' -c 'write -q -P 0xd5 1M 32K' -c 'write -q -P 0xdc 32M 124K' disk.qcow2
}

# ---- full ----

@test "full: raw to raw, the default" {
	raw disk.img 1000448
	unchanged_source=$(sha256sum disk.img)
	backed_up 1048576 backup-run disk.img copy.img
	cmp disk.img copy.img
	assert_equal "$(sha256sum disk.img)" "$unchanged_source"
	# There are checksums too, unless the kernel copied the data.
	assert_equal "$(ls -I copy.img.bitmaps.sums)" $'copy.img\ncopy.img.bitmaps\ndisk.img'
}

@test "full: raw to qcow2" {
	raw disk.img 4M
	backed_up 4194304 backup-run -F qcow2 disk.img full.qcow2
	clean full.qcow2
	same raw disk.img qcow2 full.qcow2
	run -0 qemu-img info --output=json full.qcow2
	jq -e 'has("backing-filename") | not' <<< "$output"
}

@test "full: disks of any size" {
	local size
	for size in 0 1 511 512 65536 65537 1000001; do
		truncate -s $size disk.img
		[ $size -eq 0 ] || noise $size | put disk.img 0
		backed_up $(((size + 65535) / 65536 * 65536)) backup-run --overwrite -F qcow2 disk.img full.qcow2
		clean full.qcow2
		same raw disk.img qcow2 full.qcow2
		backed_up $(((size + 65535) / 65536 * 65536)) backup-run --overwrite -F raw disk.img full.img
		same raw disk.img raw full.img
		cmp -n $size disk.img full.img
	done
}

@test "full: qcow2 sources of all kinds" {
	local o
	for o in compat=0.10 compat=1.1 cluster_size=512 cluster_size=4K cluster_size=2M refcount_bits=1 refcount_bits=64; do
		qcow2 disk.qcow2 5M -o "$o"
		backed_up 5242880 backup-run --overwrite disk.qcow2 full.qcow2
		clean full.qcow2
		same qcow2 disk.qcow2 qcow2 full.qcow2
		backed_up 5242880 backup-run --overwrite -F raw disk.qcow2 full.img
		same qcow2 disk.qcow2 raw full.img
	done
}

@test "full: compressed sources" {
	raw disk.img 5M
	local o
	for o in compat=0.10 cluster_size=512 cluster_size=64K cluster_size=2M \
		cluster_size=4K,compression_type=zstd compression_type=zstd cluster_size=2M,compression_type=zstd; do
		head -c 3M /dev/zero | tr '\0' 'x' | put disk.img 1M
		qemu-img convert -c -O qcow2 -o "$o" disk.img disk.qcow2
		backed_up 5242880 backup-run --overwrite disk.qcow2 full.qcow2
		clean full.qcow2
		same raw disk.img qcow2 full.qcow2
	done
}

@test "full: a chain of source images becomes one" {
	raw base.img 3M
	qemu-img create -q -f qcow2 -b base.img -F raw mid.qcow2
	qemu-io -f qcow2 -c 'write -q -z 1536K 64K' -c 'write -q -P 9 100K 300K' mid.qcow2
	mkdir sub
	qemu-img create -q -f qcow2 -o cluster_size=4K -b "$PWD/mid.qcow2" -F qcow2 sub/disk.qcow2 5M
	qemu-io -f qcow2 -c 'write -q -P 8 200K 1' -c 'write -q -P 7 4M 5K' sub/disk.qcow2
	backed_up 5242880 backup-run --allow-backing=outside sub/disk.qcow2 full.qcow2
	clean full.qcow2
	run -0 qemu-img info --output=json full.qcow2
	jq -e 'has("backing-filename") | not' <<< "$output"
	same qcow2 sub/disk.qcow2 qcow2 full.qcow2
}

@test "zeroes and holes stay holes" {
	truncate -s 64G disk.img
	noise 1M | put disk.img $((10 << 30))
	noise 1M | put disk.img $(((64 << 30) - (1 << 20)))
	ok bitmap-add disk.img b
	backed_up $((64 << 30)) timeout 60 backup-run -F qcow2 disk.img full.qcow2
	clean full.qcow2
	same raw disk.img qcow2 full.qcow2
	[ "$(allocated full.qcow2)" -le 20480 ]
	backed_up $((64 << 30)) timeout 60 backup-run -F raw disk.img full.img
	[ "$(allocated full.img)" -le 4096 ]
	assert_equal "$(stat -c %s full.img)" $((64 << 30))
	# Zeroes that are stored as data are not copied either.
	head -c 4M /dev/zero > zeroes.img
	backup-run -F qcow2 zeroes.img zeroes.qcow2 > out.json
	moved_unseen || [ "$(allocated zeroes.qcow2)" -le 512 ]
}

@test "full: an image of nothing but a hole, or of zero clusters" {
	truncate -s 3M disk.img
	qemu-img create -q -f qcow2 zero.qcow2 3M
	qemu-io -f qcow2 -c 'write -q -z 0 3M' zero.qcow2
	local format
	for format in raw qcow2; do
		backed_up 3145728 backup-run -F $format disk.img x.$format
		same raw disk.img $format x.$format
		device=zero backed_up 3145728 backup-run -F $format zero.qcow2 y.$format
		same raw disk.img $format y.$format
	done
	clean x.qcow2 y.qcow2
}

@test "an existing target is refused without --overwrite, whatever it is" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	ok image-write --pattern 1 disk.img 0 64K
	backed_up 1048576 backup-run -F qcow2 disk.img full.qcow2
	noise 3M > other
	: > empty
	ok image-create -q -f qcow2 made.qcow2 1M
	ln -s full.qcow2 soft
	local t how
	for t in full.qcow2 other empty made.qcow2 soft; do
		for how in '' '--mode absolute-paths' '--dry-run' '--sync incremental --bitmap b --backing full.qcow2' \
			'--sync auto --bitmap b --backing full.qcow2' '--sync auto --bitmap new'; do
			# shellcheck disable=SC2086 # options are words
			unchanged refused_like "Could not create '.*': File exists" backup-run $how -F qcow2 disk.img $t
			[[ $stderr == *'the existing file is unchanged'*'--overwrite'*'--mode existing'* ]]
		done
	done
	bitmap disk.img b '.count == 65536 and (.busy | not)'
	# The second of two commands that are the same loses nothing.
	backed_up 65536 backup-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2 disk.img inc.qcow2
	unchanged refused_like 'File exists' backup-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2 disk.img inc.qcow2
	ok chain-restore inc.qcow2 restored.img
	cmp disk.img restored.img
}

@test "--overwrite replaces an existing target" {
	raw disk.img 1M
	noise 3M > full.qcow2
	: > empty.qcow2
	local t
	unchanged ok backup-run --dry-run --overwrite -F qcow2 disk.img full.qcow2
	for t in full.qcow2 empty.qcow2 new.qcow2; do
		backed_up 1048576 backup-run --overwrite -F qcow2 disk.img $t
		clean $t
		same raw disk.img qcow2 $t
	done
	unchanged usage backup-run --overwrite --mode existing -F qcow2 disk.img full.qcow2
	[[ $stderr == *'use only one of them'* ]]
	# Never what has no content to replace.
	mkdir dir
	mkfifo fifo
	for t in dir fifo; do
		unchanged refused_like 'exists and is not a regular file' timeout 10 backup-run disk.img $t
		unchanged refused_like 'exists and is not a regular file' timeout 10 backup-run --overwrite disk.img $t
	done
}

@test "full: leaves bitmaps alone" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 0 1
	local before
	before=$(bitmap-list --output=json disk.img)
	backed_up 1048576 backup-run -F qcow2 disk.img full.qcow2
	assert_equal "$(bitmap-list --output=json disk.img)" "$before"
}

# ---- incremental ----

@test "incremental: simple chain, 64 KiB" {
	base_124
	ok bitmap-add disk.qcow2 b
	backed_up 67108864 backup-run disk.qcow2 full.qcow2
	backed_up 0 backup-run --sync incremental --bitmap b --backing full.qcow2 disk.qcow2 inc0.qcow2
	write_124 disk.qcow2
	bitmap disk.qcow2 b '.count == 458752'
	backed_up 458752 backup-run --sync incremental --bitmap b --backing inc0.qcow2 disk.qcow2 inc1.qcow2
	bitmap disk.qcow2 b '.count == 0 and .recording and (.busy | not)'
	same qcow2 disk.qcow2 qcow2 inc1.qcow2
	ok image-write --pattern 0x9a disk.qcow2 0 512
	ok image-write --pattern 0x55 disk.qcow2 8M 352K
	ok image-write --pattern 0x78 disk.qcow2 15872K 1M
	backed_up 1507328 backup-run --sync incremental --bitmap b --backing inc1.qcow2 disk.qcow2 inc2.qcow2
	clean full.qcow2 inc0.qcow2 inc1.qcow2 inc2.qcow2
	same qcow2 disk.qcow2 qcow2 inc2.qcow2
	differ qcow2 disk.qcow2 qcow2 inc1.qcow2
	assert_equal "$(qemu-img info --output=json inc2.qcow2 | jq -c '[."backing-filename", ."backing-filename-format"]')" \
		'["inc1.qcow2","qcow2"]'
}

@test "incremental: other granularities copy the same units" {
	base_124
	backed_up 67108864 backup-run disk.qcow2 full.qcow2
	ok bitmap-add -g 32K disk.qcow2 b32
	ok bitmap-add -g 128K disk.qcow2 b128
	ok bitmap-add -g 512 disk.qcow2 b512
	write_124 disk.qcow2
	bitmap disk.qcow2 b32 '.count == 360448'
	bitmap disk.qcow2 b128 '.count == 655360'
	bitmap disk.qcow2 b512 '.count == 328192'
	backed_up 458752 backup-run --sync incremental --bitmap b32 --backing full.qcow2 disk.qcow2 i32.qcow2
	backed_up 655360 backup-run --sync incremental --bitmap b128 --backing full.qcow2 disk.qcow2 i128.qcow2
	backed_up 458752 backup-run --sync incremental --bitmap b512 --backing full.qcow2 disk.qcow2 i512.qcow2
	local n
	for n in 32 128 512; do
		clean i$n.qcow2
		same qcow2 disk.qcow2 qcow2 i$n.qcow2
		bitmap disk.qcow2 b$n '.count == 0'
	done
	# The one just used comes first.
	assert_equal "$(names disk.qcow2)" 'b512 b128 b32'
	backed_up 0 backup-run --sync incremental --bitmap b32 disk.qcow2 x.qcow2
	assert_equal "$(names disk.qcow2)" 'b32 b512 b128'
}

@test "incremental: into overlays that qemu-img made, of any cluster size" {
	base_124
	backed_up 67108864 backup-run disk.qcow2 full.qcow2
	local cluster len
	for cluster in 512 4K 64K 128K 2M; do ok bitmap-add disk.qcow2 b$cluster; done
	write_124 disk.qcow2
	while read -r cluster len; do
		qemu-img create -q -f qcow2 -o cluster_size="$cluster" -b full.qcow2 -F qcow2 "inc$cluster.qcow2"
		backed_up "$len" backup-run --sync incremental --bitmap "b$cluster" --mode existing -F qcow2 disk.qcow2 "inc$cluster.qcow2"
		clean "inc$cluster.qcow2"
		same qcow2 disk.qcow2 qcow2 "inc$cluster.qcow2"
		bitmap disk.qcow2 "b$cluster" '.count == 0'
	done <<- END
		512 458752
		4K 458752
		64K 458752
		128K 655360
		2M 8388608
	END
}

@test "incremental: a target with larger clusters holds whole units of it" {
	base_124
	ok bitmap-add disk.qcow2 b
	backed_up 67108864 backup-run disk.qcow2 full.qcow2
	write_124 disk.qcow2
	qemu-img create -q -f qcow2 -o cluster_size=128K inc.qcow2 64M
	backed_up 655360 backup-run --sync incremental --bitmap b --mode existing -F qcow2 disk.qcow2 inc.qcow2
	clean inc.qcow2
	run -0 qemu-img map -f qcow2 --output=json inc.qcow2
	moved_unseen || assert_equal "$(jq -c '[.[] | select(.data or .present == true) | [.start, .length]]' <<< "$output")" \
		'[[0,131072],[16777216,262144],[33423360,262144]]'
	assert_equal "$(jq '[.[] | select(.data or .present == true) | .length] | add' <<< "$output")" 655360
	qemu-img rebase -u -b full.qcow2 -F qcow2 inc.qcow2
	same qcow2 disk.qcow2 qcow2 inc.qcow2
}

@test "incremental: the short unit at the end of a raw disk" {
	raw disk.img 1000001
	ok bitmap-add disk.img b
	backed_up 1048576 backup-run -F qcow2 disk.img full.qcow2
	noise 5 > data
	ok image-write disk.img 999996 < data
	backed_up 65536 backup-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2 disk.img inc.qcow2
	clean inc.qcow2
	same raw disk.img qcow2 inc.qcow2
}

@test "incremental: what became zero is zero in the target, though its backing image says otherwise" {
	noise 4M > disk.img
	ok bitmap-add disk.img b
	backed_up 4194304 backup-run -F qcow2 disk.img full.qcow2
	ok image-write --zero disk.img 1M 1M
	ok image-write --discard disk.img 3M 192K
	head -c 64K /dev/zero > zeroes
	ok image-write disk.img 64K < zeroes
	backed_up 1310720 backup-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2 disk.img inc.qcow2
	clean inc.qcow2
	same raw disk.img qcow2 inc.qcow2
}

@test "incremental: a disabled bitmap works too, and stays disabled" {
	raw disk.img 1M
	backed_up 1048576 backup-run -F qcow2 disk.img full.qcow2
	ok bitmap-add disk.img b
	ok image-write --pattern 4 disk.img 128K 1
	ok bitmap-disable disk.img b
	backed_up 65536 backup-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2 disk.img inc.qcow2
	bitmap disk.img b '.count == 0 and (.recording | not)'
	same raw disk.img qcow2 inc.qcow2
}

@test "incremental: to raw, only what is dirty" {
	noise 1M > disk.img
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 128K 64K
	backed_up 65536 backup-run --sync incremental --bitmap b disk.img inc.img
	assert_equal "$(stat -c %s inc.img)" 1048576
	cmp -i 131072 -n 65536 disk.img inc.img
	[ "$(allocated inc.img)" -le 64 ]
	# Into a raw copy: the copy is up to date afterwards.
	cp disk.img copy.img
	ok image-write --pattern 3 disk.img 512K 5K
	backed_up 65536 backup-run --sync incremental --bitmap b --mode existing -F raw disk.img copy.img
	cmp disk.img copy.img
}

@test "incremental: other bitmaps of the node are left alone" {
	raw disk.img 1M
	for n in a b c; do ok bitmap-add disk.img $n; done
	ok image-write --pattern 1 disk.img 0 1
	backed_up 65536 backup-run --sync incremental --bitmap b -F qcow2 disk.img inc.qcow2
	bitmap disk.img a '.count == 65536'
	bitmap disk.img b '.count == 0'
	bitmap disk.img c '.count == 65536'
}

# ---- top ----

@test "top: what the topmost image holds" {
	qcow2 base.qcow2 4M
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2
	qemu-io -f qcow2 -c 'write -q -P 1 0 1' -c 'write -q -P 2 1M 128K' -c 'write -q -z 2M 64K' disk.qcow2
	backed_up 262144 backup-run --sync top disk.qcow2 top.qcow2
	clean top.qcow2
	same qcow2 disk.qcow2 qcow2 top.qcow2
	assert_equal "$(qemu-img info --output=json top.qcow2 | jq -r '."full-backing-filename"' | xargs realpath)" "$PWD/base.qcow2"
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 existing.qcow2
	backed_up 262144 backup-run --sync top --mode existing -F qcow2 disk.qcow2 existing.qcow2
	clean existing.qcow2
	same qcow2 disk.qcow2 qcow2 existing.qcow2
}

@test "top: an image without backing image is copied in full" {
	raw disk.img 1000448
	backed_up 1048576 backup-run --sync top -F qcow2 disk.img top.qcow2
	same raw disk.img qcow2 top.qcow2
	qcow2 plain.qcow2 4M
	device=plain backed_up 4194304 backup-run --sync top plain.qcow2 top2.qcow2
	same qcow2 plain.qcow2 qcow2 top2.qcow2
}

@test "top: the target is in another directory than the source's backing image" {
	qcow2 base.qcow2 4M
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2
	qemu-io -f qcow2 -c 'write -q -P 1 0 1' disk.qcow2
	mkdir sub
	attempt backup-run --sync top disk.qcow2 sub/top.qcow2
	if [ "$status" -eq 0 ]; then
		same qcow2 disk.qcow2 qcow2 sub/top.qcow2
	else
		[ ! -e sub/top.qcow2 ]
	fi
}

# ---- options ----

@test "arguments that do not fit together, with QEMU's texts" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	local sync options text
	while IFS='|' read -r sync options text; do
		# shellcheck disable=SC2086 # options are words
		unchanged refused "$text" backup-run --sync $sync $options -F qcow2 disk.img x.qcow2
		[ ! -e x.qcow2 ]
	done <<- END
		incremental||must provide a valid bitmap name for 'incremental' sync mode
		incremental|--bitmap-mode on-success|must provide a valid bitmap name for 'incremental' sync mode
		incremental|--bitmap-mode never|must provide a valid bitmap name for 'incremental' sync mode
		incremental|--bitmap unknown|Bitmap 'unknown' could not be found
		incremental|--bitmap unknown --bitmap-mode on-success|Bitmap 'unknown' could not be found
		incremental|--bitmap unknown --bitmap-mode never|Bitmap sync mode must be 'on-success' when using sync mode 'incremental'
		incremental|--bitmap b --bitmap-mode never|Bitmap sync mode must be 'on-success' when using sync mode 'incremental'
		incremental|--bitmap b --bitmap-mode always|Bitmap sync mode must be 'on-success' when using sync mode 'incremental'
		full|--bitmap unknown|Bitmap 'unknown' could not be found
		full|--bitmap unknown --bitmap-mode never|Bitmap 'unknown' could not be found
		full|--bitmap b|Bitmap sync mode must be given when providing a bitmap
		full|--bitmap b --bitmap-mode never|Bitmap sync mode 'never' has no meaningful effect when combined with sync mode 'full'
		full|--bitmap-mode on-success|Cannot specify bitmap sync mode without a bitmap
		full|--bitmap-mode always|Cannot specify bitmap sync mode without a bitmap
		full|--bitmap-mode never|Cannot specify bitmap sync mode without a bitmap
		top|--bitmap unknown|Bitmap 'unknown' could not be found
		top|--bitmap b|Bitmap sync mode must be given when providing a bitmap
		top|--bitmap b --bitmap-mode never|Bitmap sync mode 'never' has no meaningful effect when combined with sync mode 'full'
		top|--bitmap-mode always|Cannot specify bitmap sync mode without a bitmap
		bitmap||must provide a valid bitmap name for 'bitmap' sync mode
		bitmap|--bitmap-mode always|must provide a valid bitmap name for 'bitmap' sync mode
		bitmap|--bitmap unknown|Bitmap 'unknown' could not be found
		bitmap|--bitmap unknown --bitmap-mode never|Bitmap 'unknown' could not be found
		bitmap|--bitmap b|Bitmap sync mode must be given when providing a bitmap
		none|--bitmap unknown|Bitmap 'unknown' could not be found
		none|--bitmap b|Bitmap sync mode must be given when providing a bitmap
		none|--bitmap b --bitmap-mode always|sync mode 'none' does not produce meaningful bitmap outputs
		none|--bitmap-mode never|Cannot specify bitmap sync mode without a bitmap
	END
	backed_up 0 backup-run --sync incremental --bitmap b --bitmap-mode on-success -F qcow2 disk.img x.qcow2
}

@test "bitmap modes: what is left of the bitmap after success" {
	raw disk.img 1M
	local sync mode left len granularity
	while read -r sync mode len left; do
		for granularity in 4K 64K 128K; do
			ok bitmap-add -g $granularity disk.img b
			ok bitmap-mark disk.img b 128K 128K
			backed_up "$len" backup-run --overwrite --sync "$sync" --bitmap b --bitmap-mode "$mode" -F qcow2 disk.img x.qcow2
			clean x.qcow2
			bitmap disk.img b ".count == $left and (.busy | not) and .recording"
			ok bitmap-remove disk.img b
		done
	done <<- END
		bitmap on-success 131072 0
		bitmap always 131072 0
		bitmap never 131072 131072
		incremental on-success 131072 0
		full on-success 1048576 0
		full always 1048576 0
		top on-success 1048576 0
		top always 1048576 0
	END
}

@test "sync=none needs a running guest" {
	raw disk.img 1M
	unchanged rejected backup-run --sync none -F qcow2 disk.img x.qcow2
	[ ! -e x.qcow2 ]
}

@test "words that are wrong" {
	raw disk.img 1M
	local o
	for o in '--sync bogus' '--mode bogus' '--bitmap-mode bogus' '-F bogus' '--speed -1' '--speed 4x' '--on-source-error bogus' \
		'--on-target-error bogus' '--nonsense' '--job-id 1bad' '--job-id=' "--job-id=a/b" '-f bogus'; do
		# shellcheck disable=SC2086 # options are words
		unchanged rejected backup-run $o disk.img x.img
		[ ! -e x.img ]
	done
	refused "Invalid job ID '1bad'" backup-run --job-id 1bad disk.img x.img
	refused "Invalid job ID ''" backup-run --job-id '' disk.img x.img
	usage backup-run
	usage backup-run disk.img
	usage backup-run disk.img x.img y.img
}

@test "--device and --job-id name the job in events" {
	raw disk.img 1M
	device=drive0 backed_up 1048576 backup-run -d drive0 disk.img x.img
	device=j-1.x_2 backed_up 1048576 backup-run --overwrite -d drive0 --job-id j-1.x_2 disk.img x.img
	cp disk.img my.disk.v2.img
	device=my backed_up 1048576 backup-run --overwrite my.disk.v2.img x.img
	mkdir sub.dir
	cp disk.img sub.dir/name
	device=name backed_up 1048576 backup-run --overwrite sub.dir/name x.img
}

@test "--job-events" {
	raw disk.img 1M
	done_ backup-run --job-events disk.img x.img
	assert_equal "$(jq -r -s '[.[] | if .event == "JOB_STATUS_CHANGE" then .data.status
		elif .event then .event else "reply" end] - ["reply", "paused"] | join(" ")' <<< "$output" |
		sed 's/running running/running/')" 'created running waiting pending BLOCK_JOB_COMPLETED concluded null'
	jq -s -e '[.[] | select(.event == "JOB_STATUS_CHANGE")] | all(.data | keys == ["id", "status"] and .id == "disk")' \
		<<< "$output"
	assert_equal "$(plain_replies)" 1
}

@test "--speed is told in the event" {
	raw disk.img 1M
	done_ backup-run --speed 1G disk.img x.img
	event BLOCK_JOB_COMPLETED '{"device": "disk", "len": 1048576, "offset": 1048576, "speed": 1073741824, "type": "backup"}'
}

@test "--speed limits" {
	noise 4M > disk.img
	local start=$EPOCHREALTIME
	done_ backup-run --speed 2M disk.img x.img
	cmp disk.img x.img
	# Two seconds' worth; QEMU grants some of it at once, and so may we.
	[ $((${EPOCHREALTIME/./} - ${start/./})) -ge 800000 ]
}

@test "--progress, and quiet otherwise" {
	raw disk.img 1M
	done_ backup-run disk.img x.img
	assert_equal "$stderr" ''
	done_ backup-run --overwrite --progress disk.img x.img
	[[ $stderr == *100*%* ]]
	done_ backup-run --overwrite -q disk.img x.img
	assert_equal "$stderr" ''
	event BLOCK_JOB_COMPLETED '{"device": "disk", "len": 1048576, "offset": 1048576, "speed": 0, "type": "backup"}'
}

@test "--dry-run makes nothing, and refuses what would be refused" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 0 1
	unchanged ok backup-run --dry-run --sync incremental --bitmap b -F qcow2 disk.img x.qcow2
	[ ! -e x.qcow2 ]
	unchanged refused "Bitmap 'nope' could not be found" \
		backup-run --dry-run --sync incremental --bitmap nope -F qcow2 disk.img x.qcow2
	bitmap disk.img b '.busy == false and .count == 65536'
}

# ---- targets that are refused ----

@test "a target that cannot be" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	unchanged refused_like "Could not create '.*nosuchdir/x.qcow2': No such file or directory" \
		backup-run --sync incremental --bitmap b -F qcow2 disk.img nosuchdir/x.qcow2
	mkdir ro
	chmod 555 ro
	unchanged refused_like "Could not create '.*ro/x.qcow2': Permission denied" \
		mortal backup-run --sync incremental --bitmap b -F qcow2 disk.img ro/x.qcow2
	unchanged rejected backup-run -F qcow2 disk.img ''
	unchanged rejected backup-run -F qcow2 disk.img ro
	unchanged rejected backup-run -F qcow2 disk.img disk.img/x
	unchanged refused_like "Could not open '.*x.qcow2': No such file or directory" \
		backup-run --mode existing -F qcow2 disk.img x.qcow2
	bitmap disk.img b '.busy == false'
	# Once the cause is gone the same command works.
	mkdir nosuchdir
	backed_up 0 backup-run --sync incremental --bitmap b -F qcow2 disk.img nosuchdir/x.qcow2
}

@test "a target of another size" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	local size
	for size in 512K 2M; do
		qemu-img create -q -f qcow2 $size.qcow2 $size
		truncate -s $size $size.img
		unchanged refused 'Source and target image have different sizes' \
			backup-run --sync incremental --bitmap b --mode existing -F qcow2 disk.img $size.qcow2
		unchanged refused 'Source and target image have different sizes' \
			backup-run --mode existing -F raw disk.img $size.img
	done
	bitmap disk.img b '.busy == false'
}

@test "the source as target" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	ln disk.img hard.img
	ln -s disk.img soft.img
	local t
	for t in disk.img ./disk.img hard.img soft.img; do
		unchanged refused_like 'File exists' backup-run disk.img $t
		unchanged refused 'Failed to get "write" lock' backup-run --overwrite disk.img $t
		unchanged refused 'Failed to get "write" lock' backup-run --mode existing -F raw disk.img $t
	done
}

@test "a target that the source, the target or its backing images need" {
	qcow2 base.qcow2 1M
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2
	ok bitmap-add disk.qcow2 b
	backed_up 1048576 backup-run disk.qcow2 full.qcow2
	local o
	for o in -q --overwrite; do
		unchanged rejected backup-run $o disk.qcow2 base.qcow2
		unchanged rejected backup-run $o disk.qcow2 disk.qcow2.bitmaps
		unchanged rejected backup-run $o --sync incremental --bitmap b --backing full.qcow2 disk.qcow2 full.qcow2
	done
}

@test "a wrong format for an existing target" {
	raw disk.img 1M
	raw other.img 1M
	unchanged refused_like 'not in qcow2 format' backup-run --mode existing -F qcow2 disk.img other.img
}

# ---- backing images ----

@test "--backing is as qemu-img's -b, or the file that is meant from here" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	mkdir sub
	backed_up 1048576 backup-run -F qcow2 disk.img sub/full.qcow2
	# Relative to the target's directory.
	ok image-write --pattern 1 disk.img 0 64K
	backed_up 65536 backup-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2 disk.img sub/inc0.qcow2
	same raw disk.img qcow2 sub/inc0.qcow2
	assert_equal "$(qemu-img info --output=json sub/inc0.qcow2 | jq -r '."backing-filename"')" full.qcow2
	# Relative to here.
	ok image-write --pattern 2 disk.img 64K 64K
	backed_up 65536 backup-run --sync incremental --bitmap b -F qcow2 --backing sub/inc0.qcow2 disk.img sub/inc1.qcow2
	same raw disk.img qcow2 sub/inc1.qcow2
	# Absolute.
	ok image-write --pattern 3 disk.img 128K 64K
	backed_up 65536 backup-run --sync incremental --bitmap b -F qcow2 --backing "$PWD/sub/inc1.qcow2" disk.img inc2.qcow2
	same raw disk.img qcow2 inc2.qcow2
	assert_equal "$(qemu-img info --output=json inc2.qcow2 | jq -r '."backing-filename"')" "$PWD/sub/inc1.qcow2"
	clean sub/inc0.qcow2 sub/inc1.qcow2 inc2.qcow2
	# A chain that is moved as a whole stays one.
	mv sub elsewhere
	mv elsewhere sub
	# Both are there, and are not the same.
	cp sub/full.qcow2 full.qcow2
	ok image-write --pattern 4 disk.img 0 1
	unchanged refused_like 'full\.qcow2' backup-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2 disk.img sub/x.qcow2
	[ ! -e sub/x.qcow2 ]
	bitmap disk.img b '.count == 65536'
}

@test "--backing: a raw one needs its format said" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	backed_up 1048576 backup-run disk.img full.img
	ok image-write --pattern 1 disk.img 0 64K
	# Its sidecar says it.
	backed_up 65536 backup-run --sync bitmap --bitmap-mode never --bitmap b -F qcow2 --backing full.img disk.img y.qcow2
	rm full.img.bitmaps
	unchanged rejected backup-run --sync incremental --bitmap b -F qcow2 --backing full.img disk.img x.qcow2
	backed_up 65536 backup-run --sync incremental --bitmap b -F qcow2 --backing full.img,format=raw disk.img inc.qcow2
	clean inc.qcow2
	same raw disk.img qcow2 inc.qcow2
	assert_equal "$(qemu-img info --output=json inc.qcow2 | jq -r '."backing-filename-format"')" raw
}

@test "--backing: what cannot be one" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	unchanged refused_like "nosuch.qcow2.*No such file or directory" \
		backup-run --sync incremental --bitmap b -F qcow2 --backing nosuch.qcow2 disk.img x.qcow2
	noise 100K > junk
	unchanged rejected backup-run --sync incremental --bitmap b -F qcow2 --backing junk,format=qcow2 disk.img x.qcow2
	qcow2 full.qcow2 1M
	unchanged rejected backup-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2,format=bogus disk.img x.qcow2
	unchanged rejected backup-run --sync incremental --bitmap b -F raw --backing full.qcow2 disk.img x.img
	[ ! -e x.qcow2 ] && [ ! -e x.img ]
}

# ---- bitmaps that cannot be used ----

@test "an inconsistent bitmap" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	touch disk.img
	unchanged refused "Bitmap 'b' is inconsistent and cannot be used" \
		backup-run --sync incremental --bitmap b -F qcow2 disk.img x.qcow2
	backed_up 1048576 backup-run -F qcow2 disk.img full.qcow2
	unchanged rejected backup-run --sync incremental --bitmap '' -F qcow2 disk.img x.qcow2
}

# ---- block devices ----

@test "block devices, source and target, with the sidecar said" {
	raw source.img 4M
	truncate -s 4M target.img
	local from to
	loop source.img
	from=$loop
	loop target.img
	to=$loop
	ok bitmap-add --sidecar s "$from" b
	ok image-write --sidecar s --pattern 7 "$from" 1M 64K
	done_ backup-run -d disk --sidecar s -F qcow2 "$from" full.qcow2
	clean full.qcow2
	same raw "$from" qcow2 full.qcow2
	done_ backup-run -d disk --sidecar s --sync incremental --bitmap b --mode existing -F raw "$from" "$to"
	event BLOCK_JOB_COMPLETED '{"device": "disk", "len": 65536, "offset": 65536, "speed": 0, "type": "backup"}'
	list_with --sidecar s
	bitmap "$from" b '.count == 0 and (has("inconsistent") | not)'
	cmp -i 1048576 -n 65536 "$from" "$to"
	assert_equal "$(byte "$to" 1048576)$(byte "$to" 0)" 0700
}

@test "a block device without a lasting name can be looked at and copied whole; bitmaps need --sidecar" {
	local from to
	noise 4M 3 > source.img
	truncate -s 4M target.img
	loop source.img
	from=$loop
	loop target.img
	to=$loop
	[ -z "$(find /dev/disk/by-id -lname "*/${from##*/}" 2> /dev/null)" ] || skip "$from has a lasting name"
	run -0 image-info --output=json "$from"
	assert_equal "$(jq -c '.return | [.format, ."virtual-size", .bitmaps]' <<< "$output")" '["raw",4194304,[]]'
	run -0 bitmap-list --output=json "$from"
	assert_equal "$output" '{"return": []}'
	done_ backup-run -F qcow2 "$from" full.qcow2
	clean full.qcow2
	same raw "$from" qcow2 full.qcow2
	done_ backup-run --mode existing -F raw "$from" "$to"
	cmp "$from" "$to"
	ok image-write -q --sidecar s --pattern 7 "$from" 1M 64K
	refused_like "Could not create '.*': File exists" backup-run "$from" "$to"
	[[ $stderr == *'the device is unchanged'*'--overwrite'*'--mode existing'* ]]
	done_ backup-run --overwrite "$from" "$to"
	cmp "$from" "$to"
	refused_like 'must be raw' backup-run --overwrite -F qcow2 "$from" "$to"
	refused_like 'with settings, not a device' backup-run --overwrite -o size=1 "$from" "$to"
	ok bitmap-add --sidecar s "$from" b
	refused_like 'only a full backup can replace its content' \
		backup-run --sidecar s --overwrite --sync incremental --bitmap b "$from" "$to"
	[[ $stderr == *'--mode existing'* ]]
	cmp "$from" "$to"
	local each
	for each in "bitmap-add $from b" "bitmap-remove $from b" "image-write --pattern 1 $from 0 1" \
		"backup-run --sync incremental --bitmap b $from x.raw"; do
		unchanged refused_like "has no name that stays the same" $each
		[[ $stderr == *'--sidecar PATH'* ]]
	done
}

@test "--detect-zeroes, and TIDE_COPY: ways that are there, and one that is not" {
	local way
	raw disk.img 3M
	head -c 512K /dev/zero | put disk.img 1M
	for way in reflink kernel rw direct uring; do
		TIDE_COPY=$way backed_up 3145728 backup-run -F qcow2 disk.img "$way.qcow2"
		same raw disk.img qcow2 "$way.qcow2"
		clean "$way.qcow2"
	done
	TIDE_COPY=kernel backed_up 3145728 backup-run --detect-zeroes -F qcow2 disk.img small.qcow2
	same raw disk.img qcow2 small.qcow2
	[ "$(allocated small.qcow2)" -lt $(($(allocated kernel.qcow2) - 200)) ]
	TIDE_COPY=fast refused "TIDE_COPY is 'fast': there is no such way to copy" backup-run -F qcow2 disk.img out.qcow2
	[ ! -e out.qcow2 ]
}

@test "onto a block device with bitmaps that record: refused, also as a drive with a sidecar of its own" {
	raw source.img 1M
	truncate -s 1M dev.img
	loop dev.img
	name_loop
	ok named bitmap-add "$loop" t
	local text="Bitmap 't' of '$loop' would not record this write" blockdev
	blockdev='{"execute": "blockdev-backup", "arguments": {"device": "s", "target": "t", "sync": "full"}}'
	refused "$text" named backup-run --mode existing -F raw source.img "$loop"
	[[ $stderr == *bitmap-disable*bitmap-rescan* ]]
	printf %s "$blockdev" > request
	attempt named txn-apply --drive s=source.img,format=raw --drive "t=$loop,format=raw" request
	assert_equal "$status" 1
	assert_equal "$(jq -r .error.desc <<< "$output")" "$text"
	cmp -n 1048576 /dev/zero "$loop"
	ok named bitmap-disable "$loop" t
	done_ named backup-run --mode existing -F raw source.img "$loop"
	cmp source.img "$loop"
	ok bitmap-add --sidecar s "$loop" t
	attempt txn-apply --drive s=source.img,format=raw --drive "t=$loop,format=raw,sidecar=s" request
	assert_equal "$status" 1
	assert_equal "$(jq -r .error.desc <<< "$output")" "$text"
}

@test "onto a file with bitmaps: they are inconsistent, whatever its time says" {
	raw source.img 1M
	truncate -s 1M target.img
	ok bitmap-add -f raw target.img t
	touch -r target.img time
	done_ backup-run --mode existing -F raw source.img target.img
	[[ $stderr == *'its bitmaps do not record a backup and are inconsistent now'* ]]
	cmp source.img target.img
	touch -r time target.img
	bitmap target.img t '.inconsistent and .count == 0'
}

@test "onto a file with bitmaps: its format is the pinned one, whatever it looks like" {
	raw source.img 1M
	qemu-img create -q -f qcow2 target.img 1M
	truncate -s 1M target.img
	ok bitmap-add -f raw target.img t
	unchanged refused "The format of 'target.img' is pinned as 'raw', not 'qcow2'" \
		backup-run --mode existing -F qcow2 source.img target.img
	[[ $stderr == *"pinned in '$PWD/target.img.bitmaps'"* ]]
	device=source backed_up 1048576 backup-run --mode existing source.img target.img
	cmp source.img target.img
	# The other way round: a qcow2 whose header somebody has overwritten is no raw disk.
	qemu-img create -q -f qcow2 target.qcow2 1M
	ok bitmap-add target.qcow2 t
	truncate -s 0 target.qcow2
	truncate -s 1M target.qcow2
	unchanged refused_like 'not in qcow2 format' backup-run --mode existing source.img target.qcow2
}

@test "--backing: a file whose name has a colon is named with its directory" {
	raw disk.img 1M
	backed_up 1048576 backup-run -F qcow2 disk.img ./a:b
	unchanged refused_like "it needs the driver 'a', which this version does not support" \
		backup-run -F qcow2 --backing a:b,format=qcow2 disk.img inc.qcow2
	[[ $stderr == *"to name a file, write './a:b'"* ]]
	backed_up 1048576 backup-run -F qcow2 --backing ./a:b,format=qcow2 disk.img inc.qcow2
	done_ chain-info inc.qcow2
	qemu-img create -q -f qcow2 -u -b a:b -F qcow2 names.qcow2 1M
	unchanged refused_like 'is not a plain path' image-write --pattern 1 names.qcow2 0 512
	[[ $stderr == *"to name a file, write './a:b'"*--allow-backing=protocol* ]]
}

@test "two commands make one target: the later one fails, and what stands there stays" {
	truncate -s 4M disk.img
	ok bitmap-add disk.img b
	ok image-write --pattern 1 disk.img 0 1M
	backup-run --sync incremental --bitmap b --speed 512K -F qcow2 disk.img new.qcow2 > slow.out 2> slow.err &
	local slow=$!
	bg_pids+=("$slow")
	until bitmap-list -U --output=json disk.img 2> /dev/null | grep -q '"busy": true'; do sleep 0.05; done
	kill -STOP "$slow"
	truncate -s 1M other.img
	done_ backup-run -F qcow2 other.img new.qcow2
	kill -CONT "$slow"
	local rc=0
	wait "$slow" || rc=$?
	assert_equal $rc 1
	grep -q '"BLOCK_JOB_COMPLETED".*"error": "File exists"' slow.out
	grep -q 'another program created it meanwhile' slow.err
	done_ qemu-img compare -f raw -F qcow2 other.img new.qcow2
	done_ bitmap-list --output=json disk.img
	assert_equal "$(jq -c '.return[0] | [.count, .busy]' <<< "$output")" '[1048576,false]'
}

# fused FILE: an empty file of 24 MiB that is on a FUSE file system while the test runs.
fused() {
	[ -c /dev/fuse ] || skip 'no FUSE'
	truncate -s 24M "inner.$1"
	: > "$1"
	qemu-storage-daemon --blockdev "driver=file,node-name=f,filename=inner.$1" --daemonize --pidfile "$PWD/$1.pid" \
		--export "type=fuse,id=e,node-name=f,mountpoint=$PWD/$1,writable=on" 3>&- 2> fuse.err || skip "$(cat fuse.err)"
	[ "$(stat -f -c %T "$1")" = fuseblk ] || [ "$(stat -f -c %t "$1")" = 65735546 ] || skip 'not FUSE'
}

# direct FLAGS CMD...: $times is how often CMD opens a file again around the page cache.
direct() {
	ASAN_OPTIONS="detect_leaks=0:$ASAN_OPTIONS" attempt strace -f -qq -o trace -e trace=openat "${@:2}"
	times=$(grep -c "/proc/self/fd/.*$1|.*O_DIRECT" trace) || true
}

@test "no direct transfers on FUSE, unless they are asked for" {
	command -v qemu-storage-daemon > /dev/null || skip 'no qemu-storage-daemon'
	# The times of this server's file change all the time, so the backup fails in the end.
	fused disk.img
	noise 20M | put disk.img 0
	direct O_RDONLY backup-run disk.img copy.img
	assert_equal "$times" 0
	TIDE_COPY=direct direct O_RDONLY backup-run --overwrite disk.img copy.img
	[ "$times" -gt 0 ]
	noise 24M > copy.img
	fused target.img
	direct O_WRONLY backup-run --mode existing -F raw copy.img target.img
	assert_equal "$status $times" '0 0'
	cmp copy.img inner.target.img
	TIDE_COPY=direct direct O_WRONLY backup-run --mode existing -F raw copy.img target.img
	[ "$times" -gt 0 ]
	# On a file system whose page cache is coherent they are used.
	case $(stat -f -c %T .) in ext2/ext3 | xfs | btrfs) ;; *) return ;; esac
	TIDE_COPY='' direct O_WRONLY backup-run -F qcow2 copy.img other.img
	[ "$times" -gt 0 ] || [ "$(stat -f -c %T .)" != ext2/ext3 ]
}

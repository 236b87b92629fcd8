#!/usr/bin/env bats
# image-create: as qemu-img create.

load helper

# like_qemu FILE qemu-img create argument...: qemu-img info says the same of FILE as of what qemu-img creates.
like_qemu() {
	local file=$1 filter='{format, "virtual-size", "cluster-size", "backing-filename", "backing-filename-format",
		specific: (."format-specific".data // {} | {compat, "refcount-bits", "compression-type", "extended-l2", corrupt})}'
	shift
	qemu-img create -q "$@"
	run -0 qemu-img info --output=json "$file"
	local ours
	ours=$(jq -S "$filter" <<< "$output")
	run -0 qemu-img info --output=json judge
	assert_equal "$ours" "$(jq -S "$filter" <<< "$output")"
}

@test "qcow2, with QEMU's defaults" {
	ok image-create -f qcow2 new.qcow2 64M
	clean new.qcow2
	like_qemu new.qcow2 -f qcow2 judge 64M
	[ "$(allocated new.qcow2)" -le 512 ]
	truncate -s 64M zero.img
	same raw zero.img qcow2 new.qcow2
}

@test "raw, a hole" {
	ok image-create -f raw new.img 64M
	assert_equal "$(stat -c %s new.img)" $((64 << 20))
	[ "$(allocated new.img)" -le 16 ]
	ok image-create -f raw odd.img 1000
	like_qemu odd.img -f raw judge 1000
}

@test "sizes" {
	local s
	for s in 0 512 1M 0x100000 1G 2T; do
		ok image-create -f qcow2 "$s.qcow2" "$s"
		clean "$s.qcow2"
		like_qemu "$s.qcow2" -f qcow2 judge "$((${s//[MGT]/}))$(tr -d '0-9x' <<< "$s")"
	done
	# A disk is whole sectors: rounded up.
	ok image-create -f qcow2 odd.qcow2 1000
	like_qemu odd.qcow2 -f qcow2 judge 1000
	for s in 1x -1 '' 1.5.5 M 99999999999999999999 ' 1M'; do
		unchanged rejected image-create -f qcow2 bad.qcow2 "$s"
		[ ! -e bad.qcow2 ]
	done
	unchanged rejected image-create -f qcow2 bad.qcow2 0xffffffffffffffff
	unchanged refused_like 'Image creation needs a size parameter' image-create -f qcow2 bad.qcow2
	[ ! -e bad.qcow2 ]
}

@test "cluster sizes and compression types" {
	local c
	for c in 512 1K 4K 64K 128K 1M 2M; do
		ok image-create -f qcow2 -o "cluster_size=$c" "$c.qcow2" 10M
		clean "$c.qcow2"
		like_qemu "$c.qcow2" -f qcow2 -o "cluster_size=$c" judge 10M
	done
	for c in zlib zstd; do
		ok image-create -f qcow2 -o "cluster_size=4K,compression_type=$c" $c.qcow2 10M
		clean $c.qcow2
		like_qemu $c.qcow2 -f qcow2 -o "cluster_size=4K,compression_type=$c" judge 10M
	done
	for c in 0 256 3000 4M 4x -1; do
		unchanged rejected image-create -f qcow2 -o "cluster_size=$c" bad.qcow2 10M
		[ ! -e bad.qcow2 ]
	done
	unchanged refused_like 'Cluster size must be a power of two between 512 and 2048k' \
		image-create -f qcow2 -o cluster_size=3000 bad.qcow2 10M
	unchanged rejected image-create -f qcow2 -o compression_type=lzma bad.qcow2 10M
	[[ $stderr == *lzma* ]]
	unchanged rejected image-create -f qcow2 -o nonsense=1 bad.qcow2 10M
	[[ $stderr == *nonsense* ]]
	unchanged rejected image-create -f raw -o cluster_size=64K bad.img 10M
	[[ $stderr == *cluster_size* ]]
	[ ! -e bad.img ]
}

@test "an overlay has its backing image's size, or another" {
	qcow2 base.qcow2 3M
	ok image-create -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
	clean top.qcow2
	like_qemu top.qcow2 -f qcow2 -b base.qcow2 -F qcow2 judge
	same qcow2 base.qcow2 qcow2 top.qcow2
	ok image-create -f qcow2 -b base.qcow2 -F qcow2 more.qcow2 5M
	like_qemu more.qcow2 -f qcow2 -b base.qcow2 -F qcow2 judge 5M
	same qcow2 judge qcow2 more.qcow2
	ok image-create -f qcow2 -b base.qcow2 -F qcow2 less.qcow2 1M
	like_qemu less.qcow2 -f qcow2 -b base.qcow2 -F qcow2 judge 1M
	raw base.img 1000448
	ok image-create -f qcow2 -b base.img -F raw over-raw.qcow2
	like_qemu over-raw.qcow2 -f qcow2 -b base.img -F raw judge
	same raw base.img qcow2 over-raw.qcow2
	clean more.qcow2 less.qcow2 over-raw.qcow2
}

@test "a relative backing name is relative to the new image's directory" {
	mkdir sub
	qcow2 sub/inner.qcow2 1M
	ok image-create -f qcow2 -b inner.qcow2 -F qcow2 sub/top.qcow2
	run -0 qemu-img info --output=json sub/top.qcow2
	assert_equal "$(jq -r '."backing-filename"' <<< "$output")" inner.qcow2
	same qcow2 sub/inner.qcow2 qcow2 sub/top.qcow2
}

@test "refuses a backing image as qemu-img does" {
	qcow2 base.qcow2 1M
	raw base.img 1M
	unchanged rejected image-create -f qcow2 -b base.qcow2 new.qcow2
	[[ $stderr == *'Backing file specified without backing format'* ]]
	unchanged rejected image-create -f qcow2 -F qcow2 new.qcow2 1M
	[[ $stderr == *'Backing format cannot be used without backing file'* ]]
	unchanged rejected image-create -f qcow2 -b '' -F qcow2 new.qcow2 1M
	unchanged refused_like "Could not open '.*nosuch.qcow2': No such file or directory" \
		image-create -f qcow2 -b nosuch.qcow2 -F qcow2 new.qcow2 1M
	unchanged refused_like 'not in qcow2 format' image-create -f qcow2 -b base.img -F qcow2 new.qcow2
	unchanged rejected image-create -f qcow2 -b base.qcow2 -F bogus new.qcow2
	[[ $stderr == *bogus* ]]
	unchanged rejected image-create -f raw -b base.qcow2 -F qcow2 new.img
	[[ $stderr == *"Backing file not supported for file format 'raw'"* ]]
	unchanged refused_like 'same filename as the backing file' image-create -f qcow2 -b base.qcow2 -F qcow2 base.qcow2
	unchanged rejected image-create -f bogus new.qcow2 1M
	[[ $stderr == *bogus* ]]
	[ ! -e new.qcow2 ] && [ ! -e new.img ]
}

@test "a backing image among the settings, as qemu-img takes it" {
	qcow2 base.qcow2 3M
	qcow2 other.qcow2 1M
	ok image-create -f qcow2 -o backing_fmt=qcow2,cluster_size=4K -o backing_file=base.qcow2 new.qcow2
	like_qemu new.qcow2 -f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2,cluster_size=4K judge
	ok image-create -f qcow2 -b other.qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2 wins.qcow2
	like_qemu wins.qcow2 -f qcow2 -b other.qcow2 -F qcow2 judge
	unchanged refused 'Backing file specified without backing format' image-create -f qcow2 -o backing_file=base.qcow2 x.qcow2
	unchanged refused "Could not open 'nosuch.qcow2': No such file or directory" \
		image-create -f qcow2 -b nosuch.qcow2 -F qcow2 x.qcow2
	[[ $stderr == *'Could not open backing image.'* ]]
	unchanged refused 'Backing file and preallocation can only be used at the same time if extended_l2 is on' \
		image-create -f qcow2 -b base.qcow2 -F qcow2 -o preallocation=metadata x.qcow2
	unchanged refused_like 'preallocation=metadata' image-create -f qcow2 -o preallocation=metadata x.qcow2 1M
	ok image-create -f qcow2 -o preallocation=off off.qcow2 1M
}

@test "a failed creation leaves what stood there" {
	raw old.img 1M
	unchanged rejected image-create -f qcow2 -o cluster_size=3000 old.img 1M
	unchanged refused_like 'nosuch/new.qcow2.*No such file or directory' image-create -f qcow2 nosuch/new.qcow2 1M
	mkdir ro
	chmod 555 ro
	unchanged refused_like 'ro/new.qcow2.*Permission denied' mortal image-create -f qcow2 ro/new.qcow2 1M
}

@test "--dry-run creates nothing" {
	unchanged ok image-create --dry-run -f qcow2 new.qcow2 1M
	[ ! -e new.qcow2 ]
	unchanged rejected image-create --dry-run -f qcow2 -o cluster_size=3000 new.qcow2 1M
}

@test "an image in use is not replaced" {
	qcow2 disk.qcow2 1M
	serve qcow2 disk.qcow2
	unchanged refused_like 'Failed to get (shared )?"write" lock' image-create -f qcow2 disk.qcow2 1M
}

@test "-o help shows the settings of the format" {
	done_ image-create -f qcow2 -o help
	assert_line --index 0 'Settings of the format qcow2:'
	assert_line '  cluster_size=VALUE'
	done_ image-create -f qcow2 -o 'cluster_size=64K,?' new.qcow2 1M
	assert_line '  compression_type=VALUE'
	[ ! -e new.qcow2 ]
	done_ image-create -f raw -o help
	assert_output 'The format raw has no settings.'
	done_ backup-run -F qcow2 -o help
	assert_line '  compat=VALUE'
	done_ chain-restore -o help
	assert_line '  compat=VALUE'
}

@test "a size with a fraction" {
	ok image-create -f raw a.img 1.5M
	assert_equal "$(stat -c %s a.img)" 1572864
	ok image-create -f qcow2 -o cluster_size=1.0K new.qcow2 0.3M
	qemu-img create -q -f qcow2 judge 0.3M
	assert_equal "$(virtual_size qcow2 new.qcow2)" "$(virtual_size qcow2 judge)"
	usage image-create -f raw b.img 1.5
	usage image-create -f raw b.img 0x1.5M
}

@test "usage" {
	usage image-create
	usage image-create new.qcow2 1M 2M
	rejected image-create -f qcow2 -o nonsense new.qcow2 1M
	[ ! -e new.qcow2 ]
}

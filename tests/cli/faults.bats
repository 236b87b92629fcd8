#!/usr/bin/env bats
# System calls that fail once, at the places where an error is easily lost.

load helper

# inject CALL:N CMD...: the Nth such call of the command, over all its threads, fails with EIO.
inject() {
	local what=$1
	shift
	# A leak check cannot work under a tracer.
	ASAN_OPTIONS="detect_leaks=0:$ASAN_OPTIONS" strace -f -qq -o trace -e trace="${what%:*}" \
		-e inject="${what%:*}:error=EIO:when=${what#*:}" "$@"
}

events() {
	jq -r 'select(.event).event' <<< "$output" | paste -sd ' '
}

setup_disk() {
	truncate -s 4M disk.img
	ok bitmap-add disk.img b
	done_ backup-run -F qcow2 disk.img full.qcow2
	ok image-write --pattern 0x51 disk.img 1M 2M
}

@test "the sync of a target that fails, with bitmap-mode always: nothing is kept, and nothing is forgotten" {
	setup_disk
	# The first sync makes the busy bitmap durable, the second its directory; the third is the target's.
	attempt inject fsync:3 backup-run --sync bitmap --bitmap-mode always --bitmap b -F qcow2 --backing full.qcow2 \
		disk.img inc.qcow2
	assert_equal "$status" 1
	assert_equal "$(events)" 'BLOCK_JOB_ERROR BLOCK_JOB_COMPLETED'
	[ ! -e inc.qcow2 ]
	done_ bitmap-list --output=json disk.img
	assert_equal "$(jq -c '.return[0] | [.count, .busy]' <<< "$output")" '[2097152,false]'
	done_ backup-run --sync bitmap --bitmap-mode always --bitmap b -F qcow2 --backing full.qcow2 disk.img inc.qcow2
	ok chain-restore inc.qcow2 back.img
	cmp disk.img back.img
}

@test "each sync of an incremental backup that fails: refused or failed, and the next one is whole" {
	local n
	setup_disk
	for n in 1 2 3 4 5 6; do
		rm -f inc.qcow2
		ok bitmap-mark disk.img b 1M 2M
		attempt inject "fsync:$n" backup-run --allow-base=other --sync incremental --bitmap b -F qcow2 --backing full.qcow2 disk.img inc.qcow2
		bitmap-enable -q disk.img b # completes what was decided
		done_ bitmap-list -q --output=json disk.img
		if [ -e inc.qcow2 ]; then
			done_ qemu-img compare disk.img inc.qcow2
		else
			assert_equal "$(jq -c '.return[0] | [.count, .busy]' <<< "$output")" '[2097152,false]'
		fi
	done
	ok bitmap-mark disk.img b 1M 2M
	done_ backup-run --allow-base=other --sync incremental --bitmap b -F qcow2 --backing full.qcow2 disk.img inc.qcow2
	ok chain-restore inc.qcow2 back.img
	cmp disk.img back.img
}

@test "a write that fails is still dirty" {
	local n
	setup_disk
	ok bitmap-clear disk.img b
	for n in 1 2 3 4; do
		attempt inject "pwrite64:$n" image-write --pattern 0x77 disk.img 3M 64K
	done
	done_ bitmap-list -q --output=json disk.img
	assert_equal "$(jq -c '.return[0] | [.count, .inconsistent]' <<< "$output")" '[65536,null]'
}

@test "two syncs for a small command" {
	truncate -s 4M disk.img
	ok bitmap-add disk.img b
	ASAN_OPTIONS="detect_leaks=0:$ASAN_OPTIONS" strace -f -qq -o trace -e trace=fsync,fdatasync,sync,syncfs \
		bitmap-clear disk.img b > out
	assert_equal "$(grep -c sync trace)" 2
}

@test "a small command loads no library that it does not use" {
	truncate -s 4M disk.img
	ok bitmap-add disk.img b
	export ASAN_OPTIONS="detect_leaks=0:$ASAN_OPTIONS"
	strace -f -qq -o trace -e trace=openat bitmap-clear disk.img b > out
	grep -q 'libtidemark' trace
	assert_equal "$(grep -cE 'lib(json-c|expat|zstd|deflate|nbd)|/locale/' trace)" 0
	echo '{"execute": "query-block"}' | strace -f -qq -o trace -e trace=openat txn-apply > out
	grep -q 'libjson-c' trace
	assert_equal "$(grep -cE 'lib(expat|zstd|deflate|nbd)' trace)" 0
}

# counted CALLS CMD...: how many of these system calls the command makes, over all its threads.
counted() {
	local calls=$1
	shift
	ASAN_OPTIONS="detect_leaks=0:$ASAN_OPTIONS" strace -f -qq -o trace -e trace="$calls" "$@" > out
	grep -cE "^[0-9]+ +(${calls//,/|})\(" trace
}

@test "a new target is synced once, its directory once, and its tables are written once" {
	truncate -s 1G disk.img
	noise 8M | put disk.img 100M
	assert_equal "$(counted fsync,fdatasync,sync,syncfs backup-run -F qcow2 disk.img a.qcow2)" 2
	# At most eight pieces of data; the header, an L2 table, the L1 table and the counts: nine.
	[ "$(TIDE_COPY=rw counted pwrite64,pwritev,pwritev2 backup-run --checksums never -F qcow2 disk.img b.qcow2)" -le 17 ]
	# The table of checksums, its head, and what the header says of it.
	[ "$(TIDE_COPY=rw counted pwrite64,pwritev,pwritev2 backup-run -F qcow2 disk.img c.qcow2)" -le 24 ]
	clean a.qcow2 b.qcow2 c.qcow2
}

@test "the tables of a disk that is dirty all over are written together" {
	local n
	truncate -s 16G disk.img
	ok bitmap-add -f raw disk.img b
	for n in {0..31}; do
		ok image-write --pattern=$((n + 1)) disk.img $((n * 512))M 64K
	done
	# 2 MiB of data in two writes of one, and as many for 32 L2 tables; eight for the header, L1 table and counts, three for
	# the birth record.
	[ "$(TIDE_COPY=rw counted pwrite64,pwritev,pwritev2 \
		backup-run --checksums never --sync bitmap --bitmap-mode never --bitmap b -F qcow2 disk.img rw.qcow2)" -le 17 ]
	clean rw.qcow2
	qemu-img rebase -u -f qcow2 -b disk.img -F raw rw.qcow2
	same raw disk.img qcow2 rw.qcow2
}

@test "granules that are scattered over the disk are written together" {
	local n
	raw disk.img 16M
	ok bitmap-add -f raw disk.img b
	for n in {0..63}; do
		echo "$((n * 262144)) 65536"
	done > ranges
	ok bitmap-mark --from ranges disk.img b
	# 4 MiB in writes of 1 MiB, nine for the tables, and three for the birth record.
	[ "$(TIDE_COPY=rw counted pwrite64,pwritev,pwritev2 \
		backup-run --checksums never --sync bitmap --bitmap-mode never --bitmap b -F qcow2 disk.img rw.qcow2)" -le 16 ]
	[ "$(TIDE_COPY=direct counted pwrite64,pwritev,pwritev2 \
		backup-run --checksums never --sync bitmap --bitmap-mode never --bitmap b -F qcow2 disk.img direct.qcow2)" -le 16 ]
	[ "$(TIDE_COPY=direct counted openat backup-run -F qcow2 disk.img whole.qcow2)" -gt 0 ]
	grep -q '/proc/self/fd/.*O_WRONLY.*O_DIRECT' trace
	same raw disk.img qcow2 whole.qcow2
	qemu-img rebase -u -f qcow2 -b disk.img -F raw direct.qcow2
	same raw disk.img qcow2 direct.qcow2
	clean direct.qcow2 rw.qcow2 whole.qcow2
}

# bytes_read CMD...: how many bytes the command reads with pread64.
bytes_read() {
	ASAN_OPTIONS="detect_leaks=0:$ASAN_OPTIONS" strace -f -qq -o trace -e trace=pread64 "$@" > out
	awk '/pread64/ {sum += $NF} END {print sum}' trace
}

@test "what is read of a qcow2 does not grow with the disk" {
	local size cmd
	for size in 64G 64T; do
		qemu-img create -q -f qcow2 $size.qcow2 $size
		qemu-io -f qcow2 -c 'write -q -P 1 1G 64K' $size.qcow2
		ok bitmap-add -g 64K $size.qcow2 b
		ok bitmap-add -g 64K $size.qcow2 none
		ok bitmap-mark $size.qcow2 b 1G 64K
	done
	# The fingerprint of the disk looks at 35 places, each of which may need a piece of the table.
	for cmd in 'bitmap-list DISK' 'bitmap-clear DISK none' \
		'backup-run --checksums never --sync bitmap --bitmap-mode never --bitmap b -F qcow2 DISK DISK.inc'; do
		[ "$(bytes_read ${cmd//DISK/64T.qcow2})" -le $(($(bytes_read ${cmd//DISK/64G.qcow2}) + 36 * 4096)) ] || {
			echo "$cmd"
			return 1
		}
	done
	clean 64G.qcow2.inc 64T.qcow2.inc
}

# cold FILE: gives its pages up.
cold() {
	sync "$1"
	dd if="$1" iflag=nocache count=0 status=none
}

# pages FILE: how many are in memory.
pages() {
	fincore -bnro PAGES "$1"
}

# back_up: once more; $around: the source was read around the page cache.
back_up() {
	rm -f out.qcow2
	[ "$(TIDE_COPY='' counted openat backup-run -F qcow2 disk.img out.qcow2)" -gt 0 ]
	around=$(grep -c '/proc/self/fd/.*O_RDONLY.*O_DIRECT' trace || true)
}

@test "what is not in memory is read around the page cache, and stays out of it; the rest is read from there" {
	raw disk.img 32M
	noise 24M | put disk.img 4M
	cold disk.img
	[ "$(pages disk.img)" -lt 1000 ] || skip "this file system is one in memory"
	! cp --reflink=always disk.img shared.img 2> err || skip "this file system shares"
	back_up
	assert_equal "$around" 1
	[ "$(pages disk.img)" -lt 1000 ]
	same raw disk.img qcow2 out.qcow2
	# It was read for that.
	back_up
	assert_equal "$around" 0
	same raw disk.img qcow2 out.qcow2
	# Some of it, and what has been written since.
	cold disk.img
	dd if=disk.img of=out bs=1M skip=9 count=6 status=none
	noise 1M 9 | put disk.img 20M
	back_up
	assert_equal "$around" 1
	same raw disk.img qcow2 out.qcow2
}

@test "a backup costs what is dirty, not what the disk measures" {
	local size n calls=()
	for size in 64 4096; do # GiB
		truncate -s "${size}G" "d$size.img"
		: > ranges
		for n in {0..99}; do
			echo "$((n * size * 10737418 / 65536 * 65536)) 65536" >> ranges
			put "d$size.img" "$((n * size * 10737418 / 65536 * 65536))" < <(head -c 64K /dev/zero | tr '\0' x)
		done
		ok bitmap-add -f raw "d$size.img" b
		ok bitmap-mark --from ranges "d$size.img" b
		calls+=("$(counted lseek,read,pread64,preadv2,pwrite64,pwritev,fallocate,fadvise64,mmap,brk \
			backup-run --sync bitmap --bitmap-mode never --bitmap b -F qcow2 "d$size.img" "t$size.qcow2")")
	done
	# A qcow2 has a table for each 512 MiB that hold something: a hundred here, and there as many.
	[ "${calls[1]}" -le $((calls[0] * 5 / 4)) ] || fail "system calls: ${calls[*]}"
}

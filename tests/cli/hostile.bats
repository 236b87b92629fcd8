#!/usr/bin/env bats
# Images and sidecars that were made to do harm: those of tests/images/hostile, and some that are too large for it.
# bad-NAME.qcow2 is an image; bad-NAME.bitmaps a sidecar of a raw image of 1 MiB.

load helper

# What must be refused, by which command, with which words.
expected() {
	cat <<- 'END'
		bad-bitmap-cluster-shared.qcow2 bitmap-dump --output=json DISK b0 | two entries of its table share the cluster
		bad-data-in-l1.qcow2 image-write --pattern 1 DISK 0 4K | data cluster at [0-9]+ overlaps with the image's L1 table
		bad-l1-names-itself.qcow2 image-write --pattern 1 DISK 0 4K | L2 table at [0-9]+ overlaps with the image's L1 table
		bad-refcount-block-shared.qcow2 image-write --pattern 1 DISK 0 4K | refcount block at [0-9]+ overlaps
		bad-refcount-table-names-itself.qcow2 image-write --pattern 1 DISK 0 4K | refcount block at [0-9]+ overlaps
		bad-disk-size.bitmaps bitmap-list --output=json DISK | too large for a bitmap of granularity 512
		bad-disk-size.bitmaps bitmap-mark DISK b0 0 4K | too large for a bitmap of granularity 512
	END
}

# Address space is what a sanitizer takes by the terabyte.
bounded() {
	case $(nm -D "$BUILD/bin/image-info") in *__asan_* | *__ubsan_* | *__tsan_*) ;; *) ulimit -v 1048576 ;; esac
}

# put_in_place FILE: as $disk, in this directory.
put_in_place() {
	rm -rf disk.* out.*
	case $1 in
	*.bitmaps)
		raw disk.img 1M
		disk=disk.img
		cp "$ROOT/tests/images/hostile/$1" disk.img.bitmaps
		;;
	*)
		disk=disk.qcow2
		cp "$ROOT/tests/images/hostile/$1" "$disk"
		;;
	esac
}

@test "each is refused by the command that it is made for" {
	local line words want n=0
	bounded
	while IFS= read -r line; do
		want=${line#* | }
		put_in_place "${line%% *}"
		read -ra words <<< "${line% | *}"
		words=("${words[@]/#DISK/$disk}")
		unchanged refused_like "$want" "${words[@]:1}" < /dev/null
		n=$((n + 1))
	done < <(expected)
	assert_equal $n "$(expected | wc -l)"
}

@test "each is there for something" {
	local f
	for f in "$ROOT"/tests/images/hostile/*; do
		expected | grep -q "^${f##*/} " || fail "${f##*/} is in no line of the table"
	done
}

@test "every command ends by itself, in time, within its memory" {
	local f cmd words
	bounded
	for f in "$ROOT"/tests/images/hostile/*; do
		while read -r cmd; do
			put_in_place "${f##*/}"
			read -ra words <<< "${cmd/DISK/$disk}"
			attempt timeout 20 "${words[@]}" < /dev/null
			[ "$status" -eq 0 ] || [ -n "$stderr" ] || fail 'no message'
			[[ $stderr != *'ut of memory'* ]] || fail "$stderr"
		done <<- 'END'
			image-info DISK
			bitmap-list DISK
			bitmap-dump DISK b0
			bitmap-add DISK new
			bitmap-clear DISK b0
			bitmap-mark DISK b0 0 64K
			bitmap-merge DISK b0 b0
			image-write --pattern 1 DISK 0 8K
			image-write --zero DISK 0 8K
			image-write --discard DISK 0 8K
			chain-restore DISK out.img
			backup-run -F qcow2 DISK out.qcow2
			backup-run --sync incremental --bitmap b0 -F qcow2 DISK out.qcow2
		END
	done
}

@test "a sidecar that is mostly a hole is not read" {
	raw disk.img 1M
	truncate -s 1073741825 disk.img.bitmaps
	bounded
	unchanged refused_like 'no sidecar is that large' bitmap-list --output=json disk.img
}

@test "a disk of 2 EiB in a file of a few clusters" {
	qemu-img create -q -f qcow2 -o cluster_size=2M huge.qcow2 2048P
	bounded
	done_ timeout 20 image-info huge.qcow2
	refused_like 'too large for a bitmap of granularity 512' timeout 20 bitmap-add -g 512 huge.qcow2 b
	refused_like . timeout 20 chain-restore huge.qcow2 out.img
	refused_like . timeout 20 backup-run -F qcow2 huge.qcow2 out.qcow2
	[ ! -e out.img ] && [ ! -e out.qcow2 ]
}

# sparse_tables BITMAPS STEP: disk.qcow2, a sparse file with the tables of as many bitmaps, of 2 MiB each, STEP bytes apart.
sparse_tables() {
	python3 - "$@" <<- 'PY'
		import struct, sys
		n, step = map(int, sys.argv[1:])
		cluster, size, entries = 2048, 2 << 40, 262144
		def up(x): return -(-x // cluster) * cluster
		l1_entries = size // (cluster * cluster // 8)
		l1 = 16 * cluster
		directory = up(l1 + 8 * l1_entries)
		table = up(directory + 32 * n)
		with open("disk.qcow2", "wb") as f:
		    f.write(struct.pack(">IIQIIQIIQQIIQ", 0x514649fb, 3, 0, 0, 11, size, 0, l1_entries, l1, cluster, 1, 0, 0))
		    f.write(struct.pack(">QQQII", 0, 0, 1, 4, 112) + bytes(8))
		    f.write(struct.pack(">IIIIQQII", 0x23852875, 24, n, 0, 32 * n, directory, 0, 0))
		    f.seek(directory)
		    for i in range(n):
		        head = struct.pack(">QIIBBHI", table + i * step, entries, 0, 1, 9, 6, 0)
		        f.write((head + b"%06x" % i).ljust(32, b"\0"))
		    f.truncate(table + (n - 1) * step + 8 * entries)
	PY
}

@test "bitmaps whose tables share clusters are refused at once" {
	bounded
	local step
	for step in 0 2048 2095104; do
		sparse_tables 30000 $step
		refused_like "The tables of bitmaps '000000' and '000001' share the cluster at [0-9]+" \
			timeout 10 bitmap-list --output=json disk.qcow2
		rejected timeout 10 bitmap-add disk.qcow2 b
	done
}

@test "bitmaps whose tables are holes take no time" {
	bounded
	sparse_tables 30000 2097152
	done_ timeout 20 bitmap-list disk.qcow2
	done_ timeout 20 image-info disk.qcow2
}

# Lineage: what the target of a backup holds already, and what must not be replaced.
load helper
load lineage

@test "an existing target shows no data of its own in place of the disk's" {
	begin
	qemu-img create -q -f qcow2 -b full.qcow2 -F qcow2 over.qcow2
	qemu-io -f qcow2 -c 'write -q -P 9 3M 64K' over.qcow2
	write 1 1M
	unchanged refused_like "The target '.*/over.qcow2' holds data of its own that differs from the disk" \
		backup-run --sync incremental --bitmap n --mode existing -F qcow2 disk.img over.qcow2
	# Zeroes are data, too; and without a backing image, one may be attached later.
	qemu-img create -q -f qcow2 -b full.qcow2 -F qcow2 zero.qcow2
	qemu-io -f qcow2 -c 'write -q -z 3M 64K' zero.qcow2
	refused_like "holds data of its own" \
		backup-run --sync incremental --bitmap n --mode existing -F qcow2 disk.img zero.qcow2
	qemu-img create -q -f qcow2 alone.qcow2 4M
	qemu-io -f qcow2 -c 'write -q -P 9 3M 64K' alone.qcow2
	refused_like "holds data of its own" \
		backup-run --sync incremental --bitmap n --mode existing -F qcow2 disk.img alone.qcow2
	# auto does without the increment.
	auto --mode existing disk.img over.qcow2
	assert_equal "$(member x-sync)" full
	assert_equal "$(member x-reason)" 'the target holds data of its own that differs from the disk'
	restores over.qcow2
}

@test "an existing target may hold what the disk shows, and be brought up to date" {
	begin
	qemu-img create -q -f qcow2 -b full.qcow2 -F qcow2 over.qcow2
	qemu-io -f qcow2 -c 'write -q -P 9 1M 64K' over.qcow2
	write 1 1M
	write 9 3M
	ok image-write --pattern 9 disk.img 1M 64K
	inc --mode existing disk.img over.qcow2
	restores over.qcow2
	# Itself the base, it is right as it is.
	write 2 2M
	inc --mode existing disk.img over.qcow2
	restores over.qcow2
	write 3 3M
	auto --mode existing disk.img over.qcow2
	assert_equal "$(member x-sync)" incremental
	restores over.qcow2
	# A part stays one, of the same base.
	write 4 1M
	inc --backing none disk.img part.qcow2
	write 5 2M
	inc --mode existing disk.img part.qcow2
	verdict 3 part.qcow2
	qemu-img rebase -u -b over.qcow2 -F qcow2 part.qcow2
	done_ chain-verify --accept part.qcow2
	restores part.qcow2
}

@test "an existing target without a record is whole only if all of it is like the disk" {
	noise 64M > disk.img
	ok bitmap-add disk.img n
	cp disk.img copy.raw
	write 1 1M
	cp disk.img ahead
	# One place that a sample nearly always misses.
	ok image-write -f raw --pattern 7 copy.raw 40M 512
	done_ backup-run -q --sync incremental --bitmap n --mode existing -F raw disk.img copy.raw
	verdict 3 copy.raw
	cp ahead copy.raw
	rm copy.raw.bitmaps
	write 2 2M
	done_ backup-run -q --sync incremental --bitmap n --mode existing -F raw disk.img copy.raw
	restores copy.raw
}

@test "top: an existing target shows what the disk shows, or is refused" {
	noise 4M > gold.img
	noise 4M 2 > other.img
	qemu-img create -q -f qcow2 -b gold.img -F raw disk.qcow2
	qemu-io -f qcow2 -c 'write -q -P 9 1M 64K' disk.qcow2
	qemu-img create -q -f qcow2 -b other.img -F raw a.qcow2
	refused_like "'.*/other.img' differs from the disk where the top image of that holds nothing" \
		backup-run --sync top --mode existing -F qcow2 disk.qcow2 a.qcow2
	qemu-img create -q -f qcow2 -b gold.img -F raw b.qcow2
	qemu-io -f qcow2 -c 'write -q -P 8 2M 64K' b.qcow2
	refused_like "holds data of its own" backup-run --sync top --mode existing -F qcow2 disk.qcow2 b.qcow2
	qemu-img create -q -f qcow2 -b gold.img -F raw c.qcow2
	done_ backup-run -q --sync top --mode existing -F qcow2 disk.qcow2 c.qcow2
	verdict 0 c.qcow2
	qemu-img compare -q disk.qcow2 c.qcow2
	# Alone, it is a part.
	qemu-img create -q -f qcow2 d.qcow2 4M
	done_ backup-run -q --sync top --mode existing -F qcow2 disk.qcow2 d.qcow2
	verdict 3 d.qcow2
}

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

# txn-apply of these actions, and then of auto with the bitmap n.
auto_after() {
	done_ txn-apply --drive d=disk.img - <<- JSON
	{"execute": "transaction", "arguments": {"actions": [$1,
	 {"type": "drive-backup", "data": {"device": "d", "target": "$2", "x-sync": "auto", "bitmap": "n", "format": "qcow2"}}]}}
	JSON
}

action() { printf '{"type": "%s", "data": {"node": "d", "name": "n"}}' "$1"; }

@test "auto in a transaction sees what earlier actions do to its bitmap" {
	local clear remove add disable i=0 x
	clear=$(action block-dirty-bitmap-clear)
	remove=$(action block-dirty-bitmap-remove)
	add=$(action block-dirty-bitmap-add)
	disable=$(action block-dirty-bitmap-disable)
	noise 32M > disk.img
	auto disk.img full.qcow2
	for x in "$clear" "$disable"; do
		write $((++i)) ${i}M
		auto_after "$x" $i.qcow2
		assert_equal "$(jq -r 'select(.return) | .return["x-backups"][0]["x-sync"]' <<< "$output")" full
		assert_equal "$(jq -r 'select(.return) | .return["x-backups"][0]["x-reason"]' <<< "$output")" \
			'an earlier action of the transaction changes the bitmap'
		restores $i.qcow2
	done
	# A bitmap that the transaction adds; and one that it removes.
	ok bitmap-remove disk.img n
	auto_after "$add" added.qcow2
	assert_equal "$(jq -r 'select(.return) | .return["x-backups"][0]["x-sync"]' <<< "$output")" full
	restores added.qcow2
	rejected txn-apply --drive d=disk.img - <<- JSON
	{"execute": "transaction", "arguments": {"actions": [$remove,
	 {"type": "drive-backup", "data": {"device": "d", "target": "x.qcow2", "x-sync": "auto", "bitmap": "n", "format": "qcow2"}}]}}
	JSON
	[[ $desc == "The transaction removes the bitmap 'n' before"* ]]
	# More dirty ranges do no harm, and neither does a bitmap of another name.
	ok bitmap-add disk.img m
	write 9 9M
	auto_after '{"type": "block-dirty-bitmap-merge", "data": {"node": "d", "target": "n", "bitmaps": ["m"]}},
	 {"type": "block-dirty-bitmap-clear", "data": {"node": "d", "name": "m"}}' merged.qcow2
	assert_equal "$(jq -r 'select(.return) | .return["x-backups"][0]["x-sync"]' <<< "$output")" incremental
	restores merged.qcow2
}

@test "a link that only a sample speaks for has no identifier, and chain-verify says so" {
	noise 32M > disk.img
	done_ backup-run -q -F qcow2 disk.img full.qcow2
	ok bitmap-add disk.img n
	qemu-img create -q -f qcow2 -b full.qcow2 -F qcow2 other.qcow2
	# One place that the sample nearly always misses.
	qemu-io -f qcow2 -c 'write -q -P 9 20M 512' other.qcow2
	write 1 1M
	inc --backing other.qcow2 disk.img a.qcow2
	[[ $output != *x-base* ]]
	verdict 0 a.qcow2
	[[ $output == *'no identifier proves that its backing image is its base'* ]]
	[[ $(chain-info a.qcow2) == *'counts from an unknown backup'* ]]
	done_ chain-restore a.qcow2 r.img
	[[ $stderr == *'no identifier proves'* ]]
	attempt chain-verify --against disk.img -F raw a.qcow2
	assert_equal "$status" 3
	# auto starts again, and chains the next on that.
	write 2 2M
	auto disk.img b.qcow2
	assert_equal "$(member x-sync)" full
	[[ $(member x-reason) == *'no identifier proves to be its base'* ]]
	restores b.qcow2
	# All of a small disk is compared, which proves as much.
	noise 4M > small.img
	done_ backup-run -q -F qcow2 small.img s0.qcow2
	ok bitmap-add small.img n
	done_ backup-run -q --sync incremental --bitmap n -F qcow2 --backing s0.qcow2 small.img s1.qcow2
	[[ $output == *x-base* ]]
	verdict 0 s1.qcow2
	[[ $output != *'no identifier'* ]]
}

@test "an existing target is no backup that others stand on" {
	begin
	write 1 1M
	inc disk.img a.qcow2
	write 2 2M
	unchanged refused_like "'.*/a.qcow2', from which the bitmap 'n' counts, needs the backup of that name" \
		backup-run --mode existing --sync full -F qcow2 disk.img full.qcow2
	unchanged refused_like "needs the backup of that name" \
		backup-run --mode existing --sync incremental --bitmap n --allow-base=other -F qcow2 disk.img full.qcow2
	# The base itself is brought up to date.
	inc --mode existing disk.img a.qcow2
	restores a.qcow2
}

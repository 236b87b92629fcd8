#!/usr/bin/env bats
# A transaction that changes several files does so together or not at all, and one that was interrupted after its commit is
# completed: only when every file is found, and only by commands that change something.

# shellcheck disable=SC2030,SC2031,SC2154 # each test is a subshell of its own; `run` sets stderr

load helper

# A disk of 2 MiB with a bitmap b that has dirty bits.
disk() {
	head -c 2M /dev/urandom > "$1"
	ok bitmap-add -f raw "$1" b
	ok bitmap-mark "$1" b 0 256K
}

# $1 fails ($2: its error, or KILL) the $3rd time that the command calls it; raw strace.
inject() {
	local call=$1 what=$2 when=$3
	shift 3
	[ "$what" = KILL ] && what=signal=KILL || what=error=$what
	run --separate-stderr strace -qq -f -o /dev/null -e "trace=$call" -e "inject=$call:$what:when=$when" "$@"
	printf '$ %s\n[%s] %s\n%s\n' "$*" "$status" "$output" "$stderr"
}

clear_both() {
	cat > both.json <<- 'J'
		{"execute": "transaction", "arguments": {"actions": [
		 {"type": "block-dirty-bitmap-clear", "data": {"node": "a", "name": "b"}},
		 {"type": "block-dirty-bitmap-clear", "data": {"node": "c", "name": "b"}}]}}
	J
}

# The bytes that are dirty in bitmap b.
dirty() {
	bitmap-list -q --output=json "$1" | jq '.return[] | select(.name == "b").count'
}

# The request for grouped incremental backups of two disks; arguments as for interrupted_group.
group() {
	cat > group.json <<- J
		{"execute": "transaction", "arguments": {"properties": {"completion-mode": "grouped"}, "actions": [
		 {"type": "drive-backup", "data": {"device": "d0", "sync": "incremental", "bitmap": "b", "format": "qcow2",
		  "target": "$PWD/$3/t0.qcow2"}},
		 {"type": "drive-backup", "data": {"device": "d1", "sync": "incremental", "bitmap": "b", "format": "qcow2",
		  "target": "$PWD/$3/t1.qcow2"}}]}}
	J
}

# Two disks whose grouped incremental backups are killed after the decision, at the $1st rename of a target; $2, $3:
# directories of the disks, $4 of the targets.
interrupted_group() {
	local when=$1
	shift
	mkdir -p "$1" "$2" "$3"
	disk "$1/d0.img"
	disk "$2/d1.img"
	group "$@"
	inject renameat2 KILL "$when" txn-apply --drive "d0=$1/d0.img" --drive "d1=$2/d1.img" group.json
	[ "$status" -eq 137 ]
	[ -f "$1/d0.img.bitmaps.commit" ] && [ -f "$2/d1.img.bitmaps.commit" ]
}

# Everything is in place, and nothing is left over once both disks have been opened.
completed_group() {
	bitmap-enable -q "$1/d0.img" b
	bitmap-enable -q "$2/d1.img" b
	[ "$(dirty "$1/d0.img")" -eq 0 ]
	[ "$(dirty "$2/d1.img")" -eq 0 ]
	qemu-img check -q "$3/t0.qcow2"
	qemu-img check -q "$3/t1.qcow2"
	[ "$(find . -name '*.commit*' | wc -l)" -eq 0 ]
}

@test "two nodes: an error at the second rename leaves neither half done" {
	disk a.img
	disk c.img
	clear_both
	inject rename ENOSPC 2 txn-apply --drive a=a.img --drive c=c.img both.json
	[ "$status" -eq 0 ]
	assert_output '{"return": {}}'
	[[ $stderr == *"the transaction is decided"* ]]
	# Looking shows the decision, and completes nothing.
	done_ bitmap-list c.img
	[[ $stderr == *"the next command that changes something will complete it"* ]]
	[ "$(dirty a.img)" -eq 0 ]
	[ "$(dirty c.img)" -eq 0 ]
	[ -f a.img.bitmaps.commit ]
	ok bitmap-add c.img x
	[[ $stderr == *"it has been completed now"* ]]
	[ "$(dirty c.img)" -eq 0 ]
	[ ! -e a.img.bitmaps.commit ]
}

@test "two nodes: an error at the first rename changes neither" {
	disk a.img
	disk c.img
	clear_both
	inject rename ENOSPC 1 txn-apply --drive a=a.img --drive c=c.img both.json
	[ "$status" -eq 1 ]
	[ "$(dirty a.img)" -eq 262144 ]
	[ "$(dirty c.img)" -eq 262144 ]
	[ ! -e a.img.bitmaps.commit ]
	[ ! -e c.img.bitmaps.commit ]
}

@test "two nodes: SIGKILL at each rename leaves both or neither" {
	local n
	for n in 1 2; do
		rm -f ./*.img*
		disk a.img
		disk c.img
		clear_both
		inject rename KILL $n txn-apply --drive a=a.img --drive c=c.img both.json
		[ "$status" -eq 137 ]
		ok bitmap-add a.img x
		[ "$(dirty a.img)" -eq "$(dirty c.img)" ]
	done
}

# txn_prog DECLARATIONS ACTIONS: builds ./prog, which runs these actions on the declared `drives` in one transaction of
# the library: 0, 1 if it fails, 3 if it cannot be made.
txn_prog() {
	cat > prog.c <<- C
		#include "tidemark.h"
		int main(void)
		{
			struct tide_session_options options = {0};
			struct tide_session *s = tide_session_new(&options, NULL);
			$1
			struct tide_txn *txn;
			int rc = 0;
			for (size_t i = 0; i < sizeof(drives) / sizeof(drives[0]); i++)
				rc = rc || tide_session_add_drive(s, &drives[i], NULL, NULL);
			txn = tide_txn_new(s, NULL);
			rc = rc || $2;
			rc = rc ? 3 : tide_txn_run(txn, NULL) != 0;
			tide_txn_free(txn);
			tide_session_free(s);
			return rc;
		}
	C
	${CC:-cc} -I"$ROOT/lib" -o prog prog.c -L"$BUILD/lib" -ltidemark "-Wl,-rpath,$BUILD/lib"
}

@test "a restore that fails leaves the bitmaps of its transaction alone" {
	disk a.img
	done_ backup-run -F qcow2 a.img full.qcow2
	txn_prog 'struct tide_drive drives[] = {{.id = "a", .path = "a.img"}, {.id = "f", .path = "full.qcow2"}};
		struct tide_bitmap_edit clear = {.node = "a", .name = "b"};
		struct tide_chain_restore restore = {.device = "f", .target = "full/disk.raw"};' \
		'tide_txn_bitmap_clear(txn, &clear, NULL) || tide_txn_chain_restore(txn, &restore, NULL)'
	mkdir full
	mount -t tmpfs -o size=1M none full || skip "a file system cannot be mounted here"
	mounts+=("$PWD/full")
	run ./prog
	[ "$status" -eq 1 ]
	[ "$(dirty a.img)" -eq 262144 ]
	[ ! -e full/disk.raw ]
}

@test "a write to an image is a transaction of its own" {
	disk a.img
	txn_prog 'struct tide_drive drives[] = {{.id = "a", .path = "a.img"}};
		struct tide_bitmap_edit clear = {.node = "a", .name = "b"};
		struct tide_image_write write = {.node = "a", .kind = TIDE_WRITE_PATTERN, .has_length = true, .length = 9};' \
		'tide_txn_bitmap_clear(txn, &clear, NULL) || tide_txn_image_write(txn, &write, NULL)'
	run ./prog
	[ "$status" -eq 1 ]
	[ "$(dirty a.img)" -eq 262144 ]
}

@test "a group whose targets are on a file system that is not mounted waits" {
	truncate -s 32M fs
	PATH=$PATH:/sbin:/usr/sbin mkfs.ext4 -q fs
	mkdir t
	mount -o loop fs t || skip "loop devices cannot be used here"
	mounts+=("$PWD/t")
	interrupted_group 1 . . t
	umount t
	mounts=()
	done_ bitmap-list d0.img
	refused_like "its file for '$PWD/t/t0.qcow2' is missing" bitmap-clear d0.img b
	[[ $stderr == *"mount the file system"* ]]
	refused_like "is missing" image-write --pattern 1 d1.img 0 4K
	ok bitmap-clear --dry-run d0.img b
	# What takes nothing from the bitmaps goes on.
	done_ backup-run -F qcow2 d0.img other.qcow2
	[ -f d0.img.bitmaps.commit ]
	mount -o loop fs t
	mounts+=("$PWD/t")
	ok bitmap-enable d1.img b
	completed_group . . t
}

@test "a disk of the group on a file system that is not mounted" {
	truncate -s 32M fs
	PATH=$PATH:/sbin:/usr/sbin mkfs.ext4 -q fs
	mkdir s0
	mount -o loop fs s0 || skip "loop devices cannot be used here"
	mounts+=("$PWD/s0")
	interrupted_group 1 s0 s1 t
	umount s0
	mounts=()
	# Its pointer leads to a record that is out of reach, not to one that is gone.
	done_ bitmap-list s1/d1.img
	refused_like "cannot be reached" bitmap-enable s1/d1.img b
	mount -o loop fs s0
	mounts+=("$PWD/s0")
	ok bitmap-enable s1/d1.img b
	completed_group s0 s1 t
}

@test "a group whose whole directory has moved is completed there" {
	mkdir old
	pushd old > /dev/null
	interrupted_group 1 a b t
	popd > /dev/null
	mv old new
	ok bitmap-enable new/b/d1.img b
	cd new
	completed_group a b t
}

@test "a copied directory completes nothing, neither there nor here" {
	mkdir old
	pushd old > /dev/null
	interrupted_group 1 a b t
	popd > /dev/null
	cp -a old new
	for disk in a/d0 b/d1; do
		refused_like "was copied: it names '$PWD/old/" bitmap-enable "new/$disk.img" b
		[[ $stderr == *"a copy is as before the transaction once '$PWD/new/"*"is moved away"* ]]
	done
	[ ! -e old/t/t0.qcow2 ]
	# Given up, the copy is as before; the original is completed.
	rm new/?/*.commit
	ok bitmap-enable new/a/d0.img b
	[ "$(dirty new/a/d0.img)" -eq 262144 ]
	cd old
	ok bitmap-enable b/d1.img b
	completed_group a b t
	# A copy that is made afterwards has nothing to complete.
	cp -a ../old ../later
	ok bitmap-enable ../later/b/d1.img b
}

@test "a copy of an interrupted group does not count what the original completed" {
	mkdir old
	pushd old > /dev/null
	interrupted_group 1 . . t
	cp -a ../old ../new
	ok bitmap-enable d1.img b
	popd > /dev/null
	refused_like "was copied: it names '$PWD/old/" bitmap-enable new/d0.img b
	[ -e new/d0.img.bitmaps.commit ]
	[ ! -e new/t/t0.qcow2 ]
}

@test "a staged file that was removed is no success" {
	interrupted_group 1 . . t
	done_ bitmap-list d0.img
	[[ $stderr == *"the next command that changes something will complete it"* ]]
	rm t/.t1.qcow2.*
	# Looking says that it cannot be completed, and why.
	for looks in 'bitmap-list d0.img' 'image-info d0.img' 'bitmap-list d1.img'; do
		# shellcheck disable=SC2086 # several words
		done_ $looks
		[[ $stderr == *"its file for '$PWD/t/t1.qcow2' is missing"*"move '$PWD/d0.img.bitmaps.commit' away"* ]]
		[[ $stderr != *"will complete it"* ]]
	done
	refused_like "its file for '$PWD/t/t1.qcow2' is missing" bitmap-enable d0.img b
	[ ! -e t/t0.qcow2 ]
	[ ! -e t/t1.qcow2 ]
	# Giving it up: the bitmaps are those of before.
	rm d0.img.bitmaps.commit
	ok bitmap-enable d0.img b
	ok bitmap-enable d1.img b
	[ "$(dirty d0.img)" -eq 262144 ]
	[ "$(dirty d1.img)" -eq 262144 ]
}

@test "a file that took a target's name meanwhile is kept, and named" {
	interrupted_group 1 . . t
	echo precious > t/t0.qcow2
	refused_like "another program has created '$PWD/t/t0.qcow2'" bitmap-enable d0.img b
	[ "$(cat t/t0.qcow2)" = precious ]
	mv t/t0.qcow2 t/precious
	ok bitmap-enable d0.img b
	completed_group . . t
}

@test "all targets are named before the first bitmap is settled" {
	# After a death between the targets a record can be given up, and the bitmaps are those of before.
	interrupted_group 2 . . t
	[ -e t/t0.qcow2 ]
	[ ! -e t/t1.qcow2 ]
	rm t/t0.qcow2
	mv d0.img.bitmaps.commit away
	ok bitmap-enable d0.img b
	ok bitmap-enable d1.img b
	[ "$(dirty d0.img)" -eq 262144 ]
	[ "$(dirty d1.img)" -eq 262144 ]
}

@test "an error at the second target settles no bitmap before recovery does" {
	disk d0.img
	disk d1.img
	mkdir t
	group . . t
	inject renameat2 EIO 2 txn-apply -q --drive d0=d0.img --drive d1=d1.img group.json
	[ "$status" -eq 1 ]
	[ -e t/t0.qcow2 ]
	[ ! -e t/t1.qcow2 ]
	mkdir moved
	mv d0.img.bitmaps.commit d1.img.bitmaps.commit moved
	[ "$(dirty d0.img)" -eq 262144 ]
	[ "$(dirty d1.img)" -eq 262144 ]
	mv moved/* .
	bitmap-enable -q d0.img b
	completed_group . . t
}

@test "recovery that dies between the targets settles no bitmap" {
	local n
	for n in 1 2; do
		rm -rf d?.img* t away
		interrupted_group 1 . . t
		inject renameat2 KILL $n bitmap-enable d0.img b
		[ "$status" -eq 137 ]
		mv d0.img.bitmaps.commit away
		[ "$(dirty d0.img)" -eq 262144 ]
		[ "$(dirty d1.img)" -eq 262144 ]
	done
}

@test "repeating the request that was interrupted is refused" {
	interrupted_group 1 . . t
	refused_like "was interrupted after its commit; it has been completed now, and this request was not run" \
		txn-apply --drive d0=d0.img --drive d1=d1.img group.json
	completed_group . . t
}

@test "a damaged record says how to go on, and blocks only what depends on it" {
	interrupted_group 1 . . t
	printf 'X' | dd of=d0.img.bitmaps.commit bs=1 seek=30 conv=notrunc status=none
	refused_like "'$PWD/d0.img.bitmaps.commit', is damaged in line " bitmap-clear d0.img b
	[[ $stderr == *"move the file away"* ]]
	done_ bitmap-list d0.img
	done_ backup-run -F qcow2 d0.img full.qcow2
	ok bitmap-remove d0.img b
	mv d0.img.bitmaps.commit away
	ok bitmap-add d0.img b
}

# not_blocked DESC: a file in the place of a record, which this describes, blocks only what depends on the record.
not_blocked() {
	local how sum
	for how in 'bitmap-list d0.img' 'image-info d0.img'; do
		# shellcheck disable=SC2086 # several words
		done_ timeout 10 $how
		[[ $stderr == *"$1"*"move"*"away"* || $stderr == *"$1"*"moved away"* ]] || fail "$how: $stderr"
	done
	refused_like "$1" timeout 10 backup-run --sync incremental --bitmap b -F qcow2 d0.img t.qcow2
	[[ $stderr == *"away"* ]]
	done_ timeout 10 backup-run -F qcow2 d0.img t1.qcow2
	done_ timeout 10 backup-run --sync full --bitmap b --bitmap-mode on-success -F qcow2 d0.img t2.qcow2
	done_ timeout 10 backup-run --sync auto --bitmap z -F qcow2 d0.img t3.qcow2
	ok timeout 10 bitmap-remove d0.img b
	rm -f ./t?.qcow2
}

@test "anything in the place of a record blocks only what depends on it" {
	local how
	for how in 'mkdir $r' 'mkfifo $r' 'ln -s /dev/zero $r' 'truncate -s 2G $r' 'echo text > $r' \
		'python3 -c "import socket; socket.socket(socket.AF_UNIX).bind(\"$r\")"'; do
		rm -rf d0.img*
		disk d0.img
		r=d0.img.bitmaps.commit
		eval "$how"
		not_blocked "d0.img.bitmaps.commit' is not the record of a transaction"
	done
}

@test "a record that others could have written blocks only what depends on it" {
	[ "$(id -u)" -eq 0 ] || skip "takes root"
	local how
	for how in 'chown 12345' 'chmod 660'; do
		rm -rf d?.img* t t?.qcow2
		interrupted_group 1 . . t
		$how d0.img.bitmaps.commit
		not_blocked "looks like the record of a transaction, but"
		# The sidecar is newer now: nothing puts the older one over it.
		chown 0 d0.img.bitmaps.commit
		chmod 600 d0.img.bitmaps.commit
		refused_like "'$PWD/d0.img.bitmaps' has been replaced since" bitmap-enable d0.img z
		[ ! -e t/t0.qcow2 ]
		mv d0.img.bitmaps.commit away
		ok bitmap-enable d0.img z
	done
}

@test "a record of a stranger is not followed" {
	[ "$(id -u)" -eq 0 ] || skip "takes root"
	interrupted_group 1 . . t
	chown 12345 d0.img.bitmaps.commit
	refused_like "neither you nor the owner of the image owns it" bitmap-enable d0.img b
	chown 0 d0.img.bitmaps.commit
	chmod 666 d0.img.bitmaps.commit
	refused_like "others can write it" bitmap-enable d0.img b
	# The image's own owner may have made it, but moves nobody else's files.
	chmod 600 d0.img.bitmaps.commit
	chown 12345 d0.img.bitmaps.commit d0.img
	refused_like "names a file that its owner does not own" bitmap-enable d0.img b
	[ ! -e t/t0.qcow2 ]
	chown 12345 .d0.img.bitmaps.* d0.img.bitmaps t/.t0.qcow2.* .d1.img.bitmaps.* d1.img.bitmaps t/.t1.qcow2.*
	ok bitmap-enable d0.img b
	completed_group . . t
}

@test "a directory that cannot be synced: done, and not known to be durable" {
	disk a.img
	ok bitmap-enable a.img b
	inject fsync EIO 2 bitmap-clear a.img b
	[ "$status" -eq 0 ]
	assert_output '{"return": {}}'
	[[ $stderr == *"the change is done, and may be lost if the machine loses power now"* ]]
	[ "$(dirty a.img)" -eq 0 ]
}

# unsynced WHEN CMD...: the WHENth sync of the command fails, of a directory after the renames: it is done, and says so.
unsynced() {
	local when=$1
	shift
	inject fsync EIO "$when" "$@"
	[ "$status" -eq 0 ]
	[[ $output != *BLOCK_JOB_ERROR* ]]
	[[ $stderr == *"the change is done, "@("and may be lost if the machine loses power now"|"but is not known to be durable; the next command that changes the image will make it so")* ]] ||
		fail "not said: $stderr"
	[[ $stderr != *unchanged* ]]
}

# syncs CMD...: how many fsyncs it makes.
syncs() {
	strace -qq -f -o trace -e trace=fsync "$@" > syncs.out 2> syncs.err
	grep -c '^[0-9 ]*fsync(' trace
}

@test "a directory that cannot be synced: one verdict of all commands, also with --quiet" {
	local n
	disk a.img
	n=$(syncs backup-run -F qcow2 a.img n.qcow2)
	unsynced "$n" backup-run -q -F qcow2 a.img full.qcow2
	[ -e full.qcow2 ]
	[ "$(event_names)" = BLOCK_JOB_COMPLETED ]
	unsynced "$(syncs image-create -f qcow2 n1 1M)" image-create -q -f qcow2 c.qcow2 1M
	[ -e c.qcow2 ]
	unsynced "$(syncs chain-restore full.qcow2 n2)" chain-restore -q full.qcow2 r.img
	cmp r.img a.img
	unsynced "$(syncs bitmap-enable a.img b)" bitmap-clear -q a.img b
	[ "$(dirty a.img)" -eq 0 ]
}

@test "a directory that cannot be synced: an incremental backup is done, and nothing is lost" {
	local n last made=0 recorded=0
	disk a.img
	last=$(syncs backup-run --sync incremental --bitmap b -F qcow2 --backing none a.img n.qcow2)
	for ((n = 1; n <= last; n++)); do
		rm -f t.qcow2 a.img.bitmaps.commit
		ok bitmap-mark a.img b 0 64K
		inject fsync EIO "$n" backup-run -q --sync incremental --bitmap b -F qcow2 --backing none a.img t.qcow2
		if [ -e t.qcow2 ]; then
			made=$((made + 1))
			[ "$status" -eq 0 ]
			[ "$(event_names)" = BLOCK_JOB_COMPLETED ]
			[ "$(dirty a.img)" -eq 0 ]
			[ -e a.img.bitmaps.commit ] || continue
			[[ $stderr == *"the change is done, but is not known to be durable"* ]]
			recorded=$((recorded + 1))
			refused_like "was interrupted after its commit; it has been completed now" \
				backup-run -q --overwrite --sync incremental --bitmap b -F qcow2 --backing none a.img t.qcow2
			[ ! -e a.img.bitmaps.commit ]
		else
			[ "$status" -eq 1 ]
			[ "$(dirty a.img)" -eq 65536 ]
		fi
	done
	[ $made -ge 2 ]
	[ $recorded -ge 2 ]
}

@test "a target that cannot be put in place after the decision: the message says who completes it" {
	interrupted_group 1 . . t
	bitmap-enable -q d0.img b
	completed_group . . t
	rm -r t/*
	ok bitmap-mark d0.img b 0 256K
	inject renameat2 EIO 2 txn-apply -q --drive d0=d0.img --drive d1=d1.img group.json
	[ "$status" -eq 1 ]
	[[ $stderr == *"the transaction is decided, and the next command that changes the image will complete it"* ]]
	[[ $stderr == *"the backup is decided: the next command that changes the image will complete it"* ]]
	[[ $stderr != *unchanged* ]]
}

@test "a backup that was decided and is not in place is no success, and is completed" {
	disk a.img
	local n failed=0
	# Whichever sync fails: never a success that lacks something, never bits lost.
	for n in {1..12}; do
		rm -f t.qcow2 restored.img
		ok bitmap-mark a.img b 0 256K
		inject fsync EIO "$n" backup-run --sync incremental --bitmap b -F qcow2 a.img t.qcow2
		[ "$status" -eq 0 ] || failed=$((failed + 1))
		bitmap-enable -q a.img b
		if [ -e t.qcow2 ]; then
			qemu-img check -q t.qcow2
			[ "$(dirty a.img)" -eq 0 ]
		else
			[ "$(dirty a.img)" -eq 262144 ]
		fi
	done
	[ $failed -gt 4 ]
}

@test "names of images that leave no room for the record's" {
	local name
	name=$(printf 'n%.0s' {1..235}).img
	head -c 2M /dev/urandom > "$name"
	done_ backup-run --sync auto --bitmap b -F qcow2 "$name" t0.qcow2
	done_ backup-run --sync auto --bitmap b -F qcow2 "$name" t1.qcow2
	done_ bitmap-list "$name"
	[ "$(find . -name '.tidemark-*' | wc -l)" -eq 0 ]
}

@test "images without a place for bitmaps get no record in the current directory" {
	head -c 2M /dev/urandom > d.img
	qemu-img create -q -f raw e.img 2M
	local loop
	loop=$(losetup -f --show e.img) || skip "loop devices cannot be used here"
	loops+=("$loop")
	cat > two.json <<- J
		{"execute": "transaction", "arguments": {"properties": {"completion-mode": "grouped"}, "actions": [
		 {"type": "drive-backup", "data": {"device": "d", "sync": "full", "format": "qcow2", "target": "$PWD/t0.qcow2"}},
		 {"type": "drive-backup", "data": {"device": "e", "sync": "full", "format": "qcow2", "target": "$PWD/t1.qcow2"}}]}}
	J
	mkdir cwd
	cd cwd
	done_ txn-apply --drive "d=$PWD/../d.img" --drive "e=$loop" ../two.json
	inject renameat2 KILL 1 txn-apply --drive "e=$loop" --drive "d=$PWD/../d.img" ../two.json
	[ -z "$(ls -A)" ]
}

@test "a second transaction does not hide the record of the first" {
	disk a.img
	local n f # `run` has an i of its own
	# Somebody's full backups of the same disk, interrupted one after the other: each keeps its own record.
	head -c 1M /dev/zero > z.img
	for n in 1 2; do
		cat > two.json <<- J
			{"execute": "transaction", "arguments": {"properties": {"completion-mode": "grouped"}, "actions": [
			 {"type": "drive-backup", "data": {"device": "a", "sync": "full", "format": "qcow2", "target": "$PWD/a$n.qcow2"}},
			 {"type": "drive-backup", "data": {"device": "z", "sync": "full", "format": "qcow2", "target": "$PWD/z$n.qcow2"}}]}}
		J
		inject renameat2 KILL 1 txn-apply --drive a=a.img --drive z=z.img two.json
		[ "$status" -eq 137 ]
		# The first one cannot be completed by the second.
		[ $n -eq 2 ] || for f in .a1.qcow2.*; do mv "$f" "kept$f"; done
	done
	[ -f a.img.bitmaps.commit ] && [ -f a.img.bitmaps.commit-2 ]
	for f in kept*; do mv "$f" "${f#kept}"; done
	ok bitmap-enable a.img b
	for n in 1 2; do
		[ -e a$n.qcow2 ] && [ -e z$n.qcow2 ]
	done
}

@test "another file system in the place of the record's directory" {
	mkdir a
	mount -t tmpfs none a || skip "a file system cannot be mounted here"
	mounts+=("$PWD/a")
	interrupted_group 1 a b t
	mkdir keep
	mount --bind a keep
	umount a
	mount -t tmpfs none a # its root has the same inode number
	refused_like "cannot be reached" bitmap-mark b/d1.img b 1M 64K
	umount a
	mount --bind keep a
	umount keep
	mounts=("$PWD/a")
	completed_group a b t
}

@test "a sidecar that was changed after its transaction had been given up is kept" {
	mkdir out
	interrupted_group 1 a b t
	mv a out/a
	refused_like "cannot be reached" bitmap-mark b/d1.img b 1M 64K
	mv b/d1.img.bitmaps.commit given-up
	ok bitmap-mark b/d1.img b 1M 64K
	mv out/a a
	refused_like "'$PWD/b/d1.img.bitmaps' has been replaced since" bitmap-enable a/d0.img b
	[ "$(dirty b/d1.img)" -eq 327680 ]
}

@test "a running transaction is not completed by another program" {
	mkdir a b t
	disk a/d0.img
	disk b/d1.img
	cat > group.json <<- J
		{"execute": "transaction", "arguments": {"properties": {"completion-mode": "grouped"}, "actions": [
		 {"type": "drive-backup", "data": {"device": "d0", "sync": "incremental", "bitmap": "b", "format": "qcow2",
		  "target": "$PWD/t/t0.qcow2"}},
		 {"type": "drive-backup", "data": {"device": "d1", "sync": "incremental", "bitmap": "b", "format": "qcow2",
		  "target": "$PWD/t/t1.qcow2"}}]}}
	J
	strace -qq -f -o /dev/null -e trace=renameat2 -e inject=renameat2:delay_enter=2000000:when=1 \
		txn-apply -q --drive d0=a/d0.img --drive d1=b/d1.img group.json > txn.out 3>&- &
	bg_pids+=("$!")
	while [ ! -e a/d0.img.bitmaps.commit ]; do sleep 0.05; done
	cp -a b copy # with the pointer to the record
	bitmap-mark -q copy/d1.img b 1M 64K || true
	wait "${bg_pids[0]}"
	[[ $(cat txn.out) != *error* ]]
	completed_group a b t
}

@test "a record of the image's owner changes no bytes of another's file" {
	[ "$(id -u)" -eq 0 ] || skip "takes root"
	mkdir hers
	truncate -s 1M hers/d.img
	printf 'user:x:1000:1000' > precious
	python3 - "$PWD" <<- 'P'
		import os, sys
		def crc(data):
		    c = 0xffffffff
		    for b in data:
		        c ^= b
		        for _ in range(8):
		            c = c >> 1 ^ (0x82f63b78 if c & 1 else 0)
		    return c ^ 0xffffffff
		s = os.stat("precious")
		text = (f"tidemark commit 2\ntoken 4d2\nswitch 7 4 31303030 30303030 0 0 0 1 {s.st_size:x} "
		        f"{s.st_mtime_ns // 10**9:x} {s.st_mtime_ns % 10**9:x} {sys.argv[1]}/precious ../precious\n").encode()
		with open("hers/d.img.bitmaps.commit", "wb", opener=lambda p, f: os.open(p, f, 0o600)) as f:
		    f.write(text + b"crc %08x\n" % crc(text))
	P
	chown -R 12345 hers
	attempt bitmap-add -f raw hers/d.img b
	[ "$(cat precious)" = user:x:1000:1000 ]
}

@test "an image and its data file get their names together or not at all" {
	head -c 1M /dev/urandom > src.img
	done_ backup-run -q -F qcow2 src.img base.qcow2
	local call when
	for call in linkat:1 linkat:2 fsync:1 fsync:2 fsync:3 fsync:4; do
		rm -f r.qcow2 r.data
		when=${call#*:}
		inject "${call%:*}" EIO "$when" chain-restore -q -F qcow2 -o data_file=r.data base.qcow2 r.qcow2
		if [ "$status" -eq 0 ]; then
			qemu-img compare -q src.img r.qcow2
		else
			[ ! -e r.qcow2 ] || qemu-img compare -q src.img r.qcow2
			[ -e r.qcow2 ] || [ ! -e r.data ]
		fi
	done
}

@test "a restore with a data file that died between two names is completed by the same command" {
	head -c 1M /dev/urandom > src.img
	done_ backup-run -q -F qcow2 src.img base.qcow2
	local call restore=(chain-restore -q -F qcow2 -o data_file=r.data base.qcow2 r.qcow2)
	for call in renameat2:1 renameat2:2 unlink:1; do
		inject "${call%:*}" KILL "${call#*:}" "${restore[@]}"
		[ "$status" -eq 137 ]
		[ -f r.qcow2.bitmaps.commit ]
		refused_like 'was interrupted after its commit' chain-restore --dry-run "${restore[@]:1}"
		[ -f r.qcow2.bitmaps.commit ]
		refused_like 'has been completed now, and this request was not run' "${restore[@]}"
		qemu-img compare -q src.img r.qcow2
		[ ! -e r.qcow2.bitmaps.commit ]
		rm -f r.qcow2 r.data .r.*
		done_ "${restore[@]}"
		qemu-img compare -q src.img r.qcow2
		rm r.qcow2 r.data
	done
}

@test "a new image with a data file that died between two names" {
	inject renameat2 KILL 2 image-create -q -f qcow2 -o data_file=n.data n.qcow2 1M
	[ "$status" -eq 137 ]
	[ ! -e n.qcow2 ]
	refused_like 'has been completed now' image-create -q -f qcow2 -o data_file=n.data n.qcow2 1M
	qemu-img check -q n.qcow2
	done_ image-create -q -f qcow2 n.qcow2 1M
}

@test "a restore that replaces an image, and died between two names, is completed for its bitmaps" {
	disk src.img
	done_ backup-run -q -F qcow2 src.img base.qcow2
	qemu-img create -q -f qcow2 r.qcow2 1M
	ok bitmap-add r.qcow2 old
	inject rename KILL 1 chain-restore -q --overwrite -F qcow2 -o data_file=r.data base.qcow2 r.qcow2
	[ "$status" -eq 137 ]
	# The bitmap is one of the image that was replaced: nothing recorded what the restore wrote.
	refused_like 'inconsistent|cannot be used' bitmap-clear r.qcow2 old
	qemu-img compare -q src.img r.qcow2
	ok bitmap-remove r.qcow2 old
	ok bitmap-add r.qcow2 new
	done_ image-write -q --pattern 1 r.qcow2 0 1
	[ "$(bitmap-list -q --output=json r.qcow2 | jq '.return[0].count')" -eq 65536 ]
	[ -z "$(find . -name '*.commit*')" ]
}

@test "a restore whose image cannot get its name is undone, or waits" {
	head -c 1M /dev/urandom > src.img
	done_ backup-run -q -F qcow2 src.img base.qcow2
	local restore=(chain-restore -q -F qcow2 -o data_file=r.data base.qcow2 r.qcow2)
	inject renameat2 EIO 2 "${restore[@]}"
	[ "$status" -eq 1 ]
	[ "$(ls -A)" = "$(printf 'base.qcow2\nsrc.img')" ]
	# Not even the data file's name can be taken back.
	inject renameat2 EIO 2+ "${restore[@]}"
	[ "$status" -eq 3 ]
	[[ $output$stderr == *"is decided, and could not be completed yet"* ]]
	refused_like 'has been completed now' "${restore[@]}"
	qemu-img compare -q src.img r.qcow2
}

@test "a restore that died, and whose file was removed since, says what is missing" {
	head -c 1M /dev/urandom > src.img
	done_ backup-run -q -F qcow2 src.img base.qcow2
	local restore=(chain-restore -q -F qcow2 -o data_file=r.data base.qcow2 r.qcow2)
	inject renameat2 KILL 2 "${restore[@]}"
	rm r.data
	refused_like "its file for '.*r.data' is missing" "${restore[@]}"
	[[ $stderr == *"move '"*"r.qcow2.bitmaps.commit' away"* ]]
	mv r.qcow2.bitmaps.commit away
	done_ "${restore[@]}"
	qemu-img compare -q src.img r.qcow2
}

@test "a stranger's record beside a new name does not forbid the name" {
	head -c 1M /dev/urandom > src.img
	echo nonsense > t.qcow2.bitmaps.commit
	done_ backup-run -q -F qcow2 src.img t.qcow2
	[ "$(cat t.qcow2.bitmaps.commit)" = nonsense ]
	rm t.qcow2 t.qcow2.bitmaps.commit
	done_ backup-run -q -F qcow2 src.img base.qcow2
	inject renameat2 KILL 1 chain-restore -q -F qcow2 -o data_file=r.data base.qcow2 r.qcow2
	[ "$status" -eq 137 ]
	chmod 666 r.qcow2.bitmaps.commit
	done_ chain-restore -q -F raw base.qcow2 r.qcow2
	[ ! -e r.data ]
}

@test "two restores of one transaction: both have their names after a death, or neither" {
	head -c 1M /dev/urandom > src.img
	done_ backup-run -q -F qcow2 src.img full.qcow2
	txn_prog 'struct tide_drive drives[] = {{.id = "f", .path = "full.qcow2"}};
		struct tide_chain_restore one = {.device = "f", .target = "one.raw"};
		struct tide_chain_restore two = {.device = "f", .target = "two.raw"};' \
		'tide_txn_chain_restore(txn, &one, NULL) || tide_txn_chain_restore(txn, &two, NULL)'
	local n name
	for n in 1 2; do
		for name in one two; do
			inject renameat2 KILL "$n" ./prog
			[ "$status" -eq 137 ]
			refused_like 'has been completed now' chain-restore -q full.qcow2 "$name.raw"
			cmp src.img one.raw
			cmp src.img two.raw
			rm one.raw two.raw
			# A pointer that leads nowhere any more forbids nothing.
			done_ chain-restore -q full.qcow2 one.raw
			done_ chain-restore -q full.qcow2 two.raw
			rm one.raw two.raw
			[ -z "$(find . -name '*.commit*')" ]
		done
	done
}

@test "the first bitmap of an image after a recovery" {
	head -c 1M /dev/urandom > n.img
	inject renameat2 KILL 1 backup-run -q -F qcow2 -o data_file=r.data n.img r.qcow2
	[ "$status" -eq 137 ]
	ok bitmap-add -f raw n.img b
	qemu-img compare -q n.img r.qcow2
}

# A group of two images with bitmaps inside them, a.qcow2 and b.qcow2, dies at the first rename after its decision.
switches() {
	local n
	rm -f ./*.qcow2*
	for n in a b; do
		qemu-img create -q -f qcow2 $n.qcow2 8M
		ok bitmap-add --store image $n.qcow2 m
		ok image-write --pattern 1 $n.qcow2 0 64K
	done
	ok bitmap-add a.qcow2 s
	cat > g.json <<- J
		{"execute": "transaction", "arguments": {"properties": {"completion-mode": "grouped"}, "actions": [
		 {"type": "drive-backup", "data": {"device": "a", "sync": "incremental", "bitmap": "m", "target": "$PWD/ta.qcow2"}},
		 {"type": "drive-backup", "data": {"device": "b", "sync": "incremental", "bitmap": "m", "target": "$PWD/tb.qcow2"}}]}}
	J
	inject renameat2 KILL 1 txn-apply --drive a=a.qcow2 --drive b=b.qcow2 g.json
	[ "$status" -eq 137 ]
}

@test "another program changes an image between a death and the recovery" {
	local by
	for by in a b look; do
		switches
		qemu-io -f qcow2 -c 'write -P 9 1M 64K' a.qcow2
		# The program recorded its write in the bitmap inside the image, not in that of the sidecar.
		bitmap a.qcow2 s '.inconsistent'
		[ $by = look ] || ok bitmap-add $by.qcow2 z
		refused_like 'No such bitmap|not found' bitmap-clear a.qcow2 none
		if [ $by != a ]; then
			[[ $stderr == *"those in its sidecar are inconsistent"* ]]
		fi
		[ ! -e a.qcow2.bitmaps.commit ]
		bitmap a.qcow2 s '.inconsistent'
		bitmap a.qcow2 m '.count == 131072 and (.inconsistent | not)'
		refused_like 'inconsistent' backup-run --sync incremental --bitmap s -F qcow2 a.qcow2 lost.qcow2
		[ -e ta.qcow2 ]
		[ -e tb.qcow2 ]
	done
}

@test "a switch of an image that is in use waits in the record" {
	switches
	qemu-io -r -c 'sleep 100000' b.qcow2 3>&- > /dev/null &
	bg_pids+=("$!")
	until [ -n "$(find "/proc/$!/fd" -lname '*b.qcow2')" ]; do sleep 0.05; done
	sleep 0.2 # it locks right after it opens
	ok bitmap-mark a.qcow2 s 4M 64K
	ok bitmap-mark a.qcow2 s 5M 64K
	kill -KILL "${bg_pids[0]}"
	wait "${bg_pids[0]}" || true
	bg_pids=()
	ok bitmap-enable b.qcow2 m
	bitmap b.qcow2 m '.count == 0'
}

@test "a switch that fails is not reported as done" {
	local n failed=0
	for n in {1..14}; do
		rm -f q.qcow2*
		qemu-img create -q -f qcow2 q.qcow2 8M
		ok bitmap-add q.qcow2 s
		ok bitmap-add --store image --disabled q.qcow2 m
		inject pwrite64 EIO "$n" bitmap-enable q.qcow2 m
		if [ "$status" -eq 0 ]; then
			ok bitmap-disable q.qcow2 s
			bitmap q.qcow2 m '.recording'
		elif [[ $stderr == *"switch to the new bitmaps"* ]]; then
			failed=$((failed + 1))
		fi
	done
	[ $failed -gt 0 ]
}

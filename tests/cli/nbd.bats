#!/usr/bin/env bats
# Images that NBD servers export: as sources, targets and nodes, with real servers.
load helper

# export_ FORMAT IMAGE [OPTION...]: qemu-nbd serves it as $uri until the test ends.
export_() {
	local format=$1 image=$2
	shift 2
	qemu-nbd --fork --pid-file="$image.pid" -t -e 8 -f "$format" -k "$PWD/$image.sock" "$@" "$image" 3>&-
	uri="nbd+unix:///?socket=$PWD/$image.sock"
}

# kit ARGS...: nbdkit serves as $uri.
kit() {
	command -v nbdkit > /dev/null || skip 'no nbdkit'
	nbdkit -f -U "$PWD/kit.sock" "$@" 3>&- 2> kit.log &
	kit=$!
	bg_pids+=("$kit")
	for _ in {1..250}; do [ ! -S kit.sock ] || break; sleep 0.02; done
	uri="nbd+unix:///?socket=$PWD/kit.sock"
}

# An odd size, data, and holes.
make_disk() {
	truncate -s 9437696 "$1"
	head -c 1500000 /dev/urandom > part
	dd if=part of="$1" conv=notrunc status=none
	dd if=part of="$1" bs=64K seek=5M oflag=seek_bytes conv=notrunc status=none
}

@test "a backup of an export, and a restore into one" {
	make_disk disk.img
	export_ raw disk.img -r
	done_ image-info "$uri"
	assert_line 'disk size: unavailable'
	done_ image-info --output=json "$uri"
	jq -e '.return | has("actual-size") | not' <<< "$output"
	done_ backup-run "$uri" full.qcow2 -F qcow2
	run -0 qemu-img compare -f qcow2 -F raw full.qcow2 disk.img
	done_ backup-run "$uri" copy.img
	cmp copy.img disk.img
	refused_like 'read-only' image-write --pattern 1 "$uri" 0 512
	head -c 9437696 /dev/urandom > other.img
	export_ raw other.img
	refused_like 'cannot be created' chain-restore full.qcow2 "$uri"
	ok chain-restore --in-place full.qcow2 "$uri"
	cmp other.img disk.img
	attempt chain-verify full.qcow2 --against "$uri"
	assert_equal "$status" 0
}

@test "a target is an export that is there" {
	make_disk disk.img
	head -c 9437696 /dev/urandom > target.img
	export_ raw target.img
	refused_like 'cannot be created' backup-run disk.img "$uri"
	[[ $stderr == *'--overwrite'*'--mode existing'* ]]
	refused_like 'qcow2 image in it cannot be used' backup-run --mode existing -F qcow2 disk.img "$uri"
	done_ backup-run --mode existing -F raw disk.img "$uri"
	cmp target.img disk.img
	head -c 9437696 /dev/urandom > target.img
	done_ backup-run --overwrite disk.img "$uri"
	cmp target.img disk.img
	attempt image-info -f nbd disk.img
	assert_equal "$status" 1
	[[ $stderr = *'is not the URI'* ]]
}

@test "a node whose bitmaps are here" {
	make_disk disk.img
	export_ raw disk.img
	refused_like 'no sidecar for others' bitmap-add "$uri" b
	ok bitmap-add --dry-run --sidecar side "$uri" b
	[ ! -e side ] && [ ! -e side.lock ]
	ok bitmap-add --sidecar side "$uri" b
	done_ backup-run --allow-changing-source "$uri" full.qcow2 -F qcow2
	ok image-write --sidecar side --pattern 9 "$uri" 100 70000
	ok image-write --sidecar side --zero "$uri" 6000000 1000
	done_ backup-run --allow-changing-source --sidecar side --sync incremental --bitmap b -F qcow2 --backing full.qcow2 "$uri" inc.qcow2
	run -0 qemu-img compare -f qcow2 -F raw inc.qcow2 disk.img
	ok bitmap-rescan --sidecar side --against full.qcow2 "$uri" b
	done_ bitmap-dump --sidecar side --output=json "$uri" b
	assert_equal "$(jq -c '[.return[]? // .[] | select(.dirty) | [.start, .length]]' <<< "$output")" \
		'[[0,131072],[5963776,65536]]'
}

@test "an export whose bitmaps are here as a backup's target: none is passed by" {
	make_disk disk.img
	truncate -s "$(stat -c %s disk.img)" target.img
	export_ raw target.img
	ok bitmap-add --sidecar side "$uri" b
	backup_to() {
		attempt txn-apply --drive d0=disk.img --drive "t=$uri,sidecar=side" - \
			<<< '{"execute": "blockdev-backup", "arguments": {"device": "d0", "target": "t", "sync": "full"}}'
	}
	backup_to
	assert_equal "$status" 1
	[[ $output == *"Bitmap 'b' of '$uri' would not record this write"* ]]
	cmp -n 9437696 target.img /dev/zero
	ok bitmap-disable --sidecar side "$uri" b
	backup_to
	assert_equal "$status" 0
	cmp target.img disk.img
	done_ bitmap-list --sidecar side --output=json "$uri"
	jq -e '.return[0] | .count == 0 and .recording == false and .inconsistent != true' <<< "$output"
}

@test "a job that died is rolled back by the next command" {
	make_disk disk.img
	export_ raw disk.img
	ok bitmap-add --sidecar side "$uri" b
	ok image-write --sidecar side --pattern 9 "$uri" 0 4M
	backup-run --allow-changing-source --sidecar side --speed 64K --sync incremental --bitmap b "$uri" copy.img > job.out 2>&1 3>&- &
	bg_pids+=($!)
	for _ in {1..500}; do
		bitmap-list --sidecar side --output=json "$uri" > busy.json
		! jq -e '.return[0].busy' busy.json > /dev/null || break
		sleep 0.02
	done
	jq -e '.return[0].busy' busy.json
	refused_like 'currently in use by another operation' bitmap-clear --sidecar side "$uri" b
	kill -KILL "${bg_pids[0]}"
	wait "${bg_pids[0]}" || true
	ok bitmap-disable --sidecar side "$uri" b
	done_ bitmap-list --sidecar side --output=json "$uri"
	jq -e '.return[0] | .count == 4194304 and (.busy | not)' <<< "$output"
}

@test "dirty bitmaps that QEMU exports" {
	qemu-img create -q -f qcow2 disk.qcow2 16M
	qemu-img bitmap --add -g 4K -f qcow2 disk.qcow2 bm
	qemu-io -f qcow2 -c 'write -q -P 5 1M 4K' -c 'write -q -P 6 8M 128K' disk.qcow2
	export_ qcow2 disk.qcow2 -r -B bm
	truncate -s 16M here.img
	ok bitmap-import here.img x --from "$uri#bm"
	done_ bitmap-list --output=json here.img
	jq -e '.return[0] | .count == 135168 and .granularity == 4096' <<< "$output"
	refused "Dirty bitmap 'no' not found" bitmap-import here.img y --from "$uri#no"
	[[ $stderr = *"the server exports 'bm'"* ]]
	done_ bitmap-list --output=json "$uri"
	jq -e '.return[0] | .name == "bm" and .count == 135168' <<< "$output"
	refused "Bitmap 'bm' is readonly and cannot be modified" bitmap-clear "$uri" bm
	refused "Bitmap 'bm' is readonly and cannot be modified" backup-run --sync incremental --bitmap bm "$uri" i.img
	done_ backup-run --sync bitmap --bitmap-mode never --bitmap bm -F qcow2 "$uri" inc.qcow2
	run -0 qemu-img compare -f qcow2 -F qcow2 inc.qcow2 disk.qcow2
	attempt image-info "$uri#bm"
	assert_equal "$status" 1
	[[ $stderr = *"A '#' begins the name of a bitmap"* ]]
}

# A pull backup of QEMU: an export of the disk as it was at one point, which describes and reads only what is in the
# bitmap.
@test "the bitmap of an export that describes only what the bitmap has" {
	command -v qemu-storage-daemon > /dev/null || skip 'no qemu-storage-daemon'
	local i writes=() daemon
	qemu-img create -q -f qcow2 disk.qcow2 64M
	qemu-io -f qcow2 -c 'write -q -P 1 0 64M' disk.qcow2
	done_ backup-run -F qcow2 disk.qcow2 full.qcow2
	qemu-img bitmap --add -f qcow2 disk.qcow2 bm
	for ((i = 0; i < 60; i++)); do writes+=(-c "write -q -P $((i + 2)) ${i}M 64K"); done
	qemu-io -f qcow2 "${writes[@]}" -c 'write -q -z 60M 128K' disk.qcow2
	truncate -s 64M scratch.img
	qemu-storage-daemon --pidfile daemon.pid \
		--blockdev driver=qcow2,node-name=disk,file.driver=file,file.filename=disk.qcow2 \
		--blockdev driver=file,node-name=scratch,filename=scratch.img \
		--blockdev driver=copy-before-write,node-name=cbw,file=disk,target=scratch,bitmap.node=disk,bitmap.name=bm \
		--blockdev driver=snapshot-access,node-name=point,file=cbw \
		--nbd-server addr.type=unix,addr.path=daemon.sock \
		--export type=nbd,id=e,node-name=point,name=x,bitmaps.0.node=disk,bitmaps.0.name=bm 3>&- 2> daemon.log &
	daemon=$!
	bg_pids+=("$daemon")
	eventually test -S daemon.sock
	uri="nbd+unix:///x?socket=$PWD/daemon.sock"
	run -1 nbdinfo --map=base:allocation "$uri"
	bitmap "$uri" bm '.count == 4063232'
	assert_equal "$(dirty "$uri" bm | cut -d ' ' -f 1,2)" '0+65536 1048576+65536'
	done_ image-info "$uri"
	truncate -s 64M here.img
	ok bitmap-import here.img x --from "$uri#bm"
	bitmap here.img x '.count == 4063232'
	done_ backup-run --sync bitmap --bitmap bm --bitmap-mode never -F qcow2 --backing full.qcow2 "$uri" inc.qcow2
	# The rest of the disk cannot be read, and is not taken for zeroes.
	attempt backup-run "$uri" all.img
	assert_equal "$status" 1
	[ ! -e all.img ]
	kill "$daemon"
	wait "$daemon" || true
	same qcow2 inc.qcow2 qcow2 disk.qcow2
	run -0 qemu-img map --output=json inc.qcow2
	jq -e 'any(.start == 62914560 and .zero and .depth == 0)' <<< "$output"
}

@test "servers with blocks, without zeroes, flush or block status" {
	make_disk disk.img
	kit --filter=blocksize-policy --filter=nozero --filter=noextents memory 9437696 \
		blocksize-minimum=512 blocksize-preferred=64K blocksize-maximum=1M blocksize-error-policy=error
	done_ backup-run --mode existing disk.img "$uri"
	done_ backup-run --allow-changing-source "$uri" copy.img
	cmp copy.img disk.img
	ok image-write --pattern 7 "$uri" 1234567 8765
	ok image-write --zero "$uri" 2000001 5001
	qemu-io -f raw -c 'write -q -P 7 1234567 8765' -c 'write -q -z 2000001 5001' disk.img
	done_ backup-run --allow-changing-source "$uri" copy2.img
	cmp copy2.img disk.img
}

@test "an error of the server, and its death, are errors of the job" {
	make_disk disk.img
	kit -r --filter=error file disk.img error-pread=EIO error-pread-rate=100%
	attempt backup-run "$uri" copy.img
	assert_equal "$status" 1
	[ ! -e copy.img ]
	jq -es '.[-1].data.error == "Input/output error"' <<< "$output"
	kill -KILL "$kit"
	rm -f kit.sock
	kit -r --filter=delay file disk.img rdelay=20
	backup-run --speed 512K "$uri" copy.img > job.out 2> job.err 3>&- &
	job=$!
	bg_pids+=("$job")
	sleep 0.3
	kill -KILL "$kit"
	run timeout 20 tail --pid="$job" -f /dev/null
	assert_equal "$status" 0
	grep -q BLOCK_JOB_ERROR job.out
	[ ! -e copy.img ]
}

@test "a job that was stopped goes on with the server's successor" {
	make_disk disk.img
	kit -r file disk.img
	backup-run --speed 4M --on-source-error stop --retry-after 1 "$uri" copy.img > job.out 2> job.err 3>&- &
	job=$!
	bg_pids+=("$job")
	sleep 0.3
	kill -KILL "$kit"
	for _ in {1..500}; do ! grep -q BLOCK_JOB_ERROR job.out || break; sleep 0.02; done
	grep -q '"stop"' job.out
	rm -f kit.sock
	kit -r file disk.img
	run timeout 30 tail --pid="$job" -f /dev/null
	assert_equal "$status" 0
	cmp copy.img disk.img
}

@test "a server that hangs does not hold up a cancel" {
	make_disk disk.img
	kit -r --filter=delay file disk.img rdelay=60
	backup-run "$uri" copy.img > job.out 2> job.err 3>&- &
	job=$!
	bg_pids+=("$job")
	sleep 0.5
	kill -INT "$job"
	run timeout 20 tail --pid="$job" -f /dev/null
	assert_equal "$status" 0
	grep -q BLOCK_JOB_CANCELLED job.out
	[ ! -e copy.img ]
}

@test "TLS, as the URI says" {
	make_disk disk.img
	command -v psktool > /dev/null || skip 'no psktool'
	psktool -u alice -p keys.psk > /dev/null
	kit -r --tls=require --tls-psk=keys.psk file disk.img
	rejected image-info --output=json "$uri"
	done_ backup-run "nbds+unix://alice@/?socket=$PWD/kit.sock&tls-psk-file=$PWD/keys.psk" copy.img
	cmp copy.img disk.img
	qemu-img create -q -f qcow2 -u -b "nbds+unix://alice@/?socket=$PWD/kit.sock&tls-psk-file=$PWD/keys.psk" -F raw over.qcow2 9437696
	rejected backup-run --allow-backing=protocol over.qcow2 copy2.img
}

@test "a backing image behind a URI needs to be allowed" {
	make_disk disk.img
	export_ raw disk.img -r
	qemu-img create -q -f qcow2 -u -b "$uri" -F raw over.qcow2 9437696
	refused_like 'not a plain path' chain-restore over.qcow2 flat.img
	done_ chain-restore --allow-backing=protocol over.qcow2 flat.img
	cmp flat.img disk.img
}

@test "chain-info makes up neither size nor time of an export" {
	make_disk disk.img
	export_ raw disk.img -r
	qemu-img create -q -f qcow2 -u -b "$uri" -F raw over.qcow2 9437696
	done_ chain-info --allow-backing=protocol --output=json over.qcow2
	jq -e '.return.images | (.[1] | .format == "nbd" and ."virtual-size" == 9437696 and
		([has("file-size", "actual-size", "modified")] | any | not)) and
		(.[0] | [has("file-size", "actual-size", "modified")] | all)' <<< "$output"
	done_ chain-info --allow-backing=protocol over.qcow2
	[[ ${lines[2]} =~ ' nbd '.*' -  '+'-'$ ]]
}

# blockdev ARGUMENTS: blockdev-add, then a backup of that node; what became of it is in $output.
blockdev() {
	printf '%s\n' "{\"execute\": \"blockdev-add\", \"arguments\": {\"node-name\": \"n\", $1}}" \
		'{"execute": "drive-backup", "arguments": {"device": "n", "sync": "full", "target": "copy.img", "format": "raw"}}' > requests
	rm -f copy.img
	attempt txn-apply requests
}

@test "blockdev-add of an export, alone and below raw; names with anything in them" {
	local socket server form
	make_disk disk.img
	mkdir 'a b'
	qemu-nbd --fork --pid-file=q.pid -t -r -x 'x/?#%&é' -f raw -k "$PWD/a b/s?#&.sock" disk.img 3>&-
	socket="$PWD/a b/s?#&.sock"
	server='"driver": "nbd", "export": "x/?#%&é", "server": {"type": "unix", "path": "'$socket'"}'
	for form in "$server" '"driver": "raw", "file": {'"$server"'}'; do
		blockdev "$form"
		assert_equal "$status" 0
		cmp copy.img disk.img
	done
	blockdev "\"driver\": \"qcow2\", \"file\": {$server}"
	assert_equal "$status" 1
	[[ $output == *'qcow2 image in it cannot be used'* ]]
	blockdev "${server/&é/}"
	[[ ${lines[0]} == *"does not serve the export 'x/?#%'"* ]]
}

@test "blockdev-add of an export over TCP, and what is refused by name" {
	local unix='"server": {"type": "unix", "path": "/s"}' port=10809 want form row
	make_disk disk.img
	command -v nbdkit > /dev/null || skip 'no nbdkit'
	for ((port = 20000 + $$ % 20000;; port++)); do
		nbdkit -f -r -i ::1 -p $port -P tcp.pid file disk.img 3>&- 2> kit.log &
		kit=$!
		bg_pids+=("$kit")
		until [ -s tcp.pid ] || has_ended "$kit"; do sleep 0.02; done
		[ ! -s tcp.pid ] || break
		grep -q 'in use' kit.log || skip 'no ::1'
	done
	blockdev "\"driver\": \"nbd\", \"server\": {\"type\": \"inet\", \"host\": \"::1\", \"port\": \"$port\"}"
	assert_equal "$status" 0
	cmp copy.img disk.img
	while IFS='~' read -r form want; do
		blockdev "\"driver\": \"nbd\", $form"
		row=$(head -n 1 <<< "$output")
		assert_equal "$(jq -r .error.desc <<< "$row")" "$want"
	done <<- END
		$unix, "tls-creds": "tls0"~The option 'tls-creds' of driver 'nbd' is not supported
		$unix, "reconnect-delay": 3~The option 'reconnect-delay' of driver 'nbd' is not supported
		"server": {"type": "unix", "path": "/s", "abstract": true}~The option 'abstract' of driver 'nbd' is not supported
		"server": {"type": "fd", "str": "3"}~A server of type 'fd' is not supported
		"server": {"type": "unix", "path": "/nosuch"}~Failed to connect to '/nosuch': No such file or directory
		"server": {"type": "inet", "host": "h/x", "port": "1"}~address resolution failed for h/x:1: Name or service not known
		"server": {"type": "inet", "host": "h", "port": "70000"}~address resolution failed for h:70000: Servname not supported for ai_socktype
		$unix, "more": 1~Parameter 'more' is unexpected
	END
}

# log_flushes FLUSH: a server that writes the names of writes and flushes to the file `requests`; FLUSH is a shell command
# that a flush runs, too.
log_flushes() {
	kit eval get_size='echo 1M' pread='head -c $3 /dev/zero' pwrite="cat > /dev/null; echo write >> $here/requests" \
		flush="echo flush >> $here/requests; $1" can_write='exit 0' can_flush='exit 0' can_multi_conn='exit 0' \
		thread_model='echo parallel'
	ok bitmap-add --sidecar b.bitmaps "$uri" b
	rm -f requests
}

# track LINE...: what the helper does with the export.
track() {
	run --separate-stderr "$BUILD/helpers/tracker" "$uri" b.bitmaps < <(printf '%s\n' "$@")
	printf '[%s] %s\n%s\n' "$status" "$output" "$stderr"
	assert_equal "$status" 0
}

@test "a write during a flush needs another flush" {
	log_flushes "[ -e $here/go ] || { : > $here/flushing; while [ ! -e $here/go ]; do sleep 0.02; done; }"
	track 'write 0 4096 1' "begin $here/flushing" 'write 8192 4096 2' "end $here/go"
	assert_equal "$output" ''
	assert_equal "$(paste -sd ' ' requests)" 'write flush write flush'
}

@test "a flush that fails is repeated, one without a change is not sent" {
	log_flushes "[ -e $here/failed ] || { : > $here/failed; echo EIO broken >&2; exit 1; }"
	track 'write 0 4096 1' flush flush flush 'write 0 4096 2'
	assert_equal "$output" "flush: '$uri': The NBD server could not flush at 0: Input/output error"
	assert_equal "$(paste -sd ' ' requests)" 'write flush flush write flush'
}

@test "a server that dies during a flush has lost what was written before" {
	log_flushes ": > $here/flushing; while [ ! -e $here/go ]; do sleep 0.02; done"
	exec 8> >(exec "$BUILD/helpers/tracker" "$uri" b.bitmaps > bg.out 2> bg.err)
	bg=$!
	bg_pids+=("$bg")
	printf '%s\n' 'write 0 4096 1' "begin $here/flushing" >&8
	eventually test -e flushing
	kill -KILL "$kit"
	rm -f kit.sock
	: > go
	kit memory 1M 8>&-
	printf '%s\n' 'end go' flush >&8
	exec 8>&-
	eventually has_ended "$bg"
	# A server that begins again knows nothing of that data, so its success is none.
	assert_equal "$(grep -c '^flush: ' bg.out)" 2
	grep -q '^close: ' bg.out
}

@test "an export that others can write to is not backed up, unless that is allowed" {
	make_disk disk.img
	export_ raw disk.img -x a
	uri="nbd+unix:///a?socket=$PWD/disk.img.sock"
	refused_like "'nbd.unix:.*' can be written while it is backed up" backup-run -F qcow2 "$uri" full.qcow2
	[[ $stderr == *'use --allow-changing-source'* ]]
	refused_like 'can be written while' backup-run --dry-run "$uri" full.img
	assert_equal "$(ls -- *full* 2> /dev/null)" ''
	done_ backup-run --allow-changing-source -F qcow2 "$uri" full.qcow2
	same raw disk.img qcow2 full.qcow2
	# In requests, and where the disk of another process is the base.
	cat > request.json <<- END
		{"execute": "blockdev-add", "arguments": {"driver": "nbd", "node-name": "n", "export": "a",
		 "server": {"type": "unix", "path": "$PWD/disk.img.sock"}}}
		{"execute": "drive-backup", "arguments": {"device": "d", "target": "d.qcow2", "format": "qcow2", "sync": "full"}}
		{"execute": "blockdev-backup", "arguments": {"device": "n", "target": "t", "sync": "full"}}
	END
	truncate -s 9437696 t.img
	attempt txn-apply --drive "d=$uri" --drive t=t.img request.json
	assert_equal "$status" 1
	assert_equal "$(grep -c 'can be written while' <<< "$output")" 2
	attempt txn-apply --allow-changing-source --drive "d=$uri" --drive t=t.img request.json
	assert_equal "$status" 0
	cmp disk.img t.img
	qemu-img create -q -f qcow2 -u -b "$uri" -F raw over.qcow2 9437696
	refused_like 'can be written while' backup-run --allow-backing=protocol -F qcow2 over.qcow2 whole.qcow2
	done_ backup-run --allow-backing=protocol --allow-changing-source -F qcow2 over.qcow2 whole.qcow2
	same raw disk.img qcow2 whole.qcow2
}

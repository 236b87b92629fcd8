#!/usr/bin/env bats
# Jobs of transactions: side by side and grouped, their events and their order, what becomes of the bitmaps, errors and
# policies, cancel.

load helper

UNIT=65536

# disks: d0 is a qcow2 of 16 units over an empty base, with the units 0-5 and 7 its own, all compressed; d1 is raw.  Each
# has a bitmap "b" with the units 1, 3, 5 and 7 dirty.
disks() {
	local u writes=()
	for u in 0 1 2 3 4 5 7; do writes+=(-c "write -q -c -P $((10 + u)) $((u * UNIT)) $UNIT"); done
	qemu-img create -q -f qcow2 base.qcow2 1M
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 d0.qcow2
	qemu-io -f qcow2 "${writes[@]}" d0.qcow2
	qemu-img convert -O raw d0.qcow2 plain.img
	cp -p d0.qcow2 d0.good
	noise 1M 3 > d1.img
	bitmap-add d0.qcow2 b > quiet.json
	bitmap-add d1.img b > quiet.json
	printf '%s 1\n' $UNIT $((3 * UNIT)) $((5 * UNIT)) $((7 * UNIT)) > dirty.ranges
	bitmap-mark --from dirty.ranges d0.qcow2 b > quiet.json
	bitmap-mark --from dirty.ranges d1.img b > quiet.json
	drives=(--drive d0=d0.qcow2 --drive d1=d1.img)
	options=()
}

# spoil UNIT: from now on d0 has a read error there; no write that tracking could have missed.
spoil() {
	break_cluster d0.qcow2 $(($1 * UNIT))
	touch -r d0.good d0.qcow2
}

mend() {
	cp -p d0.good d0.qcow2
}

# units IMAGE: the dirty ones of "b", in one line.
units() {
	bitmap-dump --output=json "$1" b > dump.json
	jq -r --argjson u $UNIT '[.return[] | select(.dirty) | range(.start / $u; (.start + .length) / $u)] | join(" ")' dump.json
}

# job DEVICE TARGET [MEMBER=VALUE...]: an action; the format is qcow2.
job() {
	local m
	printf '{"type": "drive-backup", "data": {"device": "%s", "target": "%s", "format": "qcow2"' "$1" "$2"
	for m in "${@:3}"; do
		case $m in
		speed=*) printf ', "speed": %s' "${m#*=}" ;;
		*) printf ', "%s": "%s"' "${m%%=*}" "${m#*=}" ;;
		esac
	done
	printf '}}'
}

# incremental DEVICE TARGET [MEMBER=VALUE...]
incremental() {
	job "$1" "$2" sync=incremental bitmap=b "${@:3}"
}

# commands MODE ACTION...: into a file, for txn-apply.
commands() {
	local IFS=,
	printf '{"actions": [%s], "properties": {"completion-mode": "%s"}}' "${*:2}" "$1" > commands.json
}

# apply MODE ACTION...
apply() {
	commands "$@"
	attempt txn-apply "${drives[@]}" "${options[@]}" commands.json
}

# ended_as STATUS NAME...: the exit status, and the events in this order, "EVENT device" each.
ended_as() {
	assert_equal "$status" "$1"
	assert_equal "$(jq -rs '[.[] | select(.event) | "\(.event | sub("BLOCK_JOB_"; "")) \(.data.device)"] | join(", ")' \
		<<< "$output")" "$2"
}

# steps: replies, states and ends in $output, in one line.
steps() {
	jq -rs '[.[] | if .event == "JOB_STATUS_CHANGE" then "\(.data.status) \(.data.id)"
		elif .event then "\(.event | sub("BLOCK_JOB_"; "")) \(.data.device)" else (keys | join(" ")) end] | join(", ")' \
		<<< "$output"
}

# of DEVICE JQ: holds for the data of this device's last event.
of() {
	jq -es --arg d "$1" "map(select(.event and .data.device == \$d)) | last.data | $2" <<< "$output" > /dev/null ||
		fail "$1 is not: $2; $output"
}

as_before() {
	assert_equal "$(units d0.qcow2)" '1 3 5 7'
	assert_equal "$(units d1.img)" '1 3 5 7'
	bitmap d0.qcow2 b '.recording and (.busy | not) and (has("inconsistent") | not)'
	bitmap d1.img b '.recording and (.busy | not) and (has("inconsistent") | not)'
}

no_targets() {
	assert_equal "$(find . -name '*t[01]*')" ''
}

# complete: both incremental targets hold what is dirty, both bitmaps are settled.
complete() {
	assert_equal "$(units d0.qcow2)$(units d1.img)" ''
	clean t0 t1
	local u i
	for u in 1 3 5 7; do
		qemu-img dd -f qcow2 -O raw "bs=$UNIT" "skip=$u" count=$((u + 1)) if=t0 of=piece
		cmp -n $UNIT -i 0:$((u * UNIT)) piece plain.img
		qemu-img dd -f qcow2 -O raw "bs=$UNIT" "skip=$u" count=$((u + 1)) if=t1 of=piece
		cmp -n $UNIT -i 0:$((u * UNIT)) piece d1.img
	done
}

# ---- events and their order ----

@test "drive-backup replaces what has the target's name, as in QEMU" {
	disks
	echo old > t.qcow2
	job d1 t.qcow2 sync=full > one
	sed -e 's/{"type"/{"execute"/' -e 's/"data"/"arguments"/' one > request
	done_ txn-apply --drive d1=d1.img request
	clean t.qcow2
	same raw d1.img qcow2 t.qcow2
	truncate -s 1M device.img
	loop device.img
	sed -e "s|t.qcow2|$loop|" -e 's/"qcow2"/"raw"/' request > onto-device
	done_ txn-apply --drive d1=d1.img onto-device
	cmp d1.img "$loop"
	sed "s|t.qcow2|$loop|" request > onto-device
	refused_like 'a new image on a block device must be raw' txn-apply --drive d1=d1.img onto-device
}

@test "individual: both succeed" {
	disks
	apply individual "$(incremental d0 t0)" "$(incremental d1 t1)"
	assert_equal "$status" 0
	of d0 '. == {device: "d0", type: "backup", len: 262144, offset: 262144, speed: 0}'
	of d1 '. == {device: "d1", type: "backup", len: 262144, offset: 262144, speed: 0}'
	assert_equal "$(steps | tr ',' '\n' | sort | tr -d '\n')" ' COMPLETED d0 COMPLETED d1return'
	complete
}

@test "grouped: both succeed, and end in the reverse order of the actions" {
	disks
	local devices
	for devices in 'd0 d1' 'd1 d0'; do
		rm -f t0 t1
		bitmap-mark --from dirty.ranges d0.qcow2 b > quiet.json
		bitmap-mark --from dirty.ranges d1.img b > quiet.json
		# shellcheck disable=SC2086 # words
		set -- $devices
		apply grouped "$(incremental "$1" "t${1#d}")" "$(incremental "$2" "t${2#d}")"
		ended_as 0 "COMPLETED $2, COMPLETED $1"
		assert_equal "$(head -n 1 <<< "$output")" '{"return": {}}'
		complete
	done
}

@test "grouped: the states of the jobs" {
	disks
	options=(--job-events)
	apply grouped "$(incremental d0 t0)" "$(incremental d1 t1)"
	assert_equal "$status" 0
	local s
	s=$(steps)
	s=${s/waiting d1, waiting d0/waiting d0, waiting d1} # as they come
	assert_equal "$s" "created d0, created d1, running d0, running d1, return, waiting d0, waiting d1, pending d1, pending d0, COMPLETED d1, concluded d1, null d1, COMPLETED d0, concluded d0, null d0"
}

@test "one job: the states, when it succeeds, fails, has nothing to do" {
	disks
	options=(--job-events)
	apply individual "$(incremental d0 t0)"
	assert_equal "$(steps)" 'created d0, running d0, return, waiting d0, pending d0, COMPLETED d0, concluded d0, null d0'
	apply individual "$(incremental d0 t1)"
	assert_equal "$(steps)" 'created d0, running d0, waiting d0, pending d0, COMPLETED d0, concluded d0, null d0, return'
	of d0 '.len == 0 and .offset == 0'
	spoil 3
	bitmap-mark --from dirty.ranges d0.qcow2 b > quiet.json
	apply individual "$(incremental d0 t2)"
	assert_equal "$status" 1
	assert_equal "$(steps)" \
		'created d0, running d0, return, ERROR d0, aborting d0, COMPLETED d0, concluded d0, null d0'
}

@test "grouped: a job with nothing to do waits for the other" {
	disks
	ok bitmap-clear d0.qcow2 b
	apply grouped "$(incremental d0 t0)" "$(incremental d1 t1)"
	ended_as 0 'COMPLETED d1, COMPLETED d0'
	of d0 '.len == 0 and .offset == 0'
	of d1 '.len == 262144'
	clean t0 t1
	spoil 3
	bitmap-mark --from dirty.ranges d0.qcow2 b > quiet.json
	rm t0 t1
	apply grouped "$(incremental d0 t0)" "$(incremental d1 t1)"
	ended_as 1 'ERROR d0, CANCELLED d1, COMPLETED d0'
	no_targets
}

# ---- read errors ----

@test "a read error in the first, a middle and the last piece; individual: the other job succeeds, status 3" {
	disks
	local u
	for u in 1 3 7; do
		spoil $u
		apply individual "$(incremental d0 t0)" "$(incremental d1 t1)"
		assert_equal "$status" 3
		of d0 '.len == 262144 and .offset < .len and .error == "Input/output error"'
		of d1 '. == {device: "d1", type: "backup", len: 262144, offset: 262144, speed: 0}'
		event BLOCK_JOB_ERROR '{"device": "d0", "operation": "read", "action": "report"}'
		assert_equal "$(units d0.qcow2)" '1 3 5 7'
		assert_equal "$(units d1.img)" ''
		[ ! -e t0 ]
		clean t1
		mend
		rm t1
		bitmap-mark --from dirty.ranges d1.img b > quiet.json
	done
	apply individual "$(incremental d0 t0)" "$(incremental d1 t1)"
	assert_equal "$status" 0
	complete
}

@test "a read error in the first, a middle and the last piece; grouped: nothing has happened, status 1" {
	disks
	local u
	for u in 1 3 7; do
		spoil $u
		apply grouped "$(incremental d1 t1)" "$(incremental d0 t0)"
		ended_as 1 'ERROR d0, COMPLETED d0, CANCELLED d1'
		of d0 '.len == 262144 and .offset < .len and .error == "Input/output error"'
		of d1 '.len == 262144 and .offset <= .len and (has("error") | not)'
		as_before
		no_targets
		apply grouped "$(incremental d0 t0)" "$(incremental d1 t1)"
		ended_as 1 'ERROR d0, CANCELLED d1, COMPLETED d0'
		as_before
		no_targets
		mend
	done
	apply grouped "$(incremental d0 t0)" "$(incremental d1 t1)"
	assert_equal "$status" 0
	complete
}

@test "grouped: what stood under a target's name stays when the group fails" {
	disks
	spoil 3
	echo precious > t0
	echo dear > t1
	apply grouped "$(incremental d0 t0)" "$(incremental d1 t1)"
	assert_equal "$status" 1
	assert_equal "$(cat t0 t1)" $'precious\ndear'
	as_before
}

@test "both jobs fail: status 1 in either mode" {
	disks
	cp -p d0.good e0.qcow2
	bitmap-add --ignore-stamp e0.qcow2 b > quiet.json
	bitmap-mark e0.qcow2 b 0 1M > quiet.json
	touch -r e0.qcow2 e0.time
	break_cluster e0.qcow2 0
	touch -r e0.time e0.qcow2
	spoil 5
	drives+=(--drive e0=e0.qcow2)
	apply individual "$(incremental d0 t0)" "$(incremental e0 t1)"
	assert_equal "$status" 1
	of d0 '.error == "Input/output error"'
	of e0 '.error == "Input/output error"'
	apply grouped "$(incremental d0 t0)" "$(incremental e0 t1)"
	assert_equal "$status" 1
	no_targets
	as_before
	bitmap e0.qcow2 b '.count == 1048576 and (.busy | not)'
}

@test "grouped with bitmap actions: they are undone with the group" {
	disks
	spoil 5
	unchanged_bitmaps() {
		as_before
		assert_equal "$(names d0.qcow2) $(names d1.img)" 'b b'
		no_targets
	}
	local n0='{"type": "block-dirty-bitmap-add", "data": {"node": "d0", "name": "n"}}'
	local n1='{"type": "block-dirty-bitmap-add", "data": {"node": "d1", "name": "n"}}'
	local c1='{"type": "block-dirty-bitmap-clear", "data": {"node": "d1", "name": "b"}}'
	local jobs
	jobs="$(job d0 t0 sync=full),$(job d1 t1 sync=full)"
	apply grouped "$n0" "$c1" "$n1" "$jobs"
	ended_as 1 'ERROR d0, CANCELLED d1, COMPLETED d0'
	unchanged_bitmaps
	apply individual "$n0" "$c1" "$n1" "$jobs"
	assert_equal "$status" 3
	assert_equal "$(names d0.qcow2) $(names d1.img)" 'n b n b'
	assert_equal "$(units d1.img)" ''
	ok bitmap-remove d0.qcow2 n
	ok bitmap-remove d1.img n
	mend
	rm t1
	bitmap-mark --from dirty.ranges d1.img b > quiet.json
	apply grouped "$n0" "$c1" "$n1" "$jobs"
	ended_as 0 'COMPLETED d1, COMPLETED d0'
	assert_equal "$(names d0.qcow2) $(names d1.img)" 'n b n b'
	assert_equal "$(units d0.qcow2)" '1 3 5 7'
	assert_equal "$(units d1.img)" ''
	clean t0 t1
	same raw plain.img qcow2 t0
	same raw d1.img qcow2 t1
}

@test "grouped: jobs without bitmaps" {
	disks
	apply grouped "$(job d0 t0 sync=full)" "$(job d1 t1 sync=full)"
	ended_as 0 'COMPLETED d1, COMPLETED d0'
	same raw plain.img qcow2 t0
	same raw d1.img qcow2 t1
	as_before
	rm t0 t1 ./*.bitmaps
	apply grouped "$(job d0 t0 sync=full)" "$(job d1 t1 sync=full)"
	ended_as 0 'COMPLETED d1, COMPLETED d0'
	same raw plain.img qcow2 t0
	same raw d1.img qcow2 t1
	assert_equal "$(find . -name '*.bitmaps*')" ''
}

# ---- targets ----

@test "two jobs cannot make the same target" {
	disks
	local mode second
	for mode in individual grouped; do
		for second in t1 "$PWD/t1" ./t1; do
			apply $mode "$(incremental d0 t1)" "$(incremental d1 "$second")"
			error_reply
			assert_equal "$desc" 'Failed to get "write" lock'
			as_before
			no_targets
		done
		apply $mode "$(incremental d0 t0 x-settings=data_file=t1)" "$(incremental d1 t1)"
		error_reply
		as_before
		no_targets
		apply $mode "$(incremental d0 t0 x-settings=data_file=t.raw)" "$(incremental d1 t1 x-settings=data_file=t.raw)"
		error_reply
		as_before
		no_targets
	done
	: > t1
	apply individual "$(incremental d0 t1)" "$(incremental d1 t1 mode=existing)"
	error_reply
	assert_equal "$desc" 'Failed to get "write" lock'
	as_before
}

@test "targets with data files, in either mode" {
	disks
	local mode
	for mode in individual grouped; do
		apply $mode "$(job d0 t0 sync=full x-settings=data_file=t0.raw)" "$(job d1 t1 sync=full x-settings=data_file=t1.raw)"
		assert_equal "$status" 0
		same raw plain.img qcow2 t0
		same raw d1.img qcow2 t1
		rm t0 t0.raw t1 t1.raw
		assert_equal "$(find . -name '.t*')" ''
	done
	spoil 5
	apply grouped "$(job d0 t0 sync=full x-settings=data_file=t0.raw)" "$(job d1 t1 sync=full x-settings=data_file=t1.raw)"
	assert_equal "$status" 1
	no_targets
}

@test "blockdev-backup onto a drive that another action uses" {
	disks
	cp d1.img d2.img
	drives+=(--drive d2=d2.img)
	local mode onto='{"type": "blockdev-backup", "data": {"device": "d1", "target": "d2", "sync": "full"}}'
	for mode in individual grouped; do
		apply $mode "$onto" "$(job d2 t0 sync=full)"
		error_reply
		assert_equal "$desc" "Node 'd2' is busy: block device is in use by block job: backup"
		apply $mode "$(job d2 t0 sync=full)" "$onto"
		error_reply
		assert_equal "$desc" "Node 'd2' is busy: block device is in use by block job: backup"
		apply $mode "$onto" "$(job d0 t0 sync=full)"
		ended_as 0 "$([ $mode = grouped ] && echo COMPLETED d0, COMPLETED d1 || jq -rs \
			'[.[] | select(.event) | "COMPLETED \(.data.device)"] | join(", ")' <<< "$output")"
		rm t0
	done
}

# ---- the bitmap afterwards ----

modes=('incremental -' 'bitmap on-success' 'bitmap always' 'bitmap never' 'full on-success' 'full always' 'top on-success'
	'top always')

# with "SYNC MODE" [MEMBER=VALUE...]: the job of d0, alone.
with() {
	local mode=()
	[[ $1 == *- ]] || mode=("bitmap-mode=${1#* }")
	job d0 t0 "sync=${1% *}" bitmap=b "${mode[@]}" "${@:2}"
}

len_of() {
	case $1 in
	full*) echo $((16 * UNIT)) ;;
	top*) echo $((7 * UNIT)) ;;
	*) echo $((4 * UNIT)) ;;
	esac
}

@test "success: each sync and bitmap mode" {
	disks
	local m
	for m in "${modes[@]}"; do
		apply individual "$(with "$m")"
		ended_as 0 'COMPLETED d0'
		of d0 ".len == $(len_of "$m") and .offset == .len and (has(\"error\") | not)"
		clean t0
		case $m in
		*never) assert_equal "$m $(units d0.qcow2)" "$m 1 3 5 7" ;;
		*) assert_equal "$m $(units d0.qcow2)" "$m " ;;
		esac
		rm t0
		bitmap-mark --from dirty.ranges d0.qcow2 b > quiet.json
	done
}

# rest: the units that the job had not copied, when its target was kept; they are dirty, and the rest of its work is in
# the target: a backup from the bitmap, chained on it, has everything.
rest() {
	[[ $stderr == *chain* ]] || fail "no word of the chain: $stderr"
	of d0 ".offset == .len - $(units d0.qcow2 | wc -w) * $UNIT"
	clean t0
	mend
	qemu-img rebase -u -f qcow2 -F raw -b plain.img t0
	done_ backup-run --sync bitmap --bitmap b --bitmap-mode always --backing t0,format=qcow2 -F qcow2 d0.qcow2 rest
	same raw plain.img qcow2 rest
	assert_equal "$(units d0.qcow2)" ''
	rm rest t0
}

@test "failure: each sync and bitmap mode" {
	disks
	local m
	for m in "${modes[@]}"; do
		spoil 5
		apply individual "$(with "$m")"
		ended_as 1 'ERROR d0, COMPLETED d0'
		of d0 ".len == $(len_of "$m") and .offset < .len and .error == \"Input/output error\""
		case $m in
		*always)
			[[ " $(units d0.qcow2) " == *' 5 '* ]] || fail "$m: $(units d0.qcow2)"
			rest
			bitmap-mark --from dirty.ranges d0.qcow2 b > quiet.json
			;;
		*)
			as_before
			no_targets
			;;
		esac
		mend
	done
}

@test "cancel: each sync and bitmap mode" {
	disks
	local m
	for m in "${modes[@]}"; do
		commands individual "$(with "$m" speed=32768)"
		ended 2 'bitmap-list --output=json d0.qcow2 > busy.json && grep -q "\"busy\": true" busy.json' \
			txn-apply "${drives[@]}" commands.json
		assert_equal "$m: $ended" "$m: signal 2"
		assert_equal "$(event_names)" BLOCK_JOB_CANCELLED
		of d0 ".len == $(len_of "$m") and .offset < .len and .speed == 32768 and (has(\"error\") | not)"
		case $m in
		*always)
			rest
			bitmap-mark --from dirty.ranges d0.qcow2 b > quiet.json
			;;
		*)
			as_before
			no_targets
			;;
		esac
	done
}

@test "grouped with bitmap-mode always: a failure keeps the partial targets of both, chained" {
	disks
	spoil 5
	apply grouped "$(job d0 t0 sync=bitmap bitmap=b bitmap-mode=always)" "$(job d1 t1 sync=bitmap bitmap=b bitmap-mode=always)"
	ended_as 1 'ERROR d0, CANCELLED d1, COMPLETED d0'
	of d1 ".offset == .len - $(units d1.img | wc -w) * $UNIT"
	rest
	clean t1
	qemu-img rebase -u -f qcow2 -F raw -b d1.img t1
	done_ backup-run --sync bitmap --bitmap b --bitmap-mode always --backing t1,format=qcow2 -F qcow2 d1.img rest
	same raw d1.img qcow2 rest
}

# ---- policies ----

# error_actions: those of the BLOCK_JOB_ERROR events, in one line.
error_actions() {
	jq -rs '[.[] | select(.event == "BLOCK_JOB_ERROR") | .data.action] | join(" ")' <<< "$output"
}

said() {
	grep -q "$1" bg.out
}

@test "ignore: some tries, then the report; the other job goes its way" {
	disks
	spoil 3
	apply individual "$(incremental d0 t0 on-source-error=ignore)" "$(incremental d1 t1 on-source-error=ignore)"
	assert_equal "$status" 3
	[[ $(error_actions) =~ ^'ignore ignore'(' ignore')*' report'$ ]] || fail "$(error_actions)"
	of d0 '.error == "Input/output error"'
	[ ! -e t0 ]
	clean t1
	rm t1
	bitmap-mark --from dirty.ranges d1.img b > quiet.json
	apply grouped "$(incremental d0 t0 on-source-error=ignore)" "$(incremental d1 t1)"
	assert_equal "$status" 1
	[[ $(error_actions) =~ ^'ignore ignore'(' ignore')*' report'$ ]] || fail "$(error_actions)"
	as_before
	no_targets
}

@test "report, enospc and auto: a read error ends the job at once" {
	disks
	spoil 3
	local policy
	for policy in report enospc auto; do
		apply grouped "$(incremental d0 t0 on-source-error=$policy)" "$(incremental d1 t1)"
		ended_as 1 'ERROR d0, CANCELLED d1, COMPLETED d0'
		assert_equal "$(error_actions)" report
		as_before
	done
}

# full_disk: a file system with room for an empty target and not much more; room makes some.
full_disk() {
	tiny_fs tiny 384k
}

room() {
	mount -o remount,size=16m tiny
}

@test "no space, report and ignore: the job fails" {
	disks
	full_disk
	apply individual "$(incremental d0 t0)" "$(incremental d1 tiny/t1)"
	assert_equal "$status" 3
	event BLOCK_JOB_ERROR '{"device": "d1", "operation": "write", "action": "report"}'
	of d1 '.error == "No space left on device"'
	assert_equal "$(units d1.img)" '1 3 5 7'
	assert_equal "$(ls tiny)" ''
	bitmap-mark --from dirty.ranges d0.qcow2 b > quiet.json
	rm t0
	apply grouped "$(incremental d0 t0)" "$(incremental d1 tiny/t1 on-target-error=ignore)"
	assert_equal "$status" 1
	[[ $(error_actions) =~ ^'ignore ignore'(' ignore')*' report'$ ]] || fail "$(error_actions)"
	of d1 '.error == "No space left on device"'
	as_before
	no_targets
}

@test "no space: stop, enospc and auto wait for room and SIGCONT, in either mode" {
	disks
	full_disk
	local policy mode
	for policy in stop enospc auto; do
		for mode in individual grouped; do
			mount -o remount,size=384k tiny
			commands $mode "$(incremental d0 t0)" "$(incremental d1 tiny/t1 on-target-error=$policy)"
			start txn-apply "${drives[@]}" --job-events commands.json
			eventually said '"action": "stop"'
			eventually said '"status": "paused"'
			bitmap d1.img b '.busy and .recording and .count == 262144'
			[ ! -e tiny/t1 ]
			[ "$mode" = individual ] || [ ! -e t0 ]
			room
			kill -CONT "$bg"
			eventually has_ended "$bg"
			finish
			assert_equal "$status" 0
			grep -q SIGCONT bg.err
			of d1 '. == {device: "d1", type: "backup", len: 262144, offset: 262144, speed: 0}'
			mv tiny/t1 t1
			complete
			rm t0 t1
			bitmap-mark --from dirty.ranges d0.qcow2 b > quiet.json
			bitmap-mark --from dirty.ranges d1.img b > quiet.json
		done
	done
}

@test "no space: --retry-after tries again by itself" {
	disks
	full_disk
	commands grouped "$(incremental d0 t0)" "$(incremental d1 tiny/t1 on-target-error=stop)"
	start txn-apply "${drives[@]}" --retry-after 1 commands.json
	eventually said '"action": "stop"'
	room
	eventually has_ended "$bg"
	finish
	assert_equal "$status" 0
	mv tiny/t1 t1
	complete
}

@test "no space: a stopped job is cancelled like any other, and when its group fails" {
	disks
	full_disk
	local mode number
	for mode in individual grouped; do
		commands $mode "$(incremental d0 t0 speed=16384)" "$(incremental d1 tiny/t1 on-target-error=stop)"
		start txn-apply "${drives[@]}" commands.json
		eventually said '"action": "stop"'
		kill -INT "$bg"
		eventually has_ended "$bg"
		finish
		assert_equal "$status" 130
		of d0 '.offset < .len and (has("error") | not)'
		of d1 '.offset < .len and (has("error") | not)'
		assert_equal "$(event_names)" 'BLOCK_JOB_ERROR BLOCK_JOB_CANCELLED BLOCK_JOB_CANCELLED'
		as_before
		no_targets
	done
	spoil 3
	apply grouped "$(incremental d0 t0 on-source-error=ignore)" "$(incremental d1 tiny/t1 on-target-error=stop)"
	assert_equal "$status" 1
	of d0 '.error == "Input/output error"'
	of d1 'has("error") | not'
	as_before
	no_targets
}

# ---- cancel ----

@test "SIGINT and SIGTERM cancel all jobs, soon, whatever the speed" {
	disks
	local mode number began
	for mode in individual grouped; do
		for number in 2 15; do
			commands $mode "$(incremental d0 t0 speed=1)" "$(incremental d1 t1 speed=16384)"
			start txn-apply "${drives[@]}" commands.json
			eventually is_busy d0.qcow2 b
			eventually is_busy d1.img b
			began=$(date +%s)
			kill -$number "$bg"
			eventually has_ended "$bg"
			[ $(($(date +%s) - began)) -le 5 ]
			finish
			assert_equal "$status" $((128 + number))
			assert_equal "$(event_names)" 'BLOCK_JOB_CANCELLED BLOCK_JOB_CANCELLED'
			of d0 '.len == 262144 and .offset < .len and .speed == 1 and (has("error") | not)'
			of d1 '.len == 262144 and .offset < .len and .speed == 16384 and (has("error") | not)'
			as_before
			no_targets
		done
	done
	apply grouped "$(incremental d0 t0)" "$(incremental d1 t1)"
	assert_equal "$status" 0
	complete
}

@test "a cancelled group cancels a job that has long been ready" {
	disks
	commands grouped "$(incremental d0 t0)" "$(incremental d1 t1 speed=1)"
	start txn-apply "${drives[@]}" --job-events commands.json
	eventually said '"status": "waiting"'
	bitmap d0.qcow2 b .busy
	no_targets_named() { [ ! -e t0 ] && [ ! -e t1 ]; }
	no_targets_named
	kill -TERM "$bg"
	eventually has_ended "$bg"
	finish
	assert_equal "$status" 143
	of d0 '.offset == .len and (has("error") | not)'
	assert_equal "$(jq -rs '[.[] | select(.event | strings | startswith("BLOCK")) | "\(.event) \(.data.device)"] | join(" ")' \
		<<< "$output")" 'BLOCK_JOB_CANCELLED d1 BLOCK_JOB_CANCELLED d0'
	as_before
	no_targets
}

@test "commands behind a cancelled one are not run" {
	disks
	commands individual "$(incremental d0 t0 speed=1)"
	printf '{"execute": "block-dirty-bitmap-clear", "arguments": {"node": "d1", "name": "b"}}' >> commands.json
	start txn-apply "${drives[@]}" commands.json
	eventually is_busy d0.qcow2 b
	kill -INT "$bg"
	eventually has_ended "$bg"
	finish
	assert_equal "$status" 130
	as_before
}

# ---- with others ----

@test "while jobs run, others find their bitmaps busy and their images readable" {
	disks
	commands grouped "$(incremental d0 t0 speed=1)" "$(incremental d1 t1 speed=1)"
	start txn-apply "${drives[@]}" commands.json
	eventually is_busy d0.qcow2 b
	eventually is_busy d1.img b
	refused "Bitmap 'b' is currently in use by another operation and cannot be used" bitmap-clear d0.qcow2 b
	refused "Bitmap 'b' is currently in use by another operation and cannot be used" bitmap-remove d1.img b
	apply individual '{"type": "block-dirty-bitmap-add", "data": {"node": "d1", "name": "m"}}' \
		'{"type": "block-dirty-bitmap-clear", "data": {"node": "d0", "name": "b"}}'
	assert_equal "$status" 1
	assert_equal "$(names d1.img)" b
	rejected image-write --pattern 1 d1.img 0 512
	kill -INT "$bg"
	eventually has_ended "$bg"
	as_before
	no_targets
}

# threads N: of the program in the background, without those of a sanitizer.
threads() {
	set -- $(($1 + extra)) /proc/"$bg"/task/*
	[ $(($# - 1)) -eq "$1" ]
}

@test "jobs share the workers, and one that goes on alone gets those of the others" {
	disks
	local extra=0
	! nm -D "$(command -v txn-apply)" | grep -q __tsan_init || extra=1
	commands individual "$(job d0 t0 sync=full speed=1)" "$(job d1 t1 sync=full speed=1)"
	start txn-apply "${drives[@]}" commands.json
	eventually threads $((1 + 2 + 2 * 2)) # of the program, of the jobs, their workers
	kill -INT "$bg"
	eventually has_ended "$bg"
	no_targets
	commands individual "$(job d0 t0 sync=full speed=1)" "$(job d1 t1 sync=full)"
	start txn-apply "${drives[@]}" commands.json
	eventually threads $((1 + 1 + 4))
	kill -INT "$bg"
	eventually has_ended "$bg"
	same raw d1.img qcow2 t1
}

# many MODE FIRST SECOND: transactions on both disks, one after the other, until there have been ten.
many() {
	local i s=0
	for ((i = 0; i < 10; i++)); do
		timeout 60 txn-apply -q --drive d0=d0.qcow2 --drive d1=d1.img "$1" > "$1.out" 2> "$1.err" || s=$?
		# Refused, or a part of it, for the other one has it: but never stuck, and never broken.
		case $s in 0 | 1 | 3) ;; *) return $s ;; esac
	done
}

@test "two transactions on the same disks in opposite order never hang" {
	disks
	local mode a b
	for mode in grouped individual; do
		commands $mode '{"type": "block-dirty-bitmap-add", "data": {"node": "d0", "name": "x"}}' \
			'{"type": "block-dirty-bitmap-remove", "data": {"node": "d0", "name": "x"}}' \
			"$(incremental d0 a0)" "$(incremental d1 a1)"
		mv commands.json a.json
		commands $mode "$(incremental d1 b1)" "$(incremental d0 b0)" \
			'{"type": "block-dirty-bitmap-clear", "data": {"node": "d1", "name": "b"}}'
		mv commands.json b.json
		many a.json 3>&- &
		a=$!
		many b.json 3>&- &
		b=$!
		bg_pids+=("$a" "$b")
		wait $a
		wait $b
		bitmap d0.qcow2 b '(.busy | not) and (has("inconsistent") | not)'
		bitmap d1.img b '(.busy | not) and (has("inconsistent") | not)'
	done
	bitmap-mark --from dirty.ranges d0.qcow2 b > quiet.json
	bitmap-mark --from dirty.ranges d1.img b > quiet.json
	apply grouped "$(incremental d0 t0)" "$(incremental d1 t1)"
	assert_equal "$status" 0
	complete
}

@test "the place of a job's bitmap in the list, when others come and go in the same transaction" {
	raw disk.img 1M
	ok bitmap-add disk.img b7
	ok bitmap-add disk.img b16
	ok bitmap-mark disk.img b7 0 1
	local n='"node": "disk"'
	commands individual \
		"{\"type\": \"drive-backup\", \"data\": {\"device\": \"disk\", \"target\": \"$PWD/t\", \"format\": \"qcow2\",
			\"sync\": \"bitmap\", \"bitmap-mode\": \"on-success\", \"bitmap\": \"b7\"}}" \
		"{\"type\": \"block-dirty-bitmap-add\", \"data\": {$n, \"name\": \"b27\"}}" \
		"{\"type\": \"block-dirty-bitmap-remove\", \"data\": {$n, \"name\": \"b16\"}}"
	done_ txn-apply --drive disk=disk.img commands.json
	assert_equal "$(names disk.img)" "b27 b7"
}

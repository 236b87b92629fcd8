# bash completion for Tidemark.  The commands themselves know the candidates for each word;
# this script asks them (COMMAND --complete-words WORD...) and passes on their answer.
# shellcheck shell=bash

# A word as it was typed, without its quoting.
_tidemark_plain()
{
	local word=${1//[\\\"\']/}
	# shellcheck disable=SC2088 # the pattern is a tilde as typed
	case $word in
	'~/'*) word=$HOME/${word#'~/'} ;;
	esac
	printf -v "$2" '%s' "$word"
}

_tidemark()
{
	local i word plain raw=${COMP_WORDS[COMP_CWORD]} joined='' line files=''
	local -a words=() names=() paths=()

	# bash splits words at = and : too; put them together again.
	for ((i = 1; i <= COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		if [[ $i -gt 1 && ($word == [=:] || ${COMP_WORDS[i - 1]} == [=:]) ]]; then
			joined=${words[-1]}
			words[-1]+=$word
		else
			joined=''
			words+=("$word")
		fi
	done
	[[ $raw == [=:] ]] && joined+=$raw raw=''
	for i in "${!words[@]}"; do
		_tidemark_plain "${words[i]}" plain
		words[i]=$plain
	done

	COMPREPLY=()
	while IFS= read -r line; do
		if [[ $line == :files ]]; then
			files=yes
		else
			line=${line%%$'\t'*}
			names+=("${line:${#joined}}")
		fi
	done < <("$1" --complete-words "${words[@]}" 2>/dev/null)

	if [[ $files ]]; then
		_tidemark_plain "$raw" plain
		mapfile -t paths < <(compgen -f -- "$plain")
		COMPREPLY=("${names[@]}" "${paths[@]}")
		# Outside of a completion, as in a test, there are no options to set.
		compopt -o filenames 2>/dev/null
	else
		# After KEY= the value follows at once.
		[[ ${names[0]-} == *= ]] && compopt -o nospace 2>/dev/null
		for line in "${names[@]}"; do
			printf -v plain '%q' "$line"
			COMPREPLY+=("$plain")
		done
	fi
}

complete -F _tidemark backup-run bitmap-add bitmap-clear bitmap-disable bitmap-dump bitmap-enable bitmap-export \
	bitmap-import bitmap-list bitmap-mark bitmap-merge bitmap-remove bitmap-rescan chain-info chain-restore chain-verify image-create \
	image-info image-write txn-apply

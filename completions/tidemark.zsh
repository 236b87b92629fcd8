#compdef backup-run bitmap-add bitmap-clear bitmap-disable bitmap-dump bitmap-enable bitmap-export bitmap-import bitmap-list bitmap-mark bitmap-merge bitmap-remove bitmap-rescan chain-info chain-restore chain-verify image-create image-info image-write txn-apply
# zsh completion for Tidemark.  The commands themselves know the candidates for each word;
# this script asks them (COMMAND --complete-words WORD...) and passes on their answer.

_tidemark() {
	local line files word
	local -a asked names shown expl together

	for word in "${words[@]:0:$CURRENT}"; do
		word=${(Q)word}
		[[ $word == '~/'* ]] && word=$HOME/${word#'~/'}
		asked+=("$word")
	done
	for line in "${(@f)$("$asked[1]" --complete-words "${(@)asked[2,-1]}" 2>/dev/null)}"; do
		if [[ $line == :files ]]; then
			files=yes
		elif [[ -n $line ]]; then
			names+=("${line%%$'\t'*}")
			shown+=("${line//$'\t'/  -- }")
		fi
	done
	# After KEY= the value follows at once.
	[[ ${names[1]-} == *= ]] && together=(-S '')
	(( $#names )) && _wanted values expl value compadd $together -l -d shown -a names
	if [[ -n $files ]]; then
		compset -P '--*='
		_files
	fi
	(( compstate[nmatches] ))
}

_tidemark "$@"

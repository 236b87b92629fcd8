# fish completion for Tidemark.  The commands themselves know the candidates for each word;
# this script asks them (COMMAND --complete-words WORD...) and passes on their answer.

function __tidemark_complete
    set -l words (commandline -opc)
    set -l word (commandline -ct)
    set -l plain (string replace -r '^~/' "$HOME/" -- (string unescape -- $word; or echo -- $word))
    for line in ($words[1] --complete-words $words[2..-1] "$plain" 2>/dev/null)
        if test "$line" = :files
            # File names after --option= keep this prefix.
            set -l option (string match -r -- '^--[^=]*=' $word)
            for path in (__fish_complete_path (string replace -r -- '^--[^=]*=' '' $word))
                echo -- "$option$path"
            end
        else
            echo -- $line
        end
    end
end

# Installed once for each command; read from the source tree, it completes all of them.
set -l commands (string replace -r '\.fish$' '' (status basename))
if test "$commands" = tidemark
    set commands backup-run bitmap-add bitmap-clear bitmap-disable bitmap-dump bitmap-enable bitmap-export \
        bitmap-import bitmap-list bitmap-mark bitmap-merge bitmap-remove bitmap-rescan chain-info chain-restore chain-verify image-create \
        image-info image-write txn-apply
end
for command in $commands
    complete -c $command -f -a '(__tidemark_complete)'
end

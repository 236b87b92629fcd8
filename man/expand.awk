# Expands a man page: each line ".so FILE [NAME]" becomes the lines of man/FILE, with IMAGE replaced by NAME.
function expand(line, name,    word, n, file, got) {
	n = split(line, word, " ")
	if (word[1] != ".so") {
		if (name != "")
			gsub(/IMAGE/, name, line)
		print line
		return
	}
	file = "man/" word[2]
	while ((got = (getline line < file)) > 0)
		expand(line, n > 2 ? word[3] : name)
	if (got < 0) {
		print FILENAME ":" FNR ": cannot read " file > "/dev/stderr"
		exit 1
	}
	close(file)
}
{ expand($0, "") }

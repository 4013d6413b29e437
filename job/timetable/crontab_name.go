package timetable

import (
	"regexp"
	"strings"
)

// Words of a shell line that name no work: a name is looked for behind them.
var (
	// prefixes stand before a command.
	prefixes = wordSet("if then else elif do while until ! { ( time exec nohup setsid command builtin sudo doas chronic env nice ionice chrt timeout flock systemd-cat")
	// fillers are commands that only prepare or end.
	fillers = wordSet("test [ [[ cd pushd popd set export unset umask source . sleep true false : exit return fi done } ) ]] ]] for case esac in wait trap ulimit eval echo printf date mkdir touch")
	// interpreters run the script that follows.
	interpreters = wordSet("sh bash dash zsh ksh csh tcsh fish python python2 python3 perl ruby php node java Rscript")
	// withValue are the options of prefixes and interpreters that take the next word.
	withValue = wordSet("-n -c -u -g -C -k -s -w -E -jar -m -f")
)

func wordSet(words string) map[string]bool {
	set := map[string]bool{}
	for _, w := range strings.Fields(words) {
		set[w] = true
	}
	return set
}

// nameOfCommand makes a job name from what a shell line chiefly runs; "" if it cannot tell.
func nameOfCommand(line string) string {
	fallback := "" // the interpreter of a program that is on the line itself
	for _, words := range simpleCommands(line) {
		words = stripPrefixes(words)
		if len(words) == 0 || fillers[words[0]] {
			continue
		}
		program := baseName(words[0])
		chosen := program
		switch {
		case interpreters[program]:
			script := scriptOf(words[1:])
			if script == "" {
				if fallback == "" {
					fallback = nameFrom(program)
				}
				continue
			}
			chosen = baseName(script)
		case program == "run-parts":
			if last := words[len(words)-1]; len(words) > 1 && !strings.HasPrefix(last, "-") {
				chosen = baseName(last)
			}
		}
		if name := nameFrom(chosen); name != "" {
			return name
		}
	}
	return fallback
}

// simpleCommands parts a shell line at its operators and blanks, as far as a name needs it: quotes hide both, and
// redirections are dropped.
func simpleCommands(line string) [][]string {
	var commands [][]string
	var words []string
	var word strings.Builder
	quote := byte(0)
	endWord := func() {
		if word.Len() > 0 {
			words = append(words, word.String())
			word.Reset()
		}
	}
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			} else {
				word.WriteByte(c)
			}
		case c == '$' && i+1 < len(line) && line[i+1] == '(':
			i = endOfSubstitution(line, i+2) // of no use for a name
		case c == '\'' || c == '"' || c == '`':
			quote = c
		case c == '\\' && i+1 < len(line):
			i++
			word.WriteByte(line[i])
		case c == ' ' || c == '\t':
			endWord()
		case c == '>' || c == '<':
			endWord()
			for i+1 < len(line) && strings.IndexByte("<>&", line[i+1]) >= 0 {
				i++
			}
			for i+1 < len(line) && (line[i+1] == ' ' || line[i+1] == '\t') {
				i++
			}
			for i+1 < len(line) && strings.IndexByte(" \t;|&()", line[i+1]) < 0 {
				i++
			}
		case strings.IndexByte(";|&()\n", c) >= 0:
			endWord()
			commands, words = append(commands, words), nil
		default:
			word.WriteByte(c)
		}
	}
	endWord()
	return append(commands, words)
}

// endOfSubstitution is where the bracket closes that was opened before from, or the end of the line.
func endOfSubstitution(line string, from int) int {
	for depth := 1; from < len(line); from++ {
		switch line[from] {
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return from
			}
		}
	}
	return from
}

var assignment = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)

// stripPrefixes drops assignments and wrappers such as `nice -n 10`, `timeout 10m` and `flock -n FILE`.
func stripPrefixes(words []string) []string {
	for len(words) > 0 {
		w := baseName(words[0])
		switch {
		case assignment.MatchString(words[0]):
			words = words[1:]
		case !prefixes[w]:
			return words
		default:
			words = words[1:]
			if w == "command" && len(words) > 0 && (words[0] == "-v" || words[0] == "-V") {
				return nil // asks whether there is such a command
			}
			for len(words) > 0 && strings.HasPrefix(words[0], "-") && !strings.Contains(words[0], "/") {
				// Of flock's options only -w and -E take a value, of the others' those in the list do.
				takes := withValue[words[0]] && (w != "flock" || words[0] == "-w" || words[0] == "-E")
				words = words[1:]
				if takes && len(words) > 0 {
					words = words[1:]
				}
			}
			if (w == "timeout" || w == "flock" || w == "chrt") && len(words) > 0 {
				words = words[1:] // the time, the lock file, the priority
			}
		}
	}
	return nil
}

// scriptOf finds the script, or the module, among an interpreter's arguments.
func scriptOf(args []string) string {
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case !strings.HasPrefix(a, "-"):
			return a
		case a == "-c" || a == "-e" || a == "-r":
			return "" // the program is on the line itself
		case (a == "-m" || a == "-f" || a == "-jar") && i+1 < len(args):
			return args[i+1]
		}
	}
	return ""
}

// baseName is the last part of a path, without the ending of a script.
func baseName(path string) string {
	path = strings.TrimRight(path, "/")
	path = path[strings.LastIndexByte(path, '/')+1:]
	for _, ext := range []string{".sh", ".py", ".pl", ".rb", ".php", ".js", ".jar", ".bash", ".R"} {
		if s, ok := strings.CutSuffix(path, ext); ok && s != "" {
			return s
		}
	}
	return path
}

const suggestedLength = 64 // half of what a name may have: room for a number, and for the reader

// nameFrom makes a valid job name of any text; "" if nothing is left of it.
func nameFrom(text string) string {
	var b strings.Builder
	gap := false
	for _, r := range text {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			if gap && b.Len() > 0 {
				b.WriteByte('-')
			}
			b.WriteRune(r)
			gap = false
		case (r == '.' || r == '_') && b.Len() > 0 && !gap:
			b.WriteRune(r)
		default:
			gap = true
		}
		if b.Len() >= suggestedLength {
			break
		}
	}
	return strings.TrimRight(b.String(), "._-")
}

package main

import (
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/musterhq/muster/job"
)

// Flags are the one list of settings: file and environment only fill in those that the command line leaves out.

// notConfigurable marks a flag that belongs to one call and would do harm as a standing setting.
const notConfigurable = "muster-not-configurable"

// ofOneCall marks flags so.
func ofOneCall(flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		f := flags.Lookup(name)
		if f.Annotations == nil {
			f.Annotations = map[string][]string{}
		}
		f.Annotations[notConfigurable] = []string{}
	}
}

// describesRun are names that a worker sets for the work it runs (package worker, environment.go). Taken for flags, they
// would make `muster run list` within a run silently list only its own job.
var describesRun = []string{"attempt", "fence", "job", "payload", "result-file", "root-id", "run-id", "scheduled-at", "task"}

// noKeyDelimiter keeps koanf from reading structure into keys: labels have dots in them.
const noKeyDelimiter = "\x00"

// settle fills in the flags that were not given and checks the global ones.
func (c *cli) settle(cmd *cobra.Command) error {
	if cmd.Name() == "completion" || cmd.Name() == "help" {
		return nil
	}
	path := c.config
	if path == "" {
		path = c.getenv("MUSTER_CONFIG")
	}
	token, file := cmd.Flags().Changed("token"), cmd.Flags().Changed("token-file")
	c.addressTyped = cmd.Flags().Changed("address")
	if err := c.configure(cmd, path); err != nil {
		return err
	}
	switch { // what stands on the command line wins, in whichever of the two forms
	case token && !file:
		c.tokenFile = ""
	case file && !token:
		c.token = ""
	}
	c.addressGiven = cmd.Flags().Changed("address")
	c.namespaceGiven = cmd.Flags().Changed("namespace")
	c.color = !c.noColor && c.getenv("NO_COLOR") == "" && c.getenv("TERM") != "dumb" && isTerminal(c.stdout)
	return c.checkGlobals(cmd)
}

// formsOfCommand names, with commas between, the forms of output that a command has besides those of all.
const formsOfCommand = "muster-forms"

func formsOf(cmd *cobra.Command) []string {
	if more := cmd.Annotations[formsOfCommand]; more != "" {
		return append(slices.Clone(formats), strings.Split(more, ",")...)
	}
	return formats
}

func (c *cli) checkGlobals(cmd *cobra.Command) error {
	known := formsOf(cmd)
	if !slices.Contains(known, c.format) {
		return usageErrorf("--output: %q is not a form of output; use %s", clip(c.format, 64), listOr(known))
	}
	if c.format == formatText { // what people read, by its other name
		c.format = formatTable
	}
	return nil
}

// checkAddresses is for the commands that ask a node.
func (c *cli) checkAddresses() error {
	if len(c.addresses) == 0 {
		return usageErrorf("--address: the address of a node is missing; write one such as http://127.0.0.1:8080")
	}
	given := c.addresses
	if c.ca != "" && !c.addressGiven {
		given = []string{defaultAddress}
	}
	var err error
	c.addresses, err = nodeAddresses("address", given, c.ca != "")
	return err
}

// defaultAddress is where the API of a node on this machine usually is.
const defaultAddress = "127.0.0.1:8080"

// bearer is the credential to send.
func (c *cli) bearer() (string, error) {
	switch {
	case c.tokenFile == "":
		return strings.TrimSpace(c.token), nil
	case c.token != "":
		return "", usageErrorf("--token and --token-file contradict each other; leave one of them out, also in the environment")
	}
	return readToken("--token-file", c.tokenFile)
}

// readToken reads a file that holds one token.
func readToken(flag, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fileError(flag+": the file", path, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", fileError(flag+": the file", path, err)
	}
	token := strings.TrimSpace(string(text))
	if _, _, ok := job.ParseToken(token); !ok || strings.ContainsAny(token, " \t\r\n") {
		return "", usageErrorf("%s: %s holds no token; tokens begin with muster_", flag, path)
	}
	return token, nil
}

// caError says why a certificate authority cannot be used.
func caError(path string, err error) error {
	if job.CodeOf(err) == job.Invalid {
		return usageErrorf("--ca: %s holds no certificate in PEM; name the file ca.crt that `muster cluster init` made", path)
	}
	return fileError("--ca: the file", path, err)
}

// nodeAddresses completes addresses of nodes, which may be written without their scheme.
func nodeAddresses(flag string, given []string, secure bool) ([]string, error) {
	scheme := "http://"
	if secure {
		scheme = "https://"
	}
	out := slices.Clone(given)
	for i, a := range given {
		a = strings.TrimRight(strings.TrimSpace(a), "/")
		if !strings.Contains(a, "://") {
			a = scheme + a
		}
		if u, err := url.Parse(a); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.Path != "" || u.RawQuery != "" {
			return nil, usageErrorf("--%s: %q is not the address of a node; write one such as http://127.0.0.1:8080", flag, clip(given[i], 128))
		}
		out[i] = a
	}
	return out, nil
}

// configure reads file and environment into the flags of cmd.
func (c *cli) configure(cmd *cobra.Command, path string) error {
	known := map[string]bool{}
	knownFlags(cmd.Root(), known)
	fromFile, err := readConfig(path, known)
	if err != nil {
		return err
	}
	fromEnv := koanf.New(noKeyDelimiter)
	if err := fromEnv.Load(env.Provider(noKeyDelimiter, env.Opt{
		Prefix: "MUSTER_", EnvironFunc: func() []string { return c.env },
		TransformFunc: func(name, value string) (string, any) {
			key := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, "MUSTER_")), "_", "-")
			// Others set variables of this prefix too (Kubernetes does, for a service of our name): unknown ones are let be.
			if value == "" || !known[key] || slices.Contains(describesRun, key) {
				return "", nil
			}
			return key, value
		},
	}), nil); err != nil {
		return fmt.Errorf("read the environment: %w", err)
	}
	for _, source := range []struct {
		values map[string]any
		name   func(key string) string
	}{
		{fromEnv.Raw(), envName},
		{fromFile, func(key string) string { return key + " in " + path }},
	} {
		for _, key := range slices.Sorted(maps.Keys(source.values)) {
			f := cmd.Flags().Lookup(key)
			if f == nil || f.Changed || f.Annotations[notConfigurable] != nil {
				continue // of another command, or given already
			}
			if err := setFlag(cmd.Flags(), f, source.values[key]); err != nil {
				return usageErrorf("%s: %v", source.name(key), err)
			}
		}
	}
	return nil
}

func envName(key string) string {
	return "MUSTER_" + strings.ToUpper(strings.ReplaceAll(key, "-", "_"))
}

// readConfig reads the file and refuses what no command knows.
func readConfig(path string, known map[string]bool) (map[string]any, error) {
	if path == "" {
		return nil, nil
	}
	k := koanf.New(noKeyDelimiter)
	if _, err := file.Provider(path).ReadBytes(); err != nil {
		return nil, fileError("the configuration file", path, err)
	}
	if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
		return nil, usageErrorf("the configuration file %s is not valid YAML: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	values := k.Raw()
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if known[key] {
			continue
		}
		if near := nearest(strings.ReplaceAll(key, "_", "-"), slices.Collect(maps.Keys(known))); near != "" {
			return nil, usageErrorf("the configuration file %s: there is no setting %q; did you mean %q?", path, clip(key, 64), near)
		}
		return nil, usageErrorf("the configuration file %s: there is no setting %q; settings have the names of flags", path, clip(key, 64))
	}
	return values, nil
}

// knownFlags collects the names of all flags of all commands that may stand in a file.
func knownFlags(cmd *cobra.Command, into map[string]bool) {
	add := func(f *pflag.Flag) {
		if f.Name != "help" && f.Name != "config" && f.Annotations[notConfigurable] == nil {
			into[f.Name] = true
		}
	}
	cmd.LocalFlags().VisitAll(add)
	for _, child := range cmd.Commands() {
		knownFlags(child, into)
	}
}

// setFlag sets a flag from a value of YAML or of the environment. Flags that can be repeated take lists, texts separated
// by commas, and mappings as key=value.
func setFlag(flags *pflag.FlagSet, f *pflag.Flag, value any) error {
	var texts []string
	_, many := f.Value.(pflag.SliceValue)
	switch v := value.(type) {
	case nil:
		return nil
	case []any:
		for _, item := range v {
			s, err := scalar(item)
			if err != nil {
				return err
			}
			texts = append(texts, s)
		}
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			s, err := scalar(v[k])
			if err != nil {
				return err
			}
			texts = append(texts, k+"="+s)
		}
	default:
		s, err := scalar(v)
		if err != nil {
			return err
		}
		if texts = []string{s}; many {
			texts = strings.Split(s, ",")
		}
	}
	if !many && len(texts) != 1 {
		return fmt.Errorf("this takes one value, not a list")
	}
	for _, s := range texts {
		if err := flags.Set(f.Name, strings.TrimSpace(s)); err != nil {
			return fmt.Errorf("%q is not %s", clip(s, 64), kindOf(f))
		}
	}
	return nil
}

func scalar(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case bool:
		return strconv.FormatBool(v), nil
	case int, int64, uint64:
		return fmt.Sprint(v), nil
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), nil
	}
	return "", fmt.Errorf("a %T has no meaning here; write plain text or a list", v)
}

// listOr writes "a, b or c".
func listOr(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

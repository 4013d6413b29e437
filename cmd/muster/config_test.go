package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// askedServer says which namespace, token and path it was asked for.
func askedServer(t *testing.T) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusConflict)
		fmt.Fprintf(w, `{"code":"conflict","detail":"%s %s %s"}`, r.URL.Query().Get("namespace"), strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), r.URL.Path)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestPrecedenceOfSettings(t *testing.T) {
	t.Parallel()
	url := askedServer(t)
	config := fileWith(t, "config.yaml", "address: "+url+"\nnamespace: of-file\ntoken: file-token\n")
	for name, c := range map[string]struct {
		env, args []string
		want      string
	}{
		"the default":            {[]string{"MUSTER_ADDRESS=" + url}, nil, "default  /v1/jobs/x"},
		"the file":               {nil, []string{"--config", config}, "of-file file-token /v1/jobs/x"},
		"the file by variable":   {[]string{"MUSTER_CONFIG=" + config}, nil, "of-file file-token /v1/jobs/x"},
		"the environment":        {[]string{"MUSTER_NAMESPACE=of-env"}, []string{"--config", config}, "of-env file-token /v1/jobs/x"},
		"the flag":               {[]string{"MUSTER_NAMESPACE=of-env"}, []string{"--config", config, "--namespace", "of-flag"}, "of-flag file-token /v1/jobs/x"},
		"an empty variable":      {[]string{"MUSTER_NAMESPACE="}, []string{"--config", config}, "of-file file-token /v1/jobs/x"},
		"the last of two":        {[]string{"MUSTER_ADDRESS=" + url, "MUSTER_NAMESPACE=a", "MUSTER_NAMESPACE=b"}, nil, "b  /v1/jobs/x"},
		"others' variables":      {[]string{"MUSTER_ADDRESS=" + url, "MUSTER_SERVICE_HOST=10.0.0.1", "MUSTER_PORT=tcp://10.0.0.1:80"}, nil, "default  /v1/jobs/x"},
		"a flag without effect":  {[]string{"MUSTER_ADDRESS=" + url, "MUSTER_WORKER_SLOTS=7"}, nil, "default  /v1/jobs/x"},
		"an address by its host": {[]string{"MUSTER_ADDRESS=" + strings.TrimPrefix(url, "http://")}, nil, "default  /v1/jobs/x"},
	} {
		r := world{env: c.env}.muster(t, append([]string{"job", "show", "x"}, c.args...)...)
		if r.code != exitConflict || r.err != "muster: "+c.want+"\n" {
			t.Errorf("%s: %+v, want %q", name, r, c.want)
		}
	}
}

// Within a run the variables that describe it are not settings.
func TestVariablesOfARunAreNoFlags(t *testing.T) {
	t.Parallel()
	var query string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query = r.URL.RawQuery
		fmt.Fprint(w, `{"items":[]}`)
	}))
	defer s.Close()
	w := world{env: []string{"MUSTER_ADDRESS=" + s.URL, "MUSTER_JOB=mine", "MUSTER_RUN_ID=x", "MUSTER_ATTEMPT=3", "MUSTER_PAYLOAD={}", "MUSTER_TASK=t", "MUSTER_NAMESPACE=ours"}}
	w.must(t, "run", "list")
	if query != "namespace=ours" {
		t.Errorf("asked for %q", query)
	}
}

func TestConfigurationFile(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ text, want string }{
		"a slip":               {"adress: x\n", `there is no setting "adress"; did you mean "address"?`},
		"underscores":          {"worker_slots: 3\n", `did you mean "worker-slots"?`},
		"nonsense":             {"frobnicate: 3\n", `there is no setting "frobnicate"; settings have the names of flags`},
		"of one call":          {"follow: true\n", `there is no setting "follow"`},
		"not YAML":             {"a: [\n", "is not valid YAML: "},
		"no mapping":           {"- a\n", "is not valid YAML: "},
		"twice":                {"token: a\ntoken: b\n", "is not valid YAML: "},
		"a list for one value": {"namespace: [a, b]\n", "namespace in "},
		"a wrong value":        {"no-color: perhaps\n", `no-color in `},
		"a nested value":       {"namespace: [{a: b}]\n", "has no meaning here"},
	} {
		path := fileWith(t, "config.yaml", c.text)
		r := world{}.muster(t, "version", "--config", path)
		if r.code != exitUsage || !strings.Contains(r.err, c.want) || strings.Count(r.err, "\n") != 1 {
			t.Errorf("%s: %+v, want %q", name, r, c.want)
		}
	}
	r := world{env: []string{"MUSTER_NO_COLOR=perhaps"}}.muster(t, "version")
	if r.code != exitUsage || !strings.Contains(r.err, `MUSTER_NO_COLOR: "perhaps" is not true or false`) {
		t.Errorf("a wrong variable: %+v", r)
	}
}

// Lists in the file, in the environment and on the command line amount to the same.
func TestRepeatedFlags(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		file string
		env  []string
		args []string
	}{
		"a list":      {file: "allow-exec: [/bin/*, /opt/**]\nlabel: {zone: a, tier: 1}\nslots: 3\n"},
		"text":        {file: "allow-exec: /bin/*,/opt/**\nlabel: [tier=1, zone=a]\nslots: 3\n"},
		"environment": {env: []string{"MUSTER_ALLOW_EXEC=/bin/*,/opt/**", "MUSTER_LABEL=tier=1, zone=a", "MUSTER_SLOTS=3"}},
		"flags":       {args: []string{"--allow-exec", "/bin/*", "--allow-exec", "/opt/**", "--label", "tier=1", "--label", "zone=a", "--slots", "3"}},
		"flags go first": {
			file: "allow-exec: [/usr/**]\nlabel: {zone: b}\n", env: []string{"MUSTER_SLOTS=9"},
			args: []string{"--allow-exec", "/bin/*", "--allow-exec", "/opt/**", "--label", "tier=1", "--label", "zone=a", "--slots", "3"},
		},
	} {
		cli := newCLI(nil, nil, nil, c.env)
		root := cli.rootCommand()
		cmd, _, err := root.Find([]string{"worker"})
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.ParseFlags(c.args); err != nil {
			t.Fatal(err)
		}
		path := ""
		if c.file != "" {
			path = fileWith(t, "config.yaml", c.file)
		}
		if err := cli.configure(cmd, path); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		exec, _ := cmd.Flags().GetStringArray("allow-exec")
		labels, _ := cmd.Flags().GetStringArray("label")
		slots, _ := cmd.Flags().GetInt("slots")
		if got := fmt.Sprint(exec, labels, slots); got != "[/bin/* /opt/**] [tier=1 zone=a] 3" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// A server's whole command line can stand in a file, a list of nodes as a list; and what is wrong there is said as of the flag.
func TestAServerFromAFile(t *testing.T) {
	t.Parallel()
	const text = "name: n1\nhttp: 10.0.0.1:8080\nraft: 10.0.0.1:8081\ngossip: 10.0.0.1:7946\njoin: [10.0.0.1:8080, 10.0.0.2:8080]\nelection-timeout: 2s\ninsecure: true\n"
	c := newCLI(nil, nil, nil, []string{"MUSTER_GOSSIP=10.0.0.9:1"})
	cmd, _, err := c.rootCommand().Find([]string{"server"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.configure(cmd, fileWith(t, "server.yaml", text)); err != nil {
		t.Fatal(err)
	}
	join, _ := cmd.Flags().GetStringSlice("join")
	timeout, _ := cmd.Flags().GetDuration("election-timeout")
	insecure, _ := cmd.Flags().GetBool("insecure")
	if got := fmt.Sprint(cmd.Flag("name").Value, cmd.Flag("gossip").Value, join, timeout, insecure); got != "n1 10.0.0.9:1 [10.0.0.1:8080 10.0.0.2:8080] 2s true" {
		t.Errorf("%s", got)
	}
	r := world{}.muster(t, "server", "--data", t.TempDir(), "--config", fileWith(t, "server.yaml", strings.Replace(text, "10.0.0.1:8081", "here", 1)))
	if r.code != exitUsage || !strings.Contains(r.err, `--raft: "here" is not an address`) {
		t.Errorf("%+v", r)
	}
}

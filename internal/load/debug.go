package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"sync"
	"time"
)

// ServeDebug lets the generator look into one of its processes, over a socket in the benchmark's own directory, which is
// out of reach for the network and for other users. It serves until ctx ends.
func ServeDebug(ctx context.Context, socket string) error {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	var (
		mu  sync.Mutex
		cpu bytes.Buffer
	)
	mux := http.NewServeMux()
	mux.HandleFunc("/cpu/start", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		cpu.Reset()
		if err := pprof.StartCPUProfile(&cpu); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
		}
	})
	mux.HandleFunc("/cpu/stop", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		pprof.StopCPUProfile()
		_, _ = cpu.WriteTo(w)
	})
	mux.HandleFunc("/heap", func(w http.ResponseWriter, _ *http.Request) {
		runtime.GC()
		_ = pprof.Lookup("heap").WriteTo(w, 0)
	})
	mux.HandleFunc("/live", func(w http.ResponseWriter, _ *http.Request) {
		runtime.GC()
		runtime.GC() // the second frees what the first one's finalizers let go
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		_ = json.NewEncoder(w).Encode(m.HeapAlloc)
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		s.Close()
	}()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// debug asks a process that was started with a debug socket.
func (p *process) debug(ctx context.Context, path string) ([]byte, error) {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", p.socket)
		}}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://debug"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answered %s: %.200s", path, resp.Status, data)
	}
	return data, err
}

// liveHeap is the memory that is reachable, in bytes.
func (p *process) liveHeap(ctx context.Context) (float64, error) {
	data, err := p.debug(ctx, "/live")
	if err != nil {
		return 0, err
	}
	var n float64
	return n, json.Unmarshal(data, &n)
}

// profiled takes profiles, and the end of the logs, of processes while f runs, if that was asked for, in the last repetition only: a profile costs
// a few per cent.
func (b *bench) profiled(ctx context.Context, part string, f func() error, processes ...*process) error {
	if b.ProfileDir == "" || !b.profile {
		return f()
	}
	for _, p := range processes {
		if p == nil {
			continue
		}
		if _, err := p.debug(ctx, "/cpu/start"); err != nil {
			return err
		}
	}
	if err := f(); err != nil {
		return err
	}
	return b.saveProfiles(ctx, part, processes...)
}

// profileStart profiles a node from as early on as it can be asked.
func (b *bench) profileStart(ctx context.Context) {
	if b.ProfileDir == "" || !b.profile {
		return
	}
	p := &process{socket: b.socket("node")}
	for ctx.Err() == nil {
		if _, err := p.debug(ctx, "/cpu/start"); err == nil {
			return
		}
		sleepContext(ctx, time.Millisecond)
	}
}

func (b *bench) profileFile(part string, p *process, kind string) string {
	return filepath.Join(b.ProfileDir, fmt.Sprintf("%s-%s-%s.%s", part, b.kind, p.name, kind))
}

func (b *bench) saveProfiles(ctx context.Context, part string, processes ...*process) error {
	if b.ProfileDir == "" || !b.profile {
		return nil
	}
	for _, p := range processes {
		if p == nil {
			continue
		}
		for path, kind := range map[string]string{"/cpu/stop": "cpu", "/heap": "heap"} {
			data, err := p.debug(ctx, path)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(b.ProfileDir, 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(b.profileFile(part, p, kind+".pb.gz"), data, 0o644); err != nil {
				return err
			}
		}
		if err := os.WriteFile(b.profileFile(part, p, "log"), []byte(p.logs.String()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

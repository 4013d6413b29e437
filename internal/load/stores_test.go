package load

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"
)

func TestServersAreFoundByTheirPort(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("processes are found in /proc")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	for url, want := range map[string]int{
		fmt.Sprintf("postgres://muster:p%%40ss@127.0.0.1:%d/muster?sslmode=disable", port): os.Getpid(),
		fmt.Sprintf("redis://localhost:%d/3", port):                                        os.Getpid(),
		fmt.Sprintf("redis://192.0.2.1:%d/3", port):                                        0, // another machine's
		"host=/tmp dbname=muster":                                                          0,
		"":                                                                                 0,
	} {
		if got := listener(url, 1); got != want {
			t.Errorf("%s is process %d, want %d", url, got, want)
		}
	}
}

// What children use counts, while they run and when they have ended.
func TestTreeUsage(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("usage is read from /proc")
	}
	if u := treeUsage(0); u.cpu == u.cpu {
		t.Errorf("nobody used %v s", u.cpu)
	}
	before := treeUsage(os.Getpid()).cpu
	child := exec.Command("sh", "-c", "while :; do :; done")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); treeUsage(os.Getpid()).cpu < before+0.2; {
		if time.Now().After(end) {
			t.Error("children that run are not seen")
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	alive := treeUsage(os.Getpid()).cpu

	_ = child.Process.Kill()
	_ = child.Wait()
	if after := treeUsage(os.Getpid()).cpu; after < alive-0.1 {
		t.Errorf("with children that ended %v s, less than before, %v s", after, alive)
	}
}

func TestRatiosAreOfPairs(t *testing.T) {
	var r Report
	add := func(store, name string, headline bool, values ...float64) {
		for _, v := range values {
			r.add(Figure{Benchmark: "b", Store: store, Name: name, Unit: "runs/s", headline: headline}, v)
		}
	}
	add(kindEmbedded, "succeeded", true, 10, 20, 40)
	add(kindStores, "succeeded", true, 5, 20, 10)
	add(kindStores, "writes", false, 5, 20, 10)
	add(kindStores, "only there", true, 5, 20, 10)
	r.compare("b")
	if len(r.Figures) != 5 {
		t.Fatalf("%d figures", len(r.Figures))
	}
	if f := r.Figures[4]; f.Store != "postgres/embedded" || f.Text() != "0.500 (0.250..1)" {
		t.Errorf("the ratio of %s is %s", f.Store, f.Text())
	}
}

package api

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

// Whoever opens connections without end keeps nobody out who asks something, and ends nothing that is being answered.
func TestStrangersDoNotUseUpTheConnections(t *testing.T) {
	for _, kind := range []string{"HTTP/2", "HTTP/2 without TLS", "HTTP/1.1"} {
		t.Run(kind, func(t *testing.T) {
			const most = 20
			going := make(chan struct{})
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprintln(w, r.Proto)
				_ = http.NewResponseController(w).Flush()
				if r.URL.Path == "/stream" {
					<-going
					fmt.Fprintln(w, "the end")
				}
			})
			c := ServerConfig{Handler: h, Logger: slog.New(slog.DiscardHandler), MaxConnections: most}
			transport := &http.Transport{Protocols: new(http.Protocols)}
			scheme := "http://"
			switch kind {
			case "HTTP/2":
				lender := httptest.NewUnstartedServer(nil) // of a certificate
				lender.StartTLS()
				defer lender.Close()
				c.TLS = &tls.Config{Certificates: lender.TLS.Certificates}
				transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
				transport.Protocols.SetHTTP2(true)
				scheme = "https://"
			case "HTTP/2 without TLS":
				transport.Protocols.SetUnencryptedHTTP2(true)
			default:
				transport.Protocols.SetHTTP1(true)
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			s := Server(c)
			go func() {
				if c.TLS != nil {
					_ = s.ServeTLS(l, "", "")
				} else {
					_ = s.Serve(l)
				}
			}()
			defer s.Close()
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport}
			stream, err := client.Get(scheme + l.Addr().String() + "/stream")
			if err != nil {
				t.Fatal(err)
			}
			defer stream.Body.Close()
			lines := bufio.NewReader(stream.Body)
			if line, err := lines.ReadString('\n'); err != nil {
				t.Fatal(line, err)
			}
			var silent []net.Conn
			for range 5 * most {
				n, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer n.Close()
				silent = append(silent, n)
			}
			for i, n := range silent[:4*most] {
				_ = n.SetReadDeadline(time.Now().Add(5 * time.Second)) // the server itself gives it 10 s
				if _, err := n.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatalf("connection %d of %d is still open: %v", i+1, len(silent), err)
				}
			}
			other := transport.Clone()
			defer other.CloseIdleConnections()
			r, err := (&http.Client{Transport: other, Timeout: 5 * time.Second}).Get(scheme + l.Addr().String() + "/")
			if err != nil {
				t.Fatalf("somebody who asks is kept out: %v", err)
			}
			r.Body.Close()
			close(going)
			if rest, err := io.ReadAll(lines); err != nil || string(rest) != "the end\n" {
				t.Errorf("the stream ended with %q, %v", rest, err)
			}
		})
	}
}

// Whoever announces a body and sends none is answered, though nobody reads it, and lets go of.
func TestABodyThatNobodyReadsIsNotWaitedFor(t *testing.T) {
	long := make([]byte, 8<<10) // more than the server keeps back
	for _, answer := range [][]byte{[]byte("no"), long} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := Server(ServerConfig{Logger: slog.New(slog.DiscardHandler), BodyTimeout: 100 * time.Millisecond,
			Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401); _, _ = w.Write(answer) })})
		go s.Serve(l)
		defer s.Close()
		for _, head := range []string{"Content-Length: 100", "Transfer-Encoding: chunked"} {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			fmt.Fprintf(c, "POST /v1/runs HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n", head)
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			b, err := io.ReadAll(c)
			if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 401") {
				t.Errorf("%s: %.20q, %v", head, b, err)
			}
		}
	}
}

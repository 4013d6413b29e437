package postgres

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestSharedReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sharedReads[string, int]
		reads := 0
		release := make(chan struct{})
		read := func(context.Context) (int, error) {
			reads++
			n := reads
			<-release
			if n == 2 {
				return 0, errors.New("the second")
			}
			return n, nil
		}
		answers := make(chan int, 100)
		ask := func(ctx context.Context) {
			go func() {
				n, err := s.do(ctx, "a", read)
				if err != nil {
					n = -1
				}
				answers <- n
			}()
			synctest.Wait()
		}
		gone, leave := context.WithCancel(t.Context())
		ask(gone)
		for range 10 { // none of them may be answered by the first read, which has begun
			ask(t.Context())
		}
		leave()
		if n := <-answers; n != -1 {
			t.Fatalf("who left was answered %d", n)
		}
		release <- struct{}{} // the first read goes on without him
		synctest.Wait()
		if len(answers) > 0 || reads != 2 {
			t.Fatalf("%d answers, %d reads", len(answers), reads)
		}
		ask(t.Context())
		release <- struct{}{}
		for range 10 {
			if n := <-answers; n != -1 {
				t.Fatalf("answered %d by another read than the second", n)
			}
		}
		release <- struct{}{}
		if n := <-answers; n != 3 || reads != 3 {
			t.Fatalf("answered %d after %d reads", n, reads)
		}
		synctest.Wait()
		if len(s.running) > 0 {
			t.Fatal("reads are remembered that nobody waits for")
		}
	})
}

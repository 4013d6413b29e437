package mirror

import "context"

// Back, Flush and Compare are what Run does in its time.
func (q *Queue) Back(ctx context.Context)    { q.back(ctx) }
func (q *Queue) Flush(ctx context.Context)   { q.flush(ctx) }
func (q *Queue) Compare(ctx context.Context) { q.compare(ctx) }

// Used tells whether the remote queue is used.
func (q *Queue) Used() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.state == used
}

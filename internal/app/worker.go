package app

import "context"

// WorkerOptions are an agent's settings.
type WorkerOptions struct{}

func (n *node) runWorker(ctx context.Context) error { <-ctx.Done(); return nil }

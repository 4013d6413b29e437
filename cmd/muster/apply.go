package main

import "context"

func (c *cli) applyImported(ctx context.Context, where string, jobs []imported) error { return nil }

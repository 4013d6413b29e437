// Package client is the Go SDK: it submits runs and asks about them, over the HTTP API of any node.
//
// A Client knows several nodes and moves on to the next when one does not answer. That is safe because it makes the id of
// a run before the first attempt to submit it, and repeating an id is the same run on any node (S10); all other writes it
// repeats are such that twice is once. Errors are *job.Error, the very same that the node's own code made: branch on
// job.CodeOf(err), and on Reason where that is too coarse. What is still Unavailable or Unknown after RetryFor is returned
// as such.
//
// A cluster that uses TLS is known by its certificate authority: Config.TLS, which TrustCA makes of ca.crt.
package client
